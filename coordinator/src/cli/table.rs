//! Listings for people: columns as wide as what is in them.

use crate::say;

/// Prints a table; nothing if it has no rows.
pub(super) fn print<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
    let mut cells = vec![head.map(str::to_owned)];
    cells.extend(rows);
    if cells.len() == 1 {
        return;
    }
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max();
    for row in &cells {
        let padded: Vec<_> = row
            .iter()
            .enumerate()
            .map(|(column, cell)| format!("{cell:<width$}", width = width(column).unwrap_or(0)))
            .collect();
        say::result(padded.join("  ").trim_end());
    }
}
