//! The table in a Markdown file: README's is written by this, never typed.
//!
//! A file that has the two marker lines keeps everything around them; any other place gets the table alone.

use std::io;
use std::path::Path;

use super::table::Cells;
use super::table::HEADINGS;
use super::table::NUMBERS;
use super::table::Table;

const BEGIN: &str = "<!-- quorate bench compare: begin -->";
const END: &str = "<!-- quorate bench compare: end -->";

/// Refuses at once what could not be written half an hour later.
pub fn check(path: &Path) -> Result<(), String> {
    let known = existing(path)?.unwrap_or_default();
    merge(&known, "").map(drop).map_err(|why| format!("{}: {why}", path.display()))
}

/// Writes the table.
pub fn write(table: &Table, path: &Path) -> Result<(), String> {
    let known = existing(path)?.unwrap_or_default();
    let merged = merge(&known, &block(table)).map_err(|why| format!("{}: {why}", path.display()))?;
    std::fs::write(path, merged).map_err(|error| format!("{}: {error}", path.display()))
}

fn existing(path: &Path) -> Result<Option<String>, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// `known` with `block` between its markers, or `block` alone if there was nothing.
fn merge(known: &str, block: &str) -> Result<String, &'static str> {
    let marked = format!("{BEGIN}\n{block}{END}\n");
    if known.is_empty() {
        return Ok(marked);
    }
    let (before, rest) = known.split_once(BEGIN).ok_or("it has no marker line for the table")?;
    let (_, after) = rest.split_once(END).ok_or("the marker line behind the table is missing")?;
    Ok(format!("{before}{}{after}", marked.trim_end()))
}

fn block(table: &Table) -> String {
    let mut text = String::from("\n```text\n");
    text.push_str(&table.preamble().join("\n"));
    text.push_str("\n```\n\n");
    text.push_str(&line(&HEADINGS.map(str::to_owned)));
    let rule = |at: usize| if NUMBERS.contains(&at) { "--:" } else { "---" };
    text.push_str(&line(&std::array::from_fn(|at| rule(at).to_owned())));
    table.lines().iter().for_each(|cells| text.push_str(&line(cells)));
    text.push('\n');
    text
}

fn line(cells: &Cells) -> String {
    let escaped: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    format!("| {} |\n", escaped.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::table;
    use super::*;

    #[test]
    fn the_table_goes_between_the_markers_and_nowhere_else() {
        let page = format!("above\n{BEGIN}\nold\n{END}\nbelow\n");
        let merged = merge(&page, "new\n").expect("has markers");
        assert_eq!(merged, format!("above\n{BEGIN}\nnew\n{END}\nbelow\n"));
        assert_eq!(merge(&merged, "new\n").as_ref(), Ok(&merged), "writing it twice changes nothing");
        assert_eq!(merge("", "new\n"), Ok(format!("{BEGIN}\nnew\n{END}\n")));
        assert!(merge("a page without markers\n", "new\n").is_err());
        assert!(merge(&format!("{BEGIN}\nno end\n"), "new\n").is_err());
    }

    #[test]
    fn every_line_has_every_column() {
        let text = block(&table(false));
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(rows.len(), 2 + 4);
        assert!(rows.iter().all(|row| row.matches(" | ").count() == 6), "{text}");
        assert_eq!(rows[1], "| --- | --- | --: | --: | --: | --- | --- |");
        assert_eq!(rows[4], "| put, 1 client | p50, ms | 0.600 | 1.50 | 0.40 | 0.25-0.70 | ratio ≤ 0.7 met |");
    }
}
