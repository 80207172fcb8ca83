//! Disk: writes and moves that survive a crash. At any moment either the old or the new state is on disk, never a part of one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Makes files that were created in or renamed into the directory survive a power failure.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Writes a file as a whole or not at all. Until it is complete, it has the name `unfinished`, in the same directory.
pub fn write(path: &Path, unfinished: &Path, contents: &[u8]) -> io::Result<()> {
    finish(path, unfinished, 0o666, |file| file.write_all(contents))
}

/// Copies the rest of `source` to `path`, in the same way as [`write`], with its permissions and modification time. Calls
/// `progress` regularly.
pub fn copy(source: &mut File, path: &Path, unfinished: &Path, progress: impl Fn()) -> io::Result<()> {
    /// The number of bytes between two calls of `progress`.
    const STEP: u64 = 8 << 20;
    let metadata = source.metadata()?;
    finish(path, unfinished, metadata.permissions().mode() & 0o777, |copy| {
        while io::copy(&mut source.take(STEP), copy)? > 0 {
            progress();
        }
        copy.set_modified(metadata.modified()?)
    })
}

/// Creates the file `unfinished`, fills it, and renames it to `path`. After a failure, for example of a full disk, nothing is
/// left behind.
fn finish(path: &Path, unfinished: &Path, mode: u32, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut file = create(unfinished, mode)?;
    let finished = fill(&mut file).and_then(|()| file.sync_all()).and_then(|()| fs::rename(unfinished, path));
    if finished.is_err() {
        // A dot file that is left is ignored everywhere. The first error is the one to return.
        let _ = fs::remove_file(unfinished);
    }
    finished?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Creates a file that stays locked while it is open. The lock tells [`sweep`] that a process is working on it.
fn create(path: &Path, mode: u32) -> io::Result<File> {
    loop {
        remove_if_there(path)?;
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        // On a file system without locks nothing is swept.
        let _ = file.try_lock();
        // Otherwise a sweep has removed the file before it was locked.
        if is_at(&file, path)? {
            return Ok(file);
        }
    }
}

/// Removes an unfinished file if no process is working on it. Returns whether there was one.
pub fn sweep(path: &Path) -> io::Result<bool> {
    let file = match OpenOptions::new().write(true).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    let is_left_behind = file.try_lock().is_ok() && is_at(&file, path)?;
    if is_left_behind {
        remove_if_there(path)?;
    }
    Ok(is_left_behind)
}

pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Moves a file, to another file system if necessary. `unfinished` is the name of the incomplete copy beside `to`. Missing
/// directories are created. After a crash, calling it again completes the move. A file that is already at `to` is a copy of the
/// same file, because names begin with the load key. `progress` is called during the copy.
pub fn move_file(from: &Path, to: &Path, unfinished: &Path, progress: impl Fn()) -> io::Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir)?;
    }
    match fs::rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            let mut source = File::open(from)?;
            if !is_copied(&source, to)? {
                copy(&mut source, to, unfinished, progress)?;
            }
            fs::remove_file(from)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound && to.exists() => Ok(()),
        moved => moved,
    }
}

/// Whether `to` is already a complete copy. [`copy`] renames it last, so comparing the length is enough.
pub fn is_copied(source: &File, to: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(to) {
        Ok(copy) => Ok(copy.is_file() && copy.len() == source.metadata()?.len()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether `path` currently leads to this open file.
pub fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (open.dev(), open.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
