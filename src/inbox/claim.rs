//! Takes a file for this process: the rename decides who gets it, a lock tells the claims of the living from those of the dead.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use uuid::Uuid;

use super::read::End;
use super::{Candidate, Inbox, OPEN_FILE_FACTOR, Place, Stamp, disk, list, names};
use crate::dataset::Dataset;
use crate::error::{IoContext, Result};

/// A file that this process loads. It is locked until the last clone is dropped: then, if it was neither [`Inbox::done`] nor
/// [`Inbox::failed`], it is one of the [`Inbox::leftovers`].
#[derive(Debug, Clone)]
pub struct Claim {
    /// The load's key, the same after every crash; keys sort by the time of the claim.
    pub key: Uuid,
    /// What the file holds.
    pub dataset: Arc<Dataset>,
    /// What the ledger calls the file: where it was dropped, as [`names::path_text`] writes it.
    pub source: String,
    pub(super) held: Arc<Held>,
}

/// What all clones of a claim share.
#[derive(Debug)]
pub(super) struct Held {
    /// Open and locked.
    pub file: File,
    /// In `.loading/`.
    pub path: PathBuf,
    /// The name under which it was dropped, in full.
    pub name: OsString,
    pub place: Arc<Place>,
    /// What it looked like before it was claimed.
    pub stamp: Stamp,
    pub settle: Duration,
    /// How long to wait for more when its text ends inside a record.
    pub grace_period: Duration,
    /// Up to where it was read.
    pub position: AtomicU64,
    /// Where reading came to the end; none until then.
    pub end: Mutex<Option<End>>,
    /// Somebody may have read it before, and committed some of it.
    pub is_read_again: AtomicBool,
}

/// A file in `.loading/`, of a dead process or of a living one; [`Inbox::reclaim`] finds out.
#[derive(Debug, Clone)]
pub struct Leftover {
    /// The key under which it was claimed.
    pub key: Uuid,
    path: PathBuf,
    place: Arc<Place>,
}

impl Inbox {
    /// Claims a file under a fresh key. None if it is gone or somebody else has it. Nobody else will load it from then on; for
    /// this to outlast a power failure call [`Inbox::sync_claims`].
    ///
    /// # Errors
    /// If the file cannot be opened or renamed; it stays where it is.
    pub fn claim(&self, candidate: &Candidate) -> Result<Option<Claim>> {
        self.claim_as(Uuid::now_v7(), candidate).cannot(format_args!("claim {}", names::path_text(&candidate.path)))
    }

    fn claim_as(&self, key: Uuid, candidate: &Candidate) -> io::Result<Option<Claim>> {
        let place = &candidate.place;
        let name = super::file_name(&candidate.path);
        // Locked before it is renamed: whoever looks for leftovers finds it locked.
        let Some(file) = lock(&candidate.path)? else { return Ok(None) };

        let path = place.loading.join(names::keyed(key, name));
        let kept_name = place.loading.join(names::kept_name(key));
        if names::is_shortened(name) {
            disk::write(&kept_name, &place.loading.join(names::unfinished(key)), name.as_bytes())?;
        }
        if let Err(e) = fs::rename(&candidate.path, &path) {
            disk::remove_if_there(&kept_name)?;
            return if e.kind() == io::ErrorKind::NotFound && place.loading.is_dir() { Ok(None) } else { Err(e) };
        }
        place.unsynced.store(true, Ordering::Release);

        // Another file may have got the name after this one was opened; then that is the one that was claimed.
        let file = if disk::is_at(&file, &path)? { Some(file) } else { lock_at(&path)? };
        let grace_period = match candidate {
            Candidate { complete: true, .. } => Duration::ZERO,
            Candidate { open: true, .. } => self.settle * OPEN_FILE_FACTOR,
            _ => self.settle,
        };
        let held = |file| Held { grace_period, ..self.hold(place, file, path, name.to_owned(), candidate.stamp) };
        Ok(file.map(held).map(|held| held.into_claim(key)))
    }

    /// What is claimed, by anybody, the oldest claim first. To be asked at the start and with every listing of the inbox: other
    /// processes die too, and two that see different files under one name can both go away empty-handed. Neither files of other origin nor those of datasets that are not
    /// configured are among them.
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

    /// Claims a leftover under its old key. None if a living process has it, or if it was loaded and only its move to where it
    /// belongs had not been finished: then it is, here.
    ///
    /// # Errors
    /// If the file cannot be opened or moved; it stays where it is.
    pub fn reclaim(&self, leftover: &Leftover) -> Result<Option<Claim>> {
        self.reclaim_held(leftover).cannot(format_args!("resume {}", names::path_text(&leftover.path)))
    }

    fn reclaim_held(&self, leftover: &Leftover) -> io::Result<Option<Claim>> {
        let Leftover { key, path, place } = leftover;
        let Some(file) = lock_at(path)? else { return Ok(None) };
        let name = match fs::read(place.loading.join(names::kept_name(*key))) {
            Ok(name) => OsString::from_vec(name),
            Err(e) if e.kind() == io::ErrorKind::NotFound => match names::split_key(super::file_name(path)) {
                Some((_, name)) => name.to_owned(),
                None => return Ok(None),
            },
            Err(e) => return Err(e),
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
    /// The file's size in bytes as stored, now.
    pub fn size(&self) -> u64 {
        self.held.file.metadata().map_or(self.held.stamp.size, |metadata| metadata.len())
    }

    /// How many bytes, as stored, have been read.
    pub fn bytes_read(&self) -> u64 {
        self.held.position.load(Ordering::Relaxed)
    }

    /// Whether an earlier reading may have left something of this file in the ledger.
    pub fn is_read_again(&self) -> bool {
        self.held.is_read_again.load(Ordering::Relaxed)
    }

    /// It is to be read once more, from its beginning.
    pub fn read_again(&self) {
        self.held.is_read_again.store(true, Ordering::Relaxed);
    }

    /// Notes, durably, that something panicked while it worked on this load, and says how often that has happened. Only what is
    /// noted counts: a process that is killed says nothing about the file.
    ///
    /// # Errors
    /// If the note cannot be written.
    pub fn record_crash(&self) -> Result<u64> {
        let path = self.crash_marks();
        let mark = || {
            let mut marks = OpenOptions::new().append(true).create(true).open(&path)?;
            io::Write::write_all(&mut marks, b"!")?;
            marks.sync_all()?;
            disk::sync_dir(&self.held.place.loading)?;
            Ok(marks.metadata()?.len())
        };
        mark().cannot(format_args!("write {}", path.display()))
    }

    /// How many crashes were noted.
    ///
    /// # Errors
    /// If that cannot be read.
    pub fn crashes(&self) -> Result<u64> {
        let path = self.crash_marks();
        match fs::metadata(&path) {
            Ok(marks) => Ok(marks.len()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(e) => Err(e).cannot(format_args!("read {}", path.display())),
        }
    }

    fn crash_marks(&self) -> PathBuf {
        self.held.place.loading.join(names::crash_marks(self.key))
    }

    /// Removes what is kept beside the claim. Before the file moves, so that nothing of it is left behind: from then on its
    /// shortened name will do.
    pub(super) fn remove_notes(&self) -> io::Result<()> {
        disk::remove_if_there(&self.held.place.loading.join(names::kept_name(self.key)))?;
        disk::remove_if_there(&self.crash_marks())
    }
}

/// Opens and locks a file; none if it is gone or locked.
fn lock(path: &Path) -> io::Result<Option<File>> {
    /// `EBADF`: NFS locks exclusively only what is open for writing.
    const NOT_WRITABLE: i32 = 9;
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) if e.raw_os_error() == Some(NOT_WRITABLE) => {
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            match file.try_lock() {
                Ok(()) => Ok(Some(file)),
                Err(TryLockError::WouldBlock) => Ok(None),
                Err(TryLockError::Error(e)) => Err(e),
            }
        }
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// Locks the file that is at `path`, also after it is locked: its last holder may have moved it on before it let go.
fn lock_at(path: &Path) -> io::Result<Option<File>> {
    let Some(file) = lock(path)? else { return Ok(None) };
    Ok(disk::is_at(&file, path)?.then_some(file))
}
