//! Log lines on standard error: JSON for machines, plain text on a terminal.

use crate::traces;
use std::io::IsTerminal as _;
use std::str::FromStr;
use std::sync::OnceLock;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::{Registry, reload, util::SubscriberInitExt as _};

static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(format!("log format: expected auto, json or text, got {text:?}")),
        }
    }
}

/// Parses a level: off, error, warn, info, debug or trace.
///
/// # Errors
/// A message that names the levels.
pub fn parse_level(text: &str) -> Result<LevelFilter, String> {
    text.parse()
        .map_err(|_| format!("log level: expected off, error, warn, info, debug or trace, got {text:?}"))
}

/// Starts logging for the whole process, panics included. A second call does nothing.
pub fn init(format: Format, level: LevelFilter) {
    let (filter, handle) = reload::Layer::new(level);
    if LEVEL.set(handle).is_err() {
        return;
    }
    let terminal = std::io::stderr().is_terminal();
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = if format == Format::Json || (format == Format::Auto && !terminal) {
        layer
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_filter(filter)
            .boxed()
    } else {
        layer.with_ansi(terminal).with_target(false).with_filter(filter).boxed()
    };
    // What is exported as traces does not depend on what is logged.
    tracing_subscriber::registry().with(lines).with(traces::layer()).init();
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string);
        let payload = panic.payload();
        let cause =
            payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
        let thread = std::thread::current();
        tracing::error!(location, cause, thread = thread.name(), "panic");
    }));
}

/// The level in force; `OFF` before [`init`].
pub fn level() -> LevelFilter {
    LEVEL.get().and_then(reload::Handle::clone_current).unwrap_or(LevelFilter::OFF)
}

/// Changes the level. Does nothing before [`init`].
pub fn set_level(level: LevelFilter) {
    if let Some(handle) = LEVEL.get() {
        // It only fails once the subscriber is gone, and then there is nothing to set.
        let _ = handle.reload(level);
    }
}
