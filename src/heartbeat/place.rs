//! A directory for heartbeats that only this user can change, below a directory that all users may write to. Whoever makes it
//! first, and whatever lies in it: it is opened once without following links, its owner and mode are checked, and files are
//! named relative to the open directory. What is not this user's own regular file is passed over.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::geteuid;
use uuid::Uuid;

/// A heartbeat has some kilobytes.
const MAX_BYTES: u64 = 1024 * 1024;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Without waiting for a writer, if it is a pipe.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
const MAKE: OFlags = OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The open directory.
#[derive(Debug)]
pub(super) struct Place(OwnedFd);

impl Place {
    /// Opens the directory; `None` if there is none.
    ///
    /// # Errors
    /// If it is not safe, or cannot be opened.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let directory = match fs::open(path, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(io::Error::other("it is a link, or no directory")),
            directory => directory?,
        };
        let stat = fs::fstat(&directory)?;
        if stat.st_uid != geteuid().as_raw() {
            return Err(io::Error::other("it belongs to another user"));
        }
        if Mode::from_raw_mode(stat.st_mode).intersects(Mode::RWXG | Mode::RWXO) {
            return Err(io::Error::other("it is open to other users"));
        }
        Ok(Some(Self(directory)))
    }

    /// Opens the directory, and makes it if there is none.
    ///
    /// # Errors
    /// If it is not safe, or cannot be made.
    pub(super) fn make(path: &Path) -> io::Result<Self> {
        match fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        Self::open(path)?.ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// The names of the heartbeats.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
            let is_beat = |name: &&str| name.strip_suffix(".json").is_some_and(|stem| Uuid::try_parse(stem).is_ok());
            names.extend(name.to_str().filter(is_beat).map(str::to_owned));
        }
        Ok(names)
    }

    /// Replaces the file atomically by one that is already locked. A reader thus always finds a complete and locked file.
    pub(super) fn write_locked(&self, name: &str, content: &[u8]) -> io::Result<File> {
        let unfinished = format!("{name}.tmp");
        // Remains of an interrupted attempt.
        self.remove(&unfinished)?;
        let mut file = File::from(fs::openat(&self.0, &unfinished, MAKE, Mode::RUSR | Mode::WUSR)?);
        file.lock()?;
        file.write_all(content)?;
        fs::renameat(&self.0, &unfinished, &self.0, name)?;
        Ok(file)
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match fs::unlinkat(&self.0, name, AtFlags::empty()) {
            Err(error) if error != Errno::NOENT => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Reads the file of a live process. If the process is dead, removes the file and returns `None`.
    pub(super) fn read_live(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        loop {
            let file = match fs::openat(&self.0, name, READ, Mode::empty()) {
                Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
                file => File::from(file?),
            };
            let stat = fs::fstat(&file)?;
            let is_ours = FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_uid == geteuid().as_raw();
            if !is_ours {
                return Ok(None);
            }
            // A shared lock, so that two concurrent readers do not take each other for the live process.
            match file.try_lock_shared() {
                Err(TryLockError::WouldBlock) => {
                    let mut text = Vec::new();
                    (&file).take(MAX_BYTES).read_to_end(&mut text)?;
                    return Ok(Some(text));
                }
                Err(TryLockError::Error(error)) => return Err(error),
                Ok(()) => match fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
                    // The next heartbeat has replaced the file since it was opened. Read the new one.
                    Ok(current) if current.st_ino != file.metadata()?.ino() => {}
                    _ => {
                        // If it cannot be removed, it is ignored in any case.
                        let _ = self.remove(name);
                        return Ok(None);
                    }
                },
            }
        }
    }
}

/// The directories in which a process with this user may write its heartbeats, as far as this process can tell. `name` is the
/// directory's own name. The environments of a login shell and of cron differ, so the fixed places are always among them.
pub(super) fn candidates(name: &str) -> Vec<PathBuf> {
    let uid = geteuid().as_raw();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    // These are the user's own. Those of another user, as under sudo, are not meant.
    let is_own = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|found| found.uid() == uid);
    let own = runtime.into_iter().chain([PathBuf::from(format!("/run/user/{uid}"))]).filter(is_own);
    let mut bases: Vec<PathBuf> = Vec::new();
    for base in own.chain([PathBuf::from("/tmp"), std::env::temp_dir()]) {
        if !bases.contains(&base) {
            bases.push(base);
        }
    }
    bases.into_iter().map(|base| base.join(format!("dataloader-{uid}-{name}"))).collect()
}
