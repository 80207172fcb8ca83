//! The loads: searched and filtered, and one by one.

use hyper::StatusCode;
use jiff::Timestamp;
use maud::{Markup, html};

use super::Site;
use super::answer::{Answer, html as page, json, text};
use super::form::Fields;
use super::page::{frame, instead, load_table, moment, query};
use super::text::{bytes, count, counted, rate, shown};
use crate::answers::loads::{self, LoadDetail, LoadFilter, LoadRow};
use crate::store::Connection;

/// How many loads a page of the list has.
const PAGE: u32 = 50;
/// The states of a load.
const STATUSES: [&str; 6] = ["loading", "loaded", "failed", "unloaded", "repeated", "open"];

/// The filter that a query asks for.
pub fn filter(fields: &Fields) -> LoadFilter {
    LoadFilter {
        dataset: fields.get("dataset"),
        status: fields.get("status"),
        name: fields.get("name"),
        before: fields.get("before").and_then(|id| id.parse().ok()),
    }
}

/// The list, for programs.
pub async fn for_programs(site: &Site, fields: &Fields) -> Answer {
    let filter = filter(fields);
    match site.read(async |connection: &mut Connection| loads::list(connection, &filter, 1_000).await).await {
        Ok(found) => json(&serde_json::json!({ "loads": found.unwrap_or_default() })),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

/// The list.
pub async fn list(site: &Site, fields: &Fields) -> Answer {
    let filter = filter(fields);
    let found = match site.read(async |connection: &mut Connection| loads::list(connection, &filter, PAGE).await).await {
        Ok(found) => found.unwrap_or_default(),
        Err(why) => return instead(site, "/loads", StatusCode::SERVICE_UNAVAILABLE, &why),
    };
    let content = html! {
        h1 { "Loads" }
        section aria-label="Loads" {
            (form(site, &filter))
            @if found.is_empty() { p class="empty" { "No load is like this." } } @else { (load_table(&found, "Loads, the latest first", Timestamp::now())) }
            @if let Some(next) = next(&filter, &found) { p { a href=(next) { "Earlier loads" } } }
        }
    };
    page(StatusCode::OK, frame(site, "/loads", "Loads — dataloader", content))
}

fn next(filter: &LoadFilter, found: &[LoadRow]) -> Option<String> {
    let last = found.last().filter(|_| found.len() == PAGE as usize)?;
    let part =
        |name: &str, value: &Option<String>| value.as_ref().map(|value| format!("&{name}={}", query(value).0)).unwrap_or_default();
    let (dataset, status, name) = (part("dataset", &filter.dataset), part("status", &filter.status), part("name", &filter.name));
    Some(format!("/loads?before={}{dataset}{status}{name}", last.id))
}

fn form(site: &Site, filter: &LoadFilter) -> Markup {
    let datasets = site.config.datasets.iter().map(|dataset| dataset.name.as_str());
    html! {
        form class="filter" action="/loads" method="get" role="search" {
            div { label for="dataset" { "Dataset" } (select("dataset", datasets, filter.dataset.as_deref())) }
            div { label for="status" { "Status" } (select("status", STATUSES.into_iter(), filter.status.as_deref())) }
            div { label for="name" { "Part of the name" } input id="name" name="name" value=[filter.name.as_deref()]; }
            button type="submit" { "Show" }
        }
    }
}

/// A choice of one of these values, or any.
pub fn select<'a>(name: &str, values: impl Iterator<Item = &'a str>, chosen: Option<&str>) -> Markup {
    html! {
        select id=(name) name=(name) {
            option value="" { "all" }
            @for value in values { option value=(value) selected[chosen == Some(value)] { (value) } }
        }
    }
}

/// One load.
pub async fn one(site: &Site, id: &str) -> Answer {
    let Ok(id) = id.parse() else { return instead(site, "", StatusCode::NOT_FOUND, "A load is a number: /loads/1") };
    match site.read(async |connection: &mut Connection| loads::find(connection, &site.config.datasets, id).await).await {
        Ok(Some(Some(load))) => {
            let title = format!("Load {id} — dataloader");
            page(StatusCode::OK, frame(site, "", &title, detail(&load, Timestamp::now())))
        }
        Ok(_) => instead(site, "", StatusCode::NOT_FOUND, &format!("There is no load {id}.")),
        Err(why) => instead(site, "", StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

fn detail(found: &LoadDetail, now: Timestamp) -> Markup {
    let LoadDetail { load, chunks, open_rejects, sha256, host, repeats, rows_removed, .. } = found;
    html! {
        h1 { "Load " (load.id) }
        section aria-label="The load" {
            @if let Some(error) = &load.error { p class="alarm" { (shown(error, 2_000)) } }
            p class="sum" {
                span { b { (count(load.read)) } " read" } span { "=" } span { b { (count(load.loaded)) } " loaded" }
                span { "+ " b { (count(load.rejected)) } " rejected" } span { "+ " b { (count(load.skipped)) } " skipped" }
            }
            dl class="facts" {
                dt { "dataset" } dd { (shown(&load.dataset, 63)) }
                dt { "source" } dd { bdi { (shown(&load.source, 4_096)) } }
                dt { "status" } dd { (load.status) @if let Some(id) = repeats { ": the content is that of load " a href={ "/loads/" (id) } { (id) } } }
                (life(found, now))
                dt { "chunks" } dd { (count(*chunks)) " committed" }
                @if let Some(size) = load.bytes { dt { "text" } dd { (bytes(size.unsigned_abs())) } }
                @if let Some(removed) = rows_removed.filter(|removed| *removed > 0) { dt { "rows removed" } dd { (count(removed)) } }
                @if let Some(host) = host { dt { "host" } dd { (shown(host, 255)) } }
                @if let Some(sha256) = sha256 { dt { "sha256" } dd { code { (sha256) } } }
            }
            @if *open_rejects > 0 { p { a href={ "/rejects?load=" (load.id) } { (counted(*open_rejects, "open reject")) " of this load" } } }
            @else if load.rejected > 0 { p class="soft" { "Its rejects are no longer open: replayed, superseded by a later load, or discarded." } }
        }
    }
}

/// When what became of it, how long that took, and how fast it was, as far as the ledger knows.
fn life(found: &LoadDetail, now: Timestamp) -> Markup {
    let LoadDetail { load, claimed_at, waits_for_refresh, .. } = found;
    let (started, finished) = (Some(load.started_at.as_str()), load.finished_at.as_deref());
    let took = |from: Option<&str>, to: Option<&str>| seconds_between(from?, to?);
    html! {
        @if let Some(at) = claimed_at { dt { "claimed" } dd { (moment(at, now)) } }
        // The ledger row of a file that was claimed is made with its first batch.
        dt { @if claimed_at.is_some() { "first written" } @else { "started" } }
        dd {
            (moment(&load.started_at, now))
            @if let Some(seconds) = took(claimed_at.as_deref(), started) { span class="step" { (duration(seconds)) " after the claim" } }
        }
        dt { @if load.status == "failed" { "failed" } @else { "committed" } }
        dd {
            @match finished { Some(at) => (moment(at, now)), None => "not all of it yet" }
            @if let Some(seconds) = took(claimed_at.as_deref().or(started), finished) {
                span class="step" {
                    (duration(seconds)) @if claimed_at.is_some() { " after the claim" } @else { " after the start" }
                    @if seconds > 0.0 && load.read > 0 { ": " (per_second(load.read, seconds)) " records/s" }
                }
            }
        }
        @if let Some(waits) = waits_for_refresh {
            dt { "modelled" }
            dd { @if *waits { "not all of its days yet: that follows by itself while a pipeline runs, or with " code { "dataloader model" } } @else { "all of its days" } }
        }
    }
}

fn duration(seconds: f64) -> String {
    if seconds < 60.0 { format!("{seconds:.3} s") } else { format!("{:.0} min {:.0} s", (seconds / 60.0).floor(), seconds % 60.0) }
}

fn seconds_between(started: &str, finished: &str) -> Option<f64> {
    let (started, finished): (Timestamp, Timestamp) = (started.parse().ok()?, finished.parse().ok()?);
    Some(finished.duration_since(started).as_secs_f64())
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn per_second(records: i64, seconds: f64) -> String {
    rate(records as f64 / seconds)
}
