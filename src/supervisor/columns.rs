//! Tables without frames: columns as wide as they must be, aligned by what a terminal shows of them.

use unicode_width::UnicodeWidthStr;

/// One cell: what is shown, and the escape that colours it, if any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    pub text: String,
    pub colour: &'static str,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Cell {
        Cell { text: text.into(), colour: "" }
    }
}

/// Rows of as many cells as the first one has.
pub fn aligned(rows: &[Vec<Cell>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().filter_map(|row| Some(row.get(column)?.text.width())).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let reset = if cell.colour.is_empty() { "" } else { "\x1b[0m" };
            let gap = " ".repeat(width - cell.text.width() + 2);
            line.extend([cell.colour, cell.text.as_str(), reset, gap.as_str()]);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_a_terminal_shows_them() {
        let red = Cell { text: "no".to_owned(), colour: "\x1b[31m" };
        let rows = [vec!["NAME".into(), "UP".into(), "X".into()], vec!["数据库".into(), red, "y".into()]];
        assert_eq!(aligned(&rows), "NAME    UP  X\n数据库  \x1b[31mno\x1b[0m  y\n");
        assert_eq!(aligned(&[]), "");
    }
}
