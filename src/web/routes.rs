//! Which path answers what.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use jiff::Timestamp;

use super::Site;
use super::answer::{self, Answer, html, json, not_found, refused, text, wrong_method};
use super::form::Fields;
use super::page::Screen;
use super::rejects::Action;
use super::{live, loads, metrics, rejects};
use crate::answers::report;
use crate::answers::status;
use crate::error::{Error, Result};

const SCRIPT: &str = include_str!("assets/page.js");
const STYLE: &str = include_str!("assets/page.css");
/// What may only be read.
const READ: &str = "GET, HEAD";

/// Whether the answer comes in parts, or needs long work.
pub fn takes_long(request: &Request<Incoming>) -> bool {
    request.uri().path() == "/api/live" || request.method() == Method::POST
}

/// The answer to a request.
pub async fn answer(site: &Arc<Site>, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    // Whoever asks these is a machine that watches this one, and may have no token.
    match path.as_str() {
        "/healthz" | "/readyz" if !is_read => return wrong_method(READ),
        "/healthz" => return text(StatusCode::OK, "the process works"),
        "/readyz" => return ready(site).await,
        _ => {}
    }
    if let Err(refusal) = site.access.check(request.headers()) {
        return refused(refusal);
    }
    let fields = Fields::parse(request.uri().query().unwrap_or_default());
    match path.as_str() {
        "/rejects/replay" => return form(site, Action::Replay, request).await,
        "/rejects/discard" => return form(site, Action::Discard, request).await,
        path if !is_read => return if is_known(path) { wrong_method(READ) } else { not_found() },
        _ => {}
    }
    match path.as_str() {
        "/" => html(StatusCode::OK, screen(site).await.page()),
        "/page.css" => answer::answer(StatusCode::OK, "text/css; charset=utf-8", STYLE),
        "/page.js" => answer::answer(StatusCode::OK, "text/javascript; charset=utf-8", SCRIPT),
        "/metrics" => answer::answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", metrics::metrics(site).await),
        "/loads" => loads::list(site, &fields).await,
        "/rejects" => rejects::list(site, &fields).await,
        "/api/live" => live::answer(site),
        "/api/status" => asked(site, status::status(&site.config)).await,
        "/api/report" => asked(site, report::report(&site.config, &site.config.datasets)).await,
        "/api/loads" => loads::for_programs(site, &fields).await,
        "/api/rejects" => rejects::for_programs(site, &fields).await,
        path => match path.strip_prefix("/loads/") {
            Some(id) => loads::one(site, id).await,
            None => not_found(),
        },
    }
}

/// The paths that are there, besides those of single loads.
const PATHS: [&str; 11] = [
    "/",
    "/page.css",
    "/page.js",
    "/metrics",
    "/loads",
    "/rejects",
    "/api/live",
    "/api/status",
    "/api/report",
    "/api/loads",
    "/api/rejects",
];

fn is_known(path: &str) -> bool {
    PATHS.contains(&path) || path.starts_with("/loads/")
}

/// A form that a browser sent. What it asks for is done to its end, also if the browser goes away.
async fn form(site: &Arc<Site>, action: Action, request: Request<Incoming>) -> Answer {
    if request.method() != Method::POST {
        return wrong_method("POST");
    }
    let (head, body) = request.into_parts();
    let Some(fields) = Fields::read(body).await else {
        return text(StatusCode::BAD_REQUEST, "this is no form of the page");
    };
    let site = Arc::clone(site);
    let acting = tokio::task::spawn_local(async move { rejects::act(&site, action, &head.headers, &fields).await });
    acting.await.unwrap_or_else(|_| text(StatusCode::INTERNAL_SERVER_ERROR, "this has failed: look at the log"))
}

async fn screen(site: &Site) -> Screen<'_> {
    Screen { site, seen: site.seen().await, processes: site.processes(), now: Timestamp::now() }
}

/// 200 while the pipeline works and has its connections, else 503 with the reason.
async fn ready(site: &Site) -> Answer {
    let problems = site.not_ready().await;
    match problems.is_empty() {
        true => text(StatusCode::OK, "ready"),
        false => text(StatusCode::SERVICE_UNAVAILABLE, problems.join("; ")),
    }
}

/// What a command says, as JSON.
async fn asked<T: serde::Serialize>(site: &Site, answer: impl Future<Output = Result<T>>) -> Answer {
    let Ok(_place) = site.queries.acquire().await else { return not_found() };
    match answer.await {
        Ok(value) => json(&value),
        Err(error) => failed(&error),
    }
}

/// The answer to what could not be done. Its text was made for users, without passwords.
fn failed(error: &Error) -> Answer {
    let hint = error.hint_text().map(|hint| format!("\n{hint}")).unwrap_or_default();
    text(StatusCode::SERVICE_UNAVAILABLE, format!("{}{hint}", error.message()))
}
