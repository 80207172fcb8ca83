//! What can be asked of the database, and done with its rejects, as data. The commands print it, and the page shows it.

pub mod status; // the ledger
pub mod loads; // its rows
pub mod verify; // whether all that is there agrees
pub mod report; // the modelled tables
pub mod overview; // the first screen of the page
pub mod dead_letters; // what RabbitMQ keeps beside the rejects
pub mod replay; // rejected records, parsed again
