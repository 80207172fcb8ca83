//! Input of the tests: records and files of the shape that `dataloader.toml` defines.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};

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

/// The text, compressed.
pub fn gzip(text: impl AsRef<[u8]>) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_ref()).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

/// The SHA-256 of a file's bytes, as the ledger writes it.
pub fn sha256(stored: impl AsRef<[u8]>) -> String {
    Sha256::digest(stored).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of this machine, as the system tells it.
pub fn host_name() -> String {
    let name = Command::new("uname").arg("-n").output().expect("every Unix has uname").stdout;
    String::from_utf8(name).expect("a host name is plain text").trim().to_owned()
}
