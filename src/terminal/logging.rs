//! Logs to standard error, one line per event, as text or as JSON. Results never go there.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use tracing::Metadata;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::config::hide_passwords;
use crate::error::{Error, Result};
use crate::terminal::progress::above_live_line;
use crate::visible::{Form, visible};

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
    let has_colors = format == LogFormat::Text && io::stderr().is_terminal() && !no_color;
    let lines = fmt::layer().with_writer(move || SafeStderr { format, has_colors }).with_ansi(has_colors);
    let lines = match format {
        LogFormat::Text => lines.with_target(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(lines).with(filter).with(filter_fn(shows_no_secret)).init();
    Ok(())
}

/// Whether events of this kind never contain a password, whatever `RUST_LOG` asks for. lapin's details contain the frames of the
/// login, and those of other libraries are not known.
fn shows_no_secret(event: &Metadata<'_>) -> bool {
    let library = event.target().split("::").next().unwrap_or_default();
    let most = match library {
        "dataloader" => LevelFilter::TRACE,
        _ if library.starts_with("lapin") || library.starts_with("amq_protocol") => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    *event.level() <= most
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

/// Standard error without passwords, because libraries log the URLs that they connect to, and with control characters shown.
struct SafeStderr {
    format: LogFormat,
    has_colors: bool,
}

impl SafeStderr {
    /// One event as it may be shown.
    fn safe(&self, event: &[u8]) -> String {
        let text = hide_passwords(&String::from_utf8_lossy(event));
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let form = if self.format == LogFormat::Json { Form::Json } else { Form::Line };
        let mut safe = String::with_capacity(text.len());
        let mut rest = line;
        // The colours are the formatter's: it shows the escape characters of messages and values itself.
        while let Some((start, end)) = next_color(rest).filter(|_| self.has_colors) {
            safe.push_str(&visible(&rest[..start], form));
            safe.push_str(&rest[start..end]);
            rest = &rest[end..];
        }
        safe.push_str(&visible(rest, form));
        safe.push('\n');
        safe
    }
}

/// Where the next sequence that sets a colour begins and ends.
fn next_color(text: &str) -> Option<(usize, usize)> {
    text.match_indices("\x1b[").find_map(|(start, _)| {
        let number = start + 2;
        let end = number + text[number..].find(|c: char| !c.is_ascii_digit() && c != ';')?;
        text[end..].starts_with('m').then_some((start, end + 1))
    })
}

impl Write for SafeStderr {
    /// Each call receives one whole event.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        above_live_line(|| io::stderr().write_all(self.safe(event).as_bytes()))?;
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
    fn log_lines_keep_their_colors_and_nothing_else_that_a_terminal_obeys() {
        let safe = |has_colors, event: &str| SafeStderr { format: LogFormat::Text, has_colors }.safe(event.as_bytes());
        assert_eq!(safe(true, "\x1b[2mnow\x1b[0m a\u{9b}b\nc\u{202e}\x1b[2J\n"), "\x1b[2mnow\x1b[0m a\\x9bb\\nc\\u202e\\x1b[2J\n");
        assert_eq!(safe(false, "a\x1b[2Jb\n"), "a\\x1b[2Jb\n");
        let json = SafeStderr { format: LogFormat::Json, has_colors: false }.safe("{\"a\":\"\u{9b} passwd=x\"}\n".as_bytes());
        assert_eq!(json, "{\"a\":\"\\u009b passwd=***\"}\n");
    }

    #[test]
    fn an_unreadable_rust_log_is_a_usage_error() {
        let error = filter(None, Some("dataloader=loud")).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().starts_with("RUST_LOG: cannot read `dataloader=loud`"), "{error}");
    }
}
