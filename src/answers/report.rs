//! The modelled tables.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value as Json};

use crate::config::Config;
use crate::dataset::Dataset;
use crate::error::Result;
use crate::retry::GIVE_UP_AFTER;
use crate::store::{Connection, Database, Dialect, Field, Schema, StoreResult, model, schema, sql};

/// The modelled tables of some datasets.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub datasets: Vec<DatasetReport>,
    /// Tables and columns of the configuration that are missing in the database.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The modelled tables of a dataset; none if it has no `day`.
#[derive(Debug, Clone, Serialize)]
pub struct DatasetReport {
    pub dataset: String,
    /// The tables, named without their schema.
    pub tables: Vec<TableReport>,
}

/// A modelled table, with values in the order of its columns.
#[derive(Debug, Clone)]
pub struct TableReport {
    pub table: String,
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Field>>,
}

impl Serialize for TableReport {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let row = |row: &Vec<Field>| {
            let value = |field: &Field| match field {
                Field::Null => Json::Null,
                Field::Int(value) => (*value).into(),
                Field::Real(value) => (*value).into(),
                Field::Text(value) => value.as_str().into(),
                Field::Bytes(value) => String::from_utf8_lossy(value).into(),
            };
            self.columns.iter().cloned().zip(row.iter().map(value)).collect::<Map<_, _>>()
        };
        let rows: Vec<Map<String, Json>> = self.rows.iter().map(row).collect();
        let mut object = serializer.serialize_struct("TableReport", 2)?;
        object.serialize_field("table", &self.table)?;
        object.serialize_field("rows", &rows)?;
        object.end()
    }
}

/// Reads the modelled tables of `datasets`.
///
/// # Errors
/// If the database fails.
pub async fn report(config: &Config, datasets: &[Arc<Dataset>]) -> Result<Report> {
    let database = Database::new(&config.database, GIVE_UP_AFTER)?;
    let Some(mut connection) = database.open_to_read().await? else {
        let nothing = |dataset: &Arc<Dataset>| DatasetReport { dataset: dataset.name.clone(), tables: Vec::new() };
        return Ok(Report { datasets: datasets.iter().map(nothing).collect(), notes: vec![database.says_nothing_is_there()] });
    };
    let report = read(&mut connection, datasets, usize::MAX).await.map_err(|error| database.explain(error));
    connection.close().await;
    report
}

/// Reads the totals per day of the datasets that have a `day`.
///
/// # Errors
/// If the database fails.
pub async fn daily_totals(connection: &mut Connection, datasets: &[Arc<Dataset>]) -> StoreResult<Vec<TableReport>> {
    let report = read(connection, datasets, 1).await?;
    Ok(report.datasets.into_iter().flat_map(|dataset| dataset.tables).collect())
}

/// Reads the first `tables` modelled tables of each dataset. Tables and columns may differ from the definition, because another
/// configuration may have made them.
async fn read(connection: &mut Connection, datasets: &[Arc<Dataset>], tables: usize) -> StoreResult<Report> {
    let mut report = Report { datasets: Vec::new(), notes: Vec::new() };
    // All tables are read from one snapshot.
    connection.begin_read().await?;
    let catalogue = schema::catalogue(connection, Schema::Modelled).await?;
    for dataset in datasets {
        schema::check_fit(connection, dataset).await?;
        let mut of_dataset = DatasetReport { dataset: dataset.name.clone(), tables: Vec::new() };
        for table in model::table_names(dataset).into_iter().take(tables) {
            let named = model::column_names(dataset, &table);
            let Some(found) = catalogue.get(&connection.dialect().bare_table(Schema::Modelled, &table)) else {
                report.notes.push(format!("modelled.{table} is not there: `dataloader model` makes it"));
                continue;
            };
            let found: Vec<String> = found.iter().map(|(name, _)| name.clone()).collect();
            for missing in named.iter().filter(|name| !found.contains(name)) {
                report.notes.push(format!("modelled.{table} has no column {missing}: `dataloader model` makes it"));
            }
            let counts = named.len() - dataset.model.distinct.len() - 2;
            of_dataset.tables.push(read_table(connection, table, found, &named[..counts]).await?);
        }
        report.datasets.push(of_dataset);
    }
    connection.commit().await?;
    Ok(report)
}

/// Reads a table with these columns. `counted_for` are the day and, if there is one, the dimension; the other columns are
/// counts.
async fn read_table(
    connection: &mut Connection,
    table: String,
    columns: Vec<String>,
    counted_for: &[String],
) -> StoreResult<TableReport> {
    let dialect = connection.dialect();
    let select: Vec<String> = columns
        .iter()
        .map(|name| {
            // Counts are integers. The day and the dimension are shown as text, whatever their types.
            let is_count = !counted_for.contains(name);
            let cast = if is_count || dialect == Dialect::Sqlite { "" } else { "::text" };
            format!("{}{cast}", sql::quote(name))
        })
        .collect();
    let order: Vec<String> = counted_for.iter().map(|name| sql::quote(name)).collect();
    let from = dialect.table(sql::Schema::Modelled, &table);
    let query = format!("select {} from {from} order by {} nulls last", select.join(", "), order.join(", "));
    let rows = connection.fetch(query, &[]).await?;
    Ok(TableReport { table, columns, rows })
}
