//! Figures as SVG, drawn with what every browser knows.

use super::html::escape;
use super::{Figure, number};
use std::fmt::Write as _;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
/// Room for what stands left of and below what is drawn.
const LEFT: f64 = 70.0;
const BELOW: f64 = 60.0;
const ABOVE: f64 = 16.0;
const COLOURS: [&str; 4] = ["#1f6feb", "#d9622b", "#2da44e", "#8250df"];

pub(super) fn svg(figure: &Figure) -> String {
    match figure {
        Figure::Bars(bars) => self::bars(bars),
        Figure::Pairs { names, pairs } => self::pairs(names, pairs),
        Figure::Lines { places, lines } => self::lines(places, lines),
        Figure::Matrix { rows, columns, labels, counts } => matrix(rows, columns, labels, counts),
    }
}

fn bars(bars: &[(String, f64)]) -> String {
    let most = bars.iter().map(|(_, amount)| *amount).fold(0.0, f64::max);
    let step = (WIDTH - LEFT) / bars.len().max(1) as f64;
    let mut body = axes(0.0, most);
    for (at, (name, amount)) in bars.iter().enumerate() {
        let height = share(*amount, 0.0, most) * (HEIGHT - ABOVE - BELOW);
        let (x, y) = (LEFT + at as f64 * step, HEIGHT - BELOW - height);
        let (width, title) = (step * 0.8, format!("{name}: {}", number(*amount)));
        let _ = write!(
            body,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{}"><title>{}</title></rect>"#,
            COLOURS[0],
            escape(&title)
        );
        body += &below(x + width / 2.0, name);
    }
    page(HEIGHT, &body)
}

fn pairs(names: &(String, String), pairs: &[(String, f64, f64)]) -> String {
    let most = pairs.iter().map(|(_, first, second)| first.max(*second)).fold(0.0, f64::max);
    let step = (WIDTH - LEFT) / pairs.len().max(1) as f64;
    let mut body = axes(0.0, most);
    for (index, name) in [&names.0, &names.1].into_iter().enumerate() {
        let (x, colour) = (LEFT + 10.0 + 150.0 * index as f64, COLOURS[index]);
        let _ = write!(body, r#"<text x="{x:.1}" y="12" fill="{colour}">{}</text>"#, escape(name));
    }
    let every = pairs.len().div_ceil(20).max(1);
    for (at, (name, first, second)) in pairs.iter().enumerate() {
        let width = step * 0.4;
        for (index, amount) in [*first, *second].into_iter().enumerate() {
            let height = share(amount, 0.0, most) * (HEIGHT - ABOVE - BELOW);
            let (x, y) = (LEFT + at as f64 * step + index as f64 * width, HEIGHT - BELOW - height);
            let title = escape(&format!("{name}: {}", number(amount)));
            let _ = write!(
                body,
                r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{}"><title>{title}</title></rect>"#,
                COLOURS[index]
            );
        }
        if at % every == 0 {
            body += &below(LEFT + at as f64 * step + width, name);
        }
    }
    page(HEIGHT, &body)
}

fn lines(places: &[String], lines: &[(String, Vec<f64>)]) -> String {
    let values = || lines.iter().flat_map(|(_, line)| line).copied().filter(|value| value.is_finite());
    let (least, most) = (values().fold(f64::INFINITY, f64::min).min(0.0), values().fold(0.0, f64::max));
    let step = (WIDTH - LEFT - 10.0) / places.len().saturating_sub(1).max(1) as f64;
    let mut body = axes(least, most);
    for ((name, line), (index, colour)) in lines.iter().zip(COLOURS.iter().enumerate().cycle()) {
        let mut points = String::new();
        for (at, value) in line.iter().enumerate().filter(|(_, value)| value.is_finite()) {
            let y = HEIGHT - BELOW - share(*value, least, most) * (HEIGHT - ABOVE - BELOW);
            let _ = write!(points, "{:.1},{y:.1} ", LEFT + at as f64 * step);
        }
        let _ =
            write!(body, r#"<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>"#);
        let (x, name) = (LEFT + 10.0 + 150.0 * index as f64, escape(name));
        let _ = write!(body, r#"<text x="{x:.1}" y="12" fill="{colour}">{name}</text>"#);
    }
    // As many names as can be read.
    let every = places.len().div_ceil(8).max(1);
    for (at, place) in places.iter().enumerate().step_by(every) {
        body += &below(LEFT + at as f64 * step, place);
    }
    page(HEIGHT, &body)
}

fn matrix(rows: &str, columns: &str, labels: &[String], counts: &[Vec<u64>]) -> String {
    let most = counts.iter().flatten().copied().max().unwrap_or(0).max(1);
    let (side, left, above) = (46.0, 150.0, 60.0);
    let mut body = format!(
        r#"<text x="4" y="14">{} ↓</text><text x="{left}" y="14">{} →</text>"#,
        escape(rows),
        escape(columns)
    );
    for (at, label) in labels.iter().enumerate() {
        let (middle, label) = (side * (at as f64 + 0.5), escape(label));
        let _ = write!(
            body,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{label}</text><text x="{:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#,
            left - 6.0,
            above + middle + 4.0,
            left + middle,
            above - 8.0
        );
    }
    for (row, counts) in counts.iter().enumerate() {
        for (column, count) in counts.iter().enumerate() {
            // What does not agree is red.
            let colour = if row == column { COLOURS[2] } else { "#cf222e" };
            let opacity = if *count == 0 { 0.0 } else { 0.15 + 0.85 * (*count as f64 / most as f64).sqrt() };
            let (x, y) = (left + side * column as f64, above + side * row as f64);
            let (middle, line) = (x + side / 2.0, y + side / 2.0 + 4.0);
            let _ = write!(
                body,
                r##"<rect x="{x:.1}" y="{y:.1}" width="{side}" height="{side}" fill="{colour}" fill-opacity="{opacity:.2}" stroke="#d0d7de"/><text x="{middle:.1}" y="{line:.1}" text-anchor="middle">{count}</text>"##
            );
        }
    }
    page(above + side * counts.len() as f64 + 10.0, &body)
}

/// The frame, with the least and the most at its left.
fn axes(least: f64, most: f64) -> String {
    let bottom = HEIGHT - BELOW;
    format!(
        r##"<path d="M{LEFT} {ABOVE}V{bottom}H{WIDTH}" fill="none" stroke="#8c959f"/><text x="{x}" y="{top}" text-anchor="end">{most}</text><text x="{x}" y="{bottom}" text-anchor="end">{least}</text>"##,
        x = LEFT - 6.0,
        top = ABOVE + 8.0,
        most = number(most),
        least = number(least)
    )
}

fn below(x: f64, name: &str) -> String {
    let y = HEIGHT - BELOW + 14.0;
    format!(
        r#"<text x="{x:.1}" y="{y}" text-anchor="end" transform="rotate(-30 {x:.1} {y})">{}</text>"#,
        escape(name)
    )
}

/// Where `value` lies between `least` and `most`, 0 to 1.
fn share(value: f64, least: f64, most: f64) -> f64 {
    if most > least { ((value - least) / (most - least)).clamp(0.0, 1.0) } else { 0.0 }
}

fn page(height: f64, body: &str) -> String {
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" font-size="11" font-family="sans-serif">{body}</svg>"#
    )
}
