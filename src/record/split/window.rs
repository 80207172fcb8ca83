//! The part of a text that is in memory.

use std::io::{self, Read};

/// A window that moves over the text of a reader. What lies before the hold, or without one before the unread bytes, is
/// forgotten when room is needed.
pub(super) struct Window<R> {
    reader: R,
    /// Memory to begin with; it doubles when what is held and unread needs more.
    initial_bytes: usize,
    /// `buf[..end]` is text, the rest is room.
    buf: Vec<u8>,
    held: Option<usize>,
    pos: usize,
    end: usize,
    ended: bool,
    /// Offset of `buf[0]` in the text.
    base: u64,
    /// Line ends before `buf[0]`, and where the line of `buf[0]` begins.
    lines: u64,
    line_start: u64,
}

impl<R: Read> Window<R> {
    pub fn new(reader: R, initial_bytes: usize) -> Self {
        Self { reader, initial_bytes, buf: Vec::new(), held: None, pos: 0, end: 0, ended: false, base: 0, lines: 0, line_start: 0 }
    }

    /// What was read into memory and not yet passed.
    pub fn unread(&self) -> &[u8] {
        &self.buf[self.pos..self.end]
    }

    /// Passes `n` bytes of [`unread`](Self::unread).
    pub fn advance(&mut self, n: usize) {
        debug_assert!(n <= self.end - self.pos);
        self.pos += n;
    }

    /// Offset in the text of the first unread byte.
    pub fn offset(&self) -> u64 {
        self.base + self.pos as u64
    }

    /// Offset in the text behind the last byte in memory.
    pub fn end_offset(&self) -> u64 {
        self.base + self.end as u64
    }

    /// Keeps the text from here on until it is taken.
    pub fn hold(&mut self) {
        self.held = Some(self.pos);
    }

    /// Bytes from the hold to the first unread byte.
    pub fn held_bytes(&self) -> usize {
        self.held.map_or(0, |held| self.pos - held)
    }

    /// The first `length` bytes from the hold, which ends here.
    pub fn take_held(&mut self, length: usize) -> Vec<u8> {
        self.held.take().map_or_else(Vec::new, |held| self.buf[held..held + length].to_vec())
    }

    /// Whether the reader has no more text than what is in memory.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Reads once more; false at the end of the text.
    pub fn fill(&mut self) -> io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        // A quarter free: reads stay large, and a reader that gives single bytes does not move the window for each.
        if self.buf.len() - self.end <= self.buf.len() / 4 {
            self.forget();
            if self.buf.len() - self.end <= self.buf.len() / 4 {
                self.buf.resize((self.buf.len() * 2).max(self.initial_bytes), 0);
            }
        }
        loop {
            match self.reader.read(&mut self.buf[self.end..]) {
                Ok(0) => {
                    self.ended = true;
                    return Ok(false);
                }
                Ok(n) => {
                    self.end += n;
                    return Ok(true);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Line and column, both from 1, the column in bytes, of an offset in memory.
    pub fn position(&self, offset: u64) -> (u64, u64) {
        let before = &self.buf[..usize::try_from(offset - self.base).expect("the offset is in memory")];
        let (lines, line_start) = self.lines_after(before);
        (lines + 1, offset - line_start + 1)
    }

    /// Memory in use.
    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.buf.capacity()
    }

    /// Drops what nobody needs any more, and counts its lines.
    fn forget(&mut self) {
        let keep = self.held.unwrap_or(self.pos);
        (self.lines, self.line_start) = self.lines_after(&self.buf[..keep]);
        self.buf.copy_within(keep..self.end, 0);
        self.base += keep as u64;
        self.pos -= keep;
        self.end -= keep;
        self.held = self.held.map(|_| 0);
    }

    fn lines_after(&self, front: &[u8]) -> (u64, u64) {
        let line_start = memchr::memrchr(b'\n', front).map_or(self.line_start, |i| self.base + i as u64 + 1);
        (self.lines + memchr::memchr_iter(b'\n', front).count() as u64, line_start)
    }
}
