//! The first screen, in parts that can be replaced one by one, and the frame that all pages have.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::StatusCode;
use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::Site;
use super::answer::{self, Answer};
use super::chart::charts;
use super::observer::Seen;
use super::text::{age, bytes, count, counted, rate, shown, time};
use crate::answers::loads::LoadRow;
use crate::answers::status::{DatasetStatus, UnknownKeyStatus};
use crate::config::Transport;
use crate::flow::{Flow, StageFlow};
use crate::heartbeat::Process;

/// What the first screen is made of.
pub struct Screen<'a> {
    pub site: &'a Site,
    pub seen: Arc<Seen>,
    pub processes: Vec<Process>,
    pub now: Timestamp,
}

/// The parts of the first screen, by the ids of their sections.
pub const PARTS: [&str; 5] = ["pipeline", "accounts", "charts", "loads", "rejects"];

/// The frame of every page.
pub fn frame(site: &Site, path: &str, title: &str, content: Markup) -> Markup {
    let link = |to: &str, name: &str| html! { a href=(to) aria-current=[(to == path).then_some("page")] { (name) } };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                link rel="icon" href="data:,";
                link rel="stylesheet" href="/page.css";
                script src="/page.js" defer {}
            }
            body {
                a class="skip" href="#content" { "Skip to the content" }
                header {
                    p class="name" { "dataloader" }
                    nav aria-label="Pages" { (link("/", "Overview")) (link("/loads", "Loads")) (link("/rejects", "Rejects")) }
                    span class="where" { (shown(&site.config.database.to_string(), 120)) @if path == "/" { " " span id="live" role="status" { "as of this reload" } } }
                }
                main id="content" { (content) }
                footer {
                    "dataloader " (env!("CARGO_PKG_VERSION")) " · times are UTC · numbers for programs: "
                    a href="/metrics" { "metrics" } ", " a href="/api/status" { "status" } ", " a href="/api/report" { "report" }
                }
            }
        }
    }
}

/// A page that says why another one cannot be shown.
pub fn instead(site: &Site, path: &str, status: StatusCode, why: &str) -> Answer {
    let title = if status == StatusCode::NOT_FOUND { "Not found" } else { "This cannot be shown now" };
    let content = html! {
        h1 { (title) }
        section aria-label=(title) { p class="alarm" role="alert" { (shown(why, 600)) } p { a href="/" { "Back to the overview" } } }
    };
    answer::html(status, frame(site, path, &format!("{title} — dataloader"), content))
}

impl Screen<'_> {
    /// The first screen.
    pub fn page(&self) -> Markup {
        let section = |id: &str| html! { section id=(id) aria-labelledby={ (id) "-title" } { (self.part(id)) } };
        frame(self.site, "/", "dataloader", html! { h1 class="skip" { "Overview" } @for id in PARTS { (section(id)) } })
    }

    /// The contents of a section.
    pub fn part(&self, id: &str) -> Markup {
        let (title, content) = match id {
            "pipeline" => ("Pipeline", self.pipeline()),
            "accounts" => ("Is everything accounted for?", self.accounts()),
            "charts" => ("Per day", self.charts()),
            "loads" => ("Last loads", self.loads()),
            _ => ("Open rejects", self.rejects()),
        };
        html! { h2 id={ (id) "-title" } { (title) } (content) }
    }

    fn pipeline(&self) -> Markup {
        html! {
            @if self.processes.is_empty() {
                p class="empty" {
                    @if self.site.config.transport == Transport::Amqp {
                        "No producer or consumer runs in this directory. Those elsewhere show themselves at their own address, with " code { "--http" } "."
                    } @else {
                        "No pipeline runs in this directory. Start one: " code { "dataloader run --http 8080" }
                    }
                }
            }
            @for process in &self.processes { (self.process(process)) }
            @if let Some(depths) = &self.seen.depths {
                p { "In RabbitMQ: " @for (i, depth) in depths.iter().enumerate() {
                    @if i > 0 { ", " }
                    @if depth.dataset == "dead" { span class=[(depth.messages > 0).then_some("bad")] { (counted(depth.messages.into(), "dead letter")) } }
                    @else { (counted(depth.messages.into(), "message")) " of " (depth.dataset) }
                } }
            }
            (self.waiting())
        }
    }

    fn process(&self, process: &Process) -> Markup {
        let Flow { stages, in_flight_bytes, in_flight_limit_bytes, limit, says } = &process.flow;
        let says = if process.seconds_since_beat > 15 {
            format!("Process {} hangs: its last sign of life was {} s ago.", process.pid, process.seconds_since_beat)
        } else if stages.is_empty() {
            "The pipeline is starting.".to_owned()
        } else {
            says.clone()
        };
        html! {
            @if self.processes.len() > 1 { h3 { "Process " (process.pid) } }
            p class="says" { (shown(&says, 400)) }
            @for problem in process.troubles.iter().filter(|problem| !says.contains(problem.split(" (for").next().unwrap_or_default())) {
                p class="alarm" { (shown(problem, 400)) }
            }
            // What waits for it says so better.
            @if let Some(missing) = process.missing().filter(|_| process.troubles.is_empty()) { p class="alarm" { "Not connected to " (missing) "." } }
            ol class="stages" {
                @for stage in stages { (self.stage(stage, limit.as_deref() == Some(&stage.stage))) }
            }
            @if *in_flight_limit_bytes > 0 {
                p {
                    "In flight: " (bytes(*in_flight_bytes)) " of at most " (bytes(*in_flight_limit_bytes)) " "
                    meter min="0" max=(in_flight_limit_bytes) value=(in_flight_bytes) aria-label="Bytes in flight" {}
                }
            }
        }
    }

    fn stage(&self, stage: &StageFlow, limits: bool) -> Markup {
        let class = if stage.trouble.is_some() {
            "trouble"
        } else if limits {
            "limit"
        } else {
            ""
        };
        let percent = format!("{:.0} %", stage.busy * 100.0);
        html! {
            li class=(class) {
                span class="stage" { (stage.stage) @if stage.count > 1 { " ×" (stage.count) } @if limits { " — limits" } }
                span class="rate" { (rate(stage.per_second)) }
                span class="soft" { " " (stage.unit) "/s" }
                meter min="0" max="100" value=(format!("{:.0}", stage.busy * 100.0)) aria-label={ "busy share of the " (stage.stage) } { (percent) }
                span class="soft" { (percent) " busy" }
            }
        }
    }

    fn waiting(&self) -> Markup {
        let waiting: Vec<_> = self.seen.waiting.iter().filter(|waiting| waiting.files > 0).collect();
        html! {
            @for waiting in waiting {
                p {
                    (counted(waiting.files.try_into().unwrap_or(i64::MAX), "file")) " of " (waiting.dataset) @if waiting.files == 1 { " waits in the inbox, for " } @else { " wait in the inbox, the oldest for " }
                    (age(waiting.oldest.as_secs().try_into().unwrap_or(i64::MAX))) "."
                }
            }
        }
    }

    /// What to say instead of what the database holds, if it cannot be read; with what it last held, its age.
    fn unless_seen(&self) -> Option<Markup> {
        if self.site.observer.database().is_none() {
            return Some(
                html! { p class="empty" { "This process is a producer and has no database. The page of a consumer, or " code { "dataloader serve" } ", shows it." } },
            );
        }
        match (&self.seen.overview, &self.seen.error) {
            (Some(_), _) => None,
            (None, Some(_)) => Some(html! { p class="empty" { "Nothing is known of it yet." } }),
            (None, None) if self.seen.has_tables => Some(html! { p class="empty" { "It is being read." } }),
            (None, None) => Some(
                html! { p class="empty" { "The database has no tables yet: the first load makes them. " (self.first_step()) } },
            ),
        }
    }

    fn first_step(&self) -> Markup {
        let inbox = self.site.config.inbox.display().to_string();
        let dataset = self.site.config.datasets.first().map_or("events", |dataset| dataset.name.as_str());
        html! { "Drop a file into " code { (shown(&inbox, 200)) "/" (dataset) "/" } ", or run " code { "dataloader load" } "." }
    }

    fn accounts(&self) -> Markup {
        let away = self.seen.error.as_ref().map(|(error, since)| {
            let of = self.seen.overview_at.map(|at| format!(" The numbers are those of {}.", at.strftime("%H:%M:%S UTC")));
            html! { p class="alarm" role="alert" { "The database does not answer since " (since.strftime("%H:%M:%S UTC")) ": " (shown(error, 300)) "." (of.unwrap_or_default()) } }
        });
        let of_ledger = self.seen.overview.as_ref().map(|overview| html! {
            dl class="accounts" { @for dataset in &overview.status.datasets { (self.account(dataset)) } }
            @if overview.status.datasets.iter().all(|dataset| dataset.files == 0) { p class="empty" { "Nothing is loaded yet. " (self.first_step()) } }
        });
        let unknown = self.seen.overview.as_ref().map(|overview| unknown_keys(&overview.status.unknown_keys));
        html! { (away.unwrap_or_default()) (self.unless_seen().or(of_ledger).unwrap_or_default()) (unknown.unwrap_or_default()) }
    }

    /// The line of a dataset: read = loaded + rejected + skipped + in flight, or what is missing.
    fn account(&self, status: &DatasetStatus) -> Markup {
        let held = self.seen.held.iter().find(|(dataset, _)| *dataset == status.dataset).map_or(0, |(_, records)| *records);
        // Announced by an end, or read by this process: the same records may be both.
        let in_flight = status.records_in_flight.max(held);
        let read = status.read + (in_flight - status.records_in_flight);
        let lost = self.seen.unaccounted.iter().find(|(dataset, _)| *dataset == status.dataset).map_or(0, |(_, records)| *records);
        let missing = status.missing.max(lost);
        html! {
            div {
                dt { (status.dataset) }
                dd {
                    span class="sum" id={ "sum-" (status.dataset) } {
                        span { b { (count(read)) } " read" } span { "=" } span { b { (count(status.loaded)) } " loaded" }
                        span { "+ " b { (count(status.rejected)) } " rejected" } span { "+ " b { (count(status.skipped)) } " skipped" }
                        span { "+ " b { (count(in_flight)) } " in flight" }
                    }
                    @if missing > 0 {
                        p class="alarm" { (counted(missing, "record")) @if missing == 1 { " is" } @else { " are" } " missing: ledger and rows do not agree. Look at the loads of " (status.dataset) "." }
                    } @else if status.files > 0 {
                        span class="ok" { "✓ all accounted for" }
                    }
                    span class="soft" {
                        @if status.files > 0 { " in " (counted(status.files, "file")) } @else { "no file yet" } @if status.in_flight > 0 { ", " (count(status.in_flight)) " of them being loaded" }
                        @if status.failed > 0 { ", " a href={ "/loads?status=failed&dataset=" (status.dataset) } { (count(status.failed)) " failed" } }
                    }
                }
            }
        }
    }

    fn charts(&self) -> Markup {
        if let Some(instead) = self.unless_seen() {
            return instead;
        }
        let overview = self.seen.overview.as_ref().expect("it was seen");
        let with_days: Vec<_> = overview.charts.iter().filter(|chart| !chart.days.is_empty()).collect();
        html! {
            @if with_days.is_empty() { p class="empty" { "No day is modelled yet. " (self.first_step()) } }
            @for chart in with_days { (charts(chart)) }
        }
    }

    fn loads(&self) -> Markup {
        if let Some(instead) = self.unless_seen() {
            return instead;
        }
        let overview = self.seen.overview.as_ref().expect("it was seen");
        html! {
            @if overview.loads.is_empty() { p class="empty" { "No file was loaded yet. " (self.first_step()) } }
            @else { (load_table(&overview.loads, "The latest loads", self.now)) p { a id="all-loads" href="/loads" { "All loads" } } }
        }
    }

    fn rejects(&self) -> Markup {
        if let Some(instead) = self.unless_seen() {
            return instead;
        }
        let overview = self.seen.overview.as_ref().expect("it was seen");
        let mut by_reason: BTreeMap<(&str, &str), i64> = BTreeMap::new();
        for reject in &overview.rejects {
            *by_reason.entry((&reject.dataset, &reject.reason)).or_default() += reject.records;
        }
        html! {
            @if overview.rejects.is_empty() { p class="empty" { "No record waits to be repaired." } }
            @else {
                div class="scroll" id="rejects-table" tabindex="0" role="region" aria-label="Open rejects by reason" { table {
                    thead { tr { th scope="col" { "dataset" } th scope="col" { "reason" } th scope="col" class="n" { "records" } } }
                    tbody { @for reject in &overview.rejects { tr {
                        td { (reject.dataset) }
                        td { a id={ "reject-" (reject.dataset) "-" (reject.reason) } href={ "/rejects?dataset=" (query(&reject.dataset)) "&reason=" (query(&reject.reason)) } { (shown(&reject.reason, 60)) } }
                        td class="n" { (count(reject.records)) }
                    } } }
                } }
            }
        }
    }
}

/// The keys that no column takes, with the lines that make them columns.
fn unknown_keys(keys: &[UnknownKeyStatus]) -> Markup {
    html! {
        @if !keys.is_empty() {
            details id="unknown-keys" {
                summary { (count(keys.len().try_into().unwrap_or(i64::MAX))) " keys of the records have no column; their values are kept in " code { "_extra" } }
                div class="scroll" tabindex="0" role="region" aria-label="Keys that no column takes" { table {
                    thead { tr {
                        th scope="col" { "dataset" } th scope="col" { "key" } th scope="col" class="n" { "first in load" }
                        th scope="col" class="n" { "record" } th scope="col" { "line for its columns in dataloader.toml" }
                    } }
                    tbody { @for UnknownKeyStatus { dataset, first } in keys { tr {
                        td { (shown(dataset, 63)) } td class="w" { bdi { (shown(&first.key, 100)) } }
                        td class="n" { @if let Some(load) = first.load { a href={ "/loads/" (load) } { (load) } } }
                        td class="n" { (count(first.record.try_into().unwrap_or(i64::MAX))) }
                        td class="w" { code { (shown(&first.line, 300)) } }
                    } } }
                } }
                p { "After a column was added, " code { "dataloader migrate --backfill" } " fills it." }
            }
        }
    }
}

/// Loads as a table.
pub fn load_table(loads: &[LoadRow], caption: &str, now: Timestamp) -> Markup {
    html! {
        div class="scroll" id="loads-table" tabindex="0" role="region" aria-label=(caption) { table class="loads" {
            caption { (caption) }
            thead { tr {
                th scope="col" class="n" { "load" } th scope="col" { "dataset" } th scope="col" { "status" } th scope="col" class="n" { "read" }
                th scope="col" class="n" { "loaded" } th scope="col" class="n" { "rejected" } th scope="col" { "started" } th scope="col" { "source" }
            } }
            tbody { @for load in loads { tr {
                td class="n" { a id={ "load-" (load.id) } href={ "/loads/" (load.id) } { (load.id) } }
                td { (shown(&load.dataset, 63)) }
                td class=[(load.status == "failed").then_some("bad")] { (load.status) }
                td class="n" { (count(load.read)) } td class="n" { (count(load.loaded)) }
                td class={ "n" @if load.rejected > 0 { " bad" } } { (count(load.rejected)) }
                td class="t" { (moment(&load.started_at, now)) }
                td class="w" { bdi { (shown(file_name(&load.source), 120)) } @if let Some(error) = &load.error { br; span class="bad" { (shown(error, 200)) } } }
            } } }
        } }
    }
}

/// A time with its zone and age.
pub fn moment(text: &str, now: Timestamp) -> Markup {
    match time(text, now) {
        Some((at, age)) => html! { time datetime=(text) title=(at) { (at) } span class="soft" { " · " (age) " ago" } },
        None => html! { (shown(text, 40)) },
    }
}

/// The last part of a path.
fn file_name(source: &str) -> &str {
    source.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(source)
}

/// A value in a query of a link.
pub fn query(value: &str) -> PreEscaped<String> {
    PreEscaped(percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC).to_string())
}
