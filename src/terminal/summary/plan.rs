//! Prints what a load would change.

use std::io::{self, Write};

use indicatif::HumanCount;

use crate::counted::counted;
use crate::summary::DatasetSummary;
use crate::summary::plan::{DatasetPlan, Plan};
use crate::terminal::table::{Align, Table};

/// What is listed; the rest is counted, and in full in `--format json`.
const LISTED: usize = 20;
/// Statements are long.
const LISTED_STATEMENTS: usize = 5;

/// Writes the plan as text.
///
/// # Errors
/// If the text cannot be written.
pub fn write(plan: &Plan, datasets: &[DatasetSummary], out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\nnothing was written; a load would do this:")?;
    if let Some(note) = &plan.note {
        writeln!(out, "{note}")?;
    }
    if !plan.statements.is_empty() {
        writeln!(out, "\nit would first change tables:")?;
        for statement in plan.statements.iter().take(LISTED_STATEMENTS) {
            writeln!(out, "  {statement}")?;
        }
        more(plan.statements.len(), LISTED_STATEMENTS, "statement", out)?;
    }
    for dataset in datasets {
        if let Some(plan) = dataset.plan.as_ref().filter(|plan| !plan.files.is_empty()) {
            write_files(&dataset.dataset, plan, out)?;
            write_days(&dataset.dataset, plan, out)?;
        }
    }
    Ok(())
}

fn write_files(dataset: &str, plan: &DatasetPlan, out: &mut dyn Write) -> io::Result<()> {
    let mut table = Table::new(&[
        ("file", Align::Left),
        ("is", Align::Left),
        ("in load", Align::Right),
        ("read", Align::Right),
        ("rows", Align::Right),
        ("rejected", Align::Right),
    ]);
    for file in plan.files.iter().take(LISTED) {
        let load = file.load.map_or_else(|| "-".to_owned(), |load| load.to_string());
        let [read, rows, rejected] = [file.read, file.rows, file.rejected].map(|count| HumanCount(count).to_string());
        table.row([file.source.clone(), file.state.name().to_owned(), load, read, rows, rejected]);
    }
    writeln!(out, "\nfiles of {dataset}:\n{table}")?;
    more(plan.files.len(), LISTED, "file", out)
}

fn write_days(dataset: &str, plan: &DatasetPlan, out: &mut dyn Write) -> io::Result<()> {
    let there = counted(plan.rows_there, "row");
    let (Some(first), Some(last)) = (plan.days.first(), plan.days.last()) else {
        return match plan.files.iter().map(|file| file.rows).sum::<u64>() {
            0 => writeln!(out, "no row for the table of {dataset}"),
            _ => writeln!(out, "the table of {dataset} has {there} now"),
        };
    };
    let days = counted(plan.days.len() as u64, "day");
    let (first, last) = (&first.day, &last.day);
    writeln!(out, "{days} of {dataset}, from {first} to {last}; the table has {there} of that now:")?;
    let mut table = Table::new(&[("day", Align::Left), ("rows of the files", Align::Right), ("in the table", Align::Right)]);
    for day in plan.days.iter().take(LISTED) {
        let [rows, there] = [day.rows, day.there].map(|count| HumanCount(count).to_string());
        table.row([day.day.clone(), rows, there]);
    }
    writeln!(out, "{table}")?;
    more(plan.days.len(), LISTED, "day", out)
}

fn more(count: usize, listed: usize, what: &str, out: &mut dyn Write) -> io::Result<()> {
    if count <= listed {
        return Ok(());
    }
    writeln!(out, "  and {}: `--format json` has all", counted((count - listed) as u64, &format!("more {what}")))
}
