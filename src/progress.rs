//! Progress on a terminal: a bar on standard error while the work is long; nothing anywhere else.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::batch::extract::Progress;

/// Shorter work than this shows no bar.
const PATIENCE: Duration = Duration::from_millis(500);
const REFRESH: Duration = Duration::from_millis(100);

/// Shows how far a load has come until it is dropped; to be awaited beside the load. Never returns.
pub async fn show(progress: Arc<Progress>) -> std::convert::Infallible {
    if !std::io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    tokio::time::sleep(PATIENCE).await;
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(
        ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}  {msg}  {eta} left")
            .expect("the template is fixed and tested by being shown"),
    );
    let _clear = ClearOnDrop(bar.clone());
    loop {
        let read = progress.stored_read.load(Ordering::Relaxed);
        let total = progress.stored_total.load(Ordering::Relaxed);
        let records = progress.records.load(Ordering::Relaxed);
        let files = progress.files.load(Ordering::Relaxed);
        bar.set_length(total.max(read));
        bar.set_position(read);
        let per_second =
            records * 1_000 / u64::try_from(bar.elapsed().as_millis() + PATIENCE.as_millis()).unwrap_or(u64::MAX).max(1);
        let what = if total > 0 && read >= total { "modelling, " } else { "" };
        bar.set_message(format!(
            "{what}{files} files, {} records, {}/s",
            indicatif::HumanCount(records),
            indicatif::HumanCount(per_second)
        ));
        tokio::time::sleep(REFRESH).await;
    }
}

struct ClearOnDrop(ProgressBar);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
