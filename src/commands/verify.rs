//! `dataloader verify`: proves that all that is there agrees.

use std::io::{self, Write};

use super::{DIFFERENT, DONE};
use crate::answers::verify::{Difference, Scope, Verified, VerifiedDataset, verify};
use crate::config::Config;
use crate::counted::counted;
use crate::error::Result;
use crate::terminal::cli::VerifyArgs;
use crate::terminal::output::Output;

/// Compares what the arguments name and prints what does not agree.
///
/// # Errors
/// As [`verify`]; or if the dataset is unknown.
pub async fn run(config: &Config, args: &VerifyArgs, output: Output) -> Result<u8> {
    let datasets = config.datasets_named(args.dataset.as_slice())?;
    let verified = verify(config, &Scope { datasets, loads: args.loads.iter().copied().collect() }).await?;
    output.result(&verified, |out| write(&verified, out))?;
    Ok(if verified.differences.is_empty() { DONE } else { DIFFERENT })
}

/// Writes the text output.
pub(super) fn write(verified: &Verified, out: &mut dyn Write) -> io::Result<()> {
    for VerifiedDataset { dataset, loads, rows, open_rejects, files, modelled_tables } in &verified.datasets {
        let counts = [
            counted(*loads, "load"),
            counted(rows.unsigned_abs(), "row"),
            counted(open_rejects.unsigned_abs(), "open reject"),
            counted(*files, "processed file"),
            counted(*modelled_tables as u64, "modelled table"),
        ];
        writeln!(out, "{dataset}: {}", counts.join(", "))?;
    }
    verified.notes.iter().try_for_each(|note| writeln!(out, "{note}"))?;
    for Difference { dataset, load, file, difference } in &verified.differences {
        let load = load.map(|id| format!("load {id}"));
        let place = [Some(dataset.clone()).filter(|name| !name.is_empty()), load, file.clone()];
        writeln!(out, "DIFFERENT {}: {difference}", place.into_iter().flatten().collect::<Vec<_>>().join(", "))?;
    }
    match verified.differences.len() {
        0 if verified.datasets.is_empty() => Ok(()),
        0 => writeln!(out, "all that was compared agrees"),
        differences => writeln!(out, "{}", counted(differences as u64, "difference")),
    }
}
