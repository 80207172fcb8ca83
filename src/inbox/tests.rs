//! Tests of the inbox on real files: which process gets a file, and where the file ends up.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;
use std::thread;

use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::vitals::Vitals;

/// So long that a test which really waits for it is noticed.
const SETTLE: Duration = Duration::from_secs(3_600);

/// An inbox in a temporary directory.
pub(super) struct Sandbox {
    pub inbox: Inbox,
    root: TempDir,
}

impl Sandbox {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        Self { inbox: open(root.path()), root }
    }

    /// The inbox of another process that shares the directories.
    fn another(&self) -> Inbox {
        open(self.root.path())
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.path().join("events").join(name)
    }

    /// Drops a file and claims it.
    fn claim(&self, name: impl AsRef<Path>, contents: &str) -> Claim {
        let path = self.path(name);
        fs::write(&path, contents).unwrap();
        self.inbox.claim(&self.inbox.look(&path).unwrap()).unwrap().unwrap()
    }

    /// The claims that a newly started process resumes.
    fn resume(&self) -> Vec<Claim> {
        let inbox = self.another();
        inbox.leftovers().unwrap().iter().filter_map(|leftover| inbox.reclaim(leftover).unwrap()).collect()
    }

    /// The names in a directory, including dot files.
    fn names(&self, dir: &str) -> Vec<std::ffi::OsString> {
        let mut names: Vec<_> = fs::read_dir(self.path(dir)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    /// Asserts that the claim's file is the only one in `dir`, under its key.
    fn assert_only(&self, dir: &str, claim: &Claim, contents: &str) {
        let names = self.names(dir);
        assert_eq!(names.len(), 1, "{names:?}");
        assert_eq!(names::split_key(&names[0]).unwrap().0, claim.key);
        assert_eq!(fs::read_to_string(self.path(dir).join(&names[0])).unwrap(), contents);
    }
}

fn open(root: &Path) -> Inbox {
    open_with(root, SETTLE)
}

fn open_with(root: &Path, settle: Duration) -> Inbox {
    let dataset = |name: &str| {
        let (name, dir) = (name.to_owned(), PathBuf::from(name));
        Arc::new(Dataset { dir, ..Dataset::without_columns(&name) })
    };
    // Those on another file system are links here.
    Inbox::open_with(root, &[dataset("events"), dataset("orgs")], settle, &Vitals::default().stage("intake"), Symlinks::Followed)
        .unwrap()
}

fn text(claim: &Claim) -> String {
    let mut text = String::new();
    claim.open().read_to_string(&mut text).unwrap();
    text
}

fn append(path: &Path, text: &str) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// The path of the claim's file in `.loading/`.
fn loading(claim: &Claim) -> &Path {
    &claim.held.path
}

#[test]
fn what_is_not_a_complete_regular_file_is_ignored() {
    let sandbox = Sandbox::new();
    for name in ["b.json", "a", ".hidden", "x.tmp", "x.part"] {
        fs::write(sandbox.path(name), "[]").unwrap();
    }
    fs::create_dir(sandbox.path("below")).unwrap();
    fs::write(sandbox.path("below/x.json"), "[]").unwrap();
    symlink(sandbox.path("a"), sandbox.path("link.json")).unwrap();
    let found: HashSet<PathBuf> = sandbox.inbox.scan().unwrap().into_iter().map(|candidate| candidate.path).collect();
    assert_eq!(found, [sandbox.path("a"), sandbox.path("b.json")].into());
    for name in [".hidden", "x.tmp", "below", "below/x.json", "link.json", "none", ".", "..", "processed"] {
        assert!(sandbox.inbox.look(&sandbox.path(name)).is_none(), "{name}");
    }
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("events"), "in the way").unwrap();
    let dataset = open(tempfile::tempdir().unwrap().path()).places[0].dataset.clone();
    let error = Inbox::open(root.path(), &[dataset], SETTLE, &Vitals::default().stage("intake")).unwrap_err();
    assert!(error.message().starts_with("cannot make ") && error.message().contains("/events: "), "{error}");
}

#[test]
fn a_directory_that_is_removed_holds_nothing_and_is_made_again() {
    let sandbox = Sandbox::new();
    fs::remove_dir_all(sandbox.path("")).unwrap();
    assert!(sandbox.inbox.scan().unwrap().is_empty() && sandbox.inbox.leftovers().unwrap().is_empty());
    sandbox.inbox.make_directories().unwrap();
    let (good, bad) = (sandbox.claim("x", "[]"), sandbox.claim("y", "["));
    for dir in ["processed", "failed"] {
        fs::remove_dir(sandbox.path(dir)).unwrap();
    }
    assert!(sandbox.inbox.done(&good).unwrap().unwrap().path.exists());
    assert!(sandbox.inbox.failed(&bad, "cut off").unwrap().path.exists());
}

#[test]
fn a_file_is_claimed_once() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.path("x.json"), "[1]").unwrap();
    let candidate = sandbox.inbox.look(&sandbox.path("x.json")).unwrap();
    let claim = sandbox.inbox.claim(&candidate).unwrap().unwrap();
    sandbox.inbox.sync_claims().unwrap();
    assert_eq!(loading(&claim), sandbox.path(format!(".loading/{}-x.json", claim.key)));
    assert_eq!(claim.source, sandbox.path("x.json").to_str().unwrap());
    assert_eq!((text(&claim).as_str(), claim.bytes_read(), claim.size()), ("[1]", 3, 3));
    assert!(sandbox.another().claim(&candidate).unwrap().is_none());

    // A second file of the same name is another file.
    let again = sandbox.claim("x.json", "[2]");
    assert_ne!(again.key, claim.key);
    for claim in [&claim, &again] {
        sandbox.inbox.done(claim).unwrap();
    }
    assert_eq!(sandbox.names("processed").len(), 2);
}

#[test]
fn a_file_that_its_writer_holds_locked_is_not_claimed() {
    let sandbox = Sandbox::new();
    let writer = File::create(sandbox.path("x")).unwrap();
    writer.lock().unwrap();
    let candidate = sandbox.inbox.look(&sandbox.path("x")).unwrap();
    assert!(sandbox.inbox.claim(&candidate).unwrap().is_none());
    drop(writer);
    assert!(sandbox.inbox.claim(&candidate).unwrap().is_some());
}

#[test]
fn any_name_survives_claim_crash_and_move() {
    let long = "ä".repeat(127) + "x";
    let long_with_extension = format!("{}.json.gz", "y".repeat(247));
    let just_too_long_to_fail = "z".repeat(210);
    let names: [&[u8]; 7] = [
        b"a b.json",
        b"quotes '\" and \\xff.json",
        b"line\nbreak",
        b"\xff\xfe.json",
        long.as_bytes(),
        long_with_extension.as_bytes(),
        just_too_long_to_fail.as_bytes(),
    ];
    for name in names {
        let name = OsStr::from_bytes(name);
        let sandbox = Sandbox::new();
        let failed = sandbox.claim(name, "[1]");
        let (key, source) = (failed.key, failed.source.clone());
        assert_eq!(source, path_text(&sandbox.path(name)));
        drop(failed); // the process is killed
        let [resumed] = &sandbox.resume()[..] else { panic!("{name:?} is lost") };
        assert_eq!((resumed.key, &resumed.source, text(resumed)), (key, &source, "[1]".to_owned()));

        let placed = sandbox.inbox.failed(resumed, "too \"bad\"").unwrap();
        let mut report = placed.path.clone().into_os_string();
        report.push(".error.json");
        let report: serde_json::Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
        assert_eq!(report["file"], source.as_str());
        assert_eq!(report["dataset"], "events");
        assert_eq!(report["load_key"], key.to_string());
        assert_eq!(report["error"], "too \"bad\"");
        report["failed_at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        assert_eq!(sandbox.names("failed").len(), 2);

        let claim = sandbox.claim(name, "[2]");
        let placed = sandbox.inbox.done(&claim).unwrap().unwrap();
        sandbox.assert_only("processed", &claim, "[2]");
        if name.len() <= 218 {
            assert_eq!(names::split_key(file_name(&placed.path)).unwrap().1, name);
        }
        assert!(sandbox.names(".loading").is_empty(), "notes are left behind");
    }
}

#[test]
fn only_what_nobody_holds_is_resumed_the_oldest_first() {
    let sandbox = Sandbox::new();
    let claims: Vec<Claim> = (0..20).map(|i| sandbox.claim(format!("{}", 20 - i), "[]")).collect();
    let reader = claims[7].open();
    assert!(sandbox.resume().is_empty());
    let keys: Vec<Uuid> = claims.iter().map(|claim| claim.key).collect();
    drop(claims);
    let mut resumed: Vec<Uuid> = sandbox.resume().iter().map(|claim| claim.key).collect();
    assert!(!resumed.contains(&keys[7]), "it is still being read");
    drop(reader);
    resumed.extend(sandbox.resume().iter().map(|claim| claim.key).filter(|key| *key == keys[7]));
    resumed.sort();
    assert_eq!(resumed, keys, "keys sort by time");
    assert!(sandbox.resume().is_sorted_by_key(|claim| claim.key));
}

#[test]
fn files_of_other_origin_and_other_datasets_are_left_alone() {
    let sandbox = Sandbox::new();
    let key = Uuid::now_v7();
    fs::write(sandbox.path(".loading/notes.txt"), "").unwrap();
    fs::create_dir(sandbox.path(format!(".loading/{key}-directory"))).unwrap();
    symlink("/dev/null", sandbox.path(format!(".loading/{key}-link"))).unwrap();
    // The process was killed between writing the note of a long name and the rename.
    fs::write(sandbox.path(format!(".loading/.{key}.name")), "x").unwrap();
    let unknown = sandbox.root.path().join("unknown/.loading");
    fs::create_dir_all(&unknown).unwrap();
    fs::write(unknown.join(format!("{key}-x")), "[]").unwrap();
    assert!(sandbox.inbox.leftovers().unwrap().is_empty());
    assert!(unknown.join(format!("{key}-x")).exists());
}

#[test]
fn two_processes_claim_every_file_exactly_once_whoever_dies_meanwhile() {
    const FILES: u32 = 2_000;
    let sandbox = Sandbox::new();
    for file in 0..FILES {
        fs::write(sandbox.path(format!("{file}.json")), file.to_string()).unwrap();
    }
    let loaded = Mutex::new(BTreeMap::<String, u32>::new());
    let taken = AtomicU32::new(0);
    // Every seventh claim is dropped, as if its process was killed. Another process resumes it.
    let load = |inbox: &Inbox, claim: Claim| {
        if taken.fetch_add(1, Ordering::Relaxed).is_multiple_of(7) {
            return;
        }
        let text = text(&claim);
        *loaded.lock().unwrap().entry(text).or_default() += 1;
        inbox.done(&claim).unwrap();
    };
    let work = |inbox: Inbox| {
        loop {
            let (found, leftovers) = (inbox.scan().unwrap(), inbox.leftovers().unwrap());
            if found.is_empty() && leftovers.is_empty() {
                return;
            }
            for candidate in found.iter().take(50) {
                inbox.claim(candidate).unwrap().into_iter().for_each(|claim| load(&inbox, claim));
            }
            for leftover in &leftovers {
                inbox.reclaim(leftover).unwrap().into_iter().for_each(|claim| load(&inbox, claim));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| work(sandbox.another()));
        }
    });
    let loaded = loaded.into_inner().unwrap();
    assert!(loaded.values().all(|&times| times == 1), "{:?}", loaded.iter().find(|(_, times)| **times != 1));
    assert_eq!(loaded.len(), FILES as usize);
    assert_eq!(sandbox.names("processed").len(), FILES as usize);
    assert!(sandbox.names(".loading").is_empty());
}

#[test]
fn a_name_that_is_given_to_file_after_file_gives_each_at_most_once_and_the_last() {
    const VERSIONS: u32 = 2_000;
    let sandbox = Sandbox::new();
    let loaded = Mutex::new(Vec::<u32>::new());
    let written = AtomicBool::new(false);
    let load = |inbox: &Inbox, claim: Claim| {
        let version = fs::read_to_string(loading(&claim)).unwrap().parse().unwrap();
        loaded.lock().unwrap().push(version);
        inbox.done(&claim).unwrap();
    };
    let load_all = |inbox: &Inbox| {
        for candidate in inbox.scan().unwrap() {
            inbox.claim(&candidate).unwrap().into_iter().for_each(|claim| load(inbox, claim));
        }
        // Two processes that see different files of one name can both fail to claim. The file then has a claim without an
        // owner.
        for leftover in inbox.leftovers().unwrap() {
            inbox.reclaim(&leftover).unwrap().into_iter().for_each(|claim| load(inbox, claim));
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            for version in 0..VERSIONS {
                fs::write(sandbox.path("x.part"), version.to_string()).unwrap();
                fs::rename(sandbox.path("x.part"), sandbox.path("x")).unwrap();
            }
            written.store(true, Ordering::Release);
        });
        for _ in 0..2 {
            scope.spawn(|| {
                let inbox = sandbox.another();
                while !written.load(Ordering::Acquire) {
                    load_all(&inbox);
                }
            });
        }
    });
    load_all(&sandbox.inbox);
    let loaded = loaded.into_inner().unwrap();
    assert_eq!(loaded.iter().collect::<HashSet<_>>().len(), loaded.len(), "a file was claimed twice");
    assert!(loaded.contains(&(VERSIONS - 1)), "the last file was lost");
}

#[test]
fn a_file_that_grows_while_it_is_read_is_read_to_its_end() {
    let sandbox = Sandbox::new();
    let claim = sandbox.claim("x", "[1");
    let mut reader = claim.open();
    let mut first = [0; 2];
    reader.read_exact(&mut first).unwrap();
    append(loading(&claim), ",2");
    let mut second = [0; 2];
    reader.read_exact(&mut second).unwrap();
    assert_eq!(&second, b",2");
    assert_eq!(claim.bytes_read(), 4);
}

#[test]
fn a_file_that_grew_is_read_until_it_is_still() {
    let root = tempfile::tempdir().unwrap();
    let inbox = open_with(root.path(), Duration::from_millis(20));
    let path = root.path().join("events/x");
    fs::write(&path, "[1").unwrap();
    let found = inbox.look(&path).unwrap();
    append(&path, ",2]");
    let claim = inbox.claim(&found).unwrap().unwrap();
    assert_eq!(text(&claim), "[1,2]");
    assert_eq!(inbox.done(&claim).unwrap().unwrap().unread, 0);
}

#[test]
fn more_is_waited_for_when_the_text_ended_too_early() {
    let root = tempfile::tempdir().unwrap();
    let inbox = open_with(root.path(), Duration::from_millis(20));
    let path = root.path().join("events/x");
    fs::write(&path, "[1").unwrap();
    let claim = inbox.claim(&inbox.look(&path).unwrap()).unwrap().unwrap();
    assert_eq!(text(&claim), "[1");
    assert!(!claim.more_coming().unwrap());
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            // On a busy machine the writer may take longer than the settle time. It is still waited for.
            while !claim.more_coming().unwrap() {}
        });
        append(loading(&claim), ",2]");
        waits.join().unwrap();
    });
    assert_eq!(text(&claim), "[1,2]");
}

#[test]
fn a_file_that_was_written_to_since_it_was_read_is_not_done() {
    let root = tempfile::tempdir().unwrap();
    let inbox = open_with(root.path(), Duration::from_millis(20));
    let path = root.path().join("events/x");
    fs::write(&path, "[1]").unwrap();
    let claim = inbox.claim(&inbox.look(&path).unwrap()).unwrap().unwrap();
    let mut expected = "[1]".to_owned();
    // First longer than before, then as long as before.
    for change in [|path: &Path| append(path, "[2]"), |path: &Path| fs::write(path, "[3][4]").unwrap()] {
        assert_eq!(text(&claim), expected);
        change(loading(&claim));
        expected = fs::read_to_string(loading(&claim)).unwrap();
        assert_eq!(inbox.done(&claim).unwrap(), None);
        assert_eq!(fs::read_to_string(loading(&claim)).unwrap(), expected, "it stays claimed");
    }
    assert_eq!(text(&claim), expected);
    let placed = inbox.done(&claim).unwrap().unwrap();
    assert_eq!((fs::read_to_string(placed.path).unwrap(), placed.unread), (expected, 0));
}

#[test]
fn crashes_are_counted_across_restarts_and_per_load() {
    let sandbox = Sandbox::new();
    let claim = sandbox.claim("x", "[]");
    let other = sandbox.claim("x", "[]");
    assert_eq!(claim.crashes().unwrap(), 0);
    assert_eq!(claim.record_crash().unwrap(), 1);
    let key = claim.key;
    drop(claim);
    let [resumed] = &sandbox.resume()[..] else { panic!() };
    assert_eq!((resumed.key, resumed.crashes().unwrap(), other.crashes().unwrap()), (key, 1, 0));
    assert_eq!((resumed.record_crash().unwrap(), resumed.record_crash().unwrap()), (2, 3));
    sandbox.inbox.failed(resumed, "it crashed three times").unwrap();
    sandbox.inbox.done(&other).unwrap();
    assert!(sandbox.names(".loading").is_empty());
}

#[test]
fn a_move_that_was_done_already_can_be_done_again() {
    let sandbox = Sandbox::new();
    let claim = sandbox.claim("x", "[1]");
    assert_eq!(sandbox.inbox.done(&claim).unwrap(), sandbox.inbox.done(&claim).unwrap());
    sandbox.assert_only("processed", &claim, "[1]");
}

#[test]
fn a_file_whose_error_was_written_before_a_crash_still_fails() {
    let sandbox = Sandbox::new();
    let claim = sandbox.claim("x", "[1");
    sandbox.inbox.failed(&claim, "cut off").unwrap();
    let failed = sandbox.path(format!("failed/{}-x", claim.key));
    fs::rename(&failed, loading(&claim)).unwrap(); // as if killed before the move
    drop(claim);
    assert!(sandbox.resume().is_empty());
    assert!(failed.exists() && sandbox.names(".loading").is_empty());
}

/// A sandbox whose `processed/` and `failed/` are on another file system. Where there is no other file system, prints that and
/// returns `None`.
fn across_file_systems() -> Option<(Sandbox, TempDir)> {
    let sandbox = Sandbox::new();
    let elsewhere = tempfile::tempdir_in("/dev/shm").ok().filter(|elsewhere| {
        let device = |path: &Path| fs::metadata(path).unwrap().dev();
        device(elsewhere.path()) != device(sandbox.root.path())
    });
    let Some(elsewhere) = elsewhere else {
        eprintln!("skipped: /dev/shm is no other file system that this user can write");
        return None;
    };
    for dir in ["processed", "failed"] {
        fs::remove_dir(sandbox.path(dir)).unwrap();
        fs::create_dir(elsewhere.path().join(dir)).unwrap();
        symlink(elsewhere.path().join(dir), sandbox.path(dir)).unwrap();
    }
    Some((sandbox, elsewhere))
}

#[test]
fn a_file_moves_to_another_file_system() {
    let Some((sandbox, _elsewhere)) = across_file_systems() else { return };
    let claim = sandbox.claim("y".repeat(255), "[1]");
    // The copy of a process that was killed.
    fs::write(sandbox.path(format!("processed/.{}.part", claim.key)), "[").unwrap();
    sandbox.inbox.done(&claim).unwrap();
    sandbox.assert_only("processed", &claim, "[1]");
    let claim = sandbox.claim("x", "[1");
    sandbox.inbox.failed(&claim, "cut off").unwrap();
    let names = sandbox.names("failed");
    assert!(names.len() == 2 && names[0].len() + names::REPORT.len() == names[1].len(), "{names:?}");
    assert!(sandbox.names(".loading").is_empty());
}

#[test]
fn a_file_that_was_copied_before_a_crash_is_not_loaded_again() {
    let Some((sandbox, _elsewhere)) = across_file_systems() else { return };
    let claim = sandbox.claim("x", "[1]");
    sandbox.inbox.done(&claim).unwrap();
    fs::write(loading(&claim), "[1]").unwrap(); // as if the process was killed before it was removed
    drop(claim.clone());
    assert!(sandbox.resume().is_empty());
    sandbox.assert_only("processed", &claim, "[1]");
    assert!(sandbox.names(".loading").is_empty());
}

#[test]
fn a_copy_of_less_than_the_file_is_not_taken_for_it() {
    let Some((sandbox, _elsewhere)) = across_file_systems() else { return };
    let claim = sandbox.claim("x", "[1]");
    sandbox.inbox.done(&claim).unwrap();
    fs::write(loading(&claim), "[1] [2]").unwrap(); // written to meanwhile
    let resumed = sandbox.resume();
    assert_eq!(text(&resumed[0]), "[1] [2]");
    sandbox.inbox.done(&resumed[0]).unwrap();
    sandbox.assert_only("processed", &claim, "[1] [2]");
}

#[test]
fn only_what_nobody_is_at_work_on_is_swept() {
    let sandbox = Sandbox::new();
    let key = Uuid::now_v7();
    let places = [".loading", "processed", "failed"];
    let parts: Vec<PathBuf> = places.map(|place| sandbox.path(place).join(names::unfinished(key))).into();
    let at_work: Vec<File> = parts.iter().map(|part| File::create(part).unwrap()).collect();
    at_work.iter().for_each(|file| file.lock().unwrap());
    fs::write(sandbox.path("processed/.x.part"), "").unwrap();
    sandbox.inbox.sweep().unwrap();
    assert!(parts.iter().all(|part| part.exists()));
    drop(at_work);
    sandbox.inbox.sweep().unwrap();
    assert!(!parts.iter().any(|part| part.exists()));
    assert_eq!(sandbox.names("processed"), [".x.part"]);
}

mod events {
    //! Tests that real inotify events of this system arrive.

    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn watch(sandbox: &Sandbox) -> (Watcher, Receiver<Event>) {
        let (sender, events) = channel();
        // The test may end before the last event.
        let watcher = Watcher::start(&sandbox.inbox, move |event| drop(sender.send(event))).unwrap();
        (watcher, events)
    }

    /// Returns all events up to the one that says that this file is complete. No other file may be complete.
    fn until_complete(events: &Receiver<Event>, path: &Path) -> Vec<Event> {
        let mut before = Vec::new();
        loop {
            match events.recv_timeout(TIMEOUT).expect("no event says that it is complete") {
                Event::Complete(found) => {
                    assert_eq!(found, path);
                    return before;
                }
                event => before.push(event),
            }
        }
    }

    #[test]
    fn a_file_is_complete_when_it_is_closed_or_renamed_in() {
        let sandbox = Sandbox::new();
        let (_watcher, events) = watch(&sandbox);
        let path = sandbox.path("a b\n.json");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"[]").unwrap();
        assert_eq!(events.recv_timeout(TIMEOUT).unwrap(), Event::Touched { path: path.clone(), open: false });
        assert_eq!(events.recv_timeout(TIMEOUT).unwrap(), Event::Touched { path: path.clone(), open: true });
        drop(file);
        until_complete(&events, &path);

        fs::write(sandbox.path("b.part"), "[]").unwrap();
        fs::rename(sandbox.path("b.part"), sandbox.path("b")).unwrap();
        assert!(until_complete(&events, &sandbox.path("b")).is_empty(), "unfinished files are ignored");

        fs::write(sandbox.root.path().join("orgs/c"), "[]").unwrap();
        until_complete(&events, &sandbox.root.path().join("orgs/c"));
    }

    #[test]
    fn a_link_only_touches_and_a_claim_is_gone() {
        let sandbox = Sandbox::new();
        fs::write(sandbox.path(".original"), "[]").unwrap();
        let (_watcher, events) = watch(&sandbox);
        let path = sandbox.path("link");
        fs::hard_link(sandbox.path(".original"), &path).unwrap();
        assert_eq!(events.recv_timeout(TIMEOUT).unwrap(), Event::Touched { path: path.clone(), open: false });
        let _claim = sandbox.inbox.claim(&sandbox.inbox.look(&path).unwrap()).unwrap().unwrap();
        // Claiming opens the file. The watcher reports that, unless the file has already gone.
        let opened = Event::Touched { path: path.clone(), open: true };
        let told = events.iter().find(|event| *event != opened);
        assert_eq!(told, Some(Event::Gone(path)));
    }

    #[test]
    fn a_directory_that_is_made_again_is_watched_again() {
        for remove in
            [|dir: &Path| fs::remove_dir_all(dir).unwrap(), |dir: &Path| fs::rename(dir, dir.with_extension("old")).unwrap()]
        {
            let sandbox = Sandbox::new();
            let (mut watcher, events) = watch(&sandbox);
            assert!(!watcher.renew().unwrap());
            remove(&sandbox.path(""));
            while events.recv_timeout(TIMEOUT).unwrap() != Event::Rescan {}
            sandbox.inbox.make_directories().unwrap();
            assert!(watcher.renew().unwrap());
            while events.try_recv().is_ok() {}
            fs::write(sandbox.path("x"), "[]").unwrap();
            until_complete(&events, &sandbox.path("x"));
        }
    }
}
