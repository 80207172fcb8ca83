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
                        (self.table())
                    }
                    @if let Some(note) = &self.note { p class="warn" { (shown(note, 300)) } }
                }
            }
        }
    }

    fn table(&self) -> Markup {
        let text = |text: Option<&str>| shown(text.unwrap_or_default(), 200);
        html! {
            div class="scroll" tabindex="0" role="region" aria-label="Dead letters" { table {
                thead { tr {
                    th scope="col" { "dataset" } th scope="col" { "reason" } th scope="col" { "detail" } th scope="col" { "sender" }
                    th scope="col" { "message id" } th scope="col" class="n" { "size" }
                } }
                tbody { @for letter in &self.found { tr {
                    td { (text(letter.dataset.as_deref())) } td { (shown(&letter.reason, 60)) } td class="w" { (shown(&letter.detail, 300)) }
                    td { bdi { (text(letter.app_id.as_deref().or(letter.source.as_deref()))) } } td { bdi { (text(letter.message_id.as_deref())) } }
                    td class="n" { (bytes(letter.bytes as u64)) }
                } } }
            } }
        }
    }
}
