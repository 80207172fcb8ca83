//! Reads a claimed file to its real end: a writer may still be at work on it.

use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::{Claim, Stamp};

/// The bytes of a claimed file, as stored. It ends when the file does and nobody writes to it: if the file has changed since it
/// was found, its end waits until it has been still for the settle time. So reading blocks; it wants a thread of its own.
#[derive(Debug)]
pub struct ClaimReader {
    claim: Claim,
    position: u64,
    /// What the file looked like when it was last known to be still.
    still: Stamp,
}

impl Claim {
    /// A reader from the beginning of the file.
    pub fn open(&self) -> ClaimReader {
        self.held.position.store(0, Ordering::Relaxed);
        ClaimReader { claim: self.clone(), position: 0, still: self.held.stamp }
    }

    /// Whether the file, which was read to its end, grows. To be asked when the text ended inside a record: waits for more, twenty
    /// times the settle time if somebody may have the file open, not at all if its writer has closed it, else once, and at most
    /// until more is there.
    ///
    /// # Errors
    /// If the file cannot be looked at.
    pub fn more_coming(&self) -> io::Result<bool> {
        let position = self.bytes_read();
        if self.held.ended_at.load(Ordering::Relaxed) != position {
            return Ok(false);
        }
        grows(position, self.held.patience, || self.stamp(), thread::sleep)
    }

    fn stamp(&self) -> io::Result<Stamp> {
        Ok(Stamp::of(&self.held.file.metadata()?))
    }
}

impl Read for ClaimReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.claim.held.file.read_at(buffer, self.position)?;
            if read > 0 || buffer.is_empty() {
                self.position += read as u64;
                self.claim.held.position.store(self.position, Ordering::Relaxed);
                return Ok(read);
            }
            let stamp = self.claim.stamp()?;
            if stamp == self.still || !grows(self.position, self.claim.held.settle, || self.claim.stamp(), thread::sleep)? {
                self.claim.held.ended_at.store(self.position, Ordering::Relaxed);
                return Ok(0);
            }
        }
    }
}

/// Waits until the file is longer than `position` (true) or has been still for `settle` (false).
fn grows(
    position: u64,
    settle: Duration,
    mut look: impl FnMut() -> io::Result<Stamp>,
    mut pause: impl FnMut(Duration),
) -> io::Result<bool> {
    let step = (settle / 5).clamp(Duration::from_millis(1), Duration::from_millis(50));
    let mut last = look()?;
    let mut still = Duration::ZERO;
    loop {
        if last.size > position {
            return Ok(true);
        }
        if still >= settle {
            return Ok(false);
        }
        pause(step);
        still += step;
        let now = look()?;
        if now != last {
            (last, still) = (now, Duration::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn looks(sizes: &[u64]) -> impl FnMut() -> io::Result<Stamp> + '_ {
        let mut sizes = sizes.iter().copied();
        let mut last = 0;
        move || {
            last = sizes.next().unwrap_or(last);
            Ok(Stamp { size: last, modified: SystemTime::UNIX_EPOCH + Duration::from_secs(last) })
        }
    }

    #[test]
    fn a_file_that_is_longer_is_read_on_at_once() {
        let mut waited = Duration::ZERO;
        assert!(grows(5, Duration::from_millis(250), looks(&[6]), |pause| waited += pause).unwrap());
        assert_eq!(waited, Duration::ZERO);
    }

    #[test]
    fn a_file_ends_when_it_has_been_still_for_the_settle_time() {
        let mut waited = Duration::ZERO;
        assert!(!grows(5, Duration::from_millis(250), looks(&[5]), |pause| waited += pause).unwrap());
        assert_eq!(waited, Duration::from_millis(250));
    }

    #[test]
    fn every_change_starts_the_wait_again() {
        let mut waited = Duration::ZERO;
        // Truncated and written again, up to where it was read.
        assert!(!grows(5, Duration::from_millis(250), looks(&[5, 5, 5, 0, 0, 5]), |pause| waited += pause).unwrap());
        assert_eq!(waited, Duration::from_millis(5 * 50 + 250));
        assert!(grows(5, Duration::from_millis(250), looks(&[5, 5, 5, 5, 6]), |_| ()).unwrap());
    }
}
