//! Progress of long work: a bar or a line on standard error if that is a terminal.

use std::io::IsTerminal;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::batch::extract::Progress;
use crate::visible::{Form, visible};

/// Work that is shorter than this shows no bar.
const SHOW_AFTER: Duration = Duration::from_millis(500);
const REFRESH: Duration = Duration::from_millis(100);

/// Shows the progress of a load until it is dropped. Await it together with the load: it never returns.
pub async fn show(progress: Arc<Progress>) -> std::convert::Infallible {
    if !std::io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    tokio::time::sleep(SHOW_AFTER).await;
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
            records * 1_000 / u64::try_from(bar.elapsed().as_millis() + SHOW_AFTER.as_millis()).unwrap_or(u64::MAX).max(1);
        let what = if total > 0 && read >= total { "modelling, " } else { "" };
        bar.set_message(format!(
            "{what}{files} files, {} records, {}/s",
            indicatif::HumanCount(records),
            indicatif::HumanCount(per_second)
        ));
        tokio::time::sleep(REFRESH).await;
    }
}

/// A line on the terminal that is redrawn in place until this is dropped. Log lines appear above it.
pub struct LiveLine {
    /// Dropping it ends the thread.
    open: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The bar on the terminal, which log lines must not overwrite.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

impl LiveLine {
    /// Shows the result of `text`, four times a second. `None` without a terminal.
    pub fn start(mut text: impl FnMut() -> String + Send + 'static) -> Option<Self> {
        const REFRESH: Duration = Duration::from_millis(250);
        if !std::io::stderr().is_terminal() {
            return None;
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("the template is fixed and tested by being shown"));
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
        let (open, closed) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            while closed.recv_timeout(REFRESH) == Err(RecvTimeoutError::Timeout) {
                bar.set_message(visible(&text(), Form::Line).into_owned());
                bar.tick();
            }
            *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = None;
            bar.finish_and_clear();
        });
        Some(Self { open: Some(open), thread: Some(thread) })
    }
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        self.open = None;
        if let Some(thread) = self.thread.take() {
            // A panic in the thread only removes the line.
            let _ = thread.join();
        }
    }
}

/// Runs `write`, which writes to standard error, with the live line moved out of the way.
pub fn above_live_line<T>(write: impl FnOnce() -> T) -> T {
    let shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match shown {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

struct ClearOnDrop(ProgressBar);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
