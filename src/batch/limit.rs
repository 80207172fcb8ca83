//! How many rejects a run may have before it fails as a whole: `--max-rejects`.

use std::str::FromStr;

use crate::error::{Error, Result};
use crate::store::ledger::Counts;

/// How many rejects a load may have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MaxRejects {
    /// This many records.
    Count(u64),
    /// This percentage of the records read, 0 to 100.
    Percent(f64),
}

impl MaxRejects {
    /// Whether `rejected` of `read` records are more than allowed.
    #[expect(clippy::cast_precision_loss, reason = "beyond 2⁵³ records a rounded percentage will do")]
    pub fn exceeded_by(self, rejected: u64, read: u64) -> bool {
        match self {
            Self::Count(limit) => rejected > limit,
            Self::Percent(limit) => rejected as f64 * 100.0 > limit * read as f64,
        }
    }
}

impl FromStr for MaxRejects {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = match text.strip_suffix('%') {
            Some(percent) => percent.trim_end().parse().ok().filter(|p| (0.0..=100.0).contains(p)).map(Self::Percent),
            None => text.parse().ok().map(Self::Count),
        };
        parsed.ok_or_else(|| "give a number of records as in 100, or a percentage from 0% to 100% as in 0.5%".to_owned())
    }
}

impl std::fmt::Display for MaxRejects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Count(limit) => write!(f, "{limit}"),
            Self::Percent(limit) => write!(f, "{limit}%"),
        }
    }
}

/// The limit, and the counts of a run over all its datasets.
pub(super) struct RejectLimit {
    limit: Option<MaxRejects>,
    total: Counts,
}

impl RejectLimit {
    pub(super) fn new(limit: Option<MaxRejects>) -> Self {
        Self { limit, total: Counts::default() }
    }

    /// Adds counts. A limit in records is checked at once; a percentage is checked when everything was read.
    pub(super) fn add(&mut self, counts: Counts) -> Result<()> {
        self.total += counts;
        match self.limit {
            Some(MaxRejects::Count(_)) => self.finish(),
            _ => Ok(()),
        }
    }

    /// Checks the limit when everything was read.
    pub(super) fn finish(&self) -> Result<()> {
        let Counts { read, rejected, .. } = self.total;
        match self.limit {
            Some(limit) if limit.exceeded_by(rejected, read) => Err(Error::failed(format!(
                "{rejected} of {read} records rejected, more than --max-rejects {limit} allows; nothing was loaded"
            ))
            .hint("see why with `dataloader load --dry-run`")),
            _ => Ok(()),
        }
    }
}
