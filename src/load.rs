//! A batch load as people see it: the progress bar beside it, then what was loaded and the daily totals.

use std::io::{self, Write};
use std::sync::Arc;

use crate::batch::summary::LoadSummary;
use crate::batch::{self, LoadOptions};
use crate::config::Config;
use crate::error::Result;
use crate::progress;
use crate::report::{self, TableReport};

/// What a load did, and the totals after it.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub summary: LoadSummary,
    /// Of the loaded datasets; none after a dry run.
    pub totals: Vec<TableReport>,
}

/// Loads, with a progress bar where standard error is a terminal.
///
/// # Errors
/// As [`batch::load`]; or if the totals cannot be read.
pub async fn load(config: &Config, options: &LoadOptions) -> Result<Loaded> {
    let progress = Arc::default();
    let summary = tokio::select! {
        summary = batch::load(config, options, &progress) => summary?,
        never = progress::show(Arc::clone(&progress)) => match never {},
    };
    let totals = if summary.dry_run { Vec::new() } else { report::daily_totals(config, &options.datasets).await? };
    Ok(Loaded { summary, totals })
}

impl Loaded {
    /// The lines for people.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        self.summary.write(out)?;
        report::write_totals(out, &self.totals)
    }
}
