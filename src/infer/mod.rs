//! From records to the definition of a dataset that loads all of them. Pure, but for a temporary file that bounds the memory.

pub mod profile; // what the keys of all records hold
mod evidence; // what was seen of one key
mod rows; // the records' values as hashes, for the search
mod unique; // the smallest key
pub mod proposal; // types, key, day, dimensions
pub mod drift; // how records differ from a definition
pub mod findings; // all of it as JSON
pub mod section; // the proposal as text

/// Where a record stands: the number of the file among those that were read, from 0, and the record's number in it, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    pub file: usize,
    pub ordinal: u64,
}

#[cfg(test)]
mod tests;
