//! Claim: takes a file for this process. A rename decides which process gets the file, and a lock shows whether the process is
//! still alive.

use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::OFlags;
use uuid::Uuid;

use super::directory::{Directory, READ};
use super::read::End;
use super::{Candidate, Inbox, OPEN_FILE_FACTOR, Place, Stamp, disk, kept_name, list, names};
use crate::dataset::Dataset;
use crate::error::{IoContext, Result};

/// A file that this process loads. It is locked until the last clone is dropped. If neither [`Inbox::done`] nor
/// [`Inbox::failed`] was called before that, it is then one of the [`Inbox::leftovers`].
#[derive(Debug, Clone)]
pub struct Claim {
    /// The load's key. It stays the same after a crash. Keys sort by the time of the claim.
    pub key: Uuid,
    /// What the file holds.
    pub dataset: Arc<Dataset>,
    /// The file's name in the ledger: the path where it was dropped, as [`names::path_text`] writes it.
    pub source: String,
    pub(super) held: Arc<Held>,
}

/// What all clones of a claim share.
#[derive(Debug)]
pub(super) struct Held {
    /// Open and locked.
    pub file: File,
    /// Its path in `.loading/`.
    pub path: PathBuf,
    /// The whole name under which it was dropped.
    pub name: OsString,
    pub place: Arc<Place>,
    /// Size and time of the file before it was claimed.
    pub stamp: Stamp,
    pub settle: Duration,
    /// How long to wait for more when the text ends inside a record.
    pub grace_period: Duration,
    /// How far the file was read.
    pub position: AtomicU64,
    /// Where reading reached the end. `None` until then.
    pub end: Mutex<Option<End>>,
    /// Whether an earlier reading may have committed some of its records.
    pub is_read_again: AtomicBool,
}

/// A file in `.loading/`. Its process may be dead or alive; [`Inbox::reclaim`] finds out.
#[derive(Debug, Clone)]
pub struct Leftover {
    /// The key of its claim.
    pub key: Uuid,
    path: PathBuf,
    place: Arc<Place>,
}

impl Inbox {
    /// Claims a file under a new key. Returns `None` if the file is gone or another process has it. No other process will load
    /// it from then on. Call [`Inbox::sync_claims`] to make this survive a power failure.
    ///
    /// # Errors
    /// If the file cannot be opened or renamed. It stays where it is.
    pub fn claim(&self, candidate: &Candidate) -> Result<Option<Claim>> {
        self.claim_as(Uuid::now_v7(), candidate).cannot(format_args!("claim {}", names::path_text(&candidate.path)))
    }

    fn claim_as(&self, key: Uuid, candidate: &Candidate) -> io::Result<Option<Claim>> {
        let place = &candidate.place;
        let name = super::file_name(&candidate.path);
        let dir = match Directory::open(&place.dir, place.links) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            dir => dir?,
        };
        // Locked before the rename, so that another process that looks for leftovers finds it locked.
        let Some(file) = lock(&dir, name)? else { return Ok(None) };

        let loading = dir.open_in(super::file_name(&place.loading), place.links)?;
        let keyed = names::keyed(key, name);
        let kept = names::is_shortened(name).then(|| kept_name::write(&loading, key, name)).transpose()?;
        if let Err(e) = dir.rename(name, &loading, &keyed) {
            loading.remove_if_there(OsStr::new(&names::kept_name(key)))?;
            return if e.kind() == io::ErrorKind::NotFound && place.loading.is_dir() { Ok(None) } else { Err(e) };
        }
        drop(kept);
        place.unsynced.store(true, Ordering::Release);

        // Another file may have got this name after the first one was opened. Then that file is the claimed one.
        let file = if disk::is_at(&file, &loading, &keyed)? { Some(file) } else { lock_at(&loading, &keyed)? };
        let path = place.loading.join(keyed);
        let grace_period = match candidate {
            Candidate { complete: true, .. } => Duration::ZERO,
            Candidate { open: true, .. } => self.settle * OPEN_FILE_FACTOR,
            _ => self.settle,
        };
        let held = |file| Held { grace_period, ..self.hold(place, file, path, name.to_owned(), candidate.stamp) };
        Ok(file.map(held).map(|held| held.into_claim(key)))
    }

    /// Lists all claims, of any process, the oldest first. Call it at the start and with every listing of the inbox, for two
    /// reasons: other processes can die, and two processes that see different files under one name can both fail to claim.
    /// Foreign files are left out, and so are files of datasets that are not configured.
    ///
    /// # Errors
    /// If a directory cannot be listed.
    pub fn leftovers(&self) -> Result<Vec<Leftover>> {
        let mut found = Vec::new();
        for place in &self.places {
            for entry in list(&place.loading)? {
                if let Some((key, _)) = names::split_key(&entry.file_name())
                    && entry.file_type().is_ok_and(|kind| kind.is_file())
                {
                    found.push(Leftover { key, path: entry.path(), place: Arc::clone(place) });
                }
            }
        }
        found.sort_by_key(|leftover| leftover.key);
        Ok(found)
    }

    /// Claims a leftover under its old key. Returns `None` if a living process has it. If its load was over and only its move
    /// was interrupted, this completes the move and returns `None`.
    ///
    /// # Errors
    /// If the file cannot be opened or moved. It stays where it is.
    pub fn reclaim(&self, leftover: &Leftover) -> Result<Option<Claim>> {
        self.reclaim_held(leftover).cannot(format_args!("resume {}", names::path_text(&leftover.path)))
    }

    fn reclaim_held(&self, leftover: &Leftover) -> io::Result<Option<Claim>> {
        let Leftover { key, path, place } = leftover;
        let loading = match place.open(&place.loading) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            loading => loading?,
        };
        let Some(file) = lock_at(&loading, super::file_name(path))? else { return Ok(None) };
        let name = match kept_name::read(&loading, *key)? {
            Some(name) => name,
            None => match names::split_key(super::file_name(path)) {
                Some((_, name)) => name.to_owned(),
                None => return Ok(None),
            },
        };
        let stamp = Stamp::of(&file.metadata()?);
        let claim = self.hold(place, file, path.clone(), name, stamp).into_claim(*key);
        claim.read_again();
        Ok(if claim.finish_move()? { None } else { Some(claim) })
    }

    fn hold(&self, place: &Arc<Place>, file: File, path: PathBuf, name: OsString, stamp: Stamp) -> Held {
        Held {
            file,
            path,
            name,
            place: Arc::clone(place),
            stamp,
            settle: self.settle,
            grace_period: self.settle,
            position: AtomicU64::new(0),
            end: Mutex::new(None),
            is_read_again: AtomicBool::new(false),
        }
    }
}

impl Held {
    fn into_claim(self, key: Uuid) -> Claim {
        let dataset = Arc::clone(&self.place.dataset);
        let source = names::path_text(&self.place.dir.join(&self.name));
        Claim { key, dataset, source, held: Arc::new(self) }
    }
}

impl Claim {
    /// The current size of the stored file in bytes.
    pub fn size(&self) -> u64 {
        self.held.file.metadata().map_or(self.held.stamp.size, |metadata| metadata.len())
    }

    /// How many bytes of the stored file have been read.
    pub fn bytes_read(&self) -> u64 {
        self.held.position.load(Ordering::Relaxed)
    }

    /// Whether the ledger may contain something of an earlier reading of this file.
    pub fn is_read_again(&self) -> bool {
        self.held.is_read_again.load(Ordering::Relaxed)
    }

    /// Marks the file to be read again from its beginning.
    pub fn read_again(&self) {
        self.held.is_read_again.store(true, Ordering::Relaxed);
    }

    /// Records durably that a panic happened while this load was processed. Returns how often that has happened. Only panics
    /// count: a process that is killed says nothing about the file.
    ///
    /// # Errors
    /// If the record cannot be written.
    pub fn record_crash(&self) -> Result<u64> {
        let name = self.crash_marks();
        let mark = || {
            let loading = self.loading()?;
            let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NONBLOCK;
            let mut marks = loading.open_file(&name, flags)?.ok_or(io::ErrorKind::AlreadyExists)?;
            marks.write_all(b"!")?;
            marks.sync_all()?;
            loading.sync()?;
            Ok(marks.metadata()?.len())
        };
        mark().cannot(format_args!("write {}", name.display()))
    }

    /// How many crashes were recorded.
    ///
    /// # Errors
    /// If the record cannot be read.
    pub fn crashes(&self) -> Result<u64> {
        let name = self.crash_marks();
        let marks = self.loading().and_then(|loading| loading.look(&name)).cannot(format_args!("read {}", name.display()))?;
        Ok(marks.map_or(0, |marks| u64::try_from(marks.st_size).unwrap_or(0)))
    }

    fn crash_marks(&self) -> OsString {
        names::crash_marks(self.key).into()
    }

    fn loading(&self) -> io::Result<Directory> {
        self.held.place.open(&self.held.place.loading)
    }

    /// Removes the files that are kept beside the claim. This happens before the file moves, so that none of them is left
    /// behind. From then on the shortened name is used.
    pub(super) fn remove_notes(&self) -> io::Result<()> {
        let loading = self.loading()?;
        loading.remove_if_there(OsStr::new(&names::kept_name(self.key)))?;
        loading.remove_if_there(&self.crash_marks())
    }
}

/// Opens and locks a file. Returns `None` if it is gone or locked, or if a link or something else is in its place.
fn lock(dir: &Directory, name: &OsStr) -> io::Result<Option<File>> {
    /// `EBADF`: on NFS an exclusive lock needs a file that is open for writing.
    const NOT_WRITABLE: i32 = 9;
    let Some(file) = dir.open_file(name, READ)? else { return Ok(None) };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) if e.raw_os_error() == Some(NOT_WRITABLE) => {
            let Some(file) = dir.open_file(name, OFlags::RDWR | OFlags::NONBLOCK)? else { return Ok(None) };
            match file.try_lock() {
                Ok(()) => Ok(Some(file)),
                Err(TryLockError::WouldBlock) => Ok(None),
                Err(TryLockError::Error(e)) => Err(e),
            }
        }
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// Locks the file. Checks its name again afterwards, because the last owner may have moved the file before it released the lock.
fn lock_at(dir: &Directory, name: &OsStr) -> io::Result<Option<File>> {
    let Some(file) = lock(dir, name)? else { return Ok(None) };
    Ok(disk::is_at(&file, dir, name)?.then_some(file))
}
