//! The files in `processed/`, to be read again. Looks only, and makes nothing.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::directory::{Directory, READ, is_link};
use super::{ABOUT_LINKS, Symlinks, list, names};
use crate::error::{Error, IoContext, Result};

/// A file in `processed/`.
#[derive(Debug)]
pub struct Processed {
    /// The key of its load.
    pub key: Uuid,
    pub path: PathBuf,
    name: OsString,
    dir: Arc<Directory>,
}

/// The files in `processed/` of a dataset, in the inbox at `root`; none without such a directory. Foreign files are left out.
///
/// # Errors
/// If the directory cannot be listed, or is a symbolic link that is refused.
pub fn processed(root: &Path, dataset: &str, links: Symlinks) -> Result<Vec<Processed>> {
    let of_dataset = root.join(dataset);
    let path = of_dataset.join("processed");
    let dir = match Directory::open(&of_dataset, links).and_then(|dir| dir.open_in("processed".as_ref(), links)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) if is_link(&error) => {
            let message = format!("{} is reached by a symbolic link, which is not followed", path.display());
            return Err(Error::failed(message).hint(ABOUT_LINKS));
        }
        dir => Arc::new(dir.cannot(format_args!("open {}", path.display()))?),
    };
    let file = |entry: std::fs::DirEntry| {
        let name = entry.file_name();
        let (key, _) = names::split_key(&name)?;
        Some(Processed { key, path: path.join(&name), name, dir: Arc::clone(&dir) })
    };
    Ok(list(&path)?.into_iter().filter_map(file).collect())
}

impl Processed {
    /// Opens the file. `None` if it is gone, or no regular file.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(&self) -> io::Result<Option<File>> {
        self.dir.open_file(&self.name, READ)
    }
}
