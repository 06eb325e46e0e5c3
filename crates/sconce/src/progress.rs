//! How far something long is, on one line of a terminal, and views of what changes, drawn in place.

use crate::text;
use sconce_client::Progress;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// The line. Nothing where standard error is no terminal.
#[derive(Default)]
pub(crate) struct Bar {
    shown: Option<Instant>,
}

const BAR_WIDTH: u64 = 24;
const REDRAW: Duration = Duration::from_millis(80);

impl Bar {
    /// A transfer of a file.
    pub(crate) fn show(&mut self, progress: Progress<'_>) {
        if !self.is_due() {
            return;
        }
        let Progress { file, bytes, total_bytes } = progress;
        let name: String = crate::table::plain(file).chars().take(30).collect();
        let part = bytes.min(total_bytes).saturating_mul(BAR_WIDTH).checked_div(total_bytes);
        draw(&match part.and_then(|part| usize::try_from(part).ok()) {
            // Its size is not known.
            None => format!("{} {name}", text::bytes(bytes)),
            Some(done) => {
                format!("{} {} of {} {name}", bar(done), text::bytes(bytes), text::bytes(total_bytes))
            }
        });
    }

    /// A share from 0 to 1 of `what`.
    pub(crate) fn show_share(&mut self, what: &str, share: f64) {
        if self.is_due() {
            let done = (share.clamp(0.0, 1.0) * BAR_WIDTH as f64) as usize;
            draw(&format!("{} {:.0} % of the {what}", bar(done), 100.0 * share));
        }
    }

    fn is_due(&mut self) -> bool {
        let is_due = self.shown.is_none_or(|at| at.elapsed() >= REDRAW) && std::io::stderr().is_terminal();
        if is_due {
            self.shown = Some(Instant::now());
        }
        is_due
    }
}

/// A view on a terminal, drawn over the one before.
#[derive(Default)]
pub(crate) struct Live {
    drawn: usize,
}

impl Live {
    /// What shows `view` in the place of the one before. Lines that are wider than the terminal are cut off at its edge: wrapped they
    /// would be more than one.
    pub(crate) fn frame(&mut self, view: &str) -> String {
        let back = if self.drawn > 0 { format!("\x1b[{}A\x1b[J", self.drawn) } else { String::new() };
        self.drawn = view.lines().count();
        format!("{back}\x1b[?7l{view}\x1b[?7h")
    }
}

/// Takes it away.
pub(crate) fn clear_line() {
    if std::io::stderr().is_terminal() {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
}

fn bar(done: usize) -> String {
    let (width, bar) = (BAR_WIDTH as usize, "#".repeat(done));
    format!("[{bar:<width$}]")
}

fn draw(line: &str) {
    // A terminal that went away is no reason to stop.
    let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_view_takes_the_place_of_the_one_before() {
        let mut live = super::Live::default();
        assert_eq!(live.frame("a\nb"), "\x1b[?7la\nb\x1b[?7h");
        assert_eq!(live.frame("c"), "\x1b[2A\x1b[J\x1b[?7lc\x1b[?7h");
        assert!(live.frame("d").starts_with("\x1b[1A\x1b[J"));
    }
}
