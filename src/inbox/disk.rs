//! Writes and moves that survive a crash: at any moment the old state or the new one is on disk, never half of one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Makes what was created in or renamed into the directory survive a power failure.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Writes a file that is there as a whole or not at all; `unfinished` is what it is called until then, in the same directory.
pub fn write(path: &Path, unfinished: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = File::create(unfinished)?;
    file.write_all(contents)?;
    file.sync_all()?;
    put(unfinished, path)
}

/// Copies what `source` still holds to `path`, as [`write`] does, with its permissions and time of modification.
pub fn copy(source: &mut File, path: &Path, unfinished: &Path) -> io::Result<()> {
    let metadata = source.metadata()?;
    let copied = copy_contents(source, &metadata, unfinished).and_then(|()| put(unfinished, path));
    if copied.is_err() {
        // Dot files are ignored everywhere; the error that counts is the first.
        let _ = fs::remove_file(unfinished);
    }
    copied
}

fn copy_contents(source: &mut File, metadata: &fs::Metadata, unfinished: &Path) -> io::Result<()> {
    let mode = metadata.permissions().mode() & 0o777;
    match fs::remove_file(unfinished) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(mode).open(unfinished)?;
    io::copy(source, &mut copy)?;
    copy.set_modified(metadata.modified()?)?;
    copy.sync_all()
}

fn put(unfinished: &Path, path: &Path) -> io::Result<()> {
    fs::rename(unfinished, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Moves a file, to another file system if need be; `unfinished` is a name for the copy beside `to`. A directory that somebody
/// removed is made again. Called again after a crash it finishes what was begun. A file at `to` is the same file's copy: names
/// begin with the load's key.
pub fn move_file(from: &Path, to: &Path, unfinished: &Path) -> io::Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir)?;
    }
    match fs::rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            let mut source = File::open(from)?;
            if !is_copied(&source, to)? {
                copy(&mut source, to, unfinished)?;
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
