//! The modelled tables: totals per day, and per day and dimension, recomputed from the raw rows for the days that changed.

mod counts; // how they are computed

use std::collections::BTreeSet;

use counts::Counts;

use super::connection::{Arg, Connection};
use super::error::StoreResult;
use super::lock::{self, Lock};
use super::sql::{Day, Dialect, Schema, day_literals, quote};
use crate::dataset::{ColumnType, Dataset, FactColumns, FactView};

/// Which days a refresh recomputes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Days {
    All,
    These(BTreeSet<Day>),
}

impl Days {
    /// No day of its own: those that are marked are refreshed in any case.
    pub fn none() -> Self {
        Self::These(BTreeSet::new())
    }
}

/// Which days a computation covers: all, or those of a list of SQL literals.
#[derive(Debug, Clone, Copy)]
enum DayFilter<'a> {
    All,
    In(&'a str),
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

    /// The rows of this table, in the order of the columns, the plain way: for checking what [`Counts`] makes. Raw rows without
    /// a day, which a table has from the time before its dataset had one, are in none.
    fn recompute(&self, dialect: Dialect) -> String {
        let dataset = self.dataset;
        let raw = dialect.table(Schema::Raw, &dataset.name);
        let day = dialect.day(dataset.day_column().expect("only datasets with a day have modelled tables"));
        let filter = format!(" where {day} is not null");
        let column = |index: usize| quote(&dataset.columns[index].name);

        // Inside, the grouping columns are called d and g, whatever the dataset calls its own.
        let group = if self.dimension.is_some() { "d, g" } else { "d" };
        let grouped = match self.dimension {
            None => format!("{day} as d"),
            Some(dimension) => format!("{day} as d, {} as g", column(dimension)),
        };
        let count = dataset.model.distinct.len();
        // One column per distinct count: the part that counts it says how many, the others add nothing.
        let counts = |counted: Option<usize>| -> String {
            (0..count).map(|i| format!(", {} as c{i}", if Some(i) == counted { "count(*)" } else { "0" })).collect()
        };
        let sums: String = (0..count).map(|i| format!(", sum(c{i})")).collect();

        let keys: Vec<String> = dataset.key.iter().enumerate().map(|(i, k)| format!("{} as k{i}", column(*k))).collect();
        let key_names: Vec<String> = (0..keys.len()).map(|i| format!("k{i}")).collect();
        let mut parts = vec![format!(
            "select {group}, sum(n) as total, count(*) as uniq{counts} from \
             (select {group}, count(*) as n from (select {grouped}, {keys} from {raw}{filter}) r group by {group}, {key_names}) k \
             group by {group}",
            counts = counts(None),
            keys = keys.join(", "),
            key_names = key_names.join(", "),
        )];
        for (i, (_, counted)) in dataset.model.distinct.iter().enumerate() {
            let value = column(*counted);
            parts.push(format!(
                "select {group}, 0 as total, 0 as uniq{counts} from \
                 (select distinct {grouped}, {value} as v from {raw}{filter} and {value} is not null) v group by {group}",
                counts = counts(Some(i)),
            ));
        }
        format!("select {group}, sum(total), sum(uniq){sums} from ({}) p group by {group}", parts.join(" union all "))
    }
}

/// What the modelled tables were made for: their names, then all that their rows depend on. Identifiers, commas, semicolons.
pub fn definition(dataset: &Dataset) -> String {
    let Some(day) = dataset.day_column() else { return String::new() };
    let name = |index: &usize| dataset.columns[*index].name.clone();
    let key: Vec<String> = dataset.key.iter().map(name).collect();
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

/// The statements that replace the modelled tables of an `old` definition by those of the dataset's own, still empty, with a
/// mark on every day that has raw rows.
pub fn replace(dialect: Dialect, dataset: &Dataset, old: Option<&str>) -> Vec<String> {
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

/// The view for queries that know one wide table.
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

/// Appends a mark for each day, in the transaction that changes its rows.
///
/// # Errors
/// If the database fails.
pub async fn mark(connection: &mut Connection, dataset: &Dataset, days: impl IntoIterator<Item = Day>) -> StoreResult<()> {
    let rows: Vec<Vec<Arg<'_>>> = days.into_iter().map(|day| vec![Arg::Text(Some(&dataset.name)), Arg::Day(day)]).collect();
    let marks = connection.dialect().table(Schema::Dataloader, "changed_days");
    connection.insert(&format!("{marks} (dataset, day)"), "", &rows).await
}

/// Whether any day of the dataset is marked.
///
/// # Errors
/// If the database fails.
pub async fn is_pending(connection: &mut Connection, dataset: &Dataset) -> StoreResult<bool> {
    let marks = connection.dialect().table(Schema::Dataloader, "changed_days");
    let sql = format!("select count(*) from (select 1 from {marks} where dataset = $1 limit 1) m");
    Ok(connection.fetch_int(sql, &[Arg::Text(Some(&dataset.name))]).await? > 0)
}

/// Inside a transaction: refreshes the given days and all marked ones; returns how many, `None` for all there are. The
/// lock comes first and the rows are read after it, so that of two refreshes the later has seen all that the earlier saw; a mark
/// that is committed while this runs stays, and is refreshed next time.
///
/// # Errors
/// If the database fails.
pub async fn refresh(connection: &mut Connection, dataset: &Dataset, days: Days) -> StoreResult<Option<usize>> {
    if dataset.day.is_none() {
        return Ok(Some(0));
    }
    lock::transaction(connection, Lock::Model(&dataset.name)).await?;
    let dialect = connection.dialect();
    let marks = dialect.table(Schema::Dataloader, "changed_days");
    let cast = if dialect == Dialect::Postgres { "::text" } else { "" };
    let marked = connection
        .fetch(format!("delete from {marks} where dataset = $1 returning day{cast}"), &[Arg::Text(Some(&dataset.name))])
        .await?;
    let (list, count) = match days {
        Days::All => (None, None),
        Days::These(mut days) => {
            days.extend(marked.iter().filter_map(|row| row[0].text().and_then(Day::parse)));
            if days.is_empty() {
                return Ok(Some(0));
            }
            let count = days.len();
            let list = day_literals(days);
            // A day with rows is in the tables, or marked and so in the list: where no other is in the tables, these are all
            // there are. The database need not find that out from a long list and an index.
            let by_date = dialect.table(Schema::Modelled, &tables(dataset)[0].name());
            let others =
                connection.fetch_int(format!("select count(*) from {by_date} where \"date\" not in ({list})"), &[]).await?;
            ((others > 0).then_some(list), Some(count))
        }
    };
    let (filter, recomputed) = match &list {
        None => (DayFilter::All, String::new()),
        Some(list) => (DayFilter::In(list), format!(" where \"date\" in ({list})")),
    };
    let counts = Counts::new(dialect, dataset, filter);
    for statement in counts.prepare() {
        connection.run(statement).await?;
    }
    for table in tables(dataset) {
        let modelled = dialect.table(Schema::Modelled, &table.name());
        connection.run(format!("delete from {modelled}{recomputed}")).await?;
        let columns = table.column_list();
        connection.run(format!("insert into {modelled} ({columns}) {}", counts.rows_of(&table))).await?;
    }
    for statement in counts.clean_up() {
        connection.run(statement).await?;
    }
    Ok(count)
}

/// A modelled table that differs from a recomputation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    pub table: String,
    /// Rows that the table has and should not have.
    pub surplus: i64,
    /// Rows that it should have and has not.
    pub missing: i64,
}

/// Compares every modelled table with a full recomputation, at a moment at which no day is marked: it refreshes those that
/// are, and nobody else refreshes or sees rows that this does not.
///
/// # Errors
/// If the database fails.
pub async fn check(connection: &mut Connection, dataset: &Dataset) -> StoreResult<Vec<Difference>> {
    let dialect = connection.dialect();
    let mut differences = Vec::new();
    for table in tables(dataset) {
        // Rows are counted before they are compared: EXCEPT alone would not see a row that is there twice.
        let ordinals = (1..=table.columns().len()).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
        let counted = |rows: &str| format!("select r.*, count(*) as n from ({rows}) r group by {ordinals}");
        let have = counted(&format!("select {} from {}", table.column_list(), dialect.table(Schema::Modelled, &table.name())));
        let want = counted(&table.recompute(dialect));
        let count =
            |left: &str, right: &str| format!("select count(*) from (select * from ({left}) l except select * from ({right}) r) d");
        let surplus = connection.fetch_int(count(&have, &want), &[]).await?;
        let missing = connection.fetch_int(count(&want, &have), &[]).await?;
        if surplus != 0 || missing != 0 {
            differences.push(Difference { table: table.name(), surplus, missing });
        }
    }
    Ok(differences)
}
