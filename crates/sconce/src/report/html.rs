use super::svg::svg;
use super::{Block, Report};
use crate::table;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#1f2328}\
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem;border-bottom:1px solid #d0d7de}\
table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid #d0d7de;padding:.25rem .6rem;text-align:left}\
th{background:#f6f8fa}figure{margin:1rem 0}figcaption{color:#59636e}svg{max-width:100%;height:auto}";

/// A report as a page that needs nothing else: no script, and nothing that is fetched.
pub(crate) fn html(report: &Report) -> String {
    let (title, about) = (escape(&report.title), escape(&report.about));
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n<p>{about}</p>\n"
    );
    for section in &report.sections {
        text += &format!("<h2>{}</h2>\n", escape(&section.title));
        for block in &section.blocks {
            text += &match block {
                Block::Text(block) => format!("<p>{}</p>\n", escape(block)),
                Block::Table { header, rows } => self::table(header, rows),
                Block::Figure { caption, figure } => {
                    format!("<figure>{}<figcaption>{}</figcaption></figure>\n", svg(figure), escape(caption))
                }
            };
        }
    }
    text + "</body></html>\n"
}

fn table(header: &[String], rows: &[Vec<String>]) -> String {
    let line = |tag: &str, cells: &[String]| {
        let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect::<String>();
        format!("<tr>{cells}</tr>\n")
    };
    let rows = rows.iter().map(|row| line("td", row)).collect::<String>();
    format!("<table>\n{}{rows}</table>\n", line("th", header))
}

/// What others wrote is text here.
pub(super) fn escape(text: &str) -> String {
    let text = table::plain(text).replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;

    #[test]
    fn a_page_stands_alone_and_nothing_in_it_is_markup() {
        let page = super::html(&example());
        assert_eq!(page.matches("<svg").count(), 4, "{page}");
        assert!(
            page.contains("What &lt;was&gt; found") && page.contains("pipes | and &lt;tags&gt; &amp; such")
        );
        assert!(page.contains("<td>a|b</td>") && page.contains("primary ↓"));
        for fetched in ["<script", "src=", "href=", "url(", "@import"] {
            assert!(!page.contains(fetched), "{fetched}");
        }
    }
}
