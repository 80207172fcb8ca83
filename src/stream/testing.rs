//! Loads and parsed chunks for the unit tests of the writer's parts.

use std::sync::Arc;

use uuid::Uuid;

use super::protocol::ParsedChunk;
use crate::dataset::{Column, ColumnType, Dataset, Model, Place, Repeats, StreamMode};
use crate::record::parse::{DayRange, Parser};
use crate::record::split::Splitter;
use crate::store::Dialect;
use crate::transport::piece::Load;

pub fn load(key: u128, dataset: &str) -> Arc<Load> {
    let column = Column { name: "id".to_owned(), column_type: ColumnType::BigInt, required: true, from: Place::key("id") };
    let dataset = Dataset {
        name: dataset.to_owned(),
        dir: dataset.into(),
        columns: vec![column],
        key: vec![0],
        day: None,
        model: Model::default(),
        stream: StreamMode::default(),
        menu: false,
        repeats: Repeats::Load,
    };
    Arc::new(Load { key: Uuid::from_u128(key), dataset: Arc::new(dataset), source: format!("{key}.json") })
}

pub fn parsed(load: &Load, text: &str) -> ParsedChunk {
    let chunk = Splitter::new(text.as_bytes()).next_chunk().unwrap().unwrap();
    let mut parser = Parser::new(Arc::clone(&load.dataset));
    ParsedChunk::new(chunk, Dialect::Sqlite, |chunk, rows| parser.parse(chunk, &DayRange::ALL, rows))
}
