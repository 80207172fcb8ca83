//! What the file system says about the inbox, in the inbox's words. Network file systems say nothing, and events can be lost:
//! who watches also scans now and then.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind, RenameMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::{Inbox, names};
use crate::error::{Error, Result, io_text};

/// Something happened to a file in a dataset's directory. Its path may be that of a link or a directory: [`Inbox::look`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Its writer closed it, or somebody renamed it in: it is complete.
    Complete(PathBuf),
    /// It was created or changed; `open` if somebody has opened it or writes to it.
    Touched { path: PathBuf, open: bool },
    /// It is no longer there.
    Gone(PathBuf),
    /// Events were lost, or a directory has gone: [`Watcher::renew`], then list the inbox.
    Rescan,
}

/// Watches the directories of an inbox, not below them, until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    notify: RecommendedWatcher,
    watched: Vec<Watched>,
    /// Set with every [`Event::Rescan`]: a directory that was removed and made anew can have its predecessor's number.
    stale: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Watched {
    dir: PathBuf,
    /// Device and number of the directory that is watched; none if it is not.
    inode: Option<(u64, u64)>,
}

impl Watcher {
    /// Watches from now on; `on_event` is called on a thread of the watcher's and must not block. List the inbox after this,
    /// so that nothing is missed in between.
    ///
    /// # Errors
    /// If the system has no watch left to give. The inbox can do with [`Inbox::scan`] alone.
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

    /// Watches the directories again that were removed and made anew, or may have been, and says whether there were any: then
    /// list the inbox. To be called after each [`Event::Rescan`] and now and then.
    ///
    /// # Errors
    /// If the system has no watch left to give.
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
            // One that was moved away would still be watched, and its files be taken for those of its successor.
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

fn cannot_watch(what: &str, error: &notify::Error) -> Error {
    let (reason, hint) = match &error.kind {
        notify::ErrorKind::MaxFilesWatch => ("no watch is left".to_owned(), "raise fs.inotify.max_user_watches"),
        notify::ErrorKind::Io(e) => (io_text(e), "raise fs.inotify.max_user_instances if too many files are open"),
        _ => (error.to_string(), "is it there?"),
    };
    Error::failed(format!("cannot watch {what}: {reason}")).hint(hint)
}

/// What an event means for the inbox, if it means anything.
fn interpret(event: notify::Result<notify::Event>, dirs: &[PathBuf]) -> Option<Event> {
    let Ok(event) = event else { return Some(Event::Rescan) };
    if event.need_rescan() {
        return Some(Event::Rescan);
    }
    // A rename within the inbox is told as From, To and then Both.
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
        // Who lists processed/ opens it: only files count.
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
        // As notify tells that the queue has overflowed.
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
