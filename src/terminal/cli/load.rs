//! The arguments of `load`.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use clap::Args;
use clap::error::ErrorKind;
use jiff::civil::Date;

use super::{parse_day, usage};
use crate::batch::MaxRejects;

/// Loads the files of the datasets' directories, all or some days, in one transaction
///
/// The rows go into the delta table, replace those of the same key in the raw table, and the daily totals are brought up to
/// date: all or nothing. Loading the same files again changes nothing. A dataset without `day` is always loaded in full.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dataloader load                                      All files of all datasets
  dataloader load --date 2020-12-05                    One day of the events, all organisations
  dataloader load --new                                Only what was not loaded yet
  dataloader load --dataset events --max-rejects 1%    Fail if more than 1 % do not fit
  zcat export.json.gz | dataloader load --dataset events -

Exits 3 when all is loaded but records were rejected: `dataloader rejects list` shows them.")]
pub struct LoadArgs {
    /// Only records of this day (UTC), as YYYY-MM-DD
    #[arg(long, value_name = "DATE", value_parser = parse_day, conflicts_with_all = ["from", "to"])]
    date: Option<Date>,
    /// Only records from this day on; needs --to
    #[arg(long, value_name = "DATE", value_parser = parse_day, requires = "to")]
    from: Option<Date>,
    /// Only records up to this day, inclusive; needs --from
    #[arg(long, value_name = "DATE", value_parser = parse_day, requires = "from")]
    to: Option<Date>,
    /// Only this dataset; may be repeated
    #[arg(long = "dataset", value_name = "NAME")]
    pub datasets: Vec<String>,
    /// Only files whose content was not loaded yet, each content once; the others are counted as unchanged
    #[arg(long, conflicts_with_all = ["date", "from", "to"])]
    pub new: bool,
    /// Fail, and load nothing, if more records are rejected: a number, or a percentage of those read as in 0.5%
    #[arg(long, value_name = "N|P%")]
    pub max_rejects: Option<MaxRejects>,
    /// Empty the table of a dataset without `day` when its files hold no record; without this such a load fails
    #[arg(long)]
    pub allow_empty: bool,
    /// Say what a load would change: files, days, tables, rejects; nothing is written
    #[arg(long)]
    pub dry_run: bool,
    /// PostgreSQL: pass the rows through files in DIR, which the server must see under the same path [env: DATALOADER_STAGE_DIR]
    #[arg(long, value_name = "DIR")]
    pub(super) stage_dir: Option<PathBuf>,
    /// Load these files, or standard input (-), instead of the directory of the one --dataset
    #[arg(value_name = "FILE|-")]
    pub files: Vec<PathBuf>,
}

impl LoadArgs {
    /// The first and the last selected day; `None` for all days.
    pub fn days(&self) -> Option<RangeInclusive<Date>> {
        self.date.map(|day| day..=day).or_else(|| Some(self.from?..=self.to?))
    }

    /// Checks that clap cannot express.
    pub(super) fn check(&self) -> Result<(), clap::Error> {
        if let (Some(from), Some(to)) = (self.from, self.to)
            && from > to
        {
            return Err(usage("load", ErrorKind::ValueValidation, format!("--from {from} is after --to {to}")));
        }
        if !self.files.is_empty() && self.datasets.len() != 1 {
            let message = "files to load need one --dataset NAME that says what they hold";
            return Err(usage("load", ErrorKind::MissingRequiredArgument, message));
        }
        let pipes = self.files.iter().filter(|file| file.as_path() == Path::new("-")).count();
        if self.new && pipes > 0 {
            let message = "--new is for files: whether the content of standard input (-) is new is not known before it is read";
            return Err(usage("load", ErrorKind::ArgumentConflict, message));
        }
        if pipes > 1 {
            return Err(usage("load", ErrorKind::TooManyValues, "standard input (-) can be loaded once"));
        }
        Ok(())
    }
}
