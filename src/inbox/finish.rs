//! Finish: moves a claimed file to `processed/` or `failed/`. Every step can be repeated, so a crash between two steps neither
//! loses nor duplicates anything.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::claim::Held;
use super::disk::At;
use super::{Claim, Inbox, disk, file_name, names};
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
        let place = &claim.held.place;
        let write = || disk::write(&place.make(&place.failed)?, &claim.report_name(), &claim.unfinished(), report.as_bytes());
        write().cannot(format_args!("write {}", place.failed.join(claim.report_name()).display()))?;
        claim.move_to(&claim.failed_path()).cannot(format_args!("move {} to failed/", claim.source))?;
        Ok(Placed { path: claim.failed_path(), unread: 0 })
    }
}

impl Claim {
    /// Completes the move that an earlier process had begun. Returns whether there was one.
    pub(super) fn finish_move(&self) -> io::Result<bool> {
        let Held { place, file, .. } = &*self.held;
        let processed = self.processed_path();
        if place.make(&place.failed)?.look(&self.report_name())?.is_some() {
            self.move_to(&self.failed_path())?;
        } else if disk::is_copied(file, &place.make(&place.processed)?, file_name(&processed))? {
            self.move_to(&processed)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Moves the file to a place in `processed/` or `failed/`.
    fn move_to(&self, to: &Path) -> io::Result<()> {
        self.remove_notes()?;
        let Held { place, path, .. } = &*self.held;
        let loading = place.open(&place.loading)?;
        let dir = place.make(to.parent().unwrap_or(&place.processed))?;
        let from = At(&loading, file_name(path));
        disk::move_file(from, At(&dir, file_name(to)), &self.unfinished(), || place.stage.progress())
    }

    fn unfinished(&self) -> OsString {
        names::unfinished(self.key).into()
    }

    fn processed_path(&self) -> PathBuf {
        self.held.place.processed.join(names::keyed(self.key, &self.held.name))
    }

    fn failed_path(&self) -> PathBuf {
        self.held.place.failed.join(names::keyed_for_report(self.key, &self.held.name))
    }

    /// The file's name followed by [`names::REPORT`].
    fn report_name(&self) -> OsString {
        let mut name = file_name(&self.failed_path()).to_owned();
        name.push(names::REPORT);
        name
    }
}
