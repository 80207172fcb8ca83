//! The life of a file in the inbox: dropped, claimed, read, and put where it belongs.

mod drop; // puts a copy of a file into the inbox
mod names; // which files count, and what they are called on their way

pub use drop::drop_file;
