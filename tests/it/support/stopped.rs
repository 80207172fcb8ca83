//! Server processes that hang for as long as a test wants.

use std::process::Command;

/// Processes that were stopped; they go on when this is dropped.
#[derive(Debug)]
pub struct Stopped(Vec<String>);

impl Stopped {
    /// Stops the PostgreSQL server processes with these ids.
    #[track_caller]
    pub fn servers(ids: Vec<String>) -> Self {
        assert!(!ids.is_empty(), "there is nothing to stop");
        for id in &ids {
            let name = std::fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
            assert!(name.starts_with("postgres"), "process {id} is `{name}`: the server of this test must run on this machine");
        }
        signal("-STOP", &ids);
        Self(ids)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal("-CONT", &self.0);
    }
}

fn signal(signal: &str, ids: &[String]) {
    // One that has ended meanwhile needs no signal.
    drop(Command::new("kill").arg(signal).args(ids).status());
}
