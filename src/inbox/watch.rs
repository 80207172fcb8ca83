//! Watch: translates events of the file system into events of the inbox. Network file systems report no events, and events can
//! be lost, so the inbox must also be scanned regularly.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind, RenameMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::{Inbox, names};
use crate::error::{Error, Result, io_text};

/// An event for a file in a dataset's directory. The path may be that of a link or a directory; [`Inbox::look`] finds out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The file is complete: its writer closed it, or it was renamed into the directory.
    Complete(PathBuf),
    /// The file was created or changed. `open` means that a program has opened it or writes to it.
    Touched { path: PathBuf, open: bool },
    /// The file is no longer there.
    Gone(PathBuf),
    /// Events were lost, or a directory is gone. Call [`Watcher::renew`], then list the inbox.
    Rescan,
}

/// Watches the directories of an inbox, without their subdirectories, until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    notify: RecommendedWatcher,
    watched: Vec<Watched>,
    /// Set with every [`Event::Rescan`]. A directory that was removed and created again may have the same inode number as
    /// before.
    stale: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Watched {
    dir: PathBuf,
    /// Device and inode number of the watched directory. `None` if it is not watched.
    inode: Option<(u64, u64)>,
}

impl Watcher {
    /// Starts watching. `on_event` is called on a thread of the watcher and must not block. List the inbox after this call, so
    /// that no file is missed.
    ///
    /// # Errors
    /// If the system has no more watches. The inbox can then use [`Inbox::scan`] alone.
    pub fn start(inbox: &Inbox, mut on_event: impl FnMut(Event) + Send + 'static) -> Result<Self> {
        let dirs: Arc<[PathBuf]> = inbox.directories().map(Path::to_owned).collect();
        let watched = dirs.iter().map(|dir| Watched { dir: dir.clone(), inode: None }).collect();
        let stale = Arc::new(AtomicBool::new(false));
        let found_stale = Arc::clone(&stale);
        let notify = notify::recommended_watcher(move |event| {
            if let Some(event) = interpret(event, &dirs) {
                if event == Event::Rescan {
                    found_stale.store(true, Ordering::Release);
                }
                on_event(event);
            }
        });
        let notify = notify.map_err(|e| cannot_watch("the inbox", &e))?;
        let mut watcher = Self { notify, watched, stale };
        watcher.renew()?;
        Ok(watcher)
    }

    /// Watches again the directories that were or may have been removed and created again. Returns whether there were any: then
    /// list the inbox. Call it after each [`Event::Rescan`] and also regularly.
    ///
    /// # Errors
    /// If the system has no more watches.
    pub fn renew(&mut self) -> Result<bool> {
        let mut renewed = false;
        if self.stale.swap(false, Ordering::AcqRel) {
            self.watched.iter_mut().for_each(|watched| watched.inode = None);
        }
        for Watched { dir, inode } in &mut self.watched {
            let found = fs::metadata(&*dir).ok().map(|metadata| (metadata.dev(), metadata.ino()));
            if found.is_some() && *inode == found {
                continue;
            }
            // A directory that was moved away would stay watched, and its events would be taken for those of the new directory.
            let _ = self.notify.unwatch(dir);
            *inode = None;
            if found.is_some() {
                self.notify.watch(dir, RecursiveMode::NonRecursive).map_err(|e| cannot_watch(&dir.display().to_string(), &e))?;
                *inode = found;
                renewed = true;
            }
        }
        Ok(renewed)
    }
}

/// Whether the system has watches left for these directories. They are given back at once.
///
/// # Errors
/// If it has not, with the limit to raise as the hint.
pub fn can_watch(dirs: &[PathBuf]) -> Result<()> {
    let mut watcher = notify::recommended_watcher(|_| {}).map_err(|e| cannot_watch("the inbox", &e))?;
    dirs.iter().try_for_each(|dir| {
        watcher.watch(dir, RecursiveMode::NonRecursive).map_err(|e| cannot_watch(&dir.display().to_string(), &e))
    })
}

fn cannot_watch(what: &str, error: &notify::Error) -> Error {
    let (reason, hint) = match &error.kind {
        notify::ErrorKind::MaxFilesWatch => ("no watch is left".to_owned(), "raise fs.inotify.max_user_watches"),
        notify::ErrorKind::Io(e) => (io_text(e), "raise fs.inotify.max_user_instances if too many files are open"),
        _ => (error.to_string(), "is it there?"),
    };
    Error::failed(format!("cannot watch {what}: {reason}")).hint(hint)
}

/// The inbox event for an event of the file system, if there is one.
fn interpret(event: notify::Result<notify::Event>, dirs: &[PathBuf]) -> Option<Event> {
    let Ok(event) = event else { return Some(Event::Rescan) };
    if event.need_rescan() {
        return Some(Event::Rescan);
    }
    // A rename within the inbox is reported as From, To and then Both. Both has two paths and is ignored.
    let [path] = &event.paths[..] else { return None };
    if dirs.contains(path) {
        let gone = matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)));
        return gone.then_some(Event::Rescan);
    }
    if path.file_name().is_none_or(names::is_ignored) {
        return None;
    }
    let path = path.clone();
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => {
            Some(Event::Complete(path))
        }
        EventKind::Create(CreateKind::Folder) | EventKind::Remove(RemoveKind::Folder) => None,
        EventKind::Create(_) => Some(Event::Touched { path, open: false }),
        // Listing a directory opens it, so events of directories are ignored.
        EventKind::Modify(ModifyKind::Data(_)) | EventKind::Access(AccessKind::Open(_)) => {
            fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()).then_some(Event::Touched { path, open: true })
        }
        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => Some(Event::Gone(path)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use notify::event::Flag;

    use super::*;

    fn interpreted(event: notify::Event) -> Option<Event> {
        interpret(Ok(event), &["/inbox/events".into()])
    }

    #[test]
    fn lost_events_and_lost_directories_ask_for_a_rescan() {
        // This is how notify reports an overflow of its queue.
        assert_eq!(interpreted(notify::Event::new(EventKind::Other).set_flag(Flag::Rescan)), Some(Event::Rescan));
        assert_eq!(interpret(Err(notify::Error::generic("read failed")), &[]), Some(Event::Rescan));
        let removed = notify::Event::new(EventKind::Remove(RemoveKind::Folder)).add_path("/inbox/events".into());
        assert_eq!(interpreted(removed), Some(Event::Rescan));
        // Listing the directory opens it.
        let opened = notify::Event::new(EventKind::Access(AccessKind::Open(AccessMode::Any))).add_path("/inbox/events".into());
        assert_eq!(interpreted(opened), None);
    }

    #[test]
    fn a_rename_within_the_inbox_completes_a_file_once() {
        let rename = |mode, paths: &[&str]| {
            let event = notify::Event::new(EventKind::Modify(ModifyKind::Name(mode)));
            interpreted(paths.iter().fold(event, |event, path| event.add_path(path.into())))
        };
        assert_eq!(rename(RenameMode::From, &["/inbox/events/a"]), Some(Event::Gone("/inbox/events/a".into())));
        assert_eq!(rename(RenameMode::To, &["/inbox/events/b"]), Some(Event::Complete("/inbox/events/b".into())));
        assert_eq!(rename(RenameMode::Both, &["/inbox/events/a", "/inbox/events/b"]), None);
        assert_eq!(rename(RenameMode::To, &["/inbox/events/b.part"]), None);
    }
}
