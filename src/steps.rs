//! Steps: the moments after which a process that dies leaves something that others find. In a debug build a test can end the
//! process after each of them in turn; a release has nothing of this.

/// Counts a step that is done. Ends the process at once if it is the one that `DATALOADER_END_AFTER_STEP` names.
#[cfg(debug_assertions)]
pub fn step(what: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static LAST: OnceLock<Option<u64>> = OnceLock::new();
    static DONE: AtomicU64 = AtomicU64::new(0);
    let last = LAST.get_or_init(|| std::env::var("DATALOADER_END_AFTER_STEP").ok()?.parse().ok());
    if let Some(last) = *last
        && DONE.fetch_add(1, Ordering::Relaxed) + 1 == last
    {
        eprintln!("ended after step {last}: {what}");
        // As `kill -9` does it: nothing is finished, closed or rolled back by this process.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}

#[cfg(not(debug_assertions))]
pub fn step(_what: &str) {}

/// Counts a statement, unless it only reads, sets or locks something.
pub fn statement(sql: &str) {
    const WITHOUT_TRACE: [&str; 7] = ["select", "set", "savepoint", "release", "lock", "pragma", "rollback"];
    let word = sql.split_ascii_whitespace().next().unwrap_or_default();
    if !WITHOUT_TRACE.contains(&word) {
        step(sql);
    }
}
