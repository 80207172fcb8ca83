//! The overview: all that the first screen of the page shows of a database, from one snapshot.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::loads::{self, LoadFilter, LoadRow};
use super::status::{self, Status};
use crate::dataset::Dataset;
use crate::store::sql::{Schema, quote};
use crate::store::{Arg, Connection, Dialect, Field, StoreResult, model, schema};

/// How many loads are shown.
const LOADS: u32 = 10;
/// How many days a chart has.
const DAYS: usize = 31;
/// How many values of a dimension have a colour of their own.
pub const STACKED: usize = 5;

/// What the first screen shows.
#[derive(Debug, Clone)]
pub struct Overview {
    pub status: Status,
    /// The latest loads.
    pub loads: Vec<LoadRow>,
    pub rejects: Vec<RejectCount>,
    pub charts: Vec<Chart>,
}

/// The open rejects of a dataset with one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectCount {
    pub dataset: String,
    pub reason: String,
    pub records: i64,
}

/// The latest days of a dataset's model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chart {
    pub dataset: String,
    /// As `YYYY-MM-DD`, in order.
    pub days: Vec<String>,
    /// The days of these that wait for a refresh.
    pub modelling: BTreeSet<String>,
    /// The totals first, then each unique count, with a value per day.
    pub series: Vec<Series>,
    /// One for each dimension.
    pub stacks: Vec<Stack>,
}

/// A column of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    pub name: String,
    pub values: Vec<i64>,
}

/// The totals by the values of a dimension: the largest ones, then all others together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    pub dimension: String,
    pub series: Vec<Series>,
}

/// Begins the snapshot that [`read`] reads. It is taken with the first row that is asked for.
///
/// # Errors
/// If the database fails.
pub async fn begin(connection: &mut Connection) -> StoreResult<()> {
    connection.begin_read().await?;
    let loads = connection.dialect().table(Schema::Raw, "loads");
    connection.fetch(format!("select 1 from {loads} limit 1"), &[]).await.map(drop)
}

/// Reads the overview, and ends the snapshot.
///
/// # Errors
/// If the database fails.
pub async fn read(connection: &mut Connection, datasets: &[Arc<Dataset>]) -> StoreResult<Overview> {
    let status = status::read_within(connection, datasets).await?;
    let loads = loads::list(connection, &LoadFilter::default(), LOADS).await?;
    let rejects = reject_counts(connection).await?;
    let charts = charts(connection, datasets, &status, DAYS).await?;
    connection.commit().await?;
    Ok(Overview { status, loads, rejects, charts })
}

/// The latest days of each dataset that is modelled, at most so many.
///
/// # Errors
/// If the database fails.
pub async fn charts(
    connection: &mut Connection,
    datasets: &[Arc<Dataset>],
    status: &Status,
    days: usize,
) -> StoreResult<Vec<Chart>> {
    let modelled = schema::catalogue(connection, Schema::Modelled).await?;
    let mut charts = Vec::new();
    for dataset in datasets.iter().filter(|dataset| dataset.day.is_some()) {
        let tables = model::table_names(dataset);
        let is_there = |table: &String| {
            let found = modelled.get(&connection.dialect().bare_table(Schema::Modelled, table));
            let named = model::column_names(dataset, table);
            found.is_some_and(|found| named.iter().all(|name| found.iter().any(|(column, _)| column == name)))
        };
        if tables.iter().all(is_there) {
            let of_dataset = status.datasets.iter().find(|status| status.dataset == dataset.name);
            let pending = of_dataset.map(|status| status.pending.days.clone()).unwrap_or_default();
            charts.push(chart(connection, dataset, &tables, pending, days).await?);
        }
    }
    Ok(charts)
}

/// The open rejects by dataset and reason, the most frequent first.
///
/// # Errors
/// If the database fails.
pub async fn reject_counts(connection: &mut Connection) -> StoreResult<Vec<RejectCount>> {
    let rejects = connection.dialect().table(Schema::Raw, "rejects");
    let sql = format!("select dataset, reason, count(*) from {rejects} group by dataset, reason order by 3 desc, dataset, reason");
    let text = |field: &Field| field.text().unwrap_or_default().to_owned();
    let rows = connection.fetch(sql, &[]).await?;
    Ok(rows.iter().map(|row| RejectCount { dataset: text(&row[0]), reason: text(&row[1]), records: row[2].int() }).collect())
}

async fn chart(
    connection: &mut Connection,
    dataset: &Dataset,
    tables: &[String],
    pending: Vec<String>,
    limit: usize,
) -> StoreResult<Chart> {
    let dialect = connection.dialect();
    let columns = model::column_names(dataset, &tables[0]);
    let day = as_text(dialect, "date");
    let counts: Vec<String> = columns[1..].iter().map(|name| quote(name)).collect();
    let from = dialect.table(Schema::Modelled, &tables[0]);
    let sql = format!("select {day}, {} from {from} order by date desc limit {limit}", counts.join(", "));
    let mut rows = connection.fetch(sql, &[]).await?;
    rows.reverse();
    let days: Vec<String> = rows.iter().map(|row| row[0].text().unwrap_or_default().to_owned()).collect();
    let series: Vec<Series> = (1..columns.len())
        .map(|i| Series { name: columns[i].clone(), values: rows.iter().map(|row| row[i].int()).collect() })
        .collect();
    let mut stacks = Vec::new();
    if let Some(first) = days.first() {
        for (table, column) in tables[1..].iter().zip(&dataset.model.dimensions) {
            let dimension = &dataset.columns[*column].name;
            stacks.push(stack(connection, dataset, table, dimension, (&days, first), &series[0].values).await?);
        }
    }
    let modelling = pending.into_iter().filter(|day| days.contains(day)).collect();
    Ok(Chart { dataset: dataset.name.clone(), days, modelling, series, stacks })
}

/// The largest values of a dimension in these days, and the rest of the totals.
async fn stack(
    connection: &mut Connection,
    dataset: &Dataset,
    table: &str,
    dimension: &str,
    (days, first): (&[String], &str),
    totals: &[i64],
) -> StoreResult<Stack> {
    let dialect = connection.dialect();
    let (from, value) = (dialect.table(Schema::Modelled, table), as_text(dialect, &quote(dimension)));
    let (total, day) = (quote(&format!("total_{}", dataset.name)), as_text(dialect, "date"));
    let since = match dialect {
        Dialect::Postgres => "date >= $1::date",
        Dialect::Sqlite => "date >= $1",
    };
    let of_day = [Arg::Text(Some(first))];
    let largest =
        format!("select {value} from {from} where {since} group by {value} order by sum({total}) desc, {value} limit {STACKED}");
    let largest: Vec<Field> = connection.fetch(largest, &of_day).await?.into_iter().map(|mut row| row.remove(0)).collect();
    let named: Vec<&str> = largest.iter().filter_map(Field::text).collect();
    let places: Vec<String> = (0..named.len()).map(|i| format!("${}", i + 2)).collect();
    let is_named = if places.is_empty() { String::new() } else { format!("{value} in ({}) or ", places.join(", ")) };
    let args: Vec<Arg<'_>> = std::iter::once(first).chain(named).map(|text| Arg::Text(Some(text))).collect();
    let sql = format!("select {day}, {value}, {total} from {from} where {since} and ({is_named}{value} is null)");
    let mut series: Vec<Series> =
        largest.iter().map(|value| Series { name: named_value(value), values: vec![0; days.len()] }).collect();
    let mut rest = totals.to_vec();
    for row in connection.fetch(sql, &args).await? {
        let Some(at) = days.iter().position(|day| row[0].text() == Some(day)) else { continue };
        if let Some(i) = largest.iter().position(|value| *value == row[1]) {
            series[i].values[at] += row[2].int();
            rest[at] -= row[2].int();
        }
    }
    if rest.iter().any(|count| *count > 0) {
        series.push(Series { name: "other".to_owned(), values: rest });
    }
    Ok(Stack { dimension: dimension.to_owned(), series })
}

/// What a value of a dimension is called: null and the empty text have no name of their own.
fn named_value(value: &Field) -> String {
    match value.text() {
        None => "(null)".to_owned(),
        Some("") => "(empty)".to_owned(),
        Some(text) => text.to_owned(),
    }
}

/// A column as text, whatever its type.
fn as_text(dialect: Dialect, column: &str) -> String {
    match dialect {
        Dialect::Postgres => format!("{column}::text"),
        Dialect::Sqlite => format!("cast({column} as text)"),
    }
}
