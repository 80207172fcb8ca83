//! The directories of the stream: who may write, on which file system, with which locks, events and space.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use rustix::fs::{Access, access, statvfs};

use super::{Check, quoted};
use crate::config::Config;
use crate::dataset::Dataset;
use crate::error::{Error, io_text};
use crate::inbox::{can_watch, waiting_bytes};

const ALLOW_LINKS: &str = "set `follow_links = true` in the configuration";
/// What a claim and a report need besides the files.
const SOME_SPACE: u64 = 1 << 20;

pub(super) fn examine(config: &Config) -> Vec<Check> {
    let mut checks: Vec<Check> = config.datasets.iter().map(|dataset| of_dataset(config, dataset)).collect();
    let dirs: Vec<PathBuf> = config.datasets.iter().map(|dataset| config.inbox.join(&dataset.name)).collect();
    let there: Vec<PathBuf> = dirs.into_iter().filter(|dir| dir.is_dir()).collect();
    let milliseconds = config.stream.rescan_interval.as_millis();
    checks.push(events(can_watch(&there), there.len(), milliseconds));
    checks.extend(space(config));
    checks
}

/// Rights, file systems and locks of the four directories.
fn of_dataset(config: &Config, dataset: &Dataset) -> Check {
    let dir = config.inbox.join(&dataset.name);
    let check = format!("inbox of {}", dataset.name);
    let [loading, processed, failed] = [".loading", "processed", "failed"].map(|name| dir.join(name));
    for dir in [&dir, &loading, &processed, &failed] {
        if !config.follow_links && dir.is_symlink() {
            let why = format!("{} is a symbolic link, which is not followed", dir.display());
            return Check::fail(check, why, format!("rm {0} && mkdir -m 700 {0}, or {ALLOW_LINKS}", quoted(dir)));
        }
        if let Err((why, mend)) = writable(dir) {
            return Check::fail(check, why, mend);
        }
    }
    if !dir.exists() {
        return Check::ok(check, format!("{} is not there yet; a run makes it", dir.display()));
    }
    let device = |dir: &Path| fs::metadata(dir).map(|metadata| metadata.dev()).ok();
    let is_elsewhere = |other: &Path| device(other).is_some_and(|other| Some(other) != device(&dir));
    if is_elsewhere(&loading) {
        let why = format!("{} is on another file system than {}, so no file can be claimed", loading.display(), dir.display());
        return Check::fail(check, why, format!("umount {}, or remove the link and make a directory", quoted(&loading)));
    }
    if let Some(why) = without_locks(&dir) {
        let mend = "put the inbox on a file system with locks, and name it with --inbox";
        return Check::warn(check, format!("{why}: several processes must not share it"), mend);
    }
    if let Some(other) = [&processed, &failed].into_iter().find(|other| is_elsewhere(other)) {
        let why = format!("{} is on another file system, so files are copied there, which takes time and space", other.display());
        return Check::warn(check, why, format!("mkdir {} on the file system of the inbox", quoted(other)));
    }
    Check::ok(check, format!("{} is writable, on one file system, with locks", dir.display()))
}

/// Whether files can be made and renamed in a directory, or the directory itself can be made.
fn writable(dir: &Path) -> Result<(), (String, String)> {
    let there = dir.ancestors().map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir }).find(|dir| dir.exists());
    let there = there.unwrap_or(Path::new("/"));
    if !there.is_dir() {
        let why = format!("{} is no directory", there.display());
        return Err((why, format!("mv {0} {0}.old", quoted(there))));
    }
    match access(there, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::ROFS) => {
            let why = format!("{} is on a read-only file system", there.display());
            Err((why, "name a writable directory with --inbox".to_owned()))
        }
        Err(error) => {
            let why = format!("this user may not write {}: {}", there.display(), io_text(&error.into()));
            Err((why, format!("chown {} {}, as its owner or root", rustix::process::geteuid().as_raw(), quoted(there))))
        }
    }
}

/// Why locks do not work here, if they do not. A shared lock disturbs nobody.
fn without_locks(dir: &Path) -> Option<String> {
    let file = File::open(dir).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported || is_no_lock(&error) => {
            Some(format!("{} has no locks ({})", dir.display(), io_text(&error)))
        }
        _ => None,
    }
}

fn is_no_lock(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NOLCK.raw_os_error())
}

/// What file events would do here.
fn events(watched: Result<(), Error>, directories: usize, rescan_interval: u128) -> Check {
    match watched {
        Ok(()) => Check::ok("file events", format!("{directories} directories can be watched")),
        Err(error) => {
            let why = format!("{}: the inbox is listed every {rescan_interval} ms instead", error.message());
            Check::warn("file events", why, format!("sudo sysctl {}", sysctl(&error)))
        }
    }
}

/// The limit that an error of the watcher asks to raise.
fn sysctl(error: &Error) -> &'static str {
    if error.hint_text().is_some_and(|hint| hint.contains("instances")) {
        "fs.inotify.max_user_instances=1024"
    } else {
        "fs.inotify.max_user_watches=524288"
    }
}

/// Free space against what waits.
fn space(config: &Config) -> Option<Check> {
    let there = config.inbox.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("."));
    let (free, waiting) = (free_bytes(there)?, waiting_bytes(&config.inbox, &config.datasets));
    Some(room(&there.display().to_string(), free, waiting, is_copied(config)))
}

/// Free bytes of a file system, for this user.
pub(super) fn free_bytes(dir: &Path) -> Option<u64> {
    statvfs(dir).ok().map(|found| found.f_bavail.saturating_mul(found.f_frsize))
}

/// Whether loaded files are copied, because `processed/` is on another file system.
fn is_copied(config: &Config) -> bool {
    let device = |dir: PathBuf| fs::metadata(dir).map(|metadata| metadata.dev()).ok();
    config.datasets.iter().any(|dataset| {
        let dir = config.inbox.join(&dataset.name);
        device(dir.join("processed")).is_some_and(|processed| Some(processed) != device(dir))
    })
}

fn room(dir: &str, free: u64, waiting: u64, is_copied: bool) -> Check {
    let needed = SOME_SPACE + if is_copied { waiting } else { 0 };
    let why = format!("{} free in {dir}, {} wait in the inbox", HumanBytes(free), HumanBytes(waiting));
    if free < needed {
        return Check::fail("inbox space", why, format!("df -h {}, then make room", quoted(Path::new(dir))));
    }
    Check::ok("inbox space", why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::Level;

    #[test]
    fn a_limit_of_file_events_is_a_warning_that_names_the_limit() {
        let error = |hint: &str| Err(Error::failed("cannot watch inbox: no watch is left").hint(hint));
        let watches = events(error("raise fs.inotify.max_user_watches"), 2, 2_000);
        assert_eq!(
            (watches.status, watches.mend.as_deref()),
            (Level::Warn, Some("sudo sysctl fs.inotify.max_user_watches=524288"))
        );
        assert!(watches.why.contains("listed every 2000 ms"), "{watches:?}");
        let instances = events(error("raise fs.inotify.max_user_instances if too many files are open"), 2, 2_000);
        assert_eq!(instances.mend.as_deref(), Some("sudo sysctl fs.inotify.max_user_instances=1024"));
        assert_eq!(events(Ok(()), 2, 2_000).status, Level::Ok);
    }

    #[test]
    fn what_waits_needs_room_only_where_it_is_copied() {
        assert_eq!(room("x", 2 << 20, 10 << 20, false).status, Level::Ok);
        assert_eq!(room("x", 2 << 20, 10 << 20, true).status, Level::Fail);
        assert_eq!(room("x", 1, 0, false).status, Level::Fail);
    }
}
