//! Read: reads a claimed file to its real end. A program may still be writing to it.

use std::fmt;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::{Claim, Stamp};
use crate::error::io_text;

/// A reader of the stored bytes of a claimed file. It ends at the end of the file, when nobody writes to the file any more: if
/// the file has changed since it was found, the reader waits at its end until the file has been still for the settle time. A
/// read error is retried for some seconds, and then returned as [`CannotRead`]. Because reading blocks, it needs its own
/// thread.
#[derive(Debug)]
pub struct ClaimReader {
    claim: Claim,
    position: u64,
    /// Size and time of the file when it was last known to be still.
    still: Stamp,
}

/// A read error of the disk, inside the [`io::Error`] of a [`ClaimReader`].
#[derive(Debug)]
pub struct CannotRead {
    /// The position in the stored file.
    position: u64,
    cause: io::Error,
}

impl fmt::Display for CannotRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.position, io_text(&self.cause))
    }
}

impl std::error::Error for CannotRead {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

/// Where reading reached the end of a file, with size and time of the file then.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub position: u64,
    pub stamp: Stamp,
}

/// The pauses between the attempts after a read error.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(400), Duration::from_millis(1_000), Duration::from_millis(2_500)];

impl Claim {
    /// Returns a reader that starts at the beginning of the file.
    pub fn open(&self) -> ClaimReader {
        self.held.position.store(0, Ordering::Relaxed);
        self.set_end(None);
        ClaimReader { claim: self.clone(), position: 0, still: self.held.stamp }
    }

    /// Whether a file that was read to its end has grown. Call it when the text ended inside a record. It waits until there is
    /// more, but only for a time: twenty times the settle time if a program may have the file open, no time if its writer has
    /// closed it, otherwise the settle time.
    ///
    /// # Errors
    /// If the file's size cannot be read.
    pub fn more_coming(&self) -> io::Result<bool> {
        let position = self.bytes_read();
        if self.end().is_none_or(|end| end.position != position) {
            return Ok(false);
        }
        Ok(still(position, self.held.grace_period, || self.stamp(), thread::sleep)?.is_none())
    }

    /// Whether the file was written to after it was read to its end.
    pub(super) fn has_changed(&self) -> io::Result<bool> {
        let stamp = self.stamp()?;
        Ok(self.end().is_some_and(|end| end.stamp != stamp))
    }

    pub(super) fn end(&self) -> Option<End> {
        *self.held.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_end(&self, end: Option<End>) {
        *self.held.end.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }

    fn stamp(&self) -> io::Result<Stamp> {
        Ok(Stamp::of(&self.held.file.metadata()?))
    }
}

impl ClaimReader {
    fn read_on(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.claim.held.file.read_at(buffer, self.position)?;
            if read > 0 || buffer.is_empty() {
                self.position += read as u64;
                self.claim.held.position.store(self.position, Ordering::Relaxed);
                return Ok(read);
            }
            let mut stamp = self.claim.stamp()?;
            if stamp != self.still {
                match still(self.position, self.claim.held.settle, || self.claim.stamp(), thread::sleep)? {
                    Some(found) => stamp = found,
                    None => continue,
                }
            }
            self.claim.set_end(Some(End { position: self.position, stamp }));
            return Ok(0);
        }
    }
}

impl Read for ClaimReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for pause in PAUSES {
            let cause = match self.read_on(buffer) {
                Ok(read) => return Ok(read),
                Err(cause) => cause,
            };
            let error = CannotRead { position: self.position, cause };
            tracing::warn!("cannot read {} {error}; trying again", self.claim.source);
            thread::sleep(pause);
        }
        let position = self.position;
        self.read_on(buffer).map_err(|cause| io::Error::new(cause.kind(), CannotRead { position, cause }))
    }
}

/// Waits until the file is longer than `position`, and returns `None`, or until it has been still for `settle`, and returns its
/// size and time.
fn still(
    position: u64,
    settle: Duration,
    mut look: impl FnMut() -> io::Result<Stamp>,
    mut pause: impl FnMut(Duration),
) -> io::Result<Option<Stamp>> {
    let step = (settle / 5).clamp(Duration::from_millis(1), Duration::from_millis(50));
    let mut last = look()?;
    let mut waited = Duration::ZERO;
    loop {
        if last.size > position {
            return Ok(None);
        }
        if waited >= settle {
            return Ok(Some(last));
        }
        pause(step);
        waited += step;
        let now = look()?;
        if now != last {
            (last, waited) = (now, Duration::ZERO);
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
        assert_eq!(still(5, Duration::from_millis(250), looks(&[6]), |pause| waited += pause).unwrap(), None);
        assert_eq!(waited, Duration::ZERO);
    }

    #[test]
    fn a_file_ends_when_it_has_been_still_for_the_settle_time() {
        let mut waited = Duration::ZERO;
        let still = still(5, Duration::from_millis(250), looks(&[5]), |pause| waited += pause).unwrap();
        assert_eq!(still.map(|stamp| stamp.size), Some(5));
        assert_eq!(waited, Duration::from_millis(250));
    }

    #[test]
    fn every_change_starts_the_wait_again() {
        let mut waited = Duration::ZERO;
        // Truncated and written again, up to the position that was read.
        assert!(still(5, Duration::from_millis(250), looks(&[5, 5, 5, 0, 0, 5]), |pause| waited += pause).unwrap().is_some());
        assert_eq!(waited, Duration::from_millis(5 * 50 + 250));
        assert!(still(5, Duration::from_millis(250), looks(&[5, 5, 5, 5, 6]), |_| ()).unwrap().is_none());
    }
}
