use super::{Block, Report};

/// A report as Markdown. Figures are tables.
pub(crate) fn markdown(report: &Report) -> String {
    let mut text = format!("# {}\n\n{}\n", plain(&report.title), plain(&report.about));
    for section in &report.sections {
        text += &format!("\n## {}\n", plain(&section.title));
        for block in &section.blocks {
            text += "\n";
            match block {
                Block::Text(block) => text += &format!("{}\n", plain(block)),
                Block::Table { header, rows } => text += &table(header, rows),
                Block::Figure { caption, figure } => {
                    let (header, rows) = figure.table();
                    text += &format!("**{}**\n\n{}", plain(caption), table(&header, &rows));
                }
            }
        }
    }
    text
}

fn table(header: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| {
        let cells = cells.iter().map(|cell| plain(cell).replace('|', "\\|")).collect::<Vec<_>>().join(" | ");
        format!("| {cells} |\n")
    };
    let rule = format!("|{}\n", "---|".repeat(header.len()));
    line(header) + &rule + &rows.iter().map(|row| line(row)).collect::<String>()
}

/// What others wrote is text here: one line, and no tags.
fn plain(text: &str) -> String {
    crate::table::plain(text).replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;

    #[test]
    fn a_report_is_tables_and_nothing_in_it_is_markup() {
        let text = super::markdown(&example());
        for line in [
            "# Shadow",
            "## What &lt;was> found",
            "| what | n |",
            "|---|---|",
            "| a\\|b | 1 |",
            "| primary \\ candidate | yes | no |",
            "| no | 0 | 4 |",
            "| ≤ 1e-6 | 9 |",
            "| 2 | 0.5 |",
            "| 0 to 1 | 0.25 | 0.75 |",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\nnot in\n{text}");
        }
        assert!(!text.contains("nothing"));
    }
}
