//! Steps: what a process does that others find, if it dies or fails then. In a debug build a test can end the process after each of
//! them in turn, or have it fail; a release has nothing of this.

use std::io;

/// Something that tests can have fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It is not done, and never will be.
    Refused,
    /// It is not done for want of room.
    Full,
}

#[cfg(debug_assertions)]
mod chosen {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::Failure;

    /// What a test has become of a step.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fate {
        Killed,
        Fails(Failure),
        /// It is done, but its answer is lost.
        Lost,
        Listed,
    }

    /// The fate, and the number of the step, from 1. `DATALOADER_STEP` names them: `killed:7`, `refused:7`, `full:7`, `lost:7`;
    /// `listed:0` lists steps that begin, `listed:1` those that are done.
    fn chosen() -> Option<(Fate, u64)> {
        static CHOSEN: OnceLock<Option<(Fate, u64)>> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let text = std::env::var("DATALOADER_STEP").ok()?;
            let (fate, number) = text.split_once(':')?;
            let fate = match fate {
                "killed" => Fate::Killed,
                "refused" => Fate::Fails(Failure::Refused),
                "full" => Fate::Fails(Failure::Full),
                "lost" => Fate::Lost,
                _ => Fate::Listed,
            };
            Some((fate, number.parse().ok()?))
        })
    }

    /// Counts a step that begins.
    pub fn begins(what: &str) -> Option<Failure> {
        static BEGUN: AtomicU64 = AtomicU64::new(0);
        let (fate, number) = chosen()?;
        let begun = BEGUN.fetch_add(1, Ordering::Relaxed) + 1;
        match fate {
            Fate::Listed if number == 0 => eprintln!("step {begun}: {what}"),
            Fate::Fails(failure) if begun == number => {
                eprintln!("step {number} fails: {what}");
                return Some(failure);
            }
            _ => {}
        }
        None
    }

    /// Counts a step that is done. Returns whether its answer is lost.
    pub fn done(what: &str) -> bool {
        static DONE: AtomicU64 = AtomicU64::new(0);
        let Some((fate, number)) = chosen() else { return false };
        let done = DONE.fetch_add(1, Ordering::Relaxed) + 1;
        match fate {
            Fate::Listed if number == 1 => eprintln!("step {done}: {what}"),
            Fate::Killed if done == number => {
                eprintln!("ended after step {number}: {what}");
                // As `kill -9` does it: nothing is finished, closed or rolled back by this process.
                let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                loop {
                    std::thread::park();
                }
            }
            Fate::Lost if done == number => {
                eprintln!("step {number} fails: {what}");
                return true;
            }
            _ => {}
        }
        false
    }
}

#[cfg(not(debug_assertions))]
mod chosen {
    pub fn begins(_what: &str) -> Option<super::Failure> {
        None
    }

    pub fn done(_what: &str) -> bool {
        false
    }
}

/// Begins a step. Returns how it fails, if a test says so.
pub use chosen::begins;
/// A step is done. Returns whether its answer is lost, because a test says so.
pub use chosen::done;

/// A step that concerns a file.
///
/// # Errors
/// That of the work, or the one that a test wants.
pub fn of_file<T>(what: &str, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    use rustix::io::Errno;
    match begins(what) {
        Some(Failure::Refused) => return Err(Errno::IO.into()),
        Some(Failure::Full) => return Err(Errno::NOSPC.into()),
        None => {}
    }
    let worked = work()?;
    if done(what) { Err(Errno::IO.into()) } else { Ok(worked) }
}

/// Whether a statement is a step: it does more than to read, set or lock something.
pub fn is_step(sql: &str) -> bool {
    const WITHOUT_TRACE: [&str; 7] = ["select", "set", "savepoint", "release", "lock", "pragma", "rollback"];
    let word = sql.split_ascii_whitespace().next().unwrap_or_default();
    !WITHOUT_TRACE.contains(&word)
}
