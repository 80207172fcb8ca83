//! `dataloader load`: a batch load with a progress bar, then a summary and the daily totals.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::Arc;

use super::report::write_totals;
use super::{DONE, REJECTED};
use crate::answers::report::{TableReport, daily_totals};
use crate::batch::input::Input;
use crate::batch::{self, LoadOptions, Session};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::summary::LoadSummary;
use crate::terminal::cli::LoadArgs;
use crate::terminal::output::Output;
use crate::terminal::{progress, summary};

/// Loads the files that the arguments name and prints a summary. Returns the exit code, and what can be done after that.
///
/// # Errors
/// As [`load`]; or if the arguments name a file twice or an unknown dataset.
pub async fn run(config: &Config, args: &LoadArgs, output: Output) -> Result<(u8, impl Future<Output = ()>)> {
    let inputs: Vec<Input> = args.files.iter().map(|file| Input::from_argument(file)).collect();
    let mut sources = BTreeSet::new();
    if let Some(twice) = inputs.iter().find(|input| !sources.insert(input.source())) {
        return Err(Error::usage(format!("{twice} is named twice, so that its records would be loaded twice")));
    }
    let options = LoadOptions {
        inputs: (!inputs.is_empty()).then_some(inputs),
        only_new: args.new,
        max_rejects: args.max_rejects,
        allow_empty: args.allow_empty,
        dry_run: args.dry_run,
        ..LoadOptions::new(config, config.datasets_named(&args.datasets)?, args.days())?
    };
    let loaded = load(config, &options).await?;
    output.result(&loaded.summary, |out| loaded.write(out))?;
    let code = if loaded.summary.has_rejects() { REJECTED } else { DONE };
    Ok((code, loaded.end()))
}

/// The summary of a load, and the totals after it.
pub struct Loaded {
    summary: LoadSummary,
    /// The daily totals of the loaded datasets; none after a dry run.
    totals: Vec<TableReport>,
    session: Option<Session>,
}

/// Loads, with a progress bar if standard error is a terminal.
///
/// # Errors
/// As [`batch::load`]; or if the totals cannot be read.
pub async fn load(config: &Config, options: &LoadOptions) -> Result<Loaded> {
    let progress = Arc::default();
    let (summary, mut session) = tokio::select! {
        loaded = batch::load(config, options, &progress) => loaded?,
        never = progress::show(Arc::clone(&progress)) => match never {},
    };
    let totals = match &mut session {
        Some(session) => {
            let totals = daily_totals(&mut session.connection, &options.datasets).await;
            totals.map_err(|error| session.explain(error))?
        }
        None => Vec::new(),
    };
    Ok(Loaded { summary, totals, session })
}

impl Loaded {
    /// Writes the text output.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        summary::write(&self.summary, out)?;
        write_totals(out, &self.totals)
    }

    /// Does what can wait until the result is shown.
    pub async fn end(self) {
        if let Some(session) = self.session {
            session.end().await;
        }
    }
}
