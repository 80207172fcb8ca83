//! `dataloader report`: prints the modelled tables.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;

use super::DONE;
use crate::answers::report::{Report, TableReport, report};
use crate::config::Config;
use crate::error::{IoContext, Result};
use crate::store::Field;
use crate::terminal::cli::ReportArgs;
use crate::terminal::output::Output;
use crate::terminal::table::{Align, Table};
use crate::web::report_file;

/// Where the report was written.
#[derive(Serialize)]
struct Written {
    html: String,
}

/// Prints the modelled tables, or writes them to a file with charts.
///
/// # Errors
/// As [`report`]; or if the dataset is unknown.
pub async fn run(config: &Config, args: &ReportArgs, output: Output) -> Result<u8> {
    let datasets = config.datasets_named(args.dataset.as_slice())?;
    if let Some(path) = &args.html {
        let html = report_file(config, &datasets).await?;
        write_private(path, html.as_bytes()).cannot(format_args!("write {}", path.display()))?;
        output.result(&Written { html: path.display().to_string() }, |out| writeln!(out, "{} is written", path.display()))?;
        return Ok(DONE);
    }
    let report = report(config, &datasets).await?;
    output.result(&report, |out| write(&report, out))?;
    Ok(DONE)
}

/// Writes a file that other users cannot read, unless it was there before.
fn write_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(contents)
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
        write_table(&TableReport { rows: table.rows[earlier..].to_vec(), ..table.clone() }, out)?;
        if earlier > 0 {
            writeln!(out, "and {earlier} earlier days: `dataloader report` shows them all")?;
        }
    }
    Ok(())
}

/// Writes the text output.
fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let mut first = true;
    for dataset in &report.datasets {
        for table in &dataset.tables {
            if !std::mem::take(&mut first) {
                writeln!(out)?;
            }
            write_table(table, out)?;
        }
        if dataset.tables.is_empty() && report.notes.is_empty() {
            writeln!(out, "{} has no `day` and so no modelled tables", dataset.dataset)?;
        }
    }
    report.notes.iter().try_for_each(|note| writeln!(out, "{note}"))
}

/// Writes the table as text, with its name above it.
fn write_table(table: &TableReport, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "modelled.{}", table.table)?;
    if table.rows.is_empty() {
        return writeln!(out, "  no rows yet: `dataloader load` brings some");
    }
    let is_number = |i: usize| table.rows.iter().all(|row| matches!(row[i], Field::Int(_) | Field::Real(_)));
    let align = |i: usize| if is_number(i) { Align::Right } else { Align::Left };
    let columns: Vec<(&String, Align)> = table.columns.iter().enumerate().map(|(i, name)| (name, align(i))).collect();
    let mut shown = Table::new(&columns);
    for row in &table.rows {
        shown.row(row.iter().map(|field| match field {
            Field::Null => "(null)".to_owned(),
            Field::Int(value) => value.to_string(),
            Field::Real(value) => value.to_string(),
            Field::Text(value) => value.clone(),
            Field::Bytes(value) => String::from_utf8_lossy(value).into_owned(),
        }));
    }
    writeln!(out, "{shown}")
}
