//! New files: those whose content the dataset does not have yet, for `load --new`.

use std::collections::{HashMap, HashSet};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use super::dataset_run::{DatasetRun, FileRun};
use super::extract::Progress;
use super::input::Input;
use crate::record::content::{ContentHash, hash_to_end};
use crate::record::decompress::is_compressed;
use crate::store::{Connection, StoreResult, contents};

/// Keeps the files whose content the dataset does not have, each content once. The others are counted as unchanged. A dataset
/// without a day keeps all contents if they differ from those of its latest load, else none.
///
/// A file that cannot be read is kept: loading it says what is wrong with it.
///
/// # Errors
/// If the database fails.
pub(super) async fn keep_new(
    connection: &mut Connection,
    run: &mut DatasetRun,
    threads: usize,
    progress: &Arc<Progress>,
) -> StoreResult<()> {
    if run.files.is_empty() {
        return Ok(());
    }
    let lengths = contents::known_lengths(connection, &run.dataset).await?;
    hash_what_may_be_known(&mut run.files, &lengths, threads, progress).await;
    let hashes: Vec<ContentHash> = run.files.iter().filter_map(|file| file.sha256).collect();
    let known = if run.dataset.day.is_some() {
        contents::known(connection, &run.dataset, &hashes).await?
    } else if hashes.len() == run.files.len() {
        let all: HashSet<ContentHash> = hashes.into_iter().collect();
        let latest = contents::of_latest_load(connection, &run.dataset).await?;
        latest.filter(|latest| *latest == all).unwrap_or_default()
    } else {
        HashSet::new()
    };
    let mut seen = known;
    let (new, there): (Vec<FileRun>, Vec<FileRun>) =
        std::mem::take(&mut run.files).into_iter().partition(|file| file.sha256.is_none_or(|content| seen.insert(content)));
    run.files = new;
    run.unchanged += there.len();
    run.left_out.extend(there.into_iter().map(|file| file.source));
    Ok(())
}

/// Hashes the files whose content may be known or may be that of another file. A plain file of a length that no other has is
/// new: it is hashed while it is loaded.
async fn hash_what_may_be_known(files: &mut [FileRun], known: &HashSet<u64>, threads: usize, progress: &Arc<Progress>) {
    // Standard input and pipes can be read only once.
    let regular = |file: &FileRun| match &file.input {
        Input::File(path) => path.metadata().ok().filter(Metadata::is_file).map(|metadata| (path.clone(), metadata.len())),
        Input::StandardInput => None,
    };
    let candidates: Vec<Option<(PathBuf, u64)>> = files.iter().map(regular).collect();
    let mut same_length: HashMap<u64, usize> = HashMap::new();
    for (_, length) in candidates.iter().flatten() {
        *same_length.entry(*length).or_default() += 1;
    }
    let may_be_known =
        |path: &Path, length| known.contains(&length) || same_length[&length] > 1 || starts_compressed(path).unwrap_or(false);
    let mut chosen = Vec::new();
    for (i, (path, length)) in candidates.into_iter().enumerate().filter_map(|(i, candidate)| Some((i, candidate?))) {
        if files[i].sha256.is_none() && may_be_known(&path, length) {
            progress.stored_total.fetch_add(length, Ordering::Relaxed);
            chosen.push((i, path));
        }
    }
    let mut hashed = hash_all(chosen, threads, &progress.stored_read);
    while let Some((i, content)) = hashed.recv().await {
        files[i].sha256 = Some(content);
    }
}

fn starts_compressed(path: &Path) -> io::Result<bool> {
    let mut first = Vec::new();
    File::open(path)?.take(4).read_to_end(&mut first)?;
    Ok(is_compressed(&first))
}

/// Hashes files on threads. The threads end after their file when the receiver is dropped. A file that cannot be read is left
/// out.
fn hash_all(
    files: Vec<(usize, PathBuf)>,
    threads: usize,
    stored_read: &Arc<AtomicU64>,
) -> mpsc::UnboundedReceiver<(usize, ContentHash)> {
    let (hashed_in, hashed) = mpsc::unbounded_channel();
    let threads = threads.min(files.len());
    let (files_in, files_out) = crossbeam_channel::unbounded();
    for file in files {
        // The receiver is in this function.
        drop(files_in.send(file));
    }
    for _ in 0..threads {
        let (files, hashed, stored_read) = (files_out.clone(), hashed_in.clone(), Arc::clone(stored_read));
        std::thread::spawn(move || {
            for (i, path) in files {
                let Ok(Some(content)) = hash(&path, &stored_read) else { continue };
                if hashed.send((i, content)).is_err() {
                    return;
                }
            }
        });
    }
    hashed
}

fn hash(path: &Path, stored_read: &AtomicU64) -> io::Result<Option<ContentHash>> {
    hash_to_end(File::open(path)?, |read| {
        stored_read.fetch_add(read, Ordering::Relaxed);
        true
    })
}
