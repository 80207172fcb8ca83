//! What a load would change: the answer of `load --dry-run`, beside what the files hold.

use serde::Serialize;

use super::ReasonCount;

/// What is the same for all datasets.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Plan {
    /// Why it is not known what the database has; absent if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The statements that would change tables before the first row.
    pub statements: Vec<String>,
}

/// What a load would change of a dataset.
#[derive(Debug, Clone, Default, Serialize)]
pub struct DatasetPlan {
    pub files: Vec<PlannedFile>,
    /// What would be rejected, by column and reason.
    pub rejects: Vec<ReasonCount>,
    /// The days that get rows, in order; none for a dataset without a day.
    pub days: Vec<PlannedDay>,
    /// How many rows the table has now, of these days. All rows of a dataset without a day are replaced.
    pub rows_there: u64,
}

/// A file, and what the ledger knows of it.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedFile {
    pub source: String,
    pub state: FileState,
    /// The latest load of the content, or of the file if its content is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<i64>,
    pub read: u64,
    /// Rows that it would bring.
    pub rows: u64,
    pub rejected: u64,
}

/// Whether a file was loaded before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileState {
    /// Neither the file nor its content.
    New,
    /// With another content, or not in full.
    Changed,
    /// Its content is there already. With `--new` it is left out.
    There,
}

impl FileState {
    /// The word for the user.
    pub fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Changed => "changed",
            Self::There => "there",
        }
    }
}

/// A day that gets rows.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedDay {
    pub day: String,
    /// Rows that the files bring.
    pub rows: u64,
    /// Rows that the table has of the day now.
    pub there: u64,
}
