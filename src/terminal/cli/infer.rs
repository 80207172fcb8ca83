//! `dataloader infer`: its flags.

use std::path::{Path, PathBuf};

use clap::Args;
use clap::error::ErrorKind;

use super::usage;

/// Writes a section of dataloader.toml for files that nobody has described yet
///
/// Reads the files to their end and prints a section that loads them without a reject: a column for every key with the narrowest type
/// that all its values fit, the smallest key, a day, and what to count. Each line has its evidence as a comment. The files may be
/// arrays or NDJSON, plain, gzip or zstd.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dataloader infer orders.json > dataloader.toml
  dataloader infer --check --dataset orders new/*.json     Do these still fit?
  dataloader infer --flatten --sample 10000 export/*.json.gz
  curl -s https://example.com/data.json | dataloader infer --dataset visits -")]
pub struct InferArgs {
    /// The name of the section [default: of the file, or of the directory of several]
    #[arg(long, value_name = "NAME")]
    pub dataset: Option<String>,
    /// Compare the files with the configuration instead: unknown keys, rejects, types wider than the data; exits 3 if any
    #[arg(long)]
    pub check: bool,
    /// Columns for the members of nested objects, instead of one for the whole object
    #[arg(long, conflicts_with = "check")]
    pub flatten: bool,
    /// Read only the first N records: what comes later may not fit
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub sample: Option<u64>,
    /// The files, or standard input (-)
    #[arg(value_name = "FILE|-", required = true)]
    pub files: Vec<PathBuf>,
}

impl InferArgs {
    /// Checks that clap cannot express.
    pub(super) fn check(&self) -> Result<(), clap::Error> {
        if self.files.iter().filter(|file| file.as_path() == Path::new("-")).count() > 1 {
            return Err(usage("infer", ErrorKind::TooManyValues, "standard input (-) can be read once"));
        }
        Ok(())
    }
}
