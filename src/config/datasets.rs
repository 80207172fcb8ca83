//! Reads `[datasets.*]` into datasets whose names and columns every supported database accepts.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::document::{Section, Value, suggestion};
use crate::dataset::{Column, ColumnType, Dataset, FactColumns, FactView, Model, Place, Repeats, StreamMode};
use crate::error::Result;

/// PostgreSQL truncates longer names. SQLite does not, but both must have the same tables.
pub const MAX_NAME_BYTES: usize = 63;
/// Both databases support this many columns, plus the generated ones.
pub const MAX_COLUMNS: usize = 1_000;
/// A record may not nest deeper, so a pointer that goes deeper never finds anything.
const MAX_DEPTH: usize = 128;
/// Names of the program's own tables and queues. Names that begin with `_` are reserved as well.
const RESERVED_DATASETS: [&str; 5] = ["loads", "batches", "rejects", "load_history", "dead"];
/// Columns of every raw table.
const RESERVED_COLUMNS: [&str; 2] = ["_extra", "_load_id"];
/// PostgreSQL's system columns, which no table may define.
const SYSTEM_COLUMNS: [&str; 6] = ["tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"];

pub(super) fn read(root: &Section<'_>) -> Result<Vec<Arc<Dataset>>> {
    let Some(sections) = root.get("datasets") else {
        return Err(root.error("no datasets").hint(EXAMPLE));
    };
    let sections = sections.section()?;
    let mut datasets = Vec::new();
    let mut names = Names::default();
    let mut tables = Names::default();
    for entry in sections.entries() {
        let dataset = read_dataset(&entry)?;
        names.claim(&dataset.name, &entry, || format!("the dataset `{}`", dataset.name))?;
        for table in tables_of(&dataset) {
            if table.len() > MAX_NAME_BYTES {
                let (long, name) = (table.len(), &dataset.name);
                return Err(entry
                    .key_error(format!(
                        "the dataset `{name}` makes the table `{table}` of {long} bytes, and {MAX_NAME_BYTES} are possible"
                    ))
                    .hint("give the dataset or the dimension a shorter name"));
            }
            tables.claim(&table, &entry, || format!("a table of the dataset `{}`", dataset.name))?;
        }
        datasets.push(Arc::new(dataset));
    }
    if datasets.is_empty() {
        return Err(sections.error("no datasets").hint(EXAMPLE));
    }
    Ok(datasets)
}

const EXAMPLE: &str = "define at least one: [datasets.events] with `key` and [datasets.events.columns]";

/// The tables of a dataset as SQLite names them, with the schema as a prefix. This is the longest form; names that are unique
/// here are unique in PostgreSQL too.
fn tables_of(dataset: &Dataset) -> Vec<String> {
    let name = &dataset.name;
    let mut tables = vec![format!("raw_{name}"), format!("raw_{name}_delta")];
    if dataset.day.is_some() {
        tables.push(format!("modelled_{name}_by_date"));
        let dimensions = dataset.model.dimensions.iter().map(|&i| &dataset.columns[i].name);
        tables.extend(dimensions.map(|dimension| format!("modelled_{name}_by_date_{dimension}")));
    }
    tables
}

/// A set of names that must not differ only in case: SQLite treats `Id` and `id` as the same name.
#[derive(Default)]
struct Names(HashMap<String, (String, String)>);

impl Names {
    /// `owner` describes the object that has the name.
    fn claim(&mut self, name: &str, place: &Value<'_>, owner: impl FnOnce() -> String) -> Result<()> {
        let owner = owner();
        match self.0.insert(name.to_ascii_lowercase(), (name.to_owned(), owner.clone())) {
            None => Ok(()),
            Some((other, other_owner)) => {
                let message = if other == name {
                    format!("`{name}` is {other_owner} and {owner} at once")
                } else {
                    format!("`{name}` ({owner}) and `{other}` ({other_owner}) differ only in case, which SQLite does not see")
                };
                Err(place.key_error(message).hint("give one of them another name"))
            }
        }
    }
}

fn read_dataset(entry: &Value<'_>) -> Result<Dataset> {
    let name = entry.key;
    check_identifier(name, entry)?;
    check_dataset_name(name, entry)?;
    let section = entry.section()?;
    section.allow_only(&["dir", "key", "day", "stream", "menu", "repeats", "columns", "model"])?;

    let dir = section.get("dir").map_or(Ok(PathBuf::from(name)), |value| value.path())?;
    let Some(columns) = section.get("columns") else {
        let hint = format!("add [datasets.{name}.columns] with a line for each: id = \"text\"");
        return Err(section.error(format!("the dataset `{name}` has no columns")).hint(hint));
    };
    let columns = read_columns(&columns)?;

    let Some(key) = section.get("key") else {
        let error = section.error(format!("the dataset `{name}` has no `key`"));
        return Err(error.hint("name the columns that make two records the same: key = [\"id\"]"));
    };
    let key = read_key(&key, &columns)?;
    let day = section.get("day").map(|value| read_day(&value, &columns)).transpose()?;
    let model = match section.get("model") {
        None => Model::default(),
        Some(value) if day.is_none() => {
            let error = value.key_error(format!("the dataset `{name}` has a model but no `day`"));
            return Err(error.hint("name the required date or time column that the model groups by: day = \"…\""));
        }
        Some(value) => read_model(&value, name, day, &columns)?,
    };
    let stream = section.get("stream").map_or(Ok(StreamMode::default()), |value| read_stream(&value))?;
    let menu = section.get("menu").map_or(Ok(false), |value| value.boolean())?;
    let repeats = section.get("repeats").map_or(Ok(Repeats::Load), |value| read_repeats(&value))?;
    Ok(Dataset { name: name.to_owned(), dir, columns, key, day, model, stream, menu, repeats })
}

fn read_repeats(value: &Value<'_>) -> Result<Repeats> {
    let name = value.string()?;
    Repeats::ALL.into_iter().find(|repeats| repeats.name() == name).ok_or_else(|| {
        let names = Repeats::ALL.iter().map(|repeats| repeats.name());
        value.error(format!("unknown value `{name}` of `repeats`")).hint(suggestion(name, names, "values"))
    })
}

/// Whether tables or queues of the program have that name.
pub fn is_reserved_dataset(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    RESERVED_DATASETS.contains(&lower.as_str()) || lower.starts_with('_') || lower.starts_with("fact_") || lower.ends_with("_delta")
}

/// Whether every raw table has a column of that name already, made by the program or by PostgreSQL.
pub fn is_reserved_column(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    RESERVED_COLUMNS.contains(&lower.as_str()) || SYSTEM_COLUMNS.contains(&lower.as_str())
}

fn check_dataset_name(name: &str, entry: &Value<'_>) -> Result<()> {
    if is_reserved_dataset(name) {
        let hint = "give it another name; these are taken: loads, batches, rejects, load_history, dead, _…, fact_…, …_delta";
        return Err(entry
            .key_error(format!("a dataset cannot be named `{name}`: tables or queues of the program have that name"))
            .hint(hint));
    }
    Ok(())
}

/// Names are used for tables, columns, queues and directories. They are ASCII only, so that every database converts their case
/// alike.
pub fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && name.len() <= MAX_NAME_BYTES
}

fn check_identifier(name: &str, place: &Value<'_>) -> Result<()> {
    if is_identifier(name) {
        return Ok(());
    }
    let hint = "use ASCII letters, digits and `_`, not a digit first, at most 63 in all";
    Err(place.key_error(format!("`{}` cannot be a name", name.escape_debug())).hint(hint))
}

fn read_columns(value: &Value<'_>) -> Result<Vec<Column>> {
    let section = value.section()?;
    let mut columns = Vec::new();
    let mut names = Names::default();
    for entry in section.entries() {
        let name = entry.key;
        check_identifier(name, &entry)?;
        let lower = name.to_ascii_lowercase();
        if RESERVED_COLUMNS.contains(&lower.as_str()) {
            let error = entry.key_error(format!("a column cannot be named `{name}`: every raw table has such a column already"));
            return Err(error.hint("leave it out; unknown keys of a record, this one too, are kept in `_extra`"));
        }
        if SYSTEM_COLUMNS.contains(&lower.as_str()) {
            let error = entry.key_error(format!("a column cannot be named `{name}`: PostgreSQL has such a column of its own"));
            return Err(error.hint("leave it out; the records' values are kept in `_extra`"));
        }
        names.claim(name, &entry, || "a column".to_owned())?;
        let column = read_column(&entry)?;
        check_place(&column, &columns, &entry)?;
        columns.push(column);
    }
    if columns.is_empty() {
        return Err(value.key_error("no columns").hint("add a line for each: id = \"text\""));
    }
    if columns.len() > MAX_COLUMNS {
        let error = value.key_error(format!("{} columns, and {MAX_COLUMNS} are possible", columns.len()));
        return Err(error.hint("leave some out; the records' values are kept in `_extra`"));
    }
    Ok(columns)
}

/// Every value of a record has one column at most, so that nothing is taken twice and the rest is what no column takes.
fn check_place(column: &Column, earlier: &[Column], entry: &Value<'_>) -> Result<()> {
    let Some(other) = earlier.iter().find(|other| other.from.overlaps(&column.from)) else { return Ok(()) };
    let (own, others) = (&column.name, &other.name);
    let message = match column.from.0.len().cmp(&other.from.0.len()) {
        Ordering::Equal => format!("the columns `{others}` and `{own}` take the same value"),
        Ordering::Greater => format!("the column `{own}` takes a part of what the column `{others}` takes"),
        Ordering::Less => format!("the column `{own}` takes what the column `{others}` takes a part of"),
    };
    Err(entry.key_error(message).hint("leave one of them out, or change its `from`"))
}

/// Reads a key, or a JSON Pointer that begins with `/`.
fn read_place(value: &Value<'_>) -> Result<Place> {
    let text = value.string()?;
    let Some(place) = Place::parse(text) else {
        let error = value.error(format!("`{}` is no JSON Pointer: `~` stands alone in it", text.escape_debug()));
        return Err(error.hint("write `~0` for `~` in a key, and `~1` for `/`"));
    };
    if place.0.len() > MAX_DEPTH {
        let error = value.error(format!("`from` has {} parts, and records nest {MAX_DEPTH} levels at most", place.0.len()));
        return Err(error.hint("point to a value that is less deep"));
    }
    Ok(place)
}

/// Reads `"text"` or `{ type = "text", required = true, from = "key" }`.
fn read_column(entry: &Value<'_>) -> Result<Column> {
    let mut from = Place::key(entry.key);
    let (column_type, required) = if entry.is_section() {
        let section = entry.section()?;
        section.allow_only(&["type", "required", "from"])?;
        if let Some(value) = section.get("from") {
            from = read_place(&value)?;
        }
        let Some(column_type) = section.get("type") else {
            let hint = format!("{} = {{ type = \"text\", required = true }}", entry.key);
            return Err(entry.key_error(format!("the column `{}` has no type", entry.key)).hint(hint));
        };
        (read_type(&column_type)?, section.get("required").map_or(Ok(false), |value| value.boolean())?)
    } else {
        (read_type(entry)?, false)
    };
    Ok(Column { name: entry.key.to_owned(), column_type, required, from })
}

fn read_type(value: &Value<'_>) -> Result<ColumnType> {
    let name = value.string()?;
    ColumnType::from_name(name).ok_or_else(|| {
        let types = ColumnType::ALL.iter().map(|t| t.name());
        value.error(format!("unknown column type `{name}`")).hint(suggestion(name, types, "types"))
    })
}

fn read_key(value: &Value<'_>, columns: &[Column]) -> Result<Vec<usize>> {
    let key = distinct_columns(value, columns)?;
    if key.is_empty() {
        let error = value.error("`key` is empty");
        return Err(error.hint("name the columns that make two records the same: key = [\"id\"]"));
    }
    Ok(key)
}

/// The column indexes of an array of column names. A repeated name is an error.
fn distinct_columns(value: &Value<'_>, columns: &[Column]) -> Result<Vec<usize>> {
    let mut indexes = Vec::new();
    for (element, name) in value.strings()? {
        let index = column_named(name, &element, columns)?;
        if indexes.contains(&index) {
            return Err(element.error(format!("`{}` names `{name}` twice", value.key)).hint("name it once"));
        }
        indexes.push(index);
    }
    Ok(indexes)
}

/// The index of the column called `name`; `value` is where the name stands.
fn column_named(name: &str, value: &Value<'_>, columns: &[Column]) -> Result<usize> {
    columns.iter().position(|c| c.name == name).ok_or_else(|| {
        let names = columns.iter().map(|c| c.name.as_str());
        value.error(format!("`{}` names `{name}`, which is no column", value.key)).hint(suggestion(name, names, "columns"))
    })
}

fn read_day(value: &Value<'_>, columns: &[Column]) -> Result<usize> {
    let name = value.string()?;
    let index = column_named(name, value, columns)?;
    let column = &columns[index];
    let right = format!("{name} = {{ type = \"timestamp\", required = true }} (or date, timestamptz)");
    if !column.column_type.is_date_or_time() {
        let error = value.error(format!("`day` names `{name}`, whose type is {}", column.column_type.name()));
        return Err(error.hint(format!("it must be a date or time: {right}")));
    }
    if !column.required {
        let error = value.error(format!("`day` names `{name}`, which is not required"));
        return Err(error.hint(format!("every record needs a day: {right}")));
    }
    Ok(index)
}

/// Reads `"append"` or `"upsert"`: what a dropped record does to the rows of its key.
fn read_stream(value: &Value<'_>) -> Result<StreamMode> {
    let name = value.string()?;
    StreamMode::ALL.into_iter().find(|mode| mode.name() == name).ok_or_else(|| {
        let modes = StreamMode::ALL.iter().map(|mode| mode.name());
        value.error(format!("unknown stream mode `{name}`")).hint(suggestion(name, modes, "modes"))
    })
}

fn read_model(value: &Value<'_>, dataset: &str, day: Option<usize>, columns: &[Column]) -> Result<Model> {
    let section = value.section()?;
    section.allow_only(&["dimensions", "distinct", "fact_view"])?;
    let mut names = Names::default();
    for generated in ["date".to_owned(), format!("total_{dataset}"), format!("unique_{dataset}")] {
        names.claim(&generated, value, || "a generated column".to_owned())?;
    }
    let mut model = Model::default();
    if let Some(dimensions) = section.get("dimensions") {
        model.dimensions = distinct_columns(&dimensions, columns)?;
        for (element, name) in dimensions.strings()? {
            names.claim(name, &element, || "a dimension".to_owned())?;
        }
    }
    if let Some(distinct) = section.get("distinct") {
        for entry in distinct.section()?.entries() {
            check_identifier(entry.key, &entry)?;
            names.claim(entry.key, &entry, || "a count of distinct values".to_owned())?;
            model.distinct.push((entry.key.to_owned(), column_named(entry.string()?, &entry, columns)?));
        }
    }
    model.fact_view = match section.get("fact_view") {
        None => implied_fact_view(dataset, &model, columns),
        Some(value) => read_fact_view(&value, dataset, day, &model, columns)?,
    };
    Ok(model)
}

/// Reads `{ dimension = "word", … }`. An empty table means no view.
fn read_fact_view(value: &Value<'_>, dataset: &str, day: Option<usize>, model: &Model, columns: &[Column]) -> Result<FactView> {
    let mut dimensions = Vec::new();
    let mut words = Names::default();
    for entry in value.section()?.entries() {
        let column = column_named(entry.key, &entry, columns)?;
        if !model.dimensions.contains(&column) {
            let error = entry.key_error(format!("`{}` is no dimension of the dataset `{dataset}`", entry.key));
            return Err(error.hint("name it in `dimensions`, too"));
        }
        let word = entry.string()?;
        check_identifier(word, &entry)?;
        let generated = format!("total_{dataset}_by_date_by_{word}");
        if generated.len() > MAX_NAME_BYTES {
            let error =
                entry.error(format!("the column `{generated}` has {} bytes, and {MAX_NAME_BYTES} are possible", generated.len()));
            return Err(error.hint("give a shorter word"));
        }
        words.claim(word, &entry, || "a dimension's word".to_owned())?;
        dimensions.push((column, word.to_owned()));
    }
    let Some(day) = day.filter(|_| !dimensions.is_empty()) else { return Ok(FactView::None) };
    Ok(FactView::Named(FactColumns { day: columns[day].name.clone(), dimensions }))
}

/// Version 0.1.0 created this view for every dataset called `events` with these dimensions and this count. Configurations of
/// that version keep it.
fn implied_fact_view(dataset: &str, model: &Model, columns: &[Column]) -> FactView {
    let dimension = |name: &str| model.dimensions.iter().copied().find(|i| columns[*i].name == name);
    let counts_users = model.distinct.iter().any(|(name, _)| name == "unique_users");
    match (dimension("organization_name"), dimension("user_type")) {
        (Some(organization), Some(user_type)) if dataset == "events" && counts_users => FactView::Implied(FactColumns {
            day: "received_at".to_owned(),
            dimensions: vec![(organization, "org".to_owned()), (user_type, "usertype".to_owned())],
        }),
        _ => FactView::None,
    }
}
