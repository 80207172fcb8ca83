//! Heartbeats in directories of the tests' own, at times that they choose.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::vitals::{Target, Wait};

impl Heartbeat {
    /// Its file in the first directory.
    fn path(&self) -> PathBuf {
        self.directories[0].join(&self.name)
    }

    /// Beats as the same process at another time.
    fn beat_at(&mut self, connected: Connections, troubles: &[Trouble], now: Timestamp) -> Result<()> {
        let Beat { role, transport, .. } = serde_json::from_slice(&fs::read(self.path()).unwrap()).unwrap();
        self.beat(&Beat::of(role, transport, connected, troubles, Flow::default(), now))
    }
}

const BOTH: Connections = Connections { database: true, broker: true, database_host: None, broker_host: None };
const DATABASE: Connections = Connections { broker: false, ..BOTH };
const BROKER: Connections = Connections { database: false, ..BOTH };

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap()
}

fn start(directory: &Path, role: Role, transport: Transport) -> Heartbeat {
    Heartbeat::start_in(vec![directory.to_owned()], role, transport, at(0)).unwrap()
}

fn health_at(directory: &Path, second: i64) -> Health {
    health_in(&[directory.to_owned()], at(second)).unwrap()
}

fn files(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

#[test]
fn without_a_process_nothing_is_healthy() {
    let dir = directory();
    for path in [dir.path().to_owned(), dir.path().join("never made")] {
        let health = health_at(&path, 0);
        assert!(!health.healthy);
        assert_eq!(health.to_string(), "unhealthy: no `dataloader run` is alive in this working directory");
    }
}

#[test]
fn a_process_is_healthy_once_it_is_connected_to_what_it_needs() {
    let cases = [
        (Role::All, Transport::Inproc, DATABASE, "is not connected to the database"),
        (Role::All, Transport::Amqp, BOTH, "is not connected to the database and the broker"),
        (Role::Producer, Transport::Amqp, BROKER, "is not connected to the broker"),
        (Role::Consumer, Transport::Amqp, BOTH, "is not connected to the database and the broker"),
    ];
    for (role, transport, needed, complaint) in cases {
        let dir = directory();
        let mut heartbeat = start(dir.path(), role, transport);
        let health = health_at(dir.path(), 1);
        assert_eq!((health.healthy, health.reason), (false, format!("process {} {complaint}", std::process::id())));
        heartbeat.beat_at(needed.clone(), &[], at(1)).unwrap();
        let health = health_at(dir.path(), 1);
        assert!(health.healthy, "{role:?} over {transport:?}: {health}");
        assert_eq!(health.processes[0].connected, needed);
    }
}

#[test]
fn a_process_that_stops_beating_hangs_after_fifteen_seconds() {
    let dir = directory();
    let mut heartbeat = start(dir.path(), Role::All, Transport::Inproc);
    heartbeat.beat_at(DATABASE, &[], at(10)).unwrap();
    assert!(health_at(dir.path(), 25).healthy);
    let health = health_at(dir.path(), 26);
    assert!(!health.healthy && health.reason.ends_with("its last sign of life was 16 s ago"), "{health}");
    assert!(!health_at(dir.path(), -20).healthy, "the clock was set back");
    heartbeat.beat_at(DATABASE, &[], at(26)).unwrap();
    assert!(health_at(dir.path(), 26).healthy);
}

#[test]
fn a_stage_that_waits_makes_its_process_unhealthy_with_the_reason() {
    let dir = directory();
    let mut heartbeat = start(dir.path(), Role::All, Transport::Inproc);
    let trouble = Trouble {
        stage: "writer",
        waits_for: Some(Wait::new(Target::Database, "sqlite://x.db: disk full")),
        since: std::time::Instant::now(),
    };
    heartbeat.beat_at(DATABASE, &[trouble], at(0)).unwrap();
    let expected = format!("process {}: the writer waits for sqlite://x.db: disk full (for 7 s)", std::process::id());
    let health = health_at(dir.path(), 7);
    assert_eq!((health.healthy, health.reason), (false, expected));
    let told = format!("process {}: the writer waits for the database (for 7 s)", std::process::id());
    assert_eq!(health.processes[0].problems_without_names(), [told], "strangers hear no name");
    heartbeat.beat_at(DATABASE, &[], at(8)).unwrap();
    assert!(health_at(dir.path(), 8).healthy);
}

#[test]
fn one_process_that_is_not_connected_makes_all_unhealthy() {
    let dir = directory();
    let mut first = start(dir.path(), Role::Producer, Transport::Amqp);
    let mut second = start(dir.path(), Role::Consumer, Transport::Amqp);
    first.beat_at(BROKER, &[], at(0)).unwrap();
    second.beat_at(BROKER, &[], at(0)).unwrap();
    let health = health_at(dir.path(), 0);
    assert!(!health.healthy && health.reason.ends_with("is not connected to the database"), "{health}");
    assert_eq!(health.processes.iter().map(|process| process.role).collect::<Vec<_>>(), [Role::Producer, Role::Consumer]);
    drop(second);
    assert!(health_at(dir.path(), 0).healthy);
}

#[test]
fn what_a_dead_process_left_counts_for_nothing_and_is_removed() {
    let dir = directory();
    let mut alive = start(dir.path(), Role::All, Transport::Inproc);
    alive.beat_at(DATABASE, &[], at(0)).unwrap();
    let left = dir.path().join("019b0000-0000-7000-8000-000000000000.json");
    fs::copy(alive.path(), &left).unwrap();
    let health = health_at(dir.path(), 0);
    assert!(health.healthy);
    assert_eq!((health.processes.len(), left.exists()), (1, false));
}

#[test]
fn the_end_of_a_process_leaves_nothing() {
    let dir = directory();
    let mut heartbeat = start(dir.path(), Role::All, Transport::Inproc);
    for second in 0..3 {
        heartbeat.beat_at(DATABASE, &[], at(second)).unwrap();
        assert_eq!(files(dir.path()), 1);
    }
    drop(heartbeat);
    assert_eq!(files(dir.path()), 0);
}

#[test]
fn whoever_asks_while_a_process_beats_always_finds_it_alive() {
    let dir = directory();
    let mut heartbeat = start(dir.path(), Role::All, Transport::Inproc);
    heartbeat.beat_at(DATABASE, &[], at(0)).unwrap();
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let health = health_at(dir.path(), 0);
                        assert!(health.healthy, "{health}");
                    }
                })
            })
            .collect();
        while !asking.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            heartbeat.beat_at(DATABASE, &[], at(0)).unwrap();
        }
    });
}

#[test]
fn links_pipes_and_other_files_in_the_directory_are_passed_over() {
    let (dir, victim) = (directory(), directory());
    let mut heartbeat = start(dir.path(), Role::All, Transport::Inproc);
    let precious = victim.path().join("019b0000-0000-7000-8000-000000000000.json");
    fs::write(&precious, "precious").unwrap();
    symlink(&precious, format!("{}.tmp", heartbeat.path().display())).unwrap();
    symlink(&precious, dir.path().join("019b0000-0000-7000-8000-000000000001.json")).unwrap();
    let pipe = dir.path().join("019b0000-0000-7000-8000-000000000002.json");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    fs::write(dir.path().join("other.json"), "not ours").unwrap();
    heartbeat.beat_at(DATABASE, &[], at(0)).unwrap();
    assert!(health_at(dir.path(), 0).healthy);
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert!(dir.path().join("other.json").exists());
}

#[test]
fn a_directory_that_another_user_could_change_is_not_used_and_named() {
    let (base, victim) = (directory(), directory());
    let open = base.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let link = base.path().join("link");
    symlink(victim.path(), &link).unwrap();
    fs::write(victim.path().join("019b0000-0000-7000-8000-000000000000.json"), "precious").unwrap();
    let unsafe_places = vec![open.clone(), link.clone()];
    let error = Heartbeat::start_in(unsafe_places.clone(), Role::All, Transport::Inproc, at(0)).unwrap_err();
    for said in ["no safe place", "open: it is open to other users", "link: it is a link"] {
        assert!(error.message().contains(said), "{error}");
    }
    let health = health_in(&unsafe_places, at(0)).unwrap();
    assert!(!health.healthy && health.reason.contains("open: it is open to other users"), "{health}");
    assert_eq!((files(&open), files(victim.path())), (0, 1), "nothing is removed");

    let safe = base.path().join("safe");
    let both = vec![open, link, safe.clone()];
    let heartbeat = Heartbeat::start_in(both.clone(), Role::All, Transport::Inproc, at(0)).unwrap();
    assert_eq!(health_in(&both, at(0)).unwrap().processes.len(), 1, "the next place is used");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&safe), mode(&safe.join(&heartbeat.name))), (0o700, 0o600));
}

#[test]
fn a_process_is_seen_once_in_whichever_of_its_places_somebody_looks() {
    let places = [directory(), directory()];
    let paths: Vec<PathBuf> = places.iter().map(|dir| dir.path().join("beats")).collect();
    let mut heartbeat = Heartbeat::start_in(paths.clone(), Role::All, Transport::Inproc, at(0)).unwrap();
    for looked in [&paths[..], &paths[..1], &paths[1..]] {
        assert_eq!(health_in(looked, at(0)).unwrap().processes.len(), 1);
    }
    fs::remove_dir_all(&paths[0]).unwrap();
    heartbeat.beat(&Beat::of(Role::All, Transport::Inproc, DATABASE, &[], Flow::default(), at(1))).unwrap();
    assert_eq!(health_in(&paths[..1], at(1)).unwrap().processes.len(), 1, "a directory that was removed is made again");
}

#[test]
fn a_huge_file_is_not_read_to_its_end() {
    let dir = directory();
    let file = File::create(dir.path().join("019b0000-0000-7000-8000-000000000000.json")).unwrap();
    file.set_len(1 << 40).unwrap();
    file.lock().unwrap();
    let error = processes(&[dir.path().to_owned()], at(0)).unwrap_err();
    assert!(error.message().contains("makes no sense"), "{error}");
}

#[test]
fn an_unreadable_heartbeat_is_an_error_that_names_it() {
    let dir = directory();
    let file = File::create(dir.path().join("019b0000-0000-7000-8000-000000000000.json")).unwrap();
    file.lock().unwrap();
    let error = processes(&[dir.path().to_owned()], at(0)).unwrap_err();
    assert!(error.message().contains("000.json makes no sense"), "{error}");
}
