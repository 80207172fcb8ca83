//! Prints results and errors in the format that `--format` names. Results go to standard output, errors to where the caller
//! expects them.

use std::io::{self, BufWriter, ErrorKind, Write};

use clap::ValueEnum;
use serde::Serialize;

use crate::config::hide_passwords;
use crate::error::{Error, Result, io_text};
use crate::visible::{Form, VisibleWriter, visible};

/// The format of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Text to read.
    Text,
    /// One JSON object on standard output and nothing else.
    Json,
}

impl From<Format> for Form {
    fn from(format: Format) -> Self {
        match format {
            Format::Text => Self::Text,
            Format::Json => Self::Json,
        }
    }
}

/// Prints a command's result, or its error.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: Format,
}

impl Output {
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    pub fn format(self) -> Format {
        self.format
    }

    /// Prints the result: `value` as JSON, or the text that `text` writes. Call it once per command.
    pub fn result<T: Serialize>(self, value: &T, text: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        stream(self.format, |out| match self.format {
            Format::Text => text(out),
            Format::Json => {
                serde_json::to_writer(&mut *out, value)?;
                writeln!(out)
            }
        })
    }

    /// Prints the error that ended the command: as text on standard error, as JSON on standard output.
    pub fn error(self, error: &Error) {
        // If printing fails too, only the exit code reports the error.
        let _ = match self.format {
            Format::Text => write_error(&mut io::stderr(), error),
            Format::Json => write_json(&mut io::stdout(), error),
        };
    }
}

/// Writes an error as text: the message, and the hint if there is one.
///
/// # Errors
/// If the text cannot be written.
pub fn write_error(out: &mut dyn Write, error: &Error) -> io::Result<()> {
    let hint = error.hint_text().map(|hint| format!("hint: {}\n", visible(hint, Form::Line))).unwrap_or_default();
    let message = hide_passwords(error.message());
    // A single write, so that lines of other processes cannot come between the two lines.
    out.write_all(format!("error: {}\n{hint}", visible(&message, Form::Line)).as_bytes())
}

fn write_json(out: &mut dyn Write, error: &Error) -> io::Result<()> {
    #[derive(Serialize)]
    struct Failure<'a> {
        error: Explanation<'a>,
    }
    #[derive(Serialize)]
    struct Explanation<'a> {
        message: String,
        hint: Option<&'a str>,
    }
    let error = Explanation { message: hide_passwords(error.message()), hint: error.hint_text() };
    let line = serde_json::to_string(&Failure { error })? + "\n";
    out.write_all(visible(&line, Form::Json).as_bytes())
}

/// Writes to standard output, buffered. A closed pipe (`dataloader report | head`) is not an error; it only ends `write`
/// early.
pub fn stream(format: Format, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    stream_to(io::stdout().lock(), |out| write(&mut VisibleWriter::new(out, format.into())))
}

/// Clears the terminal that standard output is.
///
/// # Errors
/// If it cannot be written.
pub fn clear_screen() -> Result<()> {
    stream_to(io::stdout().lock(), |out| write!(out, "\x1b[H\x1b[2J"))
}

/// Standard output, for a result that is written in parts.
pub struct Printer {
    out: VisibleWriter<BufWriter<io::Stdout>>,
    is_closed: bool,
}

impl Printer {
    /// Nothing is written yet.
    pub fn start(format: Format) -> Self {
        let out = BufWriter::with_capacity(64 * 1024, io::stdout());
        Self { out: VisibleWriter::new(out, format.into()), is_closed: false }
    }

    /// Writes a part.
    ///
    /// # Errors
    /// If it cannot be written: a reader that has seen enough is such an error as well, after which there is nothing to go on for.
    pub fn write(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        if self.is_closed {
            return Err(ErrorKind::BrokenPipe.into());
        }
        write(&mut self.out).and_then(|()| self.out.flush()).inspect_err(|_| self.is_closed = true)
    }

    /// Writes a part; does nothing once the reader has seen enough.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn print(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        match self.write(write) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(Error::failed(format!("cannot write to standard output: {}", io_text(&error))))
            }
            _ => Ok(()),
        }
    }
}

fn stream_to<W: Write>(sink: W, write: impl FnOnce(&mut BufWriter<W>) -> io::Result<()>) -> Result<()> {
    let mut out = BufWriter::with_capacity(64 * 1024, sink);
    match write(&mut out).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) => {
            // Dropping the writer would flush the rest, which would fail again.
            let _ = out.into_parts();
            match e.kind() {
                ErrorKind::BrokenPipe => Ok(()),
                _ => Err(Error::failed(format!("cannot write to standard output: {}", io_text(&e)))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_ends_quietly_and_a_full_disk_does_not() {
        stream_to(Broken(ErrorKind::BrokenPipe), |out| writeln!(out, "x")).unwrap();
        let error = stream_to(Broken(ErrorKind::StorageFull), |out| writeln!(out, "x")).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.message().starts_with("cannot write to standard output: "), "{error}");
    }

    #[test]
    fn an_error_is_a_line_and_its_hint_another() {
        let mut out = Vec::new();
        write_error(&mut out, &Error::failed("cannot open x.json: permission denied").hint("check its owner")).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "error: cannot open x.json: permission denied\nhint: check its owner\n");
    }

    #[test]
    fn an_error_for_programs_is_one_object_without_passwords() {
        let json = |error| {
            let mut out = Vec::new();
            write_json(&mut out, &error).unwrap();
            String::from_utf8(out).unwrap()
        };
        let error = Error::unreachable("cannot reach postgres://u:s3cret@h/db").hint("start it");
        assert_eq!(json(error), "{\"error\":{\"message\":\"cannot reach postgres://u:***@h/db\",\"hint\":\"start it\"}}\n");
        assert_eq!(json(Error::failed("x")), "{\"error\":{\"message\":\"x\",\"hint\":null}}\n");
    }
}
