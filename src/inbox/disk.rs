//! Disk: writes and moves that survive a crash. At any moment either the old or the new state is on disk, never a part of one.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};

use rustix::fs::{FileType, Mode, OFlags, fstat};

use super::directory::{Directory, READ};
use crate::steps;

/// What holds something of the data is for this user alone.
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Writes a file as a whole or not at all. Until it is complete, it has the name `unfinished`. It stays locked while the returned
/// file is open.
pub fn write(dir: &Directory, name: &OsStr, unfinished: &OsStr, contents: &[u8]) -> io::Result<File> {
    finish(dir, name, unfinished, PRIVATE, |file| file.write_all(contents))
}

/// Copies the rest of `source` to a file, in the same way as [`write`], with its permissions and modification time. Calls
/// `progress` regularly.
pub fn copy(source: &mut File, dir: &Directory, name: &OsStr, unfinished: &OsStr, progress: impl Fn()) -> io::Result<()> {
    /// The number of bytes between two calls of `progress`.
    const STEP: u64 = 8 << 20;
    let modified = source.metadata()?.modified()?;
    let mode = Mode::from_raw_mode(fstat(&*source)?.st_mode) & (Mode::RWXU | Mode::RWXG | Mode::RWXO);
    finish(dir, name, unfinished, mode, |copy| {
        while io::copy(&mut source.take(STEP), copy)? > 0 {
            progress();
        }
        copy.set_modified(modified)
    })
    .map(drop)
}

/// Creates the file `unfinished`, fills it, and renames it to `name`. After a failure, for example of a full disk, nothing is
/// left behind.
fn finish(
    dir: &Directory,
    name: &OsStr,
    unfinished: &OsStr,
    mode: Mode,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<File> {
    let mut file = create(dir, unfinished, mode)?;
    let finished = steps::of_file("a file is written", || fill(&mut file))
        .and_then(|()| steps::of_file("a file is synced", || file.sync_all()))
        .and_then(|()| dir.rename(unfinished, dir, name));
    if finished.is_err() {
        // A dot file that is left is ignored everywhere. The first error is the one to return.
        let _ = dir.remove_if_there(unfinished);
    }
    finished?;
    dir.sync()?;
    Ok(file)
}

/// Creates a file that stays locked while it is open. The lock tells [`sweep`] that a process is working on it.
fn create(dir: &Directory, name: &OsStr, mode: Mode) -> io::Result<File> {
    loop {
        dir.remove_if_there(name)?;
        let file = dir.create_file(name, mode)?;
        // On a file system without locks nothing is swept.
        let _ = file.try_lock();
        // Otherwise a sweep has removed the file before it was locked.
        if is_at(&file, dir, name)? {
            return Ok(file);
        }
    }
}

/// Removes a file if no process is working on it, and nobody needs it: `is_needed` is asked while the file is locked. Returns
/// whether there was one.
pub fn sweep(dir: &Directory, name: &OsStr, is_needed: impl FnOnce(&File) -> io::Result<bool>) -> io::Result<bool> {
    let Some(file) = dir.open_file(name, OFlags::RDWR | OFlags::NONBLOCK)? else { return Ok(false) };
    let is_left_behind = file.try_lock().is_ok() && is_at(&file, dir, name)? && !is_needed(&file)?;
    if is_left_behind {
        dir.remove_if_there(name)?;
    }
    Ok(is_left_behind)
}

/// A file in its directory, or where it is to be.
#[derive(Debug, Clone, Copy)]
pub struct At<'a>(pub &'a Directory, pub &'a OsStr);

/// Moves a file, to another file system if necessary. `unfinished` is the name of the incomplete copy beside `to`. After a crash,
/// calling it again completes the move. A file that is already at `to` is a copy of the same file, because names begin with the
/// load key. `progress` is called during the copy.
pub fn move_file(from: At<'_>, to: At<'_>, unfinished: &OsStr, progress: impl Fn()) -> io::Result<()> {
    let (At(from, name), At(to, to_name)) = (from, to);
    match from.rename(name, to, to_name) {
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            let mut source = from.open_file(name, READ)?.ok_or(io::ErrorKind::NotFound)?;
            if !is_copied(&source, to, to_name)? {
                copy(&mut source, to, to_name, unfinished, progress)?;
            }
            from.remove_if_there(name)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound && to.look(to_name)?.is_some() => Ok(()),
        moved => moved,
    }
}

/// Whether `name` is already a complete copy. [`copy`] renames it last, so comparing the length is enough.
pub fn is_copied(source: &File, dir: &Directory, name: &OsStr) -> io::Result<bool> {
    let Some(copy) = dir.look(name)? else { return Ok(false) };
    Ok(FileType::from_raw_mode(copy.st_mode).is_file() && u64::try_from(copy.st_size).ok() == Some(source.metadata()?.len()))
}

/// Whether `name` currently leads to this open file.
pub fn is_at(file: &File, dir: &Directory, name: &OsStr) -> io::Result<bool> {
    let open = fstat(file)?;
    Ok(dir.look(name)?.is_some_and(|found| (found.st_dev, found.st_ino) == (open.st_dev, open.st_ino)))
}
