//! Runs programs and measures their time and memory.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;

/// Measurements of a command that must succeed.
pub trait Measured {
    /// Seconds from start to end.
    fn timed(&mut self) -> Result<f64>;
    /// The peak of resident memory, in bytes.
    fn peak_memory(&mut self) -> Result<u64>;
}

impl Measured for Command {
    fn timed(&mut self) -> Result<f64> {
        let start = Instant::now();
        let output = self.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?.wait_with_output()?;
        let seconds = start.elapsed().as_secs_f64();
        if output.status.success() {
            return Ok(seconds);
        }
        let program = self.get_program().display();
        Err(format!("{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()).into())
    }

    fn peak_memory(&mut self) -> Result<u64> {
        let mut child = self.stdout(Stdio::null()).spawn()?;
        let mut peak = 0;
        let ended = loop {
            // The kernel keeps the high-water mark, so polling misses only the last moment.
            if let Some(bytes) = high_water_mark(child.id()) {
                peak = bytes;
            }
            if let Some(ended) = child.try_wait()? {
                break ended;
            }
            thread::sleep(Duration::from_millis(10));
        };
        if ended.success() { Ok(peak) } else { Err(format!("{}: {ended}", self.get_program().display()).into()) }
    }
}

/// The `VmHWM` of a process, in bytes.
fn high_water_mark(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// An error shows this many lines of the log of a failed process.
const LAST_LINES: usize = 5;

/// A process that is observed while it works. Dropping kills it.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts the process, with its standard error in the file `log`.
    pub fn start(mut command: Command, log: PathBuf) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?).spawn()?;
        Ok(Self { child, log })
    }

    /// Whether the process has ended.
    ///
    /// # Errors
    /// If the process failed; the error contains the end of its log.
    pub fn has_ended(&mut self) -> Result<bool> {
        match self.child.try_wait()? {
            None => Ok(false),
            Some(status) if status.success() => Ok(true),
            Some(status) => {
                let log = fs::read_to_string(&self.log)?;
                let last: Vec<&str> = log.lines().skip(log.lines().count().saturating_sub(LAST_LINES)).collect();
                Err(format!("dataloader: {status}: {}", last.join("\n")).into())
            }
        }
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> Result<()> {
        self.child.wait()?;
        self.has_ended().map(drop)
    }

    /// Sends SIGTERM, so that the process finishes the work in flight, and waits for its end.
    pub fn stop(&mut self) -> Result<()> {
        // std can only send SIGKILL.
        Command::new("sh").args(["-c", &format!("kill -TERM {}", self.child.id())]).timed()?;
        self.wait()
    }

    /// The peak of resident memory so far, in bytes.
    pub fn peak_memory(&self) -> Result<u64> {
        high_water_mark(self.child.id()).ok_or_else(|| "the process has ended".into())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error only means that the process has already ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
