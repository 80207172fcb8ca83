//! The files of a batch load: finds them in the datasets' directories or takes them from the command line, opens and
//! decompresses them.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::dataset::Dataset;
use crate::error::{Error, IoContext, Result, io_text};
use crate::record::content::{Hashing, Seen};
use crate::record::decompress::decompress;

/// Where a load reads from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    File(PathBuf),
    StandardInput,
}

impl Input {
    /// `-` is standard input; any other argument is a file.
    pub fn from_argument(argument: &Path) -> Self {
        if argument == Path::new("-") { Self::StandardInput } else { Self::File(argument.to_owned()) }
    }

    /// The source as the ledger names it: the file's absolute path, so that the next load of the same file is recognised.
    pub fn source(&self) -> String {
        match self {
            Self::File(path) => path.canonicalize().unwrap_or_else(|_| path.clone()).to_string_lossy().into_owned(),
            Self::StandardInput => "-".to_owned(),
        }
    }

    /// The stored size; zero if it is not known.
    pub fn stored_bytes(&self) -> u64 {
        match self {
            Self::File(path) => path.metadata().map_or(0, |metadata| metadata.len()),
            Self::StandardInput => 0,
        }
    }

    /// Opens the input and decompresses it as [`decompress`] does. Counts in `stored_read` the bytes before decompression.
    ///
    /// # Errors
    /// If it cannot be opened or read.
    pub fn open(&self, stored_read: &Arc<AtomicU64>, zstd_window_mib: u32) -> Result<Text> {
        let (stored, seen): (Box<dyn Read + Send>, _) = match self.file()? {
            Some(file) => {
                let (file, seen) = Hashing::new(file);
                (Box::new(file), Some(seen))
            }
            None => (Box::new(io::stdin()), None),
        };
        let counted = Counted { inner: stored, read: Arc::clone(stored_read) };
        let text = decompress(counted, zstd_window_mib).cannot(format_args!("read {self}"))?;
        Ok(Text { text, seen })
    }

    /// The decompressed text, for those who need no hash of the stored bytes.
    ///
    /// # Errors
    /// If it cannot be opened or read.
    pub fn text(&self, zstd_window_mib: u32) -> Result<Box<dyn Read + Send>> {
        let stored: Box<dyn Read + Send> = match self.file()? {
            Some(file) => Box::new(file),
            None => Box::new(io::stdin()),
        };
        decompress(stored, zstd_window_mib).cannot(format_args!("read {self}"))
    }

    /// The open file; `None` for standard input.
    fn file(&self) -> Result<Option<File>> {
        let Self::File(path) = self else { return Ok(None) };
        let file = File::open(path).cannot(format_args!("open {self}"))?;
        if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Err(Error::failed(format!("cannot read {self}: it is a directory")).hint("name the files in it"));
        }
        Ok(Some(file))
    }
}

/// The decompressed text of an input.
pub struct Text {
    pub text: Box<dyn Read + Send>,
    /// What was read of the stored bytes; `None` for standard input, which is no file.
    pub seen: Option<Seen>,
}

impl std::fmt::Display for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::StandardInput => f.write_str("standard input"),
        }
    }
}

struct Counted<R> {
    inner: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// The data files in a dataset's directory, sorted by name. An empty directory is no error; a missing one is.
///
/// # Errors
/// If the directory is missing or cannot be read.
pub fn files_of(dataset: &Dataset, data_dir: &Path) -> Result<Vec<Input>> {
    let dir = data_dir.join(&dataset.dir);
    let cannot = |error: &io::Error| {
        Error::failed(format!("cannot read the directory {} of dataset {}: {}", dir.display(), dataset.name, io_text(error)))
            .hint("create it, or name the right data directory with --data-dir or the dataset's `dir` in dataloader.toml")
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(|e| cannot(&e))? {
        let path = entry.map_err(|e| cannot(&e))?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(is_data_file) && !path.is_dir() {
            // A file that has disappeared, or a broken link, is an error when it is opened: no file is skipped silently.
            files.push(path);
        }
    }
    files.sort();
    Ok(files.into_iter().map(Input::File).collect())
}

/// `*.json`, `*.jsonl`, `*.ndjson`, each also with `.gz` or `.zst`. Hidden files are skipped: another program may still write
/// them.
fn is_data_file(name: &str) -> bool {
    let stem = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name);
    !name.starts_with('.') && [".json", ".jsonl", ".ndjson"].iter().any(|suffix| stem.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::is_data_file;

    #[test]
    fn data_files_are_known_by_their_endings() {
        for name in ["a.json", "a.jsonl", "a.ndjson", "a.json.gz", "a.b.ndjson.zst"] {
            assert!(is_data_file(name), "{name}");
        }
        for name in ["a.csv", ".a.json", "json", "a.json.bak", "a.gz", "a.json.part"] {
            assert!(!is_data_file(name), "{name}");
        }
    }
}
