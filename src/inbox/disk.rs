//! Writes and moves that survive a crash: at any moment the old state or the new one is on disk, never half of one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Makes what was created in or renamed into the directory survive a power failure.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Writes a file that is there as a whole or not at all; `unfinished` is what it is called until then, in the same directory.
pub fn write(path: &Path, unfinished: &Path, contents: &[u8]) -> io::Result<()> {
    finish(path, unfinished, 0o666, |file| file.write_all(contents))
}

/// Copies what `source` still holds to `path`, as [`write`] does, with its permissions and time of modification. `progress` is
/// called now and then.
pub fn copy(source: &mut File, path: &Path, unfinished: &Path, progress: impl Fn()) -> io::Result<()> {
    /// What is copied between two calls of `progress`.
    const STEP: u64 = 8 << 20;
    let metadata = source.metadata()?;
    finish(path, unfinished, metadata.permissions().mode() & 0o777, |copy| {
        while io::copy(&mut source.take(STEP), copy)? > 0 {
            progress();
        }
        copy.set_modified(metadata.modified()?)
    })
}

/// Makes the file `unfinished`, fills it, and gives it its name. A failure, of a full disk for instance, leaves nothing behind.
fn finish(path: &Path, unfinished: &Path, mode: u32, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut file = create(unfinished, mode)?;
    let finished = fill(&mut file).and_then(|()| file.sync_all()).and_then(|()| fs::rename(unfinished, path));
    if finished.is_err() {
        // Dot files are ignored everywhere; the error that counts is the first.
        let _ = fs::remove_file(unfinished);
    }
    finished?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// A new file, locked for as long as it is open: [`sweep`] tells by that whether somebody is at work on it.
fn create(path: &Path, mode: u32) -> io::Result<File> {
    loop {
        remove_if_there(path)?;
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        // Where there are no locks, nothing is swept.
        let _ = file.try_lock();
        // Swept in between.
        if is_at(&file, path)? {
            return Ok(file);
        }
    }
}

/// Removes an unfinished file that nobody is at work on; says whether there was one.
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

/// Moves a file, to another file system if need be; `unfinished` is a name for the copy beside `to`. A directory that somebody
/// removed is made again. Called again after a crash it finishes what was begun. A file at `to` is the same file's copy: names
/// begin with the load's key. `progress` is called while it is copied.
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

/// Whether `to` already is a complete copy: [`copy`] gives it its name last, so its length tells.
pub fn is_copied(source: &File, to: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(to) {
        Ok(copy) => Ok(copy.is_file() && copy.len() == source.metadata()?.len()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether `path` leads to this open file, now.
pub fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (open.dev(), open.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
