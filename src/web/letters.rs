//! The dead letters of RabbitMQ, beside the open rejects.

use maud::{Markup, html};

use super::text::{bytes, count, counted, shown};
use super::{READ_TIME, Site};
use crate::answers::dead_letters;
use crate::store::open_rejects::RejectFilter;
use crate::transport::amqp::dead_letters::DeadLetterEntry;

/// The dead letters that a filter selects; none without RabbitMQ.
#[derive(Debug, Default)]
pub struct Letters {
    /// The first of them.
    pub found: Vec<DeadLetterEntry>,
    /// How many there are beyond these.
    pub more: i64,
    /// Why some are left out.
    pub note: Option<String>,
}

impl Letters {
    /// Reads all and keeps at most so many.
    pub async fn read(site: &Site, filter: &RejectFilter, most: usize) -> Self {
        let mut letters = Self::default();
        let (Ok(_place), Ok(datasets)) = (site.queries.acquire().await, site.config.datasets_named(&filter.datasets)) else {
            return letters;
        };
        let reading = dead_letters::for_each(&site.config, &datasets, filter, |letter| {
            if letters.found.len() < most {
                letters.found.push(letter);
            } else {
                letters.more += 1;
            }
            Ok(())
        });
        let read = tokio::time::timeout(READ_TIME, reading).await;
        letters.note = match read {
            Ok(Ok(())) if letters.more == 0 => None,
            Ok(Ok(())) => {
                Some(format!("{} more dead letters are left out: `dataloader rejects list` shows all", count(letters.more)))
            }
            Ok(Err(error)) => Some(format!("dead letters are left out: {}", error.message())),
            Err(_) => {
                let seconds = READ_TIME.as_secs();
                Some(format!("dead letters are left out: RabbitMQ has not shown all of them within {seconds} s"))
            }
        };
        letters
    }

    /// How many there are, as far as they were shown.
    pub fn all(&self) -> i64 {
        self.more.saturating_add_unsigned(self.found.len() as u64)
    }

    /// The part of a page; nothing if there is nothing to say.
    pub fn section(&self) -> Markup {
        html! {
            @if self.all() > 0 || self.note.is_some() {
                section aria-labelledby="letters-title" {
                    h2 id="letters-title" { "Dead letters of RabbitMQ" }
                    @if self.all() > 0 {
                        p { (counted(self.all(), "message")) " could not be loaded. To replay them sends them to their queues again; to discard rejects leaves them where they are." }
                        @for letter in &self.found { (one(letter)) }
                    }
                    @if let Some(note) = &self.note { p class="warn" { (shown(note, 300)) } }
                }
            }
        }
    }
}

fn one(letter: &DeadLetterEntry) -> Markup {
    let text =
        |name: &str, text: &Option<String>| html! { @if let Some(text) = text { (name) " " bdi { (shown(text, 200)) } " · " } };
    html! {
        article {
            h3 { (shown(&letter.reason, 60)) ": " (shown(&letter.detail, 300)) }
            p class="soft" {
                @if let Some(dataset) = &letter.dataset { (shown(dataset, 63)) " · " }
                (text("from", letter.app_id.as_ref().map_or(&letter.source, |_| &letter.app_id))) (text("message id", &letter.message_id)) (bytes(letter.bytes as u64))
            }
        }
    }
}
