//! Inbox: the life of a file in the inbox. It is dropped, claimed, read, and moved to `processed/` or `failed/`.
//!
//! ```text
//! <inbox>/<dataset>/<name>                         dropped; claimed when complete: Watcher, Settling
//! <inbox>/<dataset>/.loading/<load key>-<name>     claimed and locked by the process that loads it: Claim
//! <inbox>/<dataset>/processed/<load key>-<name>    all of it is durable: Inbox::done
//! <inbox>/<dataset>/failed/<load key>-<name>       with <load key>-<name>.error.json beside it: Inbox::failed
//! ```
//!
//! A file is always in exactly one of these places. A claim without a lock has no owner: the next process that finds it resumes
//! it under its key. A name that is too long to follow a load key is shortened. The full name is then kept in a dot file beside
//! the claim (`.<load key>.name`). The number of crashes is kept there as well (`.<load key>.crashes`).

mod copy; // puts a copy of a file into the inbox
mod watch; // events of the file system
mod settling; // which files have not changed for long enough (pure)
mod claim; // takes a file for this process, also after a crash
mod read; // reads a claimed file to its end, even while it is being written
mod finish; // moves files to processed/ and failed/
mod kept_name; // names that are too long for a claim
mod names; // which names count, and how they are changed on the way
mod waiting; // which files wait
mod processed; // which files are loaded
mod disk; // writes and moves that survive a crash
mod directory; // an open directory, whose links are not followed

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
pub use copy::drop_file;
pub use directory::{ABOUT_LINKS, Symlinks};
pub use finish::Placed;
pub use names::path_text;
pub use processed::{Processed, processed};
pub use read::{CannotRead, ClaimReader};
pub use settling::Settling;
pub use waiting::{Waiting, waiting, waiting_bytes};
pub use watch::{Event, Watcher, can_watch};

use crate::dataset::Dataset;
use directory::Directory;

use crate::error::{Error, IoContext, Result};
use crate::vitals::Stage;

/// A file that is open must be still for this many times `settle`, because its closing is reported by an event.
const OPEN_FILE_FACTOR: u32 = 20;

/// The directories of an inbox. Several of these, in one or many processes, can share the same directories.
#[derive(Debug)]
pub struct Inbox {
    root: PathBuf,
    places: Vec<Arc<Place>>,
    settle: Duration,
}

/// The directories of one dataset.
#[derive(Debug)]
struct Place {
    dataset: Arc<Dataset>,
    /// Absolute.
    dir: PathBuf,
    loading: PathBuf,
    processed: PathBuf,
    failed: PathBuf,
    links: Symlinks,
    /// Reports progress while a file is copied.
    stage: Stage,
    /// Whether there are claims that a power failure could still undo.
    unsynced: AtomicBool,
}

/// A file that can be claimed.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Absolute.
    pub path: PathBuf,
    /// Size and time of the file when it was found.
    pub stamp: Stamp,
    /// When it was last written, renamed or linked, according to the file system's clock.
    pub changed: SystemTime,
    /// Whether its writer has closed it or renamed it into the directory.
    pub complete: bool,
    /// Whether a program may still have it open for writing, as far as events show. It is taken because it has been still for a
    /// long time.
    pub open: bool,
    place: Arc<Place>,
}

/// Size and time of a file. As long as they stay the same, nobody is writing to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// In bytes.
    pub size: u64,
    /// When the contents last changed, according to the file system's clock.
    pub modified: SystemTime,
}

impl Inbox {
    /// Opens the inbox at `root`, with one directory per dataset. Missing directories are created, for this user alone. `settle`
    /// is how long a file must be still to count as complete if no event reports that it is. `stage` reports progress while a
    /// file is copied.
    ///
    /// # Errors
    /// If a directory cannot be created, or is a symbolic link.
    pub fn open(root: &Path, datasets: &[Arc<Dataset>], settle: Duration, stage: &Stage) -> Result<Self> {
        Self::open_with(root, datasets, settle, stage, Symlinks::Refused)
    }

    /// The same, with directories that may be symbolic links.
    ///
    /// # Errors
    /// If a directory cannot be created, or is a symbolic link that is refused.
    pub fn open_with(root: &Path, datasets: &[Arc<Dataset>], settle: Duration, stage: &Stage, links: Symlinks) -> Result<Self> {
        let root = std::path::absolute(root).cannot(format_args!("find {}", root.display()))?;
        let place = |dataset: &Arc<Dataset>| {
            let dir = root.join(&dataset.name);
            Arc::new(Place {
                dataset: Arc::clone(dataset),
                loading: dir.join(".loading"),
                processed: dir.join("processed"),
                failed: dir.join("failed"),
                links,
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

    /// Creates the directories that are missing, also after somebody removed them.
    ///
    /// # Errors
    /// If a directory cannot be created, or is a symbolic link that is refused.
    pub fn make_directories(&self) -> Result<()> {
        for place in &self.places {
            make_directory(&place.dir, place.links)?;
            for path in place.subdirectories() {
                place.make(path).map_err(|error| cannot_make(path, error))?;
            }
        }
        Ok(())
    }

    /// Removes the unfinished files of dead processes, and the names of claims that they did not make. This lists `processed/` and `failed/`, which may contain many files.
    ///
    /// # Errors
    /// If a directory cannot be listed.
    pub fn sweep(&self) -> Result<()> {
        for (place, dir) in self.places.iter().flat_map(|place| place.subdirectories().map(|dir| (place, dir))) {
            for entry in list(dir)?.into_iter().filter(|entry| names::is_unfinished(&entry.file_name())) {
                let path = entry.path();
                let swept = place.open(dir).and_then(|dir| disk::sweep(&dir, &entry.file_name(), |_| Ok(false)));
                if swept.cannot(format_args!("remove {}", path.display()))? {
                    tracing::info!("removed {}, which a process that died had begun to write", path.display());
                }
            }
        }
        self.places.iter().try_for_each(|place| kept_name::sweep(place))
    }

    /// The directories to watch, one per dataset.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.places.iter().map(|place| place.dir.as_path())
    }

    /// All files that can be claimed now, the oldest first.
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

    /// The current state of the file at this path, if there is one and it can be claimed.
    pub fn look(&self, path: &Path) -> Option<Candidate> {
        let place = self.places.iter().find(|place| path.parent() == Some(&place.dir))?;
        if path.file_name().is_none_or(names::is_ignored) {
            return None;
        }
        candidate(place, path.to_owned(), &fs::symlink_metadata(path).ok()?)
    }

    /// Makes all claims so far survive a power failure. This must happen before any record of a claimed file is committed.
    /// Otherwise a power failure could put the file back into the inbox, and it would be loaded again under another key. Call
    /// it once after several claims.
    ///
    /// # Errors
    /// If the disk reports an error.
    pub fn sync_claims(&self) -> Result<()> {
        for place in &self.places {
            if place.unsynced.swap(false, Ordering::AcqRel) {
                let synced = place.open(&place.loading).and_then(|loading| loading.sync());
                let synced = synced.and_then(|()| Directory::open(&place.dir, place.links)?.sync());
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

impl Place {
    fn subdirectories(&self) -> [&Path; 3] {
        [&self.loading, &self.processed, &self.failed]
    }

    /// Opens one of the subdirectories.
    fn open(&self, path: &Path) -> io::Result<Directory> {
        Directory::open(&self.dir, self.links)?.open_in(file_name(path), self.links)
    }

    /// Opens one of the subdirectories, and makes it if it is missing.
    fn make(&self, path: &Path) -> io::Result<Directory> {
        Directory::make(&self.dir, self.links)?.make_in(file_name(path), self.links)
    }
}

/// Opens a directory of a dataset, and makes it if it is missing.
fn make_directory(path: &Path, links: Symlinks) -> Result<Directory> {
    Directory::make(path, links).map_err(|error| cannot_make(path, error))
}

fn cannot_make(path: &Path, error: io::Error) -> Error {
    if directory::is_link(&error) {
        return Error::failed(format!("{} is a symbolic link, which is not followed", path.display())).hint(ABOUT_LINKS);
    }
    Err::<(), _>(error).cannot(format_args!("make {}", path.display())).unwrap_err()
}

/// Only regular files can be claimed: no symbolic links and no directories.
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

/// The time of the last write, rename or link. Unlike the modification time, it cannot be set by a program.
fn changed(metadata: &Metadata) -> SystemTime {
    let since_epoch = |seconds: i64, nanos: i64| {
        let nanos = u32::try_from(nanos).unwrap_or(0);
        u64::try_from(seconds).map_or(SystemTime::UNIX_EPOCH, |seconds| SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos))
    };
    since_epoch(metadata.ctime(), metadata.ctime_nsec())
}

impl Candidate {
    /// For how long the file has not changed, if its file system's clock is correct.
    pub fn untouched(&self) -> Duration {
        self.changed.elapsed().unwrap_or_default()
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { size: metadata.len(), modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH) }
    }
}

/// The entries of a directory, in any order. Empty if the directory was removed. Entries that disappear during the listing are
/// left out.
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
