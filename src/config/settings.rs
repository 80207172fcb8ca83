//! All settings except the datasets: their types, bounds and defaults, and one layer of them.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::document::Section;
use super::http::HttpAddress;
use super::secret_url::{DatabaseUrl, SecretUrl};
use crate::error::{Error, Result};

/// How records travel from the reader to the parsers in stream mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// All in this process
    Inproc,
    /// Through RabbitMQ
    Amqp,
}

/// The part of the stream that this process runs. `Producer` and `Consumer` need a transport between processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Producer and consumer in one process
    All,
    /// Claims the inbox's files and publishes them; needs no database
    Producer,
    /// Loads what is published; needs no inbox
    Consumer,
}

/// Which menu `dataloader menu` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MenuMode {
    /// Load files
    Batch,
    /// Drop files into the inbox
    Stream,
}

/// How the stream forms batches and limits its memory. These settings affect speed and latency, never what is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSettings {
    /// A batch is committed when it has this many rows.
    pub batch_rows: usize,
    /// A batch is committed when it has this many bytes; at most `in_flight_bytes`.
    pub batch_bytes: usize,
    /// A batch is committed when no rows have arrived for this long.
    pub batch_interval: Duration,
    /// The models of changed days are refreshed this long after a commit, for all days that have changed by then.
    pub model_delay: Duration,
    /// The limit of bytes that are read and not yet committed; larger than the largest chunk.
    pub in_flight_bytes: usize,
    /// Parser threads, at least one.
    pub parsers: usize,
    /// Batches that are written concurrently; always one on SQLite.
    pub writers: usize,
    /// The interval of inbox listings, which find the files of lost file events.
    pub rescan_interval: Duration,
    /// Without an event that says a file is complete, it is complete when its size has not changed for this long.
    pub settle: Duration,
    /// A stage is stalled when it has work and makes no progress for this long. The process is then unhealthy.
    pub stall: Duration,
    /// The timeout of a database statement. It is then repeated on a new connection with twice the timeout.
    pub database_timeout: Duration,
    /// The shutdown ends the process when nothing has progressed for this long.
    pub drain_timeout: Duration,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self {
            batch_rows: 20_000,
            batch_bytes: 2 * MIB as usize,
            batch_interval: Duration::from_millis(10),
            model_delay: Duration::from_millis(100),
            in_flight_bytes: 32 * MIB as usize,
            parsers: std::thread::available_parallelism().map_or(1, usize::from),
            writers: 2,
            rescan_interval: Duration::from_millis(2_000),
            settle: Duration::from_millis(250),
            stall: Duration::from_secs(30),
            database_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

const MIB: u32 = 1 << 20;
const MINUTE_MS: u32 = 60_000;
const HOUR_MS: u32 = 60 * MINUTE_MS;

impl StreamSettings {
    /// The settings of `[stream]`, all of them integers, with their bounds.
    pub(super) const BOUNDS: [(&str, RangeInclusive<u32>); 12] = [
        ("batch_rows", 1..=1_000_000),
        ("batch_bytes", 1..=1024 * MIB),
        ("batch_interval_ms", 0..=MINUTE_MS),
        ("model_delay_ms", 0..=HOUR_MS),
        // A smaller limit could not hold the largest record and the chunk before it.
        ("in_flight_bytes", 16 * MIB..=2048 * MIB),
        ("parsers", 1..=256),
        ("writers", 1..=64),
        ("rescan_interval_ms", 10..=HOUR_MS),
        ("settle_ms", 0..=HOUR_MS),
        ("stall_ms", 100..=HOUR_MS),
        ("database_timeout_ms", 100..=HOUR_MS),
        ("drain_timeout_ms", 100..=HOUR_MS),
    ];

    pub(super) fn read(section: &Section<'_>) -> Result<Self> {
        section.allow_only(&Self::BOUNDS.map(|(name, _)| name))?;
        let mut given = HashMap::new();
        for (name, bounds) in Self::BOUNDS {
            if let Some(value) = section.get(name) {
                given.insert(name, value.integer(bounds)?);
            }
        }
        let size = |name| given.get(name).map(|&n| n as usize);
        let millis = |name| given.get(name).map(|&n| Duration::from_millis(n.into()));

        let default = Self::default();
        let settings = Self {
            batch_rows: size("batch_rows").unwrap_or(default.batch_rows),
            batch_bytes: size("batch_bytes").unwrap_or(default.batch_bytes),
            batch_interval: millis("batch_interval_ms").unwrap_or(default.batch_interval),
            model_delay: millis("model_delay_ms").unwrap_or(default.model_delay),
            in_flight_bytes: size("in_flight_bytes").unwrap_or(default.in_flight_bytes),
            parsers: size("parsers").unwrap_or(default.parsers),
            writers: size("writers").unwrap_or(default.writers),
            rescan_interval: millis("rescan_interval_ms").unwrap_or(default.rescan_interval),
            settle: millis("settle_ms").unwrap_or(default.settle),
            stall: millis("stall_ms").unwrap_or(default.stall),
            database_timeout: millis("database_timeout_ms").unwrap_or(default.database_timeout),
            drain_timeout: millis("drain_timeout_ms").unwrap_or(default.drain_timeout),
        };
        if settings.batch_bytes > settings.in_flight_bytes {
            let (batch, in_flight) = (settings.batch_bytes, settings.in_flight_bytes);
            let message =
                format!("`batch_bytes` ({batch}) is more than `in_flight_bytes` ({in_flight}): such a batch could never fill");
            let error = match section.get("batch_bytes") {
                Some(value) => value.error(message),
                None => section.error(message),
            };
            return Err(error.hint("lower `batch_bytes` or raise `in_flight_bytes`"));
        }
        Ok(settings)
    }
}

/// One layer of settings: the flags or the file. `None` leaves a setting to the next layer.
#[derive(Debug, Default)]
pub struct Settings {
    pub database: Option<DatabaseUrl>,
    pub amqp_url: Option<SecretUrl>,
    pub data_dir: Option<PathBuf>,
    pub inbox: Option<PathBuf>,
    pub stage_dir: Option<PathBuf>,
    pub transport: Option<Transport>,
    pub role: Option<Role>,
    pub menu_mode: Option<MenuMode>,
    pub http: Option<HttpAddress>,
    pub queue_prefix: Option<String>,
    pub zstd_window_mib: Option<u32>,
    pub follow_links: Option<bool>,
}

impl Settings {
    pub(super) const NAMES: [&str; 12] = [
        "data_dir",
        "inbox",
        "database",
        "transport",
        "role",
        "amqp_url",
        "queue_prefix",
        "mode",
        "http",
        "stage_dir",
        "zstd_window_mib",
        "follow_links",
    ];

    pub(super) fn read(file: &Section<'_>) -> Result<Self> {
        let path = |name: &str| file.get(name).map(|value| value.path()).transpose();
        Ok(Self {
            database: parsed(file, "database", DatabaseUrl::parse)?,
            amqp_url: parsed(file, "amqp_url", SecretUrl::parse_amqp)?,
            data_dir: path("data_dir")?,
            inbox: path("inbox")?,
            stage_dir: path("stage_dir")?,
            transport: parsed(file, "transport", |text| choice("transport", text))?,
            role: parsed(file, "role", |text| choice("role", text))?,
            menu_mode: parsed(file, "mode", |text| choice("mode", text))?,
            http: parsed(file, "http", HttpAddress::parse)?,
            queue_prefix: parsed(file, "queue_prefix", queue_prefix)?,
            zstd_window_mib: zstd_window_mib(file)?,
            follow_links: file.get("follow_links").map(|value| value.boolean()).transpose()?,
        })
    }
}

/// A dataset has at most this many queues.
pub const MAX_QUEUES: u16 = 64;

/// Reads the section `[amqp]`: how many queues each dataset has.
pub(super) fn queues(section: &Section<'_>) -> Result<u16> {
    section.allow_only(&["queues"])?;
    let queues = section.get("queues").map(|value| value.integer(1..=u32::from(MAX_QUEUES))).transpose()?;
    Ok(queues.map_or(1, |queues| u16::try_from(queues).expect("at most 64")))
}

/// zstd windows have at most 2 GiB, and zstd's limit must be a power of two.
fn zstd_window_mib(file: &Section<'_>) -> Result<Option<u32>> {
    let Some(value) = file.get("zstd_window_mib") else { return Ok(None) };
    let mib = value.integer(1..=2_048)?;
    if mib.is_power_of_two() {
        return Ok(Some(mib));
    }
    let larger = mib.next_power_of_two();
    Err(value
        .error(format!("`zstd_window_mib` is {mib}, which is no power of two"))
        .hint(format!("give {larger} or {}", larger / 2)))
}

fn parsed<T>(file: &Section<'_>, name: &str, parse: impl Fn(&str) -> Result<T>) -> Result<Option<T>> {
    file.get(name).map(|value| parse(value.string()?).map_err(|e| value.locate(e))).transpose()
}

/// Parses a name of an enum's value.
pub(super) fn choice<T: ValueEnum>(what: &str, text: &str) -> Result<T> {
    T::from_str(text, false).map_err(|_| {
        let names = T::value_variants().iter().filter_map(|v| v.to_possible_value()).map(|v| v.get_name().to_owned());
        Error::usage(format!("unknown {what} `{text}`")).hint(format!("give one of: {}", names.collect::<Vec<_>>().join(", ")))
    })
}

/// Checks the prefix of the names of exchange and queues.
pub fn queue_prefix(text: &str) -> Result<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
    // RabbitMQ allows names of 255 bytes, and the dataset's name follows the prefix. It reserves names that begin with `amq.`.
    if text.is_empty() || text.len() > 128 || !text.chars().all(allowed) || text.starts_with("amq.") {
        return Err(Error::usage(format!("`{text}` cannot begin the name of a queue"))
            .hint("give 1 to 128 letters, digits, `_`, `-`, `.` or `:`, not beginning with `amq.`"));
    }
    Ok(text.to_owned())
}
