//! Finds the smallest set of columns whose values no two rows share.
//!
//! Exact in bounded memory. Two rows that agree in some columns rule out every set of these columns: that is a witness. The search
//! takes the smallest set that no witness rules out, and looks for two rows with the same values in it, first among the first rows,
//! then among all. It finds a new witness, or the set is proven. Values are compared by their hashes of 64 bits: different hashes
//! prove different values. So a set that is proven is unique; among a thousand million rows one unique column of forty would be
//! missed.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;

use super::rows::{Block, Rows};

/// What the search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uniqueness {
    /// No two rows share the values of these columns.
    Proven(Vec<usize>),
    /// The rows of these two numbers share the values of all columns.
    Repeated(u64, u64),
    /// Nothing is proven after as much work as is allowed.
    Unknown,
}

/// No set of more columns is tried.
const MAX_SET: usize = 6;
/// So many sets are compared among all rows; of most sets the first rows show already that they are not unique.
const MAX_SCANS: usize = 64;
const MAX_ROUNDS: usize = 1_000;
/// So many sets are thought of in one round.
const MAX_STEPS: usize = 1_000_000;
/// Hashes that are sorted at once.
const MAX_SORTED: u64 = 4 << 20;
/// Pairs of equal rows that are looked for at once.
const MAX_PAIRS: usize = 32;

/// Searches the smallest unique set of `columns`, which are in the order of preference.
///
/// # Errors
/// If the temporary file of the rows cannot be read.
pub fn smallest(rows: &Rows, columns: &[usize]) -> io::Result<Uniqueness> {
    let search = Search::new(rows, columns)?;
    let all = if columns.len() >= 128 { u128::MAX } else { (1 << columns.len()) - 1 };
    let mut witnesses: Vec<u128> = Vec::new();
    let mut scans = 0;
    for _ in 0..MAX_ROUNDS {
        let Some(set) = smallest_not_ruled_out(&witnesses, all) else { return Ok(Uniqueness::Unknown) };
        let mut pairs = search.equal_rows(set, Extent::FirstRows)?;
        if pairs.is_empty() && scans < MAX_SCANS {
            scans += 1;
            pairs = search.equal_rows(set, Extent::All)?;
            if pairs.is_empty() {
                return Ok(Uniqueness::Proven(search.columns_of(set)));
            }
        }
        if pairs.is_empty() {
            break;
        }
        for Pair { agree, rows: (first, second) } in pairs {
            if agree == all {
                return Ok(Uniqueness::Repeated(first, second));
            }
            // Only the largest count: they rule out what the others do.
            if !witnesses.iter().any(|witness| agree & !witness == 0) {
                witnesses.retain(|witness| witness & !agree != 0);
                witnesses.push(agree);
            }
        }
    }
    Ok(Uniqueness::Unknown)
}

/// Whether two rows share a value of that column that is not null.
///
/// # Errors
/// If the temporary file of the rows cannot be read.
pub fn repeats(rows: &Rows, column: usize) -> io::Result<bool> {
    let columns = [column];
    let search = Search::new(rows, &columns)?;
    Ok(!search.equal_rows(1, Extent::FirstRows)?.is_empty() || !search.equal_rows(1, Extent::All)?.is_empty())
}

/// The smallest set that is no part of a witness; of several the first one in the order of the columns that it finds.
fn smallest_not_ruled_out(witnesses: &[u128], all: u128) -> Option<u128> {
    let mut steps = MAX_STEPS;
    (1..=MAX_SET).find_map(|size| extend(0, size, witnesses, all, &mut steps))
}

fn extend(set: u128, more: usize, witnesses: &[u128], all: u128, steps: &mut usize) -> Option<u128> {
    *steps = steps.checked_sub(1)?;
    let candidates = match witnesses.iter().find(|witness| set & !*witness == 0) {
        Some(witness) => all & !witness,
        None if set == 0 => all,
        None => return Some(set),
    };
    if more == 0 {
        return None;
    }
    let columns = (0..u128::BITS).map(|column| 1 << column).filter(|column| candidates & column != 0);
    columns.into_iter().find_map(|column| extend(set | column, more - 1, witnesses, all, steps))
}

/// Which rows are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    FirstRows,
    All,
}

/// Two rows, by their numbers, and the columns in which they agree.
struct Pair {
    agree: u128,
    rows: (u64, u64),
}

struct Search<'a> {
    rows: &'a Rows,
    columns: &'a [usize],
    /// The first rows with all columns: most sets are compared among these only.
    first: Block,
}

impl<'a> Search<'a> {
    fn new(rows: &'a Rows, columns: &'a [usize]) -> io::Result<Self> {
        let mut first = Block::default();
        rows.scan(columns, |block| {
            first = block;
            ControlFlow::Break(())
        })?;
        first.columns.resize(columns.len(), Vec::new());
        Ok(Self { rows, columns, first })
    }

    /// Passes rows to `each`, some at a time: their numbers, and the columns of these bits.
    fn scan(&self, bits: &[usize], extent: Extent, mut each: impl FnMut(&[u64], &[&[u64]]) -> ControlFlow<()>) -> io::Result<()> {
        if extent == Extent::FirstRows {
            let columns: Vec<&[u64]> = bits.iter().map(|bit| &*self.first.columns[*bit]).collect();
            let _ = each(&self.first.numbers, &columns);
            return Ok(());
        }
        let columns: Vec<usize> = bits.iter().map(|bit| self.columns[*bit]).collect();
        self.rows.scan(&columns, |block| {
            let columns: Vec<&[u64]> = block.columns.iter().map(Vec::as_slice).collect();
            each(&block.numbers, &columns)
        })
    }

    fn columns_of(&self, set: u128) -> Vec<usize> {
        bits_of(set).into_iter().map(|bit| self.columns[bit]).collect()
    }

    /// Pairs of rows with the same values in the columns of the set: some if there are any.
    fn equal_rows(&self, set: u128, extent: Extent) -> io::Result<Vec<Pair>> {
        let bits = bits_of(set);
        let passes = if extent == Extent::All { self.rows.len().div_ceil(MAX_SORTED).max(1) } else { 1 };
        for pass in 0..passes {
            let mut hashes = Vec::new();
            self.scan(&bits, extent, |numbers, columns| {
                let of_rows = (0..numbers.len()).map(|row| combined(columns.iter().map(|column| column[row])));
                hashes.extend(of_rows.filter(|hash| pass_of(*hash, passes) == pass));
                ControlFlow::Continue(())
            })?;
            hashes.sort_unstable();
            let repeated: Vec<u64> =
                hashes.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).take(MAX_PAIRS).collect();
            if !repeated.is_empty() {
                return self.pairs(set, extent, repeated);
            }
        }
        Ok(Vec::new())
    }

    /// The first two rows of each of these hashes.
    fn pairs(&self, set: u128, extent: Extent, repeated: Vec<u64>) -> io::Result<Vec<Pair>> {
        let (bits, all): (_, Vec<usize>) = (bits_of(set), (0..self.columns.len()).collect());
        let mut firsts: HashMap<u64, Option<(u64, Vec<u64>)>> = repeated.into_iter().map(|hash| (hash, None)).collect();
        let mut pairs = Vec::new();
        self.scan(&all, extent, |numbers, columns| {
            for (row, number) in numbers.iter().enumerate() {
                let hash = combined(bits.iter().map(|bit| columns[*bit][row]));
                let Some(first) = firsts.get_mut(&hash) else { continue };
                let values: Vec<u64> = columns.iter().map(|column| column[row]).collect();
                let Some((earlier, others)) = first.take() else {
                    *first = Some((*number, values));
                    continue;
                };
                let agree = values
                    .iter()
                    .zip(&others)
                    .enumerate()
                    .fold(0, |agree, (bit, (own, other))| agree | u128::from(own == other) << bit);
                // Should only the mixed hashes be the same, the set is given up: what is proven stays right.
                pairs.push(Pair { agree: agree | set, rows: (earlier, *number) });
                firsts.remove(&hash);
            }
            if firsts.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(pairs)
    }
}

/// The bits of a set, the lowest first.
fn bits_of(set: u128) -> Vec<usize> {
    (0..128).filter(|bit| set >> bit & 1 == 1).collect()
}

/// One hash for some values of a row.
fn combined(values: impl Iterator<Item = u64>) -> u64 {
    values.fold(0, mixed)
}

/// The values are well mixed already; this makes their order count.
fn mixed(hash: u64, value: u64) -> u64 {
    (hash.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// In which pass a hash is sorted: all passes have about as many.
fn pass_of(hash: u64, passes: u64) -> u64 {
    crate::record::kind::halves(u128::from(hash) * u128::from(passes))[1]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(table: &[Vec<u64>], columns: usize) -> Rows {
        let mut rows = Rows::default();
        for _ in 0..columns {
            rows.new_column();
        }
        for (number, values) in (1..).zip(table) {
            for (column, value) in values.iter().enumerate().filter(|(_, value)| **value != 0) {
                // Like hashes, and never null's.
                rows.set(column, value.wrapping_mul(0x2545_f491_4f6c_dd1d));
            }
            rows.end_row(number).unwrap();
        }
        rows.seal().unwrap();
        rows
    }

    fn is_unique(table: &[Vec<u64>], set: &[usize]) -> bool {
        let mut keys: Vec<Vec<u64>> = table.iter().map(|row| set.iter().map(|column| row[*column]).collect()).collect();
        keys.sort_unstable();
        keys.windows(2).all(|pair| pair[0] != pair[1])
    }

    #[test]
    fn the_smallest_set_is_found_before_larger_ones() {
        let table: Vec<Vec<u64>> = (0..40_000).map(|i| vec![i / 200 + 1, i % 200 + 1, 7, i / 2 + 1]).collect();
        let rows = rows(&table, 4);
        assert_eq!(smallest(&rows, &[0, 1, 2, 3]).unwrap(), Uniqueness::Proven(vec![0, 1]));
        assert_eq!(smallest(&rows, &[2, 3, 1]).unwrap(), Uniqueness::Proven(vec![3, 1]));
        assert_eq!(smallest(&rows, &[2, 0]).unwrap(), Uniqueness::Repeated(1, 2));
        assert!(repeats(&rows, 3).unwrap());
    }

    #[test]
    fn repeated_values_are_found_however_far_apart() {
        let mut table: Vec<Vec<u64>> = (1..=50_000).map(|i| vec![i, i]).collect();
        assert_eq!(smallest(&rows(&table, 2), &[0, 1]).unwrap(), Uniqueness::Proven(vec![0]));
        table[49_999][0] = 3;
        assert_eq!(smallest(&rows(&table, 2), &[0, 1]).unwrap(), Uniqueness::Proven(vec![1]));
        table[49_999][1] = 3;
        assert_eq!(smallest(&rows(&table, 2), &[0, 1]).unwrap(), Uniqueness::Repeated(3, 50_000));
    }

    proptest! {
        #[test]
        fn what_is_proven_is_unique_and_nothing_smaller_is(table in proptest::collection::vec(proptest::collection::vec(0_u64..4, 4), 1..20)) {
            let smaller_sets = |size: usize| (1_usize..16).map(|bits| (0..4).filter(|c| bits >> c & 1 == 1).collect::<Vec<_>>()).filter(move |set| set.len() < size);
            match smallest(&rows(&table, 4), &[0, 1, 2, 3]).unwrap() {
                Uniqueness::Proven(set) => {
                    prop_assert!(is_unique(&table, &set));
                    prop_assert!(smaller_sets(set.len()).all(|smaller| !is_unique(&table, &smaller)));
                }
                Uniqueness::Repeated(first, second) => {
                    let row = |number: u64| &table[usize::try_from(number).unwrap() - 1];
                    prop_assert_eq!(row(first), row(second));
                }
                Uniqueness::Unknown => prop_assert!(false),
            }
        }
    }
}
