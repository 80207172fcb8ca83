//! Directory: an open directory of the inbox. Files in it are named relative to the open directory, so a link that another user
//! puts in the directory's place is never followed, not even between two steps.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::steps;

/// What becomes of a directory that is a symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Symlinks {
    /// An error: whoever may write to the inbox could otherwise choose where files are moved.
    Refused,
    /// The user's configuration allows it.
    Followed,
}

impl Symlinks {
    /// What the setting `follow_links` says.
    pub fn followed(follow_links: bool) -> Self {
        if follow_links { Self::Followed } else { Self::Refused }
    }
}

/// The cause of an [`io::Error`]: a directory is a link, and links are refused.
#[derive(Debug)]
pub(super) struct IsLink;

/// What the user can do about it.
pub const ABOUT_LINKS: &str = "make it a directory, or allow it with `follow_links = true` in the configuration";

impl fmt::Display for IsLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its directory is a symbolic link: {ABOUT_LINKS}")
    }
}

impl std::error::Error for IsLink {}

/// Whether the error is that of a link.
pub(super) fn is_link(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|cause| cause.is::<IsLink>())
}

/// An open directory.
#[derive(Debug)]
pub(super) struct Directory(OwnedFd);

/// Without waiting for a writer, if it is a pipe.
pub(super) const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK);

impl Directory {
    /// Opens the directory. Only its own name is not followed: what is above it is the user's choice.
    pub fn open(path: &Path, links: Symlinks) -> io::Result<Self> {
        Self::open_at(fs::CWD, path, links)
    }

    /// Opens the directory. Makes it and those above it, if they are missing, for this user alone.
    pub fn make(path: &Path, links: Symlinks) -> io::Result<Self> {
        match Self::open(path, links) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(path)?;
                Self::open(path, links)
            }
            opened => opened,
        }
    }

    /// Opens a directory in this one.
    pub fn open_in(&self, name: &OsStr, links: Symlinks) -> io::Result<Self> {
        Self::open_at(&self.0, Path::new(name), links)
    }

    /// Opens a directory in this one. Makes it if it is missing, for this user alone.
    pub fn make_in(&self, name: &OsStr, links: Symlinks) -> io::Result<Self> {
        match self.open_in(name, links) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                match fs::mkdirat(&self.0, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                self.open_in(name, links)
            }
            opened => opened,
        }
    }

    fn open_at(parent: impl std::os::fd::AsFd, path: &Path, links: Symlinks) -> io::Result<Self> {
        let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if links == Symlinks::Refused {
            flags |= OFlags::NOFOLLOW;
        }
        match fs::openat(&parent, path, flags, Mode::empty()) {
            // Which of them it is for a link differs between systems.
            Err(error @ (Errno::LOOP | Errno::NOTDIR | Errno::MLINK)) if links == Symlinks::Refused => {
                let found = fs::statat(&parent, path, AtFlags::SYMLINK_NOFOLLOW)?;
                let is_link = FileType::from_raw_mode(found.st_mode).is_symlink();
                Err(if is_link { io::Error::other(IsLink) } else { error.into() })
            }
            opened => Ok(Self(opened?)),
        }
    }

    /// Opens a file in this directory. Of a link it is an error, and none for what is no regular file.
    pub fn open_file(&self, name: &OsStr, flags: OFlags) -> io::Result<Option<File>> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match fs::openat(&self.0, name, flags, Mode::RUSR | Mode::WUSR) {
            Err(Errno::NOENT | Errno::LOOP | Errno::MLINK | Errno::NXIO) => return Ok(None),
            file => File::from(file?),
        };
        Ok(file.metadata()?.is_file().then_some(file))
    }

    /// Creates a file that is not there yet.
    pub fn create_file(&self, name: &OsStr, mode: Mode) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        steps::of_file("a file is made", || Ok(File::from(fs::openat(&self.0, name, flags, mode)?)))
    }

    /// What is there under this name, without following it.
    pub fn look(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        match fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            found => Ok(Some(found?)),
        }
    }

    /// Renames a file into `to`, which may be the same directory.
    pub fn rename(&self, name: &OsStr, to: &Self, to_name: &OsStr) -> io::Result<()> {
        steps::of_file("a file is renamed", || Ok(fs::renameat(&self.0, name, &to.0, to_name)?))
    }

    /// Removes a file, if it is there.
    pub fn remove_if_there(&self, name: &OsStr) -> io::Result<()> {
        match steps::of_file("a file is removed", || Ok(fs::unlinkat(&self.0, name, AtFlags::empty())?)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Makes files that were created in or renamed into the directory survive a power failure.
    pub fn sync(&self) -> io::Result<()> {
        steps::of_file("a directory is synced", || Ok(fs::fsync(&self.0)?))
    }
}
