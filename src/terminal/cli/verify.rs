//! `dataloader verify`: what is verified.

use std::path::PathBuf;

use clap::Args;

/// Proves that rows, ledger, rejects, processed files and modelled tables agree
///
/// In one snapshot, and without changing anything: the rows of each load, its chunk lines, its rejects and its row in the ledger; the
/// files that are still in processed/, by their content and their number of records; the modelled tables against a recompute. What is
/// in flight, days that are not modelled yet, and files of other hosts are named and not compared. Exits 1 on a difference.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dataloader verify
  dataloader verify --dataset events
  dataloader verify --load 7 --load 8      Two loads and their files, without the model
  dataloader verify --format json")]
pub struct VerifyArgs {
    /// Only this dataset
    #[arg(long, value_name = "NAME")]
    pub dataset: Option<String>,
    /// Only the load with this number, and its file; may be repeated
    #[arg(long = "load", value_name = "ID")]
    pub loads: Vec<i64>,
    /// The inbox whose processed files are compared [env: DATALOADER_INBOX] [default: inbox]
    #[arg(long, value_name = "DIR")]
    pub(super) inbox: Option<PathBuf>,
}
