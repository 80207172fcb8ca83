//! Live parts: server-sent events with the sections of the first screen that have changed. A client that reads slowly gets the
//! next state when it is ready for it; what it missed is not kept.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::StatusCode;
use hyper::body::{Bytes, Frame};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use super::Site;
use super::answer::{Answer, text, with_body};
use super::page::{PARTS, Screen};

/// How often the page changes at most.
const EVERY: Duration = Duration::from_secs(1);

/// What an open stream remembers.
struct Watching {
    site: Arc<Site>,
    /// What it was sent last, by section.
    sent: HashMap<&'static str, String>,
    is_first: bool,
    /// Its place among the streams.
    _place: OwnedSemaphorePermit,
}

/// An event: the new contents of a section.
#[derive(Serialize)]
struct Part<'a> {
    id: &'a str,
    html: &'a str,
}

/// A stream of events, if there is a place for one more.
pub fn answer(site: &Arc<Site>) -> Answer {
    let Ok(place) = Arc::clone(&site.streams).try_acquire_owned() else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "too many pages are open: this one is not live");
    };
    let watching = Watching { site: Arc::clone(site), sent: HashMap::new(), is_first: true, _place: place };
    // Polled only when the client has taken what was sent before.
    let events = stream::unfold(watching, |mut watching| async move {
        let event = watching.next().await;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(event))), watching))
    });
    with_body(StatusCode::OK, "text/event-stream", StreamBody::new(events).boxed_unsync())
}

impl Watching {
    /// The sections that have changed, as events; a comment if none has, which shows whether the client is still there.
    async fn next(&mut self) -> String {
        if !std::mem::take(&mut self.is_first) {
            tokio::time::sleep(EVERY).await;
        }
        let seen = self.site.seen().await;
        let processes = self.site.processes();
        let screen = Screen { site: &self.site, seen, processes, now: Timestamp::now() };
        let mut events = String::new();
        for id in PARTS {
            let html = screen.part(id).into_string();
            if self.sent.get(id) != Some(&html) {
                // JSON has no line breaks, which would end the event.
                let part = serde_json::to_string(&Part { id, html: &html }).unwrap_or_default();
                events.push_str(&format!("event: part\ndata: {part}\n\n"));
                self.sent.insert(id, html);
            }
        }
        if events.is_empty() { ": nothing has changed\n\n".to_owned() } else { events }
    }
}
