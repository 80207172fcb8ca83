//! Text tables: aligned columns with a ruled header, as wide as their content.

use std::borrow::Cow;
use std::fmt;

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, ContentLineStyle, LineStyle, TableStyle, Width};

use crate::visible::{Form, visible};

/// The alignment of a column's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// For text.
    Left,
    /// For numbers.
    Right,
}

/// Longer values are cut: nobody reads them in a column, and a width must fit into 16 bits. The JSON output has them whole.
const MAX_CELL_CHARS: usize = 2_000;

/// A table under construction.
pub struct Table(comfy_table::Table);

impl Table {
    /// A table with these columns and no rows.
    pub fn new<S: AsRef<str>>(columns: &[(S, Align)]) -> Self {
        let mut table = comfy_table::Table::new();
        // Two spaces between columns and a single rule: easy to read in a terminal and easy to search with grep.
        let style = TableStyle::new()
            .header_lines(ContentLineStyle::none())
            .header_separator(LineStyle::none().fill('-').junction(' '))
            .content_lines(ContentLineStyle::none().junction(' '));
        table.load_style(style).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(columns.iter().map(|(name, _)| name.as_ref()));
        for (column, (_, align)) in table.column_iter_mut().zip(columns) {
            column.set_cell_alignment(match align {
                Align::Left => CellAlignment::Left,
                Align::Right => CellAlignment::Right,
            });
        }
        Self(table)
    }

    /// Appends a row. Control characters are shown as escapes, so that a row stays on one line. Very long values are cut.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.0.add_row(cells.into_iter().map(|cell| {
            let mut cell: String = cell.into();
            if let Some((end, _)) = cell.char_indices().nth(MAX_CELL_CHARS) {
                cell.truncate(end);
                cell.push('…');
            }
            match visible(&cell, Form::Line) {
                Cow::Borrowed(_) => cell,
                Cow::Owned(shown) => shown,
            }
        }));
    }
}

impl Table {
    /// How wide the columns' contents are.
    pub fn widths(&self) -> Vec<u16> {
        self.0.column_max_content_widths()
    }

    /// Makes the columns at least so wide: for a table that is written in parts.
    pub fn widen(&mut self, widths: &[u16]) {
        for (column, width) in self.0.column_iter_mut().zip(widths) {
            let padding = column.padding_width();
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + padding)));
        }
    }

    /// The rows alone, for the parts after the first.
    pub fn without_header(&self) -> String {
        const HEADER_LINES: usize = 2;
        self.to_string().lines().skip(HEADER_LINES).collect::<Vec<_>>().join("\n")
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, line) in self.0.lines().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            f.write_str(line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_rows_stay_on_one_line() {
        let mut table = Table::new(&[("name", Align::Left), ("total", Align::Right)]);
        table.row(["a\tb\nc", "7"]);
        table.row(["Zoë", "1,234"]);
        let lines: Vec<String> = table.to_string().lines().map(|line| line.trim_start().to_owned()).collect();
        assert_eq!(lines.len(), 4, "{table}");
        assert!(lines[0].starts_with("name"), "{table}");
        assert!(lines[2].starts_with("a\\tb\\nc") && lines[2].ends_with(" 7"), "{table}");
        assert!(lines[3].starts_with("Zoë") && lines[3].ends_with("1,234"), "{table}");
    }

    #[test]
    fn very_long_values_are_cut_between_characters() {
        let mut table = Table::new(&[("name", Align::Left)]);
        table.row(["ë".repeat(70_000)]);
        table.widen(&table.widths());
        assert!(table.to_string().ends_with(&("ë".repeat(MAX_CELL_CHARS) + "…")));
    }

    #[test]
    fn parts_of_a_table_are_aligned_like_the_whole() {
        let table = |rows: &[[&str; 2]]| {
            let mut table = Table::new(&[("name", Align::Left), ("total", Align::Right)]);
            rows.iter().for_each(|row| table.row(*row));
            table
        };
        let (first, second) = (["a", "1"], ["something longer", "1,000,000"]);
        let whole = table(&[first, second]);
        let [mut before, mut after] = [table(&[first]), table(&[second])];
        for part in [&mut before, &mut after] {
            part.widen(&whole.widths());
        }
        assert_eq!(format!("{before}\n{}", after.without_header()), whole.to_string());
    }
}
