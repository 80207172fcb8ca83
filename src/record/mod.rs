//! Pure functions from bytes to rows or rejects. This layer uses neither files nor databases.

pub mod decompress; // gzip and zstd by content
pub mod content; // the hash of a file's stored bytes
pub mod split; // finds where records begin and end; cuts chunks in constant memory
pub mod chunk; // runs of whole records, the unit that is queued and counted
pub mod parse; // a chunk's records → rows and rejects
pub mod unknown; // keys that no column takes
pub mod backfill; // what `_extra` holds for columns that were added later
mod nested; // takes columns from inside of nested values
pub mod scan; // finds the members of a record
mod coerce; // converts the JSON text of a value to its column's type
mod number; // lossless numbers: bigint, double, numeric
pub mod kind; // what a value is, and the types that take it whole
mod time; // dates and timestamps in ISO 8601
pub mod json; // nesting, escapes and huge numbers in JSON text
pub mod fault; // where in a rejected record its fault is
pub mod row; // the values of a row; rejects and their reasons
