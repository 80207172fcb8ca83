//! The life of a file in the inbox: dropped, claimed, read, and put where it belongs.
//!
//! ```text
//! <inbox>/<dataset>/<name>                         dropped; claimed when complete: Watcher, Settling
//! <inbox>/<dataset>/.loading/<load key>-<name>     claimed and locked by the process that loads it: Claim
//! <inbox>/<dataset>/processed/<load key>-<name>    all of it is durable: Inbox::done
//! <inbox>/<dataset>/failed/<load key>-<name>       with <load key>-<name>.error.json beside it: Inbox::failed
//! ```
//!
//! Whatever happens, a file is in exactly one of these places; a claim without a lock belongs to nobody and is resumed under
//! its key by whoever finds it. A name that is too long behind a load key is shortened; what it was is kept in a dot file beside
//! the claim (`.<load key>.name`), and so is how often loading it crashed (`.<load key>.crashes`).

mod drop; // puts a copy of a file into the inbox
mod watch; // what the file system says about the inbox
mod settling; // pure: which files have been still for long enough
mod claim; // takes a file for this process, after a crash again
mod read; // reads a claimed file to its real end
mod finish; // processed/ and failed/
mod names; // which files count, and what they are called on their way
mod disk; // writes and moves that survive a crash

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

pub use claim::{Claim, Leftover};
pub use drop::drop_file;
pub use finish::Placed;
pub use names::path_text;
pub use read::{CannotRead, ClaimReader};
pub use settling::Settling;
pub use watch::{Event, Watcher};

use crate::dataset::Dataset;
use crate::error::{IoContext, Result};
use crate::vitals::Stage;

/// How much longer than `settle` a file must be still that somebody has open: its closing is an event of its own.
const OPEN_FILE_FACTOR: u32 = 20;

/// The directories of an inbox. Several, in one process or many, can share them.
#[derive(Debug)]
pub struct Inbox {
    root: PathBuf,
    places: Vec<Arc<Place>>,
    settle: Duration,
}

/// A dataset's part of the inbox.
#[derive(Debug)]
struct Place {
    dataset: Arc<Dataset>,
    /// Absolute.
    dir: PathBuf,
    loading: PathBuf,
    processed: PathBuf,
    failed: PathBuf,
    /// Makes progress while a file is copied to its place.
    stage: Stage,
    /// A claim was made that a power failure could still undo.
    unsynced: AtomicBool,
}

/// A file that could be claimed.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Absolute.
    pub path: PathBuf,
    /// What it looked like when it was found.
    pub stamp: Stamp,
    /// When it was last written, renamed or linked, by the file system's clock.
    pub changed: SystemTime,
    /// Its writer has closed it or renamed it in.
    pub complete: bool,
    /// As far as events tell somebody may still write to it; it only has been still for long.
    pub open: bool,
    place: Arc<Place>,
}

/// As long as it stays the same, nobody writes to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Bytes.
    pub size: u64,
    /// When the contents changed last, by the file system's clock.
    pub modified: SystemTime,
}

impl Inbox {
    /// The inbox at `root` with a directory per dataset; those that are missing are made. `settle` is how long a file must be
    /// still to count as complete where no event says that it is. `stage` makes progress while a file is copied to its place.
    ///
    /// # Errors
    /// If a directory cannot be made.
    pub fn open(root: &Path, datasets: &[Arc<Dataset>], settle: Duration, stage: &Stage) -> Result<Self> {
        let root = std::path::absolute(root).cannot(format_args!("find {}", root.display()))?;
        let place = |dataset: &Arc<Dataset>| {
            let dir = root.join(&dataset.name);
            Arc::new(Place {
                dataset: Arc::clone(dataset),
                loading: dir.join(".loading"),
                processed: dir.join("processed"),
                failed: dir.join("failed"),
                stage: stage.clone(),
                dir,
                unsynced: AtomicBool::new(false),
            })
        };
        let places = datasets.iter().map(place).collect();
        let inbox = Self { root, places, settle };
        inbox.make_directories()?;
        Ok(inbox)
    }

    /// Makes the directories that are missing, again if somebody removed them.
    ///
    /// # Errors
    /// If one cannot be made.
    pub fn make_directories(&self) -> Result<()> {
        for place in &self.places {
            for dir in [&place.loading, &place.processed, &place.failed] {
                fs::create_dir_all(dir).cannot(format_args!("make {}", dir.display()))?;
            }
        }
        Ok(())
    }

    /// Removes the unfinished files that dead processes left behind. It lists `processed/` and `failed/`, which may hold much.
    ///
    /// # Errors
    /// If a directory cannot be listed.
    pub fn sweep(&self) -> Result<()> {
        for dir in self.places.iter().flat_map(|place| [&place.loading, &place.processed, &place.failed]) {
            for entry in list(dir)?.into_iter().filter(|entry| names::is_unfinished(&entry.file_name())) {
                let path = entry.path();
                if disk::sweep(&path).cannot(format_args!("remove {}", path.display()))? {
                    tracing::info!("removed {}, which a process that died had begun to write", path.display());
                }
            }
        }
        Ok(())
    }

    /// The directories to watch, one per dataset.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.places.iter().map(|place| place.dir.as_path())
    }

    /// All files that could be claimed now, those first that have been there longest.
    ///
    /// # Errors
    /// If a directory cannot be listed.
    pub fn scan(&self) -> Result<Vec<Candidate>> {
        let mut found = Vec::new();
        for place in &self.places {
            for entry in list(&place.dir)? {
                if !names::is_ignored(&entry.file_name())
                    && let Ok(metadata) = entry.metadata()
                {
                    found.extend(candidate(place, entry.path(), &metadata));
                }
            }
        }
        found.sort_by(|a, b| (a.changed, &a.path).cmp(&(b.changed, &b.path)));
        Ok(found)
    }

    /// The file of this path as it is now, if it is there and is one that can be claimed.
    pub fn look(&self, path: &Path) -> Option<Candidate> {
        let place = self.places.iter().find(|place| path.parent() == Some(&place.dir))?;
        if path.file_name().is_none_or(names::is_ignored) {
            return None;
        }
        candidate(place, path.to_owned(), &fs::symlink_metadata(path).ok()?)
    }

    /// Makes the claims so far survive a power failure. Before anything of a claimed file is committed: else the file could be
    /// back in the inbox afterwards, and be loaded once more under another key. Call it once after a run of claims.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn sync_claims(&self) -> Result<()> {
        for place in &self.places {
            if place.unsynced.swap(false, Ordering::AcqRel) {
                let synced = disk::sync_dir(&place.loading).and_then(|()| disk::sync_dir(&place.dir));
                if synced.is_err() {
                    place.unsynced.store(true, Ordering::Release);
                }
                synced.cannot(format_args!("sync {}", place.loading.display()))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.root.display().fmt(f)
    }
}

/// Regular files only, so neither symbolic links nor directories.
fn candidate(place: &Arc<Place>, path: PathBuf, metadata: &Metadata) -> Option<Candidate> {
    metadata.is_file().then(|| Candidate {
        path,
        stamp: Stamp::of(metadata),
        changed: changed(metadata),
        complete: false,
        open: false,
        place: Arc::clone(place),
    })
}

/// The time of the last write, rename or link: unlike the time of modification nobody can set it back.
fn changed(metadata: &Metadata) -> SystemTime {
    let since_epoch = |seconds: i64, nanos: i64| {
        let nanos = u32::try_from(nanos).unwrap_or(0);
        u64::try_from(seconds).map_or(SystemTime::UNIX_EPOCH, |seconds| SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos))
    };
    since_epoch(metadata.ctime(), metadata.ctime_nsec())
}

impl Candidate {
    /// What the file holds.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.place.dataset
    }

    /// For how long the file has been as it is, if its file system's clock is right.
    pub fn untouched(&self) -> Duration {
        self.changed.elapsed().unwrap_or_default()
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { size: metadata.len(), modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH) }
    }
}

/// The entries of a directory, in no order; none if somebody removed it. Entries that vanish meanwhile are left out.
fn list(dir: &Path) -> Result<Vec<fs::DirEntry>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.collect::<io::Result<_>>().cannot(format_args!("list {}", dir.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).cannot(format_args!("list {}", dir.display())),
    }
}

/// The name of a file that is known to have one.
fn file_name(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}

#[cfg(test)]
mod tests;
