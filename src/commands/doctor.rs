//! `dataloader doctor`: checks what a run would meet, and says what mends what is wrong. It changes nothing.

mod broker; // RabbitMQ
mod database; // the database and its tables
mod files; // the files to load
mod inbox; // the directories of the stream

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::{DIFFERENT, DONE};
use crate::config::{Config, ConfigSource, Role, Settings, Transport, hide_passwords};
use crate::error::{Error, Result};
use crate::terminal::output::Output;
use crate::visible::{Form, visible};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    /// A run works, but not as well as it could, or it does something first.
    Warn,
    /// A run would end, or wait.
    Fail,
}

/// What one look found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    status: Level,
    /// What was looked at.
    check: String,
    why: String,
    /// The command, or what else a person does about it.
    mend: Option<String>,
}

impl Check {
    fn new(status: Level, check: impl Into<String>, why: impl AsRef<str>, mend: Option<String>) -> Self {
        Self { status, check: check.into(), why: hide_passwords(why.as_ref()), mend: mend.map(|mend| hide_passwords(&mend)) }
    }

    fn ok(check: impl Into<String>, why: impl AsRef<str>) -> Self {
        Self::new(Level::Ok, check, why, None)
    }

    fn warn(check: impl Into<String>, why: impl AsRef<str>, mend: impl Into<String>) -> Self {
        Self::new(Level::Warn, check, why, Some(mend.into()))
    }

    fn fail(check: impl Into<String>, why: impl AsRef<str>, mend: impl Into<String>) -> Self {
        Self::new(Level::Fail, check, why, Some(mend.into()))
    }

    /// An error that a run would end with.
    fn failed(check: impl Into<String>, error: &Error) -> Self {
        Self::new(Level::Fail, check, error.message(), error.hint_text().map(str::to_owned))
    }
}

/// Checks everything, prints it, and returns the exit code: 1 if anything is wrong.
///
/// # Errors
/// If standard output cannot be written.
pub async fn run(config_file: Option<&Path>, flags: Settings, output: Output) -> Result<u8> {
    let checks = match Config::load(config_file, flags) {
        // Nothing else can be looked at.
        Err(error) => vec![Check::failed("configuration", &error)],
        Ok(config) => examine(&config).await,
    };
    output.result(&serde_json::json!({ "checks": checks }), |out| write(&checks, out))?;
    Ok(if checks.iter().any(|check| check.status == Level::Fail) { DIFFERENT } else { DONE })
}

async fn examine(config: &Config) -> Vec<Check> {
    let mut checks = vec![configuration(config)];
    checks.extend(files::examine(config));
    if config.role != Role::Consumer {
        checks.extend(inbox::examine(config));
    }
    if config.role != Role::Producer {
        checks.extend(database::examine(config).await);
    }
    if config.transport == Transport::Amqp {
        checks.extend(broker::examine(config).await);
    }
    checks
}

fn configuration(config: &Config) -> Check {
    let names: Vec<&str> = config.datasets.iter().map(|dataset| dataset.name.as_str()).collect();
    let source = match &config.source {
        ConfigSource::BuiltIn => "no dataloader.toml here, so the built-in one".to_owned(),
        ConfigSource::File(path) => path.display().to_string(),
    };
    Check::ok("configuration", format!("{source}; datasets: {}", names.join(", ")))
}

fn write(checks: &[Check], out: &mut dyn Write) -> io::Result<()> {
    for check in checks {
        let status = match check.status {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "fail",
        };
        writeln!(out, "{status}  {}: {}", check.check, visible(&check.why, Form::Line))?;
        if let Some(mend) = &check.mend {
            writeln!(out, "      mend: {}", visible(mend, Form::Line))?;
        }
    }
    Ok(())
}

/// An argument for a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+,:@".contains(c));
    if is_plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line_and_shows_no_password() {
        let check = Check::fail("a", "postgres://u:s3cret@h/d\nx\x1b[2J", format!("mkdir {}", quoted(Path::new("it's"))));
        let mut out = Vec::new();
        write(&[check], &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "fail  a: postgres://u:***@h/d\\nx\\x1b[2J\n      mend: mkdir 'it'\\''s'\n");
    }
}
