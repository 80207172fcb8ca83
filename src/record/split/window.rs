//! The part of the text that is in memory.

use std::io::{self, Read};

/// A window that moves over the text of a reader. When it needs room, it discards the text before the held position, or before
/// the unread bytes if nothing is held.
pub(super) struct Window<R> {
    reader: R,
    /// The initial size. It doubles when the held and unread text needs more.
    initial_bytes: usize,
    /// `buf[..end]` is text; the rest is free.
    buf: Vec<u8>,
    held: Option<usize>,
    pos: usize,
    end: usize,
    ended: bool,
    /// The offset of `buf[0]` in the text.
    base: u64,
    /// The number of line ends before `buf[0]`, and the offset where the line of `buf[0]` begins.
    lines: u64,
    line_start: u64,
}

impl<R: Read> Window<R> {
    pub fn new(reader: R, initial_bytes: usize) -> Self {
        Self { reader, initial_bytes, buf: Vec::new(), held: None, pos: 0, end: 0, ended: false, base: 0, lines: 0, line_start: 0 }
    }

    /// The bytes that are in memory and not yet consumed.
    pub fn unread(&self) -> &[u8] {
        &self.buf[self.pos..self.end]
    }

    /// Consumes `n` bytes of [`unread`](Self::unread).
    pub fn advance(&mut self, n: usize) {
        debug_assert!(n <= self.end - self.pos);
        self.pos += n;
    }

    /// The offset of the first unread byte in the text.
    pub fn offset(&self) -> u64 {
        self.base + self.pos as u64
    }

    /// The offset after the last byte in memory.
    pub fn end_offset(&self) -> u64 {
        self.base + self.end as u64
    }

    /// Keeps the text from the current position until [`take_held`](Self::take_held).
    pub fn hold(&mut self) {
        self.held = Some(self.pos);
    }

    /// The number of bytes from the held position to the first unread byte.
    pub fn held_bytes(&self) -> usize {
        self.held.map_or(0, |held| self.pos - held)
    }

    /// Returns the first `length` bytes from the held position and releases it.
    pub fn take_held(&mut self, length: usize) -> Vec<u8> {
        self.held.take().map_or_else(Vec::new, |held| self.buf[held..held + length].to_vec())
    }

    /// Whether the reader has no more text.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Reads once; returns false at the end of the text.
    pub fn fill(&mut self) -> io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        // At least a quarter of the buffer is free before each read. Reads stay large, and a reader that returns single bytes
        // does not move the window each time.
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

    /// The line and the column of an offset in memory. Both start at 1; the column counts bytes.
    pub fn position(&self, offset: u64) -> (u64, u64) {
        let before = &self.buf[..usize::try_from(offset - self.base).expect("the offset is in memory")];
        let (lines, line_start) = self.lines_after(before);
        (lines + 1, offset - line_start + 1)
    }

    /// The size of the buffer.
    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.buf.capacity()
    }

    /// Discards the text that is no longer needed, and counts its lines.
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
