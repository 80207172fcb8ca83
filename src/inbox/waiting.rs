//! Which files wait: dropped, and not loaded (over RabbitMQ: published) yet. Looks only, and makes nothing.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{changed, list, names};
use crate::dataset::Dataset;
use crate::error::Result;

/// The files of a dataset that wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub dataset: String,
    pub files: u64,
    /// How long ago the oldest of them was dropped, or claimed.
    pub oldest: Duration,
}

/// The files that wait in the inbox at `root`, those in `.loading/` included. A dataset without a directory has no entry.
///
/// # Errors
/// If a directory cannot be listed.
pub fn waiting(root: &Path, datasets: &[Arc<Dataset>]) -> Result<Vec<Waiting>> {
    let mut found = Vec::new();
    for dataset in datasets {
        let dir = root.join(&dataset.name);
        if !dir.is_dir() {
            continue;
        }
        let dropped = list(&dir)?.into_iter().filter_map(|entry| {
            let is_wanted = !names::is_ignored(&entry.file_name());
            entry.metadata().ok().filter(|metadata| is_wanted && metadata.is_file()).map(|metadata| changed(&metadata))
        });
        let claimed = list(&dir.join(".loading"))?.into_iter().filter_map(|entry| {
            let name = entry.file_name();
            let (key, _) = names::split_key(&name)?;
            let (seconds, nanos) = key.get_timestamp()?.to_unix();
            Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos))
        });
        let ages: Vec<Duration> = dropped.chain(claimed).map(|since| since.elapsed().unwrap_or_default()).collect();
        let oldest = ages.iter().max().copied().unwrap_or_default();
        found.push(Waiting { dataset: dataset.name.clone(), files: ages.len() as u64, oldest });
    }
    Ok(found)
}

/// The stored size of the files that wait in the inbox at `root`, those in `.loading/` included. What cannot be listed is left out.
pub fn waiting_bytes(root: &Path, datasets: &[Arc<Dataset>]) -> u64 {
    let dirs = datasets.iter().map(|dataset| root.join(&dataset.name)).flat_map(|dir| [dir.join(".loading"), dir]);
    let files = dirs.filter_map(|dir| list(&dir).ok()).flatten().filter(|entry| !names::is_ignored(&entry.file_name()));
    files.filter_map(|entry| entry.metadata().ok()).filter(|metadata| metadata.is_file()).map(|metadata| metadata.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_wait_from_their_drop_until_they_are_moved() {
        let root = tempfile::tempdir().unwrap();
        let datasets = [Arc::new(Dataset::without_columns("events")), Arc::new(Dataset::without_columns("orgs"))];
        let loading = root.path().join("events/.loading");
        std::fs::create_dir_all(&loading).unwrap();
        std::fs::create_dir_all(root.path().join("events/processed")).unwrap();
        let files = |waiting: &[Waiting]| waiting.iter().map(|w| (w.dataset.clone(), w.files)).collect::<Vec<_>>();
        let nothing = waiting(root.path(), &datasets).unwrap();
        assert_eq!(nothing, [Waiting { dataset: "events".to_owned(), files: 0, oldest: Duration::ZERO }]);
        for name in ["a.json", ".b.json", "c.tmp", "processed/d.json", ".loading/0190163d-8694-739b-aea5-966c26f8ad91-e.json"] {
            std::fs::write(root.path().join("events").join(name), "x").unwrap();
        }
        let found = waiting(root.path(), &datasets).unwrap();
        assert_eq!(files(&found), [("events".to_owned(), 2)]);
        assert!(found[0].oldest > Duration::from_secs(86_400), "its claim is of 2024: {found:?}");
    }
}
