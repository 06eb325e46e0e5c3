//! Line plots as SVG.

use std::fmt::Write as _;

/// One line: its name, and a value for each place on the x axis.
pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    pub(crate) values: Vec<f64>,
}

/// A plot beside others.
pub(crate) struct Panel<'a> {
    pub(crate) title: String,
    pub(crate) lines: Vec<Line<'a>>,
}

/// The y axis.
pub(crate) struct Axis<'a> {
    pub(crate) title: &'a str,
    pub(crate) least: f64,
    pub(crate) most: f64,
    pub(crate) is_logarithmic: bool,
    pub(crate) marks: &'a [f64],
    /// A value that is drawn across.
    pub(crate) goal: f64,
}

impl Axis<'_> {
    /// Where on the axis, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.is_logarithmic { value.ln() } else { value };
        let value = value.clamp(self.least, self.most);
        (scale(value) - scale(self.least)) / (scale(self.most) - scale(self.least))
    }
}

const COLORS: [&str; 6] = ["#1b6ca8", "#c0392b", "#e08e0b", "#3d9970", "#7d3c98", "#555555"];
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 240.0;
const MARGIN: f64 = 60.0;

/// Panels beside each other, with `marks` along the x axis, evenly spaced.
pub(crate) fn svg(title: &str, marks: &[String], axis: &Axis<'_>, panels: &[Panel<'_>]) -> String {
    let width = panels.len() as f64 * (WIDTH + MARGIN) + 190.0;
    let height = HEIGHT + 2.0 * MARGIN;
    let mut text = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/><text x="8" y="20" font-size="14">{title}</text>"#
    );
    let bottom = MARGIN + HEIGHT;
    let y = |value: f64| bottom - axis.place(value) * HEIGHT;
    for (at, panel) in panels.iter().enumerate() {
        let left = MARGIN + at as f64 * (WIDTH + MARGIN);
        let x = |place: usize| left + place as f64 / (marks.len().max(2) - 1) as f64 * WIDTH;
        // Writing to a string cannot fail.
        let mut put = |part: String| text.push_str(&part);
        put(format!(r#"<text x="{left}" y="{}">{}</text>"#, MARGIN - 16.0, panel.title));
        for mark in axis.marks {
            let y = y(*mark);
            put(format!(
                r##"<path d="M{left} {y:.1}h{WIDTH}" stroke="#ddd"/><text x="{}" y="{:.1}" text-anchor="end">{mark}</text>"##,
                left - 6.0,
                y + 4.0
            ));
        }
        put(format!(
            r##"<path d="M{left} {:.1}h{WIDTH}" stroke="#888" stroke-dasharray="4 3"/>"##,
            y(axis.goal)
        ));
        for (place, mark) in marks.iter().enumerate() {
            let (x, y) = (x(place), bottom + 18.0);
            put(format!(r#"<text x="{x:.1}" y="{y}" text-anchor="middle">{mark}</text>"#));
        }
        let (x_title, y_title) = (left + WIDTH / 2.0, bottom + 38.0);
        put(format!(
            r#"<text x="{x_title}" y="{y_title}" text-anchor="middle">{} against load / saturation</text>"#,
            axis.title
        ));
        for (line, color) in panel.lines.iter().zip(COLORS.iter().cycle()) {
            let points = line.values.iter().enumerate();
            let points: Vec<_> =
                points.map(|(place, value)| format!("{:.1},{:.1}", x(place), y(*value))).collect();
            put(format!(
                r#"<polyline points="{}" fill="none" stroke="{color}" stroke-width="2"/>"#,
                points.join(" ")
            ));
        }
    }
    let names = panels.first().map_or(&[][..], |panel| &panel.lines);
    for (at, (line, color)) in names.iter().zip(COLORS.iter().cycle()).enumerate() {
        let (x, y) = (width - 170.0, MARGIN + 20.0 * at as f64);
        let _ = write!(
            text,
            r#"<path d="M{x} {y}h20" stroke="{color}" stroke-width="2"/><text x="{}" y="{}">{}</text>"#,
            x + 26.0,
            y + 4.0,
            line.name
        );
    }
    text + "</svg>\n"
}
