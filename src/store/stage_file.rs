//! Stage file: rows on their way to a PostgreSQL server that reads them from a directory which it shares.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::error::{Class, StoreError, StoreResult};
use crate::error::io_text;

/// A file in the directory that the server shares. It is locked while it is in use and removed afterwards.
pub(super) struct StageFile {
    path: PathBuf,
    file: std::io::BufWriter<File>,
}

const STAGE_PREFIX: &str = "dataloader-";
const STAGE_SUFFIX: &str = ".copy";

impl StageFile {
    pub(super) fn create(dir: &Path) -> StoreResult<Self> {
        let fail = |action: &str, path: &Path, error: std::io::Error| {
            StoreError::new(Class::Other, format!("cannot {action} {}: {}", path.display(), io_text(&error)))
        };
        sweep(dir);
        let dir = std::path::absolute(dir).map_err(|e| fail("find", dir, e))?;
        let path = dir.join(format!("{STAGE_PREFIX}{}{STAGE_SUFFIX}", Uuid::now_v7()));
        let mut options = File::options();
        options.write(true).create_new(true);
        // The server runs as another user and must be able to read the file. Only this user may write it.
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o644);
        let file = options.open(&path).map_err(|e| fail("create the stage file", &path, e))?;
        file.lock().map_err(|e| fail("lock", &path, e))?;
        Ok(Self { path, file: std::io::BufWriter::with_capacity(1 << 20, file) })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> StoreResult<()> {
        self.file.write_all(bytes).map_err(|error| self.failed(&error))
    }

    pub(super) fn complete(&mut self) -> StoreResult<()> {
        self.file.flush().map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &std::io::Error) -> StoreError {
        let class = if error.kind() == std::io::ErrorKind::StorageFull { Class::Full } else { Class::Other };
        StoreError::new(class, format!("cannot write {}: {}", self.path.display(), io_text(error)))
    }

    /// The path as an SQL string.
    pub(super) fn path_literal(&self) -> StoreResult<String> {
        let path = self
            .path
            .to_str()
            .ok_or_else(|| StoreError::new(Class::Other, format!("the stage directory {} is not UTF-8", self.path.display())))?;
        Ok(format!("'{}'", path.replace('\'', "''")))
    }
}

impl Drop for StageFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!("cannot remove the stage file {}: {}", self.path.display(), io_text(&error));
        }
    }
}

/// Removes the stage files of processes that were killed. Their locks are free.
fn sweep(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(STAGE_PREFIX)
            && name.ends_with(STAGE_SUFFIX)
            && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok())
        {
            drop(std::fs::remove_file(entry.path()));
        }
    }
}
