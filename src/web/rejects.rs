//! The open rejects: listed with their bytes made harmless, replayed, and discarded, each after a confirmation.

use hyper::StatusCode;
use hyper::header::HeaderMap;
use maud::{Markup, html};
use serde::Serialize;

use super::Site;
use super::answer::{Answer, html as page, json, refused, text};
use super::form::Fields;
use super::letters::Letters;
use super::loads::select;
use super::page::{frame, instead, query};
use super::text::{bytes, count, counted, shown, shown_around, shown_bytes};
use crate::answers::replay::{DatasetReplay, Replay, discard, replay};
use crate::record::fault;
use crate::record::row::RejectReason;
use crate::store::open_rejects::{self, OpenReject, Records, RejectFilter};
use crate::store::{Connection, StoreResult};
use crate::transport::amqp::dead_letters::DeadLetterEntry;

/// How many rejects a page has.
const PAGE: u32 = 50;
/// How many rejects and dead letters programs get at a time.
const LISTED: u32 = 1_000;
/// How many dead letters the page shows.
const LETTERS: usize = 20;
/// How many characters of a record are shown.
const SHOWN: usize = 2_000;

/// What is done to the selected rejects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Replay,
    Discard,
}

/// The filter that a query or a form asks for. A load that is no number selects nothing.
pub fn filter(fields: &Fields) -> RejectFilter {
    RejectFilter {
        datasets: fields.get("dataset").into_iter().collect(),
        reason: fields.get("reason"),
        load: fields.get("load").map(|id| id.parse().unwrap_or(-1)),
    }
}

/// The object of `rejects list`, and what of it is left out here.
#[derive(Serialize)]
struct Listed {
    rejects: Vec<OpenReject>,
    dead_letters: Vec<DeadLetterEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// The list, for programs: the object of `rejects list`. Its notes say what is left out, if there is very much.
pub async fn for_programs(site: &Site, fields: &Fields) -> Answer {
    let asked = filter(fields);
    let datasets = match site.config.datasets_named(&asked.datasets) {
        Ok(datasets) => datasets,
        Err(error) => return text(StatusCode::BAD_REQUEST, error.message()),
    };
    let names = datasets.iter().map(|dataset| dataset.name.clone()).collect();
    let (filter, after) = (RejectFilter { datasets: names, ..asked.clone() }, after(fields));
    let read =
        async |connection: &mut Connection| open_rejects::page(connection, &filter, Records::Without, after, LISTED + 1).await;
    let found = match site.read(read).await {
        Ok(found) => found,
        Err(why) => return text(StatusCode::SERVICE_UNAVAILABLE, why),
    };
    let nothing = site.observer.database().filter(|_| found.is_none()).map(|database| database.says_nothing_is_there());
    let mut rejects = found.unwrap_or_default();
    let is_all = rejects.len() <= LISTED as usize;
    rejects.truncate(LISTED as usize);
    let mut listed = Listed { rejects, dead_letters: Vec::new(), notes: nothing.into_iter().collect() };
    if let Some(last) = listed.rejects.last().filter(|_| !is_all) {
        listed.notes.push(format!("more rejects are at /api{}", next(&asked, last)));
    }
    // They are on the first page only.
    if after == (0, 0) {
        let letters = Letters::read(site, &asked, LISTED as usize).await;
        listed.dead_letters = letters.found;
        listed.notes.extend(letters.note);
    }
    json(&listed)
}

/// Where a page of the list begins.
fn after(fields: &Fields) -> (i64, i64) {
    let number = |name: &str| fields.get(name).and_then(|text| text.parse().ok()).unwrap_or(0);
    (number("after_load"), number("after"))
}

/// The list.
pub async fn list(site: &Site, fields: &Fields) -> Answer {
    let filter = filter(fields);
    let after = after(fields);
    let read = async |connection: &mut Connection| {
        let may_write = site.may_write(connection).await?;
        let found = open_rejects::page(connection, &filter, Records::With, after, PAGE).await?;
        let all = open_rejects::count(connection, &filter).await?;
        StoreResult::Ok((found, all, may_write))
    };
    let (found, all, may_write) = match site.read(read).await {
        Ok(found) => found.unwrap_or_default(),
        Err(why) => return instead(site, "/rejects", StatusCode::SERVICE_UNAVAILABLE, &why),
    };
    let letters = if after == (0, 0) { Letters::read(site, &filter, LETTERS).await } else { Letters::default() };
    let content = html! {
        h1 { "Open rejects" }
        section aria-label="Open rejects" {
            (filter_form(site, &filter))
            @if all == 0 { p class="empty" { "No open reject is like this." } }
            @else {
                p { (counted(all, "record")) " could not be loaded. Repair the configuration and replay; or repair the records: " code { "dataloader rejects export" } "." }
            }
            @if all > 0 || letters.all() > 0 {
                @if may_write { (action_form(site, Action::Replay, &filter, false)) @if all > 0 { (action_form(site, Action::Discard, &filter, false)) } }
                @else { p class="soft" { "This database can only be read here: rejects are replayed and discarded elsewhere." } }
                @for reject in &found { (one(site, reject)) }
                @if let Some(last) = found.last().filter(|_| found.len() == PAGE as usize) { p { a href=(next(&filter, last)) { "More rejects" } } }
            }
        }
        (letters.section())
    };
    page(StatusCode::OK, frame(site, "/rejects", "Open rejects — dataloader", content))
}

fn next(filter: &RejectFilter, last: &OpenReject) -> String {
    let mut path = format!("/rejects?after_load={}&after={}", last.load_id, last.ordinal);
    let load = filter.load.map(|id| id.to_string());
    for (name, value) in [("dataset", filter.datasets.first()), ("reason", filter.reason.as_ref()), ("load", load.as_ref())] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", query(value).0));
        }
    }
    path
}

fn filter_form(site: &Site, filter: &RejectFilter) -> Markup {
    let datasets = site.config.datasets.iter().map(|dataset| dataset.name.as_str());
    let reasons = RejectReason::ALL.iter().map(|reason| reason.as_str());
    html! {
        form class="filter" action="/rejects" method="get" role="search" {
            div { label for="dataset" { "Dataset" } (select("dataset", datasets, filter.datasets.first().map(String::as_str))) }
            div { label for="reason" { "Reason" } (select("reason", reasons, filter.reason.as_deref())) }
            div { label for="load" { "Load" } input id="load" name="load" inputmode="numeric" value=[filter.load]; }
            button type="submit" { "Show" }
        }
    }
}

fn one(site: &Site, reject: &OpenReject) -> Markup {
    html! {
        article {
            h2 { (shown(&reject.reason, 60)) ": " (shown(&reject.detail, 300)) }
            p class="soft" {
                (shown(&reject.dataset, 63)) " · load " a href={ "/loads/" (reject.load_id) } { (reject.load_id) } " · record " (count(reject.ordinal)) " at byte " (count(reject.byte_offset))
                " of " bdi { (shown(&reject.source, 200)) } " · " (bytes(reject.record.len() as u64))
            }
            pre tabindex="0" role="group" aria-label="The record as it came" { (record(site, reject)) }
        }
    }
}

/// The record as it came; the place of its fault is marked, if it has one.
fn record(site: &Site, reject: &OpenReject) -> Markup {
    let bytes = &reject.record;
    let dataset = site.config.datasets.iter().find(|dataset| dataset.name == reject.dataset);
    let columns = dataset.map_or(&[][..], |dataset| &dataset.columns[..]);
    let place = RejectReason::from_name(&reject.reason).and_then(|reason| fault::place(reason, &reject.detail, bytes, columns));
    match place {
        Some(place) => {
            let [before, inside, after] = shown_around(bytes, place, SHOWN);
            html! { (before) mark { (inside) } (after) }
        }
        None => html! { (shown_bytes(bytes, SHOWN)) },
    }
}

/// The button of an action, with the filter and the token in hidden fields.
fn action_form(site: &Site, action: Action, filter: &RejectFilter, confirmed: bool) -> Markup {
    let (path, name, class) = match action {
        Action::Replay => ("/rejects/replay", "Replay", ""),
        Action::Discard => ("/rejects/discard", "Discard", "danger"),
    };
    html! {
        form class="act" action=(path) method="post" {
            input type="hidden" name="token" value=(site.access.form_token());
            @if let Some(dataset) = filter.datasets.first() { input type="hidden" name="dataset" value=(dataset); }
            @if let Some(reason) = &filter.reason { input type="hidden" name="reason" value=(reason); }
            @if let Some(load) = filter.load { input type="hidden" name="load" value=(load); }
            @if confirmed { input type="hidden" name="confirm" value="yes"; }
            button type="submit" class=(class) id=(name.to_lowercase()) { (name) @if confirmed { " them" } @else { " …" } }
        }
    }
}

/// A form: asks for a confirmation, or does what was confirmed.
pub async fn act(site: &Site, action: Action, headers: &HeaderMap, fields: &Fields) -> Answer {
    if let Err(refusal) = site.access.check_form(headers, fields.get("token").as_deref()) {
        return refused(refusal);
    }
    let filter = filter(fields);
    if let Err(error) = site.config.datasets_named(&filter.datasets) {
        return text(StatusCode::BAD_REQUEST, error.message());
    }
    let read = async |connection: &mut Connection| {
        let may_write = site.may_write(connection).await?;
        StoreResult::Ok((open_rejects::count(connection, &filter).await?, may_write))
    };
    match site.read(read).await {
        Ok(Some((_, false))) => text(StatusCode::FORBIDDEN, "this database can only be read here"),
        Ok(found) if fields.get("confirm").as_deref() != Some("yes") => {
            let letters = match action {
                Action::Replay => Letters::read(site, &filter, 0).await.all(),
                Action::Discard => 0,
            };
            confirm(site, action, &filter, found.map_or(0, |(count, _)| count), letters)
        }
        Ok(_) => done(site, action, &filter).await,
        Err(why) => instead(site, "", StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

fn confirm(site: &Site, action: Action, filter: &RejectFilter, all: i64, letters: i64) -> Answer {
    let what = match action {
        Action::Replay => {
            "They are parsed again with the current configuration. Those that fit are loaded and leave the list; the others stay."
        }
        Action::Discard => "Their bytes are deleted and cannot be brought back. The ledger still counts them.",
    };
    let verb = if action == Action::Replay { "Replay" } else { "Discard" };
    let content = html! {
        h1 { (verb) " " (counted(all, "reject")) @if letters > 0 { " and " (counted(letters, "dead letter")) } "?" }
        section aria-label="Confirmation" {
            p { (describe(filter)) " " (what) @if letters > 0 { " Dead letters are sent to their queues again." } }
            @if all > 0 || letters > 0 { (action_form(site, action, filter, true)) }
            p { a href="/rejects" { "No, back to the rejects" } }
        }
    };
    page(StatusCode::OK, frame(site, "", &format!("{verb} rejects — dataloader"), content))
}

fn describe(filter: &RejectFilter) -> String {
    let mut parts = vec!["All open rejects".to_owned()];
    parts.extend(filter.datasets.first().map(|dataset| format!("of {dataset}")));
    parts.extend(filter.reason.as_ref().map(|reason| format!("with the reason {}", shown(reason, 60))));
    parts.extend(filter.load.map(|load| format!("of load {load}")));
    parts.join(" ") + "."
}

async fn done(site: &Site, action: Action, filter: &RejectFilter) -> Answer {
    let says = match action {
        Action::Replay => replay(&site.config, filter).await.map(|done| replayed(&done)),
        Action::Discard => discard(&site.config, filter).await.map(|done| {
            let all: u64 = done.datasets.iter().map(|dataset| dataset.discarded).sum();
            let all = i64::try_from(all).unwrap_or(i64::MAX);
            vec![format!("{} {} discarded.", counted(all, "reject"), if all == 1 { "is" } else { "are" })]
        }),
    };
    let says = match says {
        Ok(says) => says,
        Err(error) => return instead(site, "", StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    };
    let content = html! {
        h1 { "Done" }
        section aria-label="Result" { @for line in says { p role="status" { (line) } } p { a href="/rejects" { "Back to the rejects" } } }
    };
    page(StatusCode::OK, frame(site, "", "Done — dataloader", content))
}

fn replayed(done: &Replay) -> Vec<String> {
    let number = |value: u64| count(i64::try_from(value).unwrap_or(i64::MAX));
    let line = |d: &DatasetReplay| {
        let letters = d.republished.filter(|letters| *letters > 0);
        let letters = letters.map(|letters| format!(" Dead letters in its queue again: {}.", number(letters))).unwrap_or_default();
        let (read, loaded, rejected) = (number(d.read), number(d.loaded), number(d.rejected));
        format!("{}: {read} replayed, {loaded} loaded, {rejected} still rejected.{letters}", d.dataset)
    };
    done.datasets.iter().map(line).collect()
}
