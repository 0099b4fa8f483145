//! Plain text tables.

/// Columns as wide as their widest cell, two blanks apart.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |cells: &[String]| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let head = head.map(|name| name.to_uppercase());
    std::iter::once(line(&head)).chain(rows.iter().map(|row| line(row))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["10.1.0.0/24".to_owned(), "1".to_owned()], ["x".to_owned(), "22".to_owned()]];
        assert_eq!(table(["to", "id"], &rows), "TO           ID\n10.1.0.0/24  1\nx            22\n");
    }
}
