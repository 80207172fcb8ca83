//! `dataloader report`: shows the modelled tables.

use std::io::{self, Write};
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value as Json};

use super::DONE;
use crate::config::Config;
use crate::dataset::Dataset;
use crate::error::Result;
use crate::retry::GIVE_UP_AFTER;
use crate::store::{Connection, Database, Dialect, Field, Schema, StoreResult, model, schema, sql};
use crate::terminal::cli::ReportArgs;
use crate::terminal::output::Output;
use crate::terminal::table::{Align, Table};

/// Prints the modelled tables.
///
/// # Errors
/// As [`report`]; or if the dataset is unknown.
pub async fn run(config: &Config, args: &ReportArgs, output: Output) -> Result<u8> {
    let datasets = config.datasets_named(args.dataset.as_slice())?;
    let report = report(config, &datasets).await?;
    output.result(&report, |out| report.write(out))?;
    Ok(DONE)
}

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

/// How many days of the totals are shown after a load.
const SHOWN_DAYS: usize = 31;

/// Writes the latest days of the totals, with the table's name above each table.
///
/// # Errors
/// If they cannot be written.
pub fn write_totals(out: &mut dyn Write, totals: &[TableReport]) -> io::Result<()> {
    for table in totals {
        writeln!(out)?;
        let earlier = table.rows.len().saturating_sub(SHOWN_DAYS);
        TableReport { rows: table.rows[earlier..].to_vec(), ..table.clone() }.write(out)?;
        if earlier > 0 {
            writeln!(out, "and {earlier} earlier days: `dataloader report` shows them all")?;
        }
    }
    Ok(())
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

impl Report {
    /// Writes the text output.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut first = true;
        for dataset in &self.datasets {
            for table in &dataset.tables {
                if !std::mem::take(&mut first) {
                    writeln!(out)?;
                }
                table.write(out)?;
            }
            if dataset.tables.is_empty() && self.notes.is_empty() {
                writeln!(out, "{} has no `day` and so no modelled tables", dataset.dataset)?;
            }
        }
        self.notes.iter().try_for_each(|note| writeln!(out, "{note}"))
    }
}

impl TableReport {
    /// Writes the table as text, with its name above it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "modelled.{}", self.table)?;
        if self.rows.is_empty() {
            return writeln!(out, "  no rows yet: `dataloader load` brings some");
        }
        let is_number = |i: usize| self.rows.iter().all(|row| matches!(row[i], Field::Int(_) | Field::Real(_)));
        let align = |i: usize| if is_number(i) { Align::Right } else { Align::Left };
        let columns: Vec<(&String, Align)> = self.columns.iter().enumerate().map(|(i, name)| (name, align(i))).collect();
        let mut table = Table::new(&columns);
        for row in &self.rows {
            table.row(row.iter().map(|field| match field {
                Field::Null => "(null)".to_owned(),
                Field::Int(value) => value.to_string(),
                Field::Real(value) => value.to_string(),
                Field::Text(value) => value.clone(),
                Field::Bytes(value) => String::from_utf8_lossy(value).into_owned(),
            }));
        }
        writeln!(out, "{table}")
    }
}
