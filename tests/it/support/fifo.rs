//! A named pipe as an input file: the program reads as far as the test has written, and waits there.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

/// A named pipe, then its writing end; closed when dropped, which is the end of the file for the reader.
#[derive(Debug)]
pub struct Fifo {
    path: PathBuf,
    writer: Option<File>,
}

impl Fifo {
    #[track_caller]
    pub fn new(path: PathBuf) -> Self {
        let status = Command::new("mkfifo").arg(&path).status().expect("every Unix has mkfifo");
        assert!(status.success(), "mkfifo {}", path.display());
        Self { path, writer: None }
    }

    /// Returns once the program has opened the pipe for reading.
    #[track_caller]
    pub fn open(self) -> Self {
        let writer = OpenOptions::new().write(true).open(&self.path).expect("the pipe is ours");
        Self { writer: Some(writer), ..self }
    }

    /// Returns once the program has taken all but what fits into the pipe itself (64 KiB).
    #[track_caller]
    pub fn write(&mut self, text: &str) {
        let writer = self.writer.as_mut().expect("the pipe is open");
        writer.write_all(text.as_bytes()).expect("the program reads");
    }
}
