//! The server's structured log, on standard error.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    filter::{ParseError, Targets},
    fmt,
    prelude::*,
};

/// The format of a line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line, for programs.
    Json,
}

/// Starts logging: everything at level INFO and above, or what `filter` selects.
///
/// # Errors
///
/// Returns an error if `filter` cannot be parsed.
pub(crate) fn init(format: LogFormat, filter: &str) -> Result<(), ParseError> {
    // Without this, an empty part would mean level ERROR.
    let parts: Vec<_> = filter.split(',').filter(|part| !part.trim().is_empty()).collect();
    let mut targets = match parts.as_slice() {
        [] => Targets::new(),
        parts => parts.join(",").parse()?,
    };
    if targets.default_level().is_none() {
        targets = targets.with_default(LevelFilter::INFO);
    }
    let lines = fmt::layer().with_writer(io::stderr);
    let registry = tracing_subscriber::registry().with(targets);
    match format {
        LogFormat::Text => registry.with(lines.with_target(false).with_ansi(io::stderr().is_terminal())).init(),
        LogFormat::Json => registry.with(lines.json()).init(),
    }
    Ok(())
}
