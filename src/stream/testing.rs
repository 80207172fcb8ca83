//! Loads and parsed chunks for the unit tests of the writer's parts.

use std::sync::Arc;

use uuid::Uuid;

use super::protocol::ParsedChunk;
use crate::dataset::{ColumnType, Dataset};
use crate::record::parse::{DayRange, Parser};
use crate::record::split::Splitter;
use crate::store::Dialect;
use crate::transport::piece::Load;

pub fn load(key: u128, dataset: &str) -> Arc<Load> {
    let dataset = Arc::new(Dataset::of_ids(dataset, ColumnType::BigInt));
    Arc::new(Load { key: Uuid::from_u128(key), dataset, source: format!("{key}.json") })
}

pub fn parsed(load: &Load, text: &str) -> ParsedChunk {
    let chunk = Splitter::new(text.as_bytes()).next_chunk().unwrap().unwrap();
    let mut parser = Parser::new(Arc::clone(&load.dataset));
    ParsedChunk::new(chunk, Dialect::Sqlite, |chunk, rows| parser.parse(chunk, &DayRange::ALL, rows))
}
