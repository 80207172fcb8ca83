//! Metrics in the text format of Prometheus. A process exports only what it has: its own counters, and gauges of the database.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Site;
use super::observer::Seen;
use crate::heartbeat::Connections;
use crate::stream::{DatasetStats, Histogram, Stats};
use crate::vitals::Target;

/// A text that grows by one metric after the other.
#[derive(Default)]
struct Text(String);

impl Text {
    /// Begins a metric.
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let escape = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.metric(name, "histogram", help);
        let cumulative = histogram.cumulative();
        let bounds = Histogram::BOUNDS.map(|bound| bound.to_string());
        for (bound, count) in bounds.iter().map(String::as_str).chain(["+Inf"]).zip(&cumulative) {
            self.sample(&format!("{name}_bucket"), &[("le", bound)], count);
        }
        self.sample(&format!("{name}_sum"), &[], histogram.sum());
        self.sample(&format!("{name}_count"), &[], cumulative.last().copied().unwrap_or_default());
    }
}

/// The value of a label, and the counter that it names.
type Outcome = (&'static str, fn(&DatasetStats) -> u64);

/// All metrics of this process.
pub async fn metrics(site: &Site) -> String {
    let seen = site.seen().await;
    let mut text = Text::default();
    text.metric("dataloader_build_info", "gauge", "1; the label is the version of the program.");
    text.sample("dataloader_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    if let Some(stats) = &site.stats {
        of_process(&mut text, stats);
    }
    up(&mut text, site, &seen);
    of_database(&mut text, &seen);
    text.0
}

/// The counters of the pipeline, and what it holds now.
fn of_process(text: &mut Text, stats: &Arc<Stats>) {
    let Some(topology) = stats.topology() else { return };
    let mut by_dataset = |name: &str, help: &str, outcomes: &[Outcome]| {
        text.metric(name, "counter", help);
        for (dataset, of_dataset) in stats.datasets() {
            for (outcome, value) in outcomes {
                let labels = [("dataset", dataset), ("outcome", outcome)];
                let labels = if outcome.is_empty() { &labels[..1] } else { &labels[..] };
                text.sample(name, labels, value(of_dataset));
            }
        }
    };
    if topology.records {
        by_dataset(
            "dataloader_records_total",
            "Records that this process committed, by what became of them: a row, a reject, or outside the dates.",
            &[
                ("loaded", |d| d.loaded.load(Ordering::Relaxed)),
                ("rejected", |d| d.rejected.load(Ordering::Relaxed)),
                ("skipped", |d| d.skipped.load(Ordering::Relaxed)),
            ],
        );
        by_dataset(
            "dataloader_files_total",
            "Files whose load this process closed: loaded, failed, or not loaded because the dataset has their content.",
            &[
                ("loaded", |d| d.files_loaded.load(Ordering::Relaxed)),
                ("failed", |d| d.files_failed.load(Ordering::Relaxed)),
                ("repeated", |d| d.files_repeated.load(Ordering::Relaxed)),
            ],
        );
        by_dataset(
            "dataloader_batches_total",
            "Transactions of this process that brought records of the dataset.",
            &[("", |d| d.batches.load(Ordering::Relaxed))],
        );
    }
    let help = "Bytes of text, decompressed, that this process committed; of a producer: that it passed to the broker.";
    by_dataset("dataloader_bytes_total", help, &[("", |d| d.bytes.load(Ordering::Relaxed))]);
    text.metric("dataloader_retries_total", "counter", "Failed attempts to use a server, each followed by another one.");
    for target in [Target::Database, Target::Broker] {
        if target == Target::Database && topology.records || target == Target::Broker && topology.broker {
            text.sample("dataloader_retries_total", &[("target", target.name())], stats.vitals.retries(target));
        }
    }
    let help = "Seconds that the stages of this name were at work; divided by their number it is the share of the time.";
    text.metric("dataloader_stage_busy_seconds_total", "counter", help);
    for work in stats.vitals.work() {
        text.sample("dataloader_stage_busy_seconds_total", &[("stage", work.stage)], work.busy.as_secs_f64());
    }
    if topology.records {
        let help = "Seconds from the first statement of a batch to its commit, repetitions included.";
        text.histogram("dataloader_commit_duration_seconds", help, &stats.commit_seconds);
        let help = "Seconds from the drop of a file (over RabbitMQ: from its claim) to the commit of its last record.";
        text.histogram("dataloader_drop_to_commit_seconds", help, &stats.drop_to_commit_seconds);
    }
    text.metric("dataloader_in_flight_bytes", "gauge", "Bytes that are read and not durable yet.");
    text.sample("dataloader_in_flight_bytes", &[], stats.in_flight_bytes());
    text.metric("dataloader_in_flight_limit_bytes", "gauge", "The limit of dataloader_in_flight_bytes: readers wait at it.");
    text.sample("dataloader_in_flight_limit_bytes", &[], stats.in_flight_limit_bytes());
    if let Some(at) = stats.last_commit() {
        let help = "When this process last committed records, in seconds since 1970.";
        text.metric("dataloader_last_commit_timestamp_seconds", "gauge", help);
        text.sample("dataloader_last_commit_timestamp_seconds", &[], at.as_secs_f64());
    }
}

/// Which servers answer.
fn up(text: &mut Text, site: &Site, seen: &Seen) {
    let mut targets = Vec::new();
    let mut connected = Connections::default();
    match &site.stats {
        Some(stats) => {
            connected = stats.beat().map(|beat| beat.connected().clone()).unwrap_or_default();
            if let Some(topology) = stats.topology() {
                targets.extend(topology.records.then_some((Target::Database, connected.database)));
                targets.extend(topology.broker.then_some((Target::Broker, connected.broker)));
            }
        }
        None => {
            let is_up = seen.error.is_none();
            targets.push((Target::Database, is_up));
            let host = site.observer.database().and_then(|database| database.connected());
            connected.database_host = host.filter(|_| is_up).map(str::to_owned);
        }
    }
    if targets.is_empty() {
        return;
    }
    text.metric("dataloader_up", "gauge", "1 while the server answers this process, else 0.");
    for (target, is_up) in targets {
        text.sample("dataloader_up", &[("target", target.name())], u8::from(is_up));
    }
    if connected.hosts().next().is_some() {
        text.metric(
            "dataloader_connected",
            "gauge",
            "1; the labels are the server, and which of its hosts this process is connected to.",
        );
    }
    for (target, host) in connected.hosts() {
        text.sample("dataloader_connected", &[("target", target.name()), ("host", host)], 1);
    }
}

/// What database and inbox hold: equal in all processes that see them.
fn of_database(text: &mut Text, seen: &Seen) {
    // While the database is away its numbers would be old.
    if seen.overview.is_some() && seen.error.is_none() {
        let help = "For how long the oldest change of the dataset has waited for the modelled tables, as far as this process saw.";
        text.metric("dataloader_model_lag_seconds", "gauge", help);
        for (dataset, lag) in &seen.model_lag {
            text.sample("dataloader_model_lag_seconds", &[("dataset", dataset)], lag);
        }
        let help = "Records about which the ledger and the chunk lines of closed loads disagree: 0, or something is wrong.";
        text.metric("dataloader_unaccounted_records", "gauge", help);
        for (dataset, records) in &seen.unaccounted {
            text.sample("dataloader_unaccounted_records", &[("dataset", dataset)], records);
        }
    }
    if seen.waiting.is_empty() {
        return;
    }
    let help = "Files in the inbox that are not loaded yet, or over RabbitMQ not published.";
    text.metric("dataloader_waiting_files", "gauge", help);
    for waiting in &seen.waiting {
        text.sample("dataloader_waiting_files", &[("dataset", &waiting.dataset)], waiting.files);
    }
    text.metric("dataloader_oldest_waiting_file_seconds", "gauge", "The age of the oldest of these files; 0 if there is none.");
    for waiting in &seen.waiting {
        let age = waiting.oldest.as_secs_f64();
        text.sample("dataloader_oldest_waiting_file_seconds", &[("dataset", &waiting.dataset)], age);
    }
}
