//! The modelled tables: totals per day, and per day and dimension. A refresh brings the days that changed up to date: it applies
//! small changes, and recomputes the other days from the raw rows.

mod notes; // what changed since the last refresh
mod occurrences; // how often each value occurs on a busy day
mod plan; // which days a refresh recomputes, and on which it applies the changes
mod refresh; // carries the plan out, from one snapshot
mod apply; // applies small changes
mod check; // whether the tables equal a recomputation
mod counts; // how the totals are computed
mod progress; // what waits for a refresh

use std::collections::BTreeSet;

pub use check::{Difference, Stored, compare_stored, refresh_and_check};
pub use notes::{Noting, delete, insert_from, update};
pub(in crate::store) use notes::{last_row, note_rows_after, noted, rowid};
pub use progress::{Pending, pending, waits_for_refresh};
pub use refresh::{Change, Refreshed, hold_still, refresh, refresh_within};

use super::connection::{Arg, Connection};
use super::error::StoreResult;
use super::sql::{Day, Dialect, Schema, quote};
use crate::dataset::{ColumnType, Dataset, FactColumns, FactView, StreamMode};

/// Which days a refresh recomputes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Days {
    All,
    These(BTreeSet<Day>),
}

impl Days {
    /// No additional day. The marked days are refreshed in any case.
    pub fn none() -> Self {
        Self::These(BTreeSet::new())
    }
}

/// Which days a computation covers: all, or those of a list of SQL literals.
#[derive(Debug, Clone)]
enum DayFilter {
    All,
    In(String),
}

/// Columns whose distinct values are counted.
struct Counted {
    /// Indexes into the dataset's columns.
    columns: Vec<usize>,
    is_key: bool,
}

/// The values to count: the keys, then each `distinct` entry.
fn counted(dataset: &Dataset) -> Vec<Counted> {
    let keys = Counted { columns: dataset.key.clone(), is_key: true };
    let distinct = dataset.model.distinct.iter().map(|(_, column)| Counted { columns: vec![*column], is_key: false });
    std::iter::once(keys).chain(distinct).collect()
}

/// A modelled table: the totals per day, or per day and one dimension.
struct ModelTable<'a> {
    dataset: &'a Dataset,
    /// Index of the dimension's column.
    dimension: Option<usize>,
}

/// The modelled tables of a dataset, the totals per day first; none without a `day`.
fn tables(dataset: &Dataset) -> Vec<ModelTable<'_>> {
    if dataset.day.is_none() {
        return Vec::new();
    }
    let dimensions = dataset.model.dimensions.iter().map(|column| Some(*column));
    std::iter::once(None).chain(dimensions).map(|dimension| ModelTable { dataset, dimension }).collect()
}

/// The names of a dataset's modelled tables, without schema, the totals per day first; none without a `day`.
pub fn table_names(dataset: &Dataset) -> Vec<String> {
    tables(dataset).iter().map(ModelTable::name).collect()
}

/// The names of a modelled table's columns, in order.
pub fn column_names(dataset: &Dataset, table: &str) -> Vec<String> {
    tables(dataset).iter().find(|t| t.name() == table).map(ModelTable::columns).unwrap_or_default()
}

impl ModelTable<'_> {
    fn name(&self) -> String {
        let name = &self.dataset.name;
        match self.dimension {
            None => format!("{name}_by_date"),
            Some(column) => format!("{name}_by_date_{}", self.dataset.columns[column].name),
        }
    }

    fn columns(&self) -> Vec<String> {
        let name = &self.dataset.name;
        let dimension = self.dimension.map(|column| self.dataset.columns[column].name.clone());
        let distinct = self.dataset.model.distinct.iter().map(|(name, _)| name.clone());
        let totals = [format!("total_{name}"), format!("unique_{name}")];
        std::iter::once("date".to_owned()).chain(dimension).chain(totals).chain(distinct).collect()
    }

    fn column_list(&self) -> String {
        self.columns().iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ")
    }

    fn create(&self, dialect: Dialect) -> String {
        let dimension = self.dimension.map(|column| &self.dataset.columns[column]);
        let columns: Vec<String> = self
            .columns()
            .iter()
            .map(|name| match (name.as_str(), dimension) {
                ("date", _) => format!("{} {} not null", quote(name), dialect.column_type(ColumnType::Date)),
                (name, Some(column)) if name == column.name => {
                    format!("{} {}", quote(name), dialect.column_type(column.column_type))
                }
                (name, _) => format!("{} bigint not null", quote(name)),
            })
            .collect();
        format!("create table {} ({})", dialect.table(Schema::Modelled, &self.name()), columns.join(", "))
    }
}

/// The definition that the modelled tables are made for: their names, then everything that their rows depend on. It contains
/// only identifiers, spaces, commas and semicolons.
pub fn definition(dataset: &Dataset) -> String {
    let name = |index: &usize| dataset.columns[*index].name.clone();
    let key: Vec<String> = dataset.key.iter().map(name).collect();
    let Some(day) = dataset.day_column() else {
        // There is nothing modelled, but an index of the keys.
        let is_by_key = dataset.stream == StreamMode::Upsert;
        return if is_by_key { format!(";key {}", key.join(",")) } else { String::new() };
    };
    let distinct: Vec<String> =
        dataset.model.distinct.iter().map(|(as_name, column)| format!("{as_name} {}", name(column))).collect();
    let view = match &dataset.model.fact_view {
        FactView::None | FactView::Implied(_) => String::new(),
        FactView::Named(FactColumns { dimensions, .. }) => {
            let words: Vec<String> = dimensions.iter().map(|(column, word)| format!("{} {word}", name(column))).collect();
            format!(";fact_view {}", words.join(","))
        }
    };
    format!(
        "{};day {} {};key {};distinct {}{view}",
        table_names(dataset).join(","),
        day.name,
        day.column_type.name(),
        key.join(","),
        distinct.join(",")
    )
}

/// The key of a [`definition`].
pub fn key_of(definition: &str) -> Option<&str> {
    definition.split(';').find_map(|part| part.strip_prefix("key "))
}

/// The statements that replace the modelled tables of the `old` definition by those of the dataset's definition. The new tables
/// are empty, and every day that has raw rows is marked.
///
/// `kept` are the names of the tables that the program keeps for itself, without schema; those of the dataset are dropped.
pub fn replace<'a>(dialect: Dialect, dataset: &Dataset, old: Option<&str>, kept: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut statements =
        vec![format!("drop view if exists {}", dialect.table(Schema::Modelled, &format!("fact_{}", dataset.name)))];
    let old_tables = old.and_then(|old| old.split(';').next()).unwrap_or_default();
    let new_tables = tables(dataset);
    let names: BTreeSet<String> = old_tables
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .chain(new_tables.iter().map(ModelTable::name))
        .collect();
    statements.extend(names.iter().map(|name| format!("drop table if exists {}", dialect.table(Schema::Modelled, name))));
    statements.extend(new_tables.iter().map(|table| table.create(dialect)));
    // A refresh deletes the rows of its days.
    statements.extend(new_tables.iter().map(|table| {
        let index = quote(&format!("{}.date", dialect.bare_table(Schema::Modelled, &table.name())));
        format!("create index {index} on {} (\"date\")", dialect.table(Schema::Modelled, &table.name()))
    }));
    statements.extend(replace_notes(dialect, dataset, kept));
    if let Some(day) = dataset.day_column() {
        statements.push(format!(
            "insert into {} (dataset, day) select '{}', d from (select distinct {} as d from {}) days where d is not null",
            dialect.table(Schema::Dataloader, "changed_days"),
            dataset.name,
            dialect.day(day),
            dialect.table(Schema::Raw, &dataset.name),
        ));
    }
    statements.extend(fact_view(dialect, dataset));
    statements
}

/// The statements that replace the tables of the notes and occurrences by empty ones. The noted days are marked instead.
/// Of the `kept` tables they drop those of the dataset: no other table has a dot in its name.
pub fn replace_notes<'a>(dialect: Dialect, dataset: &Dataset, kept: impl Iterator<Item = &'a String>) -> Vec<String> {
    let own = dialect.bare_table(Schema::Dataloader, &format!("{}.", dataset.name));
    let mut old: Vec<&String> = kept.filter(|table| table.starts_with(&own)).collect();
    old.sort();
    let prefix = dialect.bare_table(Schema::Dataloader, "");
    let table = |name: &str| dialect.table(Schema::Dataloader, name.strip_prefix(&prefix).unwrap_or(name));
    let mut statements = Vec::new();
    let notes = format!("{}.notes", dataset.name);
    if old.iter().any(|name| **name == dialect.bare_table(Schema::Dataloader, &notes)) {
        statements.push(format!(
            "insert into {} (dataset, day) select distinct '{}', day from {}",
            dialect.table(Schema::Dataloader, "changed_days"),
            dataset.name,
            dialect.table(Schema::Dataloader, &notes),
        ));
    }
    statements.extend(old.into_iter().map(|name| format!("drop table {}", table(name))));
    statements.extend(occurrences::create(dialect, dataset));
    statements
}

/// The names of the tables of a dataset's notes and occurrences, without schema; none without a `day`.
pub fn note_table_names(dataset: &Dataset) -> Vec<String> {
    occurrences::table_names(dataset)
}

/// The statement that creates the view with one wide table, for queries that expect it.
fn fact_view(dialect: Dialect, dataset: &Dataset) -> Option<String> {
    let columns = dataset.model.fact_view.columns()?;
    let day = dialect.day(dataset.day_column()?);
    let name = &dataset.name;
    let column = |index: usize| quote(&dataset.columns[index].name);
    let table = |name: &str| dialect.table(Schema::Modelled, name);
    let total = quote(&format!("total_{name}"));

    let dimensions: Vec<String> = columns.dimensions.iter().map(|(i, _)| column(*i)).collect();
    let mut select = vec![format!("c.d as {}", quote(&columns.day))];
    select.extend(dimensions.iter().map(|dimension| format!("c.{dimension}")));
    select.push(format!("d.{total} as {}", quote(&format!("total_{name}_by_date"))));
    let distinct = dataset.model.distinct.iter();
    select.extend(distinct.map(|(count, _)| format!("d.{} as {}", quote(count), quote(&format!("total_{name}_by_date_{count}")))));
    let mut joins = vec![format!("join {} d on d.\"date\" = c.d", table(&format!("{name}_by_date")))];
    for (i, ((index, word), dimension)) in columns.dimensions.iter().zip(&dimensions).enumerate() {
        select.push(format!("t{i}.{total} as {}", quote(&format!("total_{name}_by_date_by_{word}"))));
        joins.push(format!(
            "join {totals} t{i} on t{i}.\"date\" = c.d and {same}",
            totals = table(&format!("{name}_by_date_{}", dataset.columns[*index].name)),
            same = dialect.same(&format!("t{i}.{dimension}"), &format!("c.{dimension}")),
        ));
    }
    Some(format!(
        "create view {view} as select {select} from (select distinct {day} as d, {dimensions} from {raw}) c {joins}",
        view = table(&format!("fact_{name}")),
        select = select.join(", "),
        dimensions = dimensions.join(", "),
        raw = dialect.table(Schema::Raw, name),
        joins = joins.join(" "),
    ))
}

/// Marks days as changed, in the transaction that changes their rows.
///
/// # Errors
/// If the database fails.
pub async fn mark(connection: &mut Connection, dataset: &Dataset, days: impl IntoIterator<Item = Day>) -> StoreResult<()> {
    let rows: Vec<Vec<Arg<'_>>> = days.into_iter().map(|day| vec![Arg::Text(Some(&dataset.name)), Arg::Day(day)]).collect();
    let marks = connection.dialect().table(Schema::Dataloader, "changed_days");
    connection.insert(&format!("{marks} (dataset, day)"), "", &rows).await
}

/// Whether any day of the dataset is marked, or any change is noted.
///
/// # Errors
/// If the database fails.
pub async fn is_pending(connection: &mut Connection, dataset: &Dataset) -> StoreResult<bool> {
    let dialect = connection.dialect();
    let (marks, notes) = (dialect.table(Schema::Dataloader, "changed_days"), notes::table(dialect, dataset));
    let sql = format!(
        "select count(*) from (select 1 as one where exists (select 1 from {marks} where dataset = $1) \
         or exists (select 1 from {notes})) p"
    );
    Ok(connection.fetch_int(sql, &[Arg::Text(Some(&dataset.name))]).await? > 0)
}

/// One statement of PostgreSQL that computes named queries, each from those before it, makes changes from them, and returns the
/// result. Making and dropping temporary tables instead takes 40 ms. The changes see the tables as they were before the statement,
/// in no order.
fn one_statement(
    queries: impl IntoIterator<Item = (String, String)>,
    changes: impl IntoIterator<Item = String>,
    result: &str,
) -> String {
    let queries = queries.into_iter().map(|(name, query)| format!("{name} as materialized ({query})"));
    let changes = changes.into_iter().enumerate().map(|(i, change)| format!("model_change_{i} as ({change})"));
    format!("with {} {result}", queries.chain(changes).collect::<Vec<_>>().join(", "))
}
