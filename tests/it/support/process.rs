//! The binary as users run it: arguments, environment and standard input in; exit code, output and files out.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use super::{PATIENCE, wait_until};

/// A run that is being prepared. Of the environment only `PATH`, `HOME` and `TMPDIR` are passed on.
#[must_use]
pub struct Invocation {
    command: Command,
    stdin: Option<Vec<u8>>,
}

impl Invocation {
    /// The program under test.
    pub fn dataloader(working_directory: &Path) -> Self {
        Self::new(env!("CARGO_BIN_EXE_dataloader"), working_directory)
    }

    /// Any other program, under the same conditions.
    pub fn new(program: &str, working_directory: &Path) -> Self {
        let mut command = Command::new(program);
        command.current_dir(working_directory).env_clear();
        for kept in ["PATH", "HOME", "TMPDIR"] {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
        Self { command, stdin: None }
    }

    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.command.args(args);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// What the program reads from a pipe; without it standard input is empty.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Runs to the end. A program that hangs is killed and fails the test.
    #[track_caller]
    pub fn run(self) -> Outcome {
        self.spawn().wait()
    }

    /// Starts it in the background.
    #[track_caller]
    pub fn spawn(mut self) -> Background {
        // Files, not pipes: nobody has to read along, and what was written stays after a kill.
        let stdout = tempfile::tempfile().expect("a temporary file");
        let stderr = tempfile::tempfile().expect("a temporary file");
        self.command.stdout(stdout.try_clone().expect("a duplicate handle"));
        self.command.stderr(stderr.try_clone().expect("a duplicate handle"));
        self.command.stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = self.command.spawn().expect("cargo builds the binary before the tests");
        if let (Some(mut pipe), Some(bytes)) = (child.stdin.take(), self.stdin) {
            // A program may end without reading its input to the end: then there is nothing left to write for.
            std::thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        Background { child, stdout, stderr }
    }
}

/// A signal that a user or an operating system sends.
#[derive(Debug, Clone, Copy)]
pub enum Signal {
    Interrupt,
    Terminate,
    Kill,
}

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Background {
    child: Child,
    stdout: File,
    stderr: File,
}

impl Background {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard output so far.
    pub fn stdout(&self) -> String {
        contents(&self.stdout)
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        contents(&self.stderr)
    }

    pub fn is_running(&mut self) -> bool {
        self.try_wait().is_none()
    }

    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let name = match signal {
            Signal::Interrupt => "-INT",
            Signal::Terminate => "-TERM",
            Signal::Kill => "-KILL",
        };
        let status = Command::new("kill").args([name, &self.id().to_string()]).status().expect("every Unix has kill");
        assert!(status.success(), "the program had ended before the signal:\n{}", self.stderr());
    }

    /// Returns once standard error contains `text`; panics when the program ends without it.
    #[track_caller]
    pub fn wait_for_stderr(&mut self, text: &str) {
        wait_until(&format!("standard error says {text:?}"), || {
            let running = self.is_running();
            let found = self.stderr().contains(text);
            assert!(found || running, "ended without saying {text:?}:\n{}", self.stderr());
            found
        });
    }

    /// Waits for its end; panics when that does not come.
    #[track_caller]
    pub fn wait(mut self) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.try_wait() {
                return Outcome { code: status.code(), stdout: self.stdout(), stderr: self.stderr() };
            }
            assert!(Instant::now() < deadline, "still running after {PATIENCE:?}:\n{}{}", self.stdout(), self.stderr());
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child is ours to wait for")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("--- standard error of a process that the test had started\n{}", self.stderr());
        }
    }
}

fn contents(file: &File) -> String {
    // The handle shares its position with the child's, which must not move: read by offset.
    let length = file.metadata().expect("an open file has metadata").len();
    let mut bytes = vec![0; usize::try_from(length).expect("output fits in memory")];
    file.read_exact_at(&mut bytes, 0).expect("the child only appends");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Asserts exit code 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.code(0)
    }

    /// Asserts this exit code.
    #[track_caller]
    pub fn code(self, expected: i32) -> Self {
        assert!(
            self.code == Some(expected),
            "exit code {:?}, expected {expected}\n--- standard output\n{}\n--- standard error\n{}",
            self.code,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Standard output as the one JSON object that it has to be with `--format json`.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        let value: serde_json::Value = serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("standard output is not one JSON value ({error}):\n{}\n{}", self.stdout, self.stderr));
        assert!(value.is_object(), "not a JSON object: {value}");
        value
    }
}
