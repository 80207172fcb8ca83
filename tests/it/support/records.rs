//! Input of the tests: records and files of the shape that `dataloader.toml` defines.

use std::fs;
use std::path::Path;

use super::Sandbox;

/// An event with the fields that most tests tell apart; the organisation is always the same.
pub fn event(id: &str, username: &str, received_at: &str) -> String {
    format!(
        r#"{{"id":"{id}","event_type":"created","username":"{username}","user_type":"Admin","organization_name":"Acme","received_at":"{received_at}"}}"#
    )
}

/// `count` events of one minute with the ids 1, 2, …, a record to a line.
pub fn many_events(count: usize, username: &str) -> String {
    (1..=count).map(|id| event(&id.to_string(), username, "2024-05-01 10:00:00") + "\n").collect()
}

/// A JSON array.
pub fn array<T: AsRef<str>>(records: &[T]) -> String {
    let records: Vec<&str> = records.iter().map(AsRef::as_ref).collect();
    format!("[{}]", records.join(",\n"))
}

/// Copies the repository's samples to where `load` looks for them.
pub fn write_samples(sandbox: &Sandbox) {
    for sample in ["raw_data/events/events_sample.json", "raw_data/orgs/orgs_sample.json"] {
        let contents = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(sample)).expect("the samples are in the repository");
        sandbox.write(sample, contents);
    }
}
