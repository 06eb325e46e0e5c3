//! Reports for people: what they are made of, and their forms. Whoever has something to report makes a [`Report`] of it; how it
//! looks is decided here alone.

mod compared;
mod html;
mod markdown;
mod svg;

pub(crate) use compared::{Sides, evidence, output, verdict};
pub(crate) use html::html;
pub(crate) use markdown::markdown;

/// A page.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub(crate) title: String,
    /// One line of what it is about.
    pub(crate) about: String,
    pub(crate) sections: Vec<Section>,
}

/// A part of it under a heading.
#[derive(Debug, Clone, Default)]
pub(crate) struct Section {
    pub(crate) title: String,
    pub(crate) blocks: Vec<Block>,
}

#[derive(Debug, Clone)]
pub(crate) enum Block {
    Text(String),
    Table {
        header: Vec<String>,
        rows: Vec<Vec<String>>,
    },
    /// What pages show; where there is only text, its numbers are a table.
    Figure {
        caption: String,
        figure: Figure,
    },
}

#[derive(Debug, Clone)]
pub(crate) enum Figure {
    /// Amounts side by side, each under its name.
    Bars(Vec<(String, f64)>),
    /// Two shares side by side under each name.
    Pairs { names: (String, String), pairs: Vec<(String, f64, f64)> },
    /// Lines over the same places, each with its name.
    Lines { places: Vec<String>, lines: Vec<(String, Vec<f64>)> },
    /// How often what a row says went with what a column says.
    Matrix { rows: String, columns: String, labels: Vec<String>, counts: Vec<Vec<u64>> },
}

/// Rows of the table of a figure of lines.
const MOST_ROWS: usize = 24;

impl Section {
    pub(crate) fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), blocks: Vec::new() }
    }

    pub(crate) fn text(mut self, text: impl Into<String>) -> Self {
        self.blocks.push(Block::Text(text.into()));
        self
    }

    /// Nothing where there are no rows.
    pub(crate) fn table(mut self, header: &[&str], rows: Vec<Vec<String>>) -> Self {
        if !rows.is_empty() {
            let header = header.iter().map(|cell| (*cell).to_owned()).collect();
            self.blocks.push(Block::Table { header, rows });
        }
        self
    }

    pub(crate) fn figure(mut self, caption: impl Into<String>, figure: Figure) -> Self {
        self.blocks.push(Block::Figure { caption: caption.into(), figure });
        self
    }
}

impl Figure {
    /// Its numbers.
    fn table(&self) -> (Vec<String>, Vec<Vec<String>>) {
        match self {
            Self::Bars(bars) => (
                vec![String::new(), "count".to_owned()],
                bars.iter().map(|(name, amount)| vec![name.clone(), number(*amount)]).collect(),
            ),
            Self::Pairs { names: (first, second), pairs } => (
                vec![String::new(), first.clone(), second.clone()],
                pairs.iter().map(|(name, a, b)| vec![name.clone(), number(*a), number(*b)]).collect(),
            ),
            Self::Lines { places, lines } => {
                let names = lines.iter().map(|(name, _)| name.clone());
                let row = |(at, place): (usize, &String)| {
                    let values =
                        lines.iter().map(|(_, line)| line.get(at).map_or(String::new(), |it| number(*it)));
                    std::iter::once(place.clone()).chain(values).collect()
                };
                // Of more places than people read, some at equal steps, the last among them.
                let step = places.len().div_ceil(MOST_ROWS).max(1);
                let shown = |(at, _): &(usize, _)| (places.len() - 1 - at).is_multiple_of(step);
                (
                    std::iter::once(String::new()).chain(names).collect(),
                    places.iter().enumerate().filter(shown).map(row).collect(),
                )
            }
            Self::Matrix { rows, columns, labels, counts } => {
                let row = |(label, counts): (&String, &Vec<u64>)| {
                    std::iter::once(label.clone()).chain(counts.iter().map(u64::to_string)).collect()
                };
                let corner = format!("{rows} \\ {columns}");
                let header = std::iter::once(corner).chain(labels.iter().cloned()).collect();
                (header, labels.iter().zip(counts).map(row).collect())
            }
        }
    }
}

/// A number in as many digits as people read.
pub(crate) fn number(value: f64) -> String {
    if value == 0.0 || (value.fract() == 0.0 && value.abs() < 1e9) {
        return format!("{value}");
    }
    match value.abs() {
        1e-3..1e6 => {
            let text = format!("{value:.4}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => format!("{value:.2e}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(super) fn example() -> Report {
        let lines = vec![("agreement".to_owned(), vec![1.0, 0.5])];
        let section = Section::new("What <was> found")
            .text("pipes | and <tags> & such")
            .table(&["what", "n"], vec![vec!["a|b".to_owned(), "1".to_owned()]])
            .table(&["nothing"], Vec::new())
            .figure("differences", Figure::Bars(vec![("≤ 1e-6".to_owned(), 9.0), ("more".to_owned(), 1.0)]))
            .figure(
                "shares",
                Figure::Pairs {
                    names: ("then".to_owned(), "now".to_owned()),
                    pairs: vec![("0 to 1".to_owned(), 0.25, 0.75)],
                },
            )
            .figure("over time", Figure::Lines { places: vec!["1".to_owned(), "2".to_owned()], lines })
            .figure(
                "classes",
                Figure::Matrix {
                    rows: "primary".to_owned(),
                    columns: "candidate".to_owned(),
                    labels: vec!["yes".to_owned(), "no".to_owned()],
                    counts: vec![vec![5, 1], vec![0, 4]],
                },
            );
        Report { title: "Shadow".to_owned(), about: "m".to_owned(), sections: vec![section] }
    }

    #[test]
    fn a_long_line_is_a_short_table_that_ends_where_the_line_does() {
        for (places, rows) in [(0, 0), (1, 1), (24, 24), (25, 13), (120, 24)] {
            let figure = Figure::Lines {
                places: (0..places).map(|place: usize| place.to_string()).collect(),
                lines: vec![("share".to_owned(), vec![0.5; places])],
            };
            let (_, table) = figure.table();
            assert_eq!(table.len(), rows, "{places}");
            assert_eq!(
                table.last().map(|row| row[0].clone()),
                places.checked_sub(1).map(|it| it.to_string())
            );
        }
    }

    #[test]
    fn numbers_have_the_digits_that_people_read() {
        for (value, text) in [(0.0, "0"), (12.0, "12"), (0.123456, "0.1235"), (0.5, "0.5"), (3e-8, "3.00e-8")]
        {
            assert_eq!(number(value), text);
        }
    }
}
