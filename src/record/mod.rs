//! Pure: bytes in, rows or rejects out. Knows neither files nor databases.

pub mod decompress; // gzip and zstd by content
pub mod split; // where records begin and end; cuts chunks in constant memory
pub mod chunk; // runs of whole records, the unit that is queued and counted
pub mod row; // the values of a row; rejects and their reasons
