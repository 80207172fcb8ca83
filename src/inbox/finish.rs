//! Finish: moves a claimed file to `processed/` or `failed/`. Every step can be repeated, so a crash between two steps neither
//! loses nor duplicates anything.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Claim, Inbox, disk, names};
use crate::error::{IoContext, Result};
use crate::visible::{Form, visible};

/// Where a file was moved to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Absolute.
    pub path: PathBuf,
    /// Bytes that were written to the file while it was moved, and that are not loaded. If there are any, warn the user.
    pub unread: u64,
}

/// The content of `failed/<load key>-<name>.error.json`.
#[derive(Debug, Serialize)]
struct ErrorFile<'a> {
    /// The path where the file was dropped.
    file: &'a str,
    dataset: &'a str,
    load_key: String,
    error: &'a str,
    /// RFC 3339, in UTC.
    failed_at: String,
}

impl Inbox {
    /// Moves the file to `processed/`, after everything that was read is durable. The claim is void then. Returns `None` if the
    /// file was written to in the meantime: it stays claimed and has to be read again.
    ///
    /// # Errors
    /// If the file cannot be moved. It stays claimed, and its key prevents that it is loaded twice.
    pub fn done(&self, claim: &Claim) -> Result<Option<Placed>> {
        let move_done = || {
            if claim.has_changed()? {
                return Ok(None);
            }
            claim.move_to(&claim.processed_path())?;
            let read = claim.end().map_or(u64::MAX, |end| end.position);
            Ok(Some(Placed { path: claim.processed_path(), unread: claim.size().saturating_sub(read) }))
        };
        move_done().cannot(format_args!("move {} to processed/", claim.source))
    }

    /// Moves the file to `failed/`, after writing `error` into a JSON file beside it. The claim is void then.
    ///
    /// # Errors
    /// If the error cannot be written or the file cannot be moved. It stays claimed.
    pub fn failed(&self, claim: &Claim, error: &str) -> Result<Placed> {
        let report = ErrorFile {
            file: &claim.source,
            dataset: &claim.dataset.name,
            load_key: claim.key.to_string(),
            error,
            failed_at: jiff::Timestamp::now().to_string(),
        };
        let report = serde_json::to_string_pretty(&report).expect("strings can be written as JSON") + "\n";
        let report = visible(&report, Form::Json);
        let report_path = claim.report_path();
        let failed = &claim.held.place.failed;
        fs::create_dir_all(failed).cannot(format_args!("make {}", failed.display()))?;
        let unfinished = failed.join(names::unfinished(claim.key));
        disk::write(&report_path, &unfinished, report.as_bytes()).cannot(format_args!("write {}", report_path.display()))?;
        claim.move_to(&claim.failed_path()).cannot(format_args!("move {} to failed/", claim.source))?;
        Ok(Placed { path: claim.failed_path(), unread: 0 })
    }
}

impl Claim {
    /// Completes the move that an earlier process had begun. Returns whether there was one.
    pub(super) fn finish_move(&self) -> io::Result<bool> {
        if self.report_path().exists() {
            self.move_to(&self.failed_path())?;
        } else if disk::is_copied(&self.held.file, &self.processed_path())? {
            self.move_to(&self.processed_path())?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn move_to(&self, to: &Path) -> io::Result<()> {
        self.remove_notes()?;
        let unfinished = to.with_file_name(names::unfinished(self.key));
        disk::move_file(&self.held.path, to, &unfinished, || self.held.place.stage.progress())
    }

    fn processed_path(&self) -> PathBuf {
        self.held.place.processed.join(names::keyed(self.key, &self.held.name))
    }

    fn failed_path(&self) -> PathBuf {
        self.held.place.failed.join(names::keyed_for_report(self.key, &self.held.name))
    }

    /// The file's name followed by [`names::REPORT`].
    fn report_path(&self) -> PathBuf {
        let mut path = OsString::from(self.failed_path());
        path.push(names::REPORT);
        path.into()
    }
}
