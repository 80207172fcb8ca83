//! `dataloader drop`: puts copies of a file into the inbox, which a running stream watches.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::DONE;
use crate::config::Config;
use crate::dataset::Dataset;
use crate::error::Result;
use crate::inbox::{Symlinks, drop_file};
use crate::terminal::cli::DropArgs;
use crate::terminal::output::Output;

/// Puts the copies that the arguments name into the inbox and prints their paths.
///
/// # Errors
/// As [`drop_copies`]; or if the dataset is unknown.
pub fn run(config: &Config, args: &DropArgs, output: Output) -> Result<u8> {
    let dataset = match &args.dataset {
        Some(name) => config.dataset_named(name)?,
        None => config.menu_dataset()?,
    };
    let dropped = drop_copies(config, args.file.as_deref(), &dataset, args.times)?;
    output.result(&dropped, |out| dropped.write(out))?;
    Ok(DONE)
}

/// The result of the command.
#[derive(Debug, Clone, Serialize)]
pub struct Dropped {
    /// The paths of the copies in the order of their creation, as text, because JSON has no paths.
    pub dropped: Vec<String>,
}

/// The sample file of a dataset.
pub fn sample_of(dataset: &Dataset, data_dir: &Path) -> PathBuf {
    data_dir.join(&dataset.dir).join(format!("{}_sample.json", dataset.name))
}

/// Puts `times` copies of `file`, or of the dataset's sample, into the inbox. Each copy appears complete and under a new name.
///
/// # Errors
/// If the file cannot be read or the inbox cannot be written. Copies made before the error stay, and the error says how many
/// there are.
pub fn drop_copies(config: &Config, file: Option<&Path>, dataset: &Dataset, times: u32) -> Result<Dropped> {
    let sample = sample_of(dataset, &config.data_dir);
    let links = Symlinks::followed(config.follow_links);
    let mut dropped = Vec::new();
    for made in 0..times {
        let copy = drop_file(&config.inbox, &dataset.name, file.unwrap_or(&sample), links).map_err(|error| {
            let error = if made == 0 { error } else { error.context(format_args!("{made} of {times} files were dropped")) };
            if file.is_none() { error.hint("name a file to drop, or save the dataset's sample there") } else { error }
        })?;
        dropped.push(copy.display().to_string());
    }
    Ok(Dropped { dropped })
}

impl Dropped {
    /// Writes the text output, one line per copy.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        self.dropped.iter().try_for_each(|path| writeln!(out, "dropped {path}"))
    }
}
