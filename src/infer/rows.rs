//! The values of all records as hashes, column by column, for the search of a key. Small inputs stay in memory; the rest goes, compressed,
//! to a temporary file that nobody else can open and that is gone with the process.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Cursor, Read, Seek, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;

use crate::record::kind::Look;

/// So many keys are looked at in the search; more hardly occur, and each costs time and space.
pub const MAX_COLUMNS: usize = 128;
/// Rows that are compressed together.
const BLOCK_ROWS: usize = 16_384;
/// More than this goes to the temporary file.
const MAX_MEMORY: usize = 16 << 20;

/// Rows of hashes: a number per row, and a hash per column, [`Look::NULL`] where there is no value.
#[derive(Debug, Default)]
pub struct Rows {
    columns: usize,
    rows: u64,
    /// The block in progress. A column may be shorter than it has rows: the others are null.
    block: Block,
    stored: Vec<u8>,
    file: Option<File>,
}

/// Some rows, column by column.
#[derive(Debug, Default)]
pub struct Block {
    pub numbers: Vec<u64>,
    pub columns: Vec<Vec<u64>>,
}

impl Rows {
    /// A column for another key; `None` if there are enough.
    pub fn new_column(&mut self) -> Option<usize> {
        if self.columns == MAX_COLUMNS {
            return None;
        }
        self.columns += 1;
        self.block.columns.push(Vec::new());
        Some(self.columns - 1)
    }

    /// The number of rows.
    pub fn len(&self) -> u64 {
        self.rows
    }

    /// Sets a value of the row in progress.
    pub fn set(&mut self, column: usize, identity: u64) {
        let values = &mut self.block.columns[column];
        values.resize(self.block.numbers.len(), Look::NULL);
        values.push(identity);
    }

    /// Ends the row in progress.
    ///
    /// # Errors
    /// If the temporary file cannot be written.
    pub fn end_row(&mut self, number: u64) -> io::Result<()> {
        self.rows += 1;
        self.block.numbers.push(number);
        if self.block.numbers.len() < BLOCK_ROWS { Ok(()) } else { self.seal() }
    }

    /// Stores the block in progress.
    ///
    /// # Errors
    /// If the temporary file cannot be written.
    pub fn seal(&mut self) -> io::Result<()> {
        let rows = self.block.numbers.len();
        if rows == 0 {
            return Ok(());
        }
        // Differences compress to nothing: most are 1.
        let mut previous = 0;
        let steps = self.block.numbers.iter().map(|number| *number - std::mem::replace(&mut previous, *number)).collect::<Vec<_>>();
        push_number(&mut self.stored, rows);
        push_number(&mut self.stored, self.columns);
        push_column(&mut self.stored, &steps)?;
        for values in &mut self.block.columns {
            if !values.is_empty() {
                values.resize(rows, Look::NULL);
            }
            push_column(&mut self.stored, values)?;
            values.clear();
        }
        self.block.numbers.clear();
        if self.stored.len() > MAX_MEMORY {
            if self.file.is_none() {
                self.file = Some(temporary_file()?);
            }
            if let Some(file) = &mut self.file {
                file.write_all(&self.stored)?;
                self.stored.clear();
            }
        }
        Ok(())
    }

    /// Passes the rows to `each`, block by block, with only these columns, until it breaks. [`Rows::seal`] must have been called.
    ///
    /// # Errors
    /// If the temporary file cannot be read.
    pub fn scan(&self, columns: &[usize], mut each: impl FnMut(Block) -> ControlFlow<()>) -> io::Result<()> {
        if let Some(file) = &self.file {
            let mut file = BufReader::with_capacity(256 << 10, file);
            file.rewind()?;
            if scan(&mut file, columns, &mut each)?.is_break() {
                return Ok(());
            }
        }
        scan(&mut Cursor::new(&self.stored), columns, &mut each).map(drop)
    }
}

fn scan(
    stored: &mut (impl Read + Seek),
    columns: &[usize],
    each: &mut impl FnMut(Block) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    loop {
        let Some(rows) = read_number(stored)? else { return Ok(ControlFlow::Continue(())) };
        let count = read_number(stored)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut block = Block { numbers: read_column(stored, rows)?, columns: vec![Vec::new(); columns.len()] };
        let mut sum = 0;
        for number in &mut block.numbers {
            sum += *number;
            *number = sum;
        }
        for column in 0..count {
            match columns.iter().position(|wanted| *wanted == column) {
                Some(at) => block.columns[at] = read_column(stored, rows)?,
                None => skip_column(stored)?,
            }
        }
        // Columns that came later.
        for column in &mut block.columns {
            column.resize(rows, Look::NULL);
        }
        if each(block).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
}

fn push_number(stored: &mut Vec<u8>, number: usize) {
    stored.extend((number as u64).to_le_bytes());
}

fn push_column(stored: &mut Vec<u8>, values: &[u64]) -> io::Result<()> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let packed = if bytes.is_empty() { bytes } else { zstd::bulk::compress(&bytes, 1)? };
    push_number(stored, packed.len());
    stored.extend(packed);
    Ok(())
}

/// `None` at the end.
fn read_number(stored: &mut impl Read) -> io::Result<Option<usize>> {
    let mut bytes = [0; 8];
    match stored.read_exact(&mut bytes) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        result => result.map(|()| usize::try_from(u64::from_le_bytes(bytes)).ok()),
    }
}

fn read_column(stored: &mut impl Read, rows: usize) -> io::Result<Vec<u64>> {
    let length = read_number(stored)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    if length == 0 {
        return Ok(Vec::new());
    }
    let mut packed = vec![0; length];
    stored.read_exact(&mut packed)?;
    let bytes = zstd::bulk::decompress(&packed, rows * 8)?;
    let (values, _) = bytes.as_chunks();
    Ok(values.iter().map(|value| u64::from_le_bytes(*value)).collect())
}

fn skip_column(stored: &mut (impl Read + Seek)) -> io::Result<()> {
    let length = read_number(stored)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    stored.seek_relative(i64::try_from(length).map_err(io::Error::other)?)
}

/// Readable by this user only, and without a name as soon as it is open.
fn temporary_file() -> io::Result<File> {
    let path = std::env::temp_dir().join(format!("dataloader-{}", uuid::Uuid::new_v4()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}
