//! The files that a batch load reads.

use std::fs::File;

use indicatif::HumanBytes;

use super::{Check, quoted};
use crate::batch::input::{Input, files_of};
use crate::config::{Config, Transport};
use crate::counted::counted;
use crate::dataset::Dataset;
use crate::error::io_text;

pub(super) fn examine(config: &Config) -> Vec<Check> {
    config.datasets.iter().map(|dataset| of_dataset(config, dataset)).collect()
}

fn of_dataset(config: &Config, dataset: &Dataset) -> Check {
    let dir = config.data_dir.join(&dataset.dir);
    let check = format!("files of {}", dataset.name);
    if !dir.exists() {
        let why = format!("there is no directory {}, so `dataloader load` fails", dir.display());
        let mend = format!("mkdir -p {}, or name the right one with --data-dir", quoted(&dir));
        // Of a stream over RabbitMQ, each host has only what its role needs.
        return if config.transport == Transport::Amqp { Check::warn(check, why, mend) } else { Check::fail(check, why, mend) };
    }
    let files = match files_of(dataset, &config.data_dir) {
        Err(error) => return Check::fail(check, error.message(), format!("chmod u+rx {}", quoted(&dir))),
        Ok(files) if files.is_empty() => {
            let why = format!("{} holds no *.json, *.jsonl or *.ndjson, so a load leaves the table as it is", dir.display());
            return Check::warn(check, why, format!("cp FILE.json {}/", quoted(&dir)));
        }
        Ok(files) => files,
    };
    for input in &files {
        if let Input::File(path) = input
            && let Err(error) = File::open(path)
        {
            let why = format!("cannot open {}: {}", path.display(), io_text(&error));
            return Check::fail(check, why, format!("chmod u+r {}", quoted(path)));
        }
    }
    let bytes = files.iter().map(Input::stored_bytes).sum();
    let count = counted(files.len() as u64, "file");
    Check::ok(check, format!("{}: {count} to read, {}", dir.display(), HumanBytes(bytes)))
}
