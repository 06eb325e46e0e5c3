/// Rows as aligned columns under a header, for people. Numbers stand to the right.
pub(crate) fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let numeric = |column: usize| {
        let mut cells = rows.iter().filter_map(|row| row.get(column)).peekable();
        cells.peek().is_some()
            && cells.all(|cell| cell.trim_end_matches([' ', '%', 'm', 's', 'µ']).parse::<f64>().is_ok())
    };
    let columns: Vec<(usize, bool)> =
        (0..header.len()).map(|column| (width(column), numeric(column))).collect();
    let line = |cells: Vec<&str>| {
        let cells = cells.into_iter().zip(&columns).map(|(cell, &(width, numeric))| {
            if numeric { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        format!("  {}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let mut text = line(header.to_vec());
    for row in &rows {
        text += &line(row.iter().map(String::as_str).collect());
    }
    text
}

/// A text of somebody else's on one line of a terminal: control characters, which could move the cursor, become visible.
pub(crate) fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { if c.is_whitespace() { ' ' } else { '\u{fffd}' } } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_cell_cannot_move_the_cursor() {
        assert_eq!(super::plain("a\nb\u{1b}[2Jc"), "a b\u{fffd}[2Jc");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "5".to_owned()], vec!["long".to_owned(), "12".to_owned()]];
        assert_eq!(super::render(&["name", "rows"], &rows), "  name  rows\n  a        5\n  long    12\n");
    }
}
