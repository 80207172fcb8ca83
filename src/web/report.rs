//! The report as one file that opens anywhere: charts and tables of the model, without a script and without another file.

use std::sync::Arc;

use jiff::Timestamp;
use maud::{DOCTYPE, PreEscaped, html};

use super::chart::charts;
use super::text::shown;
use crate::answers::overview::{self, Chart};
use crate::answers::status;
use crate::config::Config;
use crate::dataset::Dataset;
use crate::error::Result;
use crate::retry::GIVE_UP_AFTER;
use crate::store::{Database, StoreResult};

/// How many days the charts have at most.
const DAYS: usize = 366;

/// The report of these datasets.
///
/// # Errors
/// If the database fails.
pub async fn report_file(config: &Config, datasets: &[Arc<Dataset>]) -> Result<String> {
    let database = Database::new(&config.database, GIVE_UP_AFTER)?;
    let Some(mut connection) = database.open_to_read().await? else {
        return Ok(page(&[], Some(&database.says_nothing_is_there())));
    };
    let read = async {
        connection.begin_read().await?;
        let status = status::read_within(&mut connection, datasets).await?;
        let charts = overview::charts(&mut connection, datasets, &status, DAYS).await?;
        connection.commit().await?;
        StoreResult::Ok(charts)
    };
    let charts = read.await.map_err(|error| database.explain(error))?;
    connection.close().await;
    Ok(page(&charts, None))
}

fn page(found: &[Chart], note: Option<&str>) -> String {
    let made = Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="content-security-policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { "dataloader: report of " (made) }
                // A file has no other files beside it.
                style { (PreEscaped(include_str!("assets/page.css"))) }
            }
            body {
                main {
                    h1 { "Report" }
                    p class="soft" { "Made by dataloader " (env!("CARGO_PKG_VERSION")) " on " (made) ". Days are UTC." }
                    @if let Some(note) = note { p class="empty" { (shown(note, 400)) } }
                    @for chart in found { section aria-label=(chart.dataset) {
                        h2 { (chart.dataset) }
                        @if chart.days.is_empty() { p class="empty" { "No day is modelled yet." } } @else { (charts(chart)) }
                    } }
                }
            }
        }
    };
    page.into_string()
}
