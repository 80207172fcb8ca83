//! The ledger against the files in `processed/`.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Seek, SeekFrom};

use super::ledger::Booked;
use super::{Config, Difference, Processed, Transport, Uuid, Verified, shortened};
use crate::error::io_text;
use crate::host;
use crate::record::content::{Hashing, hash_to_end};
use crate::record::decompress::decompress;
use crate::record::split::Splitter;

/// The files to compare.
pub(super) struct Comparison {
    /// By dataset.
    listed: BTreeMap<String, Vec<Processed>>,
    booked: HashMap<Uuid, Booked>,
    zstd_window_mib: u32,
    /// Whether files that the ledger does not know may still be on their way through the broker.
    may_be_queued: bool,
    /// Whether `booked` is the whole ledger of these datasets.
    is_all: bool,
}

/// What a file was found to hold.
struct Content {
    sha256: Option<String>,
    records: Result<u64, String>,
}

impl Comparison {
    pub(super) fn new(config: &Config, listed: BTreeMap<String, Vec<Processed>>, booked: Vec<Booked>, is_all: bool) -> Self {
        Self {
            listed,
            booked: booked.into_iter().map(|load| (load.key, load)).collect(),
            zstd_window_mib: config.zstd_window_mib,
            may_be_queued: config.transport == Transport::Amqp,
            is_all,
        }
    }

    /// Reads the files and adds what does not agree.
    pub(super) fn add_to(mut self, mut verified: Verified) -> Verified {
        for (dataset, files) in std::mem::take(&mut self.listed) {
            let (mut read, mut unknown) = (0, Vec::new());
            for file in &files {
                match self.booked.remove(&file.key) {
                    // Over RabbitMQ a file moves when all of it is published, before it is loaded, or fails.
                    Some(load) if load.is_in_flight() || load.status == "failed" => {}
                    Some(load) => read += u64::from(self.compare(file, &load, &mut verified)),
                    None if self.is_all => unknown.push(file.path.display().to_string()),
                    None => {}
                }
            }
            if let Some(counts) = verified.datasets.iter_mut().find(|counts| counts.dataset == dataset) {
                counts.files = read;
            }
            self.name_unknown(&dataset, unknown, &mut verified);
        }
        self.name_elsewhere(&mut verified);
        verified
    }

    /// Files that no load has.
    fn name_unknown(&self, dataset: &str, unknown: Vec<String>, verified: &mut Verified) {
        if self.may_be_queued && !unknown.is_empty() {
            let files = shortened(&unknown);
            verified
                .notes
                .push(format!("{dataset}: not in the ledger yet, and not compared: {files}; their messages may wait in the queue"));
        } else {
            verified.differences.extend(unknown.into_iter().map(|file| {
                let difference =
                    "is in processed/, but its load is not in the ledger; drop it again if its records are missing".to_owned();
                Difference { dataset: dataset.to_owned(), load: None, file: Some(file), difference }
            }));
        }
    }

    /// Files that another host has read, and that are not here.
    fn name_elsewhere(&self, verified: &mut Verified) {
        let mut hosts: BTreeMap<&str, u64> = BTreeMap::new();
        let elsewhere = |load: &&Booked| load.status == "loaded" && load.host.as_deref().is_some_and(|host| host != host::name());
        for load in self.booked.values().filter(elsewhere) {
            *hosts.entry(load.host.as_deref().unwrap_or_default()).or_default() += 1;
        }
        let hosts: Vec<String> = hosts.into_iter().map(|(host, files)| format!("{host} ({files})")).collect();
        if !hosts.is_empty() {
            verified.notes.push(format!("files of other hosts, not compared: {}", shortened(&hosts)));
        }
    }

    /// Compares a file with its load. Returns whether it is still there.
    fn compare(&self, file: &Processed, load: &Booked, verified: &mut Verified) -> bool {
        let path = file.path.display().to_string();
        let mut add = |difference: String| {
            verified.differences.push(Difference { file: Some(path.clone()), ..load.difference(difference) });
        };
        let opened = match file.open() {
            Ok(Some(opened)) => opened,
            // Somebody has cleared it away meanwhile.
            Ok(None) => return false,
            Err(error) => {
                add(format!("cannot be opened: {}", io_text(&error)));
                return true;
            }
        };
        let Content { sha256, records } = read(opened, self.zstd_window_mib);
        match (&load.sha256, sha256) {
            (Some(expected), Some(found)) if *expected != found => {
                add(format!("has the sha256 {found}, the ledger has {expected}: it was changed after it was loaded"));
            }
            _ => {}
        }
        match records {
            Err(error) => add(format!("cannot be read: {error}")),
            // Of a repeated file none were read.
            Ok(found) if load.status != "repeated" && i64::try_from(found).ok() != Some(load.records_read) => {
                add(format!("has {found} records, the ledger has {}", load.records_read));
            }
            Ok(_) => {}
        }
        true
    }
}

/// Reads a file to its end.
fn read(mut file: File, zstd_window_mib: u32) -> Content {
    let (stored, seen) = match file.try_clone() {
        Ok(clone) => Hashing::new(clone),
        Err(error) => return Content { sha256: None, records: Err(io_text(&error)) },
    };
    let records = decompress(stored, zstd_window_mib).map_err(|error| io_text(&error)).and_then(|text| {
        let mut splitter = Splitter::new(text);
        loop {
            match splitter.next_chunk() {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(splitter.records()),
                Err(error) => return Err(error.to_string()),
            }
        }
    });
    // Where the records end early, the rest is still part of the content.
    let mut again = || {
        file.seek(SeekFrom::Start(0)).ok()?;
        hash_to_end(&file, |_| true).ok()?
    };
    Content { sha256: seen.hash().or_else(&mut again).map(|hash| hash.to_string()), records }
}
