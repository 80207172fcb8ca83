//! Pure: bytes in, rows or rejects out. Knows neither files nor databases.

pub mod decompress; // gzip and zstd by content
pub mod split; // where records begin and end; cuts chunks in constant memory
pub mod chunk; // runs of whole records, the unit that is queued and counted
pub mod parse; // a chunk's records → rows and rejects
mod scan; // where the members of a record stand
mod coerce; // the JSON text of a value → a value of its column's type
mod number; // numbers without loss: bigint, double, numeric
mod time; // dates and timestamps in ISO 8601
mod json; // nesting, escapes and huge numbers in JSON text
pub mod row; // the values of a row; rejects and their reasons
