//! Takes from the `_extra` of a row that is there what the columns of the definition take now. The result is the row that a fresh
//! load of its record makes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::coerce::{self, coerce};
use super::parse::{Fields, KeyMap, THERE, shortened};
use super::row::Value;
use crate::dataset::{ColumnType, Dataset};

/// Whether `_extra` holds the values as they stood in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    AsWritten,
    /// By value: the white space and the order inside of nested values are lost.
    ByValue,
}

/// Takes values from `_extra`, row by row.
#[derive(Debug)]
pub struct Backfill {
    dataset: Arc<Dataset>,
    kept: Kept,
    /// By the columns that are left out.
    keys: HashMap<BTreeSet<usize>, KeyMap>,
}

/// What a row gets.
#[derive(Debug, Clone, PartialEq)]
pub struct Filled<'a> {
    /// Values of columns, by the index of the column; none is null.
    pub values: Vec<(usize, Value<'a>)>,
    /// What is left in `_extra`.
    pub extra: Value<'a>,
    /// Columns whose value stays in `_extra`, with the reason.
    pub left: Vec<(usize, String)>,
}

impl Backfill {
    /// For the rows of a dataset.
    pub fn new(dataset: &Arc<Dataset>, kept: Kept) -> Self {
        Self { dataset: Arc::clone(dataset), kept, keys: HashMap::new() }
    }

    /// What the row gets from its `_extra`; `None` if no column takes anything of it. `is_null` says whether a column of the row
    /// is null: a value that is there is never replaced.
    pub fn fill<'a>(&mut self, extra: &'a str, is_null: impl Fn(usize) -> bool) -> Option<Filled<'a>> {
        let mut fields = Fields::new(self.dataset.columns.len());
        let (mut left_out, mut left) = (BTreeSet::new(), Vec::new());
        loop {
            if !fields.fill_rest(extra, self.keys_without(&left_out), |column| !is_null(column)) {
                return None;
            }
            let taken = |source: &Option<&str>| source.is_some_and(|source| source != THERE);
            let mut values = Vec::new();
            let refused = left.len();
            for (column, source) in fields.columns.iter().enumerate() {
                // Null says nothing; in a list it holds the place of an element that was taken.
                let Some(source) = source.filter(|source| !matches!(*source, THERE | "null")) else { continue };
                match self.value(column, source, is_null(column)) {
                    Ok(value) => values.push((column, value)),
                    Err(reason) => left.push((column, reason)),
                }
            }
            if left.len() == refused {
                let takes_any = fields.columns.iter().any(taken) || !left.is_empty();
                return takes_any.then(|| Filled { values, extra: fields.extra_value(), left });
            }
            // What does not fit stays where it stands: the rest is taken as if these columns were not there.
            left_out.extend(left.iter().map(|(column, _)| *column));
        }
    }

    fn value<'a>(&self, column: usize, source: &'a str, is_null: bool) -> Result<Value<'a>, String> {
        let column_type = self.dataset.columns[column].column_type;
        if !is_null {
            return Err(format!("{} is not taken, because the row has another value in the column", shortened(source)));
        }
        if column_type == ColumnType::Text && self.kept == Kept::ByValue && source.starts_with(['{', '[']) {
            return Err(format!(
                "{} is nested, and PostgreSQL does not keep how it was written (take it as jsonb, or load its file again)",
                shortened(source)
            ));
        }
        coerce(column_type, source).map_err(|reason| format!("{} {}", shortened(source), coerce::problem(column_type, reason)))
    }

    fn keys_without(&mut self, columns: &BTreeSet<usize>) -> &mut KeyMap {
        if !self.keys.contains_key(columns) {
            self.keys.insert(columns.clone(), KeyMap::without(&self.dataset, columns));
        }
        self.keys.get_mut(columns).expect("it was just inserted")
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::collections::BTreeMap;

    use serde_json::value::RawValue;

    use super::*;
    use crate::dataset::{Column, Place};
    use crate::record::chunk::{Chunk, ChunkBody, Framing};
    use crate::record::parse::{DayRange, Parser};
    use crate::record::row::RowSink;

    fn dataset(columns: &[(&str, ColumnType)]) -> Arc<Dataset> {
        let column = |(i, (place, column_type)): (usize, &(&str, ColumnType))| Column {
            name: format!("c{i}"),
            column_type: *column_type,
            required: false,
            from: Place::parse(place).unwrap(),
        };
        Arc::new(Dataset { columns: columns.iter().enumerate().map(column).collect(), ..Dataset::without_columns("things") })
    }

    /// The rows of a parser, made their own.
    #[derive(Default)]
    struct Rows(Vec<Vec<Value<'static>>>);

    impl RowSink for Rows {
        fn push(&mut self, values: &[Value<'_>]) {
            self.0.push(values.iter().map(owned).collect());
        }
    }

    fn owned(value: &Value<'_>) -> Value<'static> {
        let text = |text: &Cow<'_, str>| Cow::Owned(text.clone().into_owned());
        match value {
            Value::Text(value) => Value::Text(text(value)),
            Value::Numeric(value) => Value::Numeric(text(value)),
            Value::Json(value) => Value::Json(text(value)),
            Value::Null => Value::Null,
            Value::BigInt(value) => Value::BigInt(*value),
            Value::Double(value) => Value::Double(*value),
            other => panic!("not in these tests: {other:?}"),
        }
    }

    /// The row of a record, `_extra` last; `None` if it is rejected.
    fn loaded(dataset: &Arc<Dataset>, record: &str) -> Option<Vec<Value<'static>>> {
        let span = 0..u32::try_from(record.len()).unwrap();
        let body = ChunkBody::Records { framing: Framing::Stream, text: record.into(), spans: vec![span] };
        let chunk = Chunk { seq: 0, first_ordinal: 1, first_byte_offset: 0, body };
        let mut rows = Rows::default();
        Parser::new(Arc::clone(dataset)).parse(&chunk, &DayRange::ALL, &mut rows);
        rows.0.pop()
    }

    /// Gives the row the columns that the new definition has more; `kept` are the indexes of the columns that it has.
    fn backfilled(dataset: &Arc<Dataset>, kept: &[usize], old: Vec<Value<'static>>) -> (Vec<Value<'static>>, Filled<'static>) {
        let mut row = vec![Value::Null; dataset.columns.len() + 1];
        for (column, value) in kept.iter().copied().chain([dataset.columns.len()]).zip(old) {
            row[column] = value;
        }
        let Some(Value::Json(extra)) = row.last().cloned() else {
            return (row, Filled { values: Vec::new(), extra: Value::Null, left: Vec::new() });
        };
        let filled = Backfill::new(dataset, Kept::AsWritten).fill(&extra, |column| row[column] == Value::Null);
        let extra = Value::Json(extra.clone());
        let filled = filled.map_or(Filled { values: Vec::new(), extra, left: Vec::new() }, |filled| Filled {
            values: filled.values.iter().map(|(column, value)| (*column, owned(value))).collect(),
            extra: owned(&filled.extra),
            left: filled.left.clone(),
        });
        for (column, value) in &filled.values {
            row[*column] = value.clone();
        }
        row[dataset.columns.len()] = filled.extra.clone();
        (row, filled)
    }

    /// The values of the columns, and the members of `_extra` by their keys: their order means nothing.
    fn members(row: &[Value<'static>]) -> (Vec<Value<'static>>, BTreeMap<String, String>) {
        let (extra, values) = row.split_last().unwrap();
        let Value::Json(extra) = extra else { return (values.to_vec(), BTreeMap::new()) };
        let members: BTreeMap<String, Box<RawValue>> = serde_json::from_str(extra).unwrap();
        (values.to_vec(), members.into_iter().map(|(key, value)| (key, value.get().to_owned())).collect())
    }

    const COLUMNS: [(&str, ColumnType); 7] = [
        ("a", ColumnType::Text),
        ("Other Key", ColumnType::BigInt),
        ("/n/x", ColumnType::Numeric),
        ("/n/y/z", ColumnType::Text),
        ("/l/0", ColumnType::Jsonb),
        ("/l/1/v", ColumnType::Double),
        ("/l/2", ColumnType::Text),
    ];

    #[test]
    fn whatever_columns_are_added_the_row_is_that_of_a_fresh_load() {
        let records = [
            r#"{"a":"x","Other Key":7,"n":{"x":1.50,"y":{"z":"d"}},"l":[ {"k": 1}, {"v":0.1}, 3],"z":null}"#,
            r#"{"z":{"q": [ 1 ]},"n": {"x": 1.50e1, "w" : [1, 2], "y": {"z": 1.0e1, "u": 1e400}}, "a": { "b": 1 }}"#,
            r#"{"l":[1, {"v":2,"w":3}, null, "more"],"a":null,"n":{}}"#,
            r#"{"l":[null,null,null],"n":{"y":null,"x":null},"\u0061":"\u00fc"}"#,
            r#"{"n":5,"l":{"0":"zero","2":2},"Other Key":"42","y":1,"y":2}"#,
            r#"{"n":{"x":1},"n":[1],"l":[],"a":true,"b":{"a": 1}}"#,
            "{}",
        ];
        let new = dataset(&COLUMNS);
        for record in records {
            let fresh = loaded(&new, record).unwrap_or_else(|| panic!("{record} fits"));
            for subset in 0..1_u32 << COLUMNS.len() {
                let kept: Vec<usize> = (0..COLUMNS.len()).filter(|column| subset & (1 << column) != 0).collect();
                let old = dataset(&kept.iter().map(|column| COLUMNS[*column]).collect::<Vec<_>>());
                let (row, filled) = backfilled(&new, &kept, loaded(&old, record).unwrap());
                assert_eq!((members(&row), filled.left), (members(&fresh), Vec::new()), "{record} with {kept:?}");
                // Once more, there is nothing to do.
                let all: Vec<usize> = (0..COLUMNS.len()).collect();
                assert_eq!(members(&backfilled(&new, &all, row).0), members(&fresh), "{record} with {kept:?}, again");
            }
        }
    }

    #[test]
    fn what_does_not_fit_stays_where_it_stands() {
        let new = dataset(&COLUMNS);
        let extra = r#"{"b":1,"Other Key":"x","a":"fits","n":{"x":"no number","y":{"z":"d"}}}"#;
        let filled = Backfill::new(&new, Kept::AsWritten).fill(extra, |_| true).unwrap();
        assert_eq!(filled.values, [(0, Value::Text("fits".into())), (3, Value::Text("d".into()))]);
        assert_eq!(filled.extra, Value::Json(r#"{"b":1,"Other Key":"x","n":{"x":"no number"}}"#.into()));
        let left: Vec<&str> = filled.left.iter().map(|(_, reason)| reason.as_str()).collect();
        assert_eq!(left, ["\"x\" is no integer (expected e.g. 42)", "\"no number\" is no number (expected e.g. 1500.00)"]);
    }

    #[test]
    fn a_value_that_is_there_is_never_replaced() {
        let new = dataset(&COLUMNS);
        let extra = r#"{"a":"other"}"#;
        let filled = Backfill::new(&new, Kept::AsWritten).fill(extra, |column| column != 0).unwrap();
        assert_eq!((filled.values, filled.extra, filled.left.len()), (Vec::new(), Value::Json(extra.into()), 1));
        assert_eq!(Backfill::new(&new, Kept::AsWritten).fill(r#"{"b":1}"#, |_| true), None);
    }

    #[test]
    fn a_nested_value_becomes_text_only_where_it_is_kept_as_written() {
        let new = dataset(&COLUMNS);
        let text = r#"{"a":[1, 2]}"#;
        let filled = |kept| Backfill::new(&new, kept).fill(text, |_| true).unwrap().values;
        assert_eq!(filled(Kept::AsWritten), [(0, Value::Text("[1, 2]".into()))]);
        assert_eq!(filled(Kept::ByValue), []);
    }
}
