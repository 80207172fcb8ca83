//! A disk that misbehaves for one file: reads of it fail, or its move to another file system takes long, for as long as a test
//! wants. A library between the program and the C library does it, as no ordinary file system can be told to.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::{Invocation, wait_until};

/// The library, and the flags that tell it what to do.
#[derive(Debug)]
pub struct FaultyDisk {
    directory: TempDir,
}

impl FaultyDisk {
    /// A disk that does all that it should; none, with the reason printed, where there is no C compiler.
    pub fn new() -> Option<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/disk.c");
        let library = directory.path().join("disk.so");
        match Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(library).args([source, "-ldl"]).status() {
            Ok(status) if status.success() => Some(Self { directory }),
            failed => {
                eprintln!("skipped: the library that makes the disk misbehave cannot be compiled: {failed:?}");
                None
            }
        }
    }

    /// The program on this disk. `file` is how the path of the file ends whose reads fail and whose moves take long; its reads
    /// fail from the byte `fails_from` on.
    pub fn under(&self, invocation: Invocation, file: &str, fails_from: u64) -> Invocation {
        let path = |name| self.flag(name).to_str().expect("a plain path").to_owned();
        invocation
            .env("LD_PRELOAD", &path("disk.so"))
            .env("DISK_FLAGS", &path(""))
            .env("DISK_FILE", file)
            .env("DISK_FAILS_FROM", &fails_from.to_string())
    }

    /// From now on reads fail.
    pub fn fail(&self) {
        fs::write(self.flag("fails"), "").expect("the directory is ours");
    }

    /// Reads succeed again.
    pub fn recover(&self) {
        fs::remove_file(self.flag("fails")).expect("it fails");
    }

    /// From now on a move to another file system does not get on.
    pub fn hold_copies(&self) {
        fs::write(self.flag("waits"), "").expect("the directory is ours");
    }

    /// Moves get on again.
    pub fn release_copies(&self) {
        fs::remove_file(self.flag("waits")).expect("they are held");
    }

    /// Waits until the program has read the file to its end.
    #[track_caller]
    pub fn wait_until_read(&self) {
        wait_until("the file is read to its end", || self.flag("ended").exists());
    }

    fn flag(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
