//! Logs to standard error, one line per event, as text or as JSON. Results never go there.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use crate::config::redact_urls;
use crate::error::{Error, Result};
use crate::terminal::progress::above_live_line;

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// How much is logged. Without a flag `RUST_LOG` decides; without that, the level is info.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    Quiet,
    Debug,
    Trace,
}

/// Initializes logging for this process. Call it once.
pub fn start(format: LogFormat, verbosity: Option<Verbosity>) -> Result<()> {
    let rust_log = std::env::var("RUST_LOG").ok();
    let filter = filter(verbosity, rust_log.as_deref())?;
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| RedactingStderr)
        .with_ansi(io::stderr().is_terminal() && !no_color);
    match format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// A flag overrides `RUST_LOG`. Libraries log from warnings on, unless `RUST_LOG` asks for more. lapin is off: it returns every
/// error that it logs, and its warning about a returned message contains the whole message, up to a megabyte.
fn filter(verbosity: Option<Verbosity>, rust_log: Option<&str>) -> Result<EnvFilter> {
    let directives = match (verbosity, rust_log.filter(|text| !text.is_empty())) {
        (Some(Verbosity::Quiet), _) => "error,lapin=off",
        (Some(Verbosity::Debug), _) => "warn,lapin=off,dataloader=debug",
        (Some(Verbosity::Trace), _) => "warn,lapin=off,dataloader=trace",
        (None, Some(rust_log)) => rust_log,
        (None, None) => "warn,lapin=off,dataloader=info",
    };
    EnvFilter::builder().parse(directives).map_err(|e| {
        Error::usage(format!("RUST_LOG: cannot read `{directives}`: {e}"))
            .hint("give a level (error, warn, info, debug, trace) or directives as in info,sqlx=debug")
    })
}

/// Standard error with the passwords of URLs hidden, because libraries log the URLs that they connect to.
struct RedactingStderr;

impl Write for RedactingStderr {
    /// Each call receives one whole event.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        above_live_line(|| match std::str::from_utf8(event) {
            Ok(text) if text.contains("://") => io::stderr().write_all(redact_urls(text).as_bytes()),
            _ => io::stderr().write_all(event),
        })?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_rust_log_over_info() {
        let level = |verbosity, rust_log| filter(verbosity, rust_log).unwrap().to_string();
        assert!(level(Some(Verbosity::Debug), Some("error")).contains("dataloader=debug"));
        assert!(level(Some(Verbosity::Quiet), Some("trace")).contains("error"));
        assert_eq!(level(None, Some("sqlx=debug")), "sqlx=debug");
        assert!(level(None, Some("")).contains("dataloader=info"));
        assert!(level(None, None).contains("warn"));
    }

    #[test]
    fn an_unreadable_rust_log_is_a_usage_error() {
        let error = filter(None, Some("dataloader=loud")).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().starts_with("RUST_LOG: cannot read `dataloader=loud`"), "{error}");
    }
}
