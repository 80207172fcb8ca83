//! At every moment the modelled rows are exact for some past moment, whoever changes the raw rows while they are computed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use crate::support::{Sandbox, Signal, Store, event, wait_until};

/// Rows of the day before anything is dropped: a refresh reads them several times, which takes long enough for drops between.
const ROWS: u64 = 150_000;
const USERS: u64 = 300;
/// Events of a drop, and of the batch load: all of users that the day has already.
const EVENTS: u64 = 20;
/// How long they are dropped.
const DURATION: Duration = Duration::from_secs(10);

const LOOK: &str = "SELECT total_events, unique_events, unique_users FROM {modelled.events_by_date} WHERE date = '2024-05-01'";

/// A day of so many events, not modelled yet.
fn busy_day(sandbox: &Sandbox, rows: u64) {
    sandbox.run(["migrate"]).ok();
    let (time, marks) = match sandbox.store() {
        Store::Sqlite => ("'2024-05-01 10:00:00.000000'", "dataloader_changed_days"),
        Store::Postgres => ("timestamp '2024-05-01 10:00:00'", "dataloader.changed_days"),
    };
    sandbox.execute(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
         INSERT INTO {{raw.events}} (id, event_type, username, user_type, organization_name, received_at) \
         SELECT 'old ' || i, 'created', 'u' || i % {USERS}, 'Admin', 'Acme', {time} FROM n; \
         INSERT INTO {marks} (dataset, day) VALUES ('events', '2024-05-01')"
    ));
}

fn known_events(prefix: &str) -> String {
    (0..EVENTS).map(|i| event(&format!("{prefix} {i}"), &format!("u{i}"), "2024-05-01 11:00:00") + "\n").collect()
}

/// What is wrong with looks at the day's row, in their order, while known events of one or two kinds were appended.
fn wrong_looks(looks: &[[u64; 3]]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut before = 0;
    for look @ [total, unique, users] in looks {
        let appended = total.saturating_sub(ROWS);
        let is_right = *total >= before && appended % EVENTS == 0 && *users == USERS && {
            // Each kind is counted once, however often it is there.
            let kinds = unique.saturating_sub(ROWS) / EVENTS;
            unique % EVENTS == ROWS % EVENTS && kinds <= 2 && kinds <= appended / EVENTS && (kinds > 0) == (appended > 0)
        };
        if !is_right {
            wrong.push(format!("{look:?} after a total of {before}"));
        }
        before = *total;
    }
    wrong
}

/// Looks at the day again and again while `beside` runs again and again and a pipeline loads the same events over and over.
fn look_while(sandbox: &Sandbox, beside: impl Fn(&Sandbox) + Sync) -> Vec<[u64; 3]> {
    busy_day(sandbox, ROWS);
    sandbox.run(["model"]).ok();
    let pipeline = sandbox.start_pipeline();
    let is_over = AtomicBool::new(false);
    let drops = known_events("new");
    let looks = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                beside(sandbox);
            }
        });
        scope.spawn(|| {
            for number in 0.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                // Pauses of all lengths, so that some refresh begins in one and drops come while it runs.
                sandbox.drop_in("events", format!("{number}.jsonl"), &drops);
                std::thread::sleep(Duration::from_millis(number * 37 % 400));
            }
        });
        let started = Instant::now();
        let mut looks = Vec::new();
        while started.elapsed() < DURATION {
            let row = sandbox.query(LOOK).remove(0);
            let numbers: Vec<u64> = row.iter().flatten().map(|cell| cell.parse().unwrap_or_default()).collect();
            looks.push(<[u64; 3]>::try_from(numbers).expect("three counts"));
        }
        is_over.store(true, Ordering::Relaxed);
        looks
    });
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    sandbox.run(["model", "--check"]).ok();
    looks
}

#[track_caller]
fn assert_exact(looks: &[[u64; 3]]) {
    let wrong = wrong_looks(looks);
    let (first, last) = (looks[0], looks[looks.len() - 1]);
    println!("{} looks, from {first:?} to {last:?}", looks.len());
    assert!(wrong.is_empty(), "{} of {} looks are wrong: {:#?}", wrong.len(), looks.len(), &wrong[..wrong.len().min(5)]);
    assert!(last[0] > first[0], "the day was refreshed while it was looked at");
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_day_is_exact_while_events_of_it_are_dropped() {
    let sandbox = Sandbox::new(Store::Postgres);
    assert_exact(&look_while(&sandbox, |sandbox| {
        sandbox.run(["model", "--full"]).ok();
    }));
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_day_is_exact_while_it_is_loaded_beside_the_stream() {
    let sandbox = Sandbox::new(Store::Postgres);
    sandbox.write_events("batch.jsonl", known_events("batch"));
    assert_exact(&look_while(&sandbox, |sandbox| {
        sandbox.run(["load", "--dataset", "events"]).ok();
    }));
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_refresh_that_takes_longer_than_a_statement_may_at_first_ends_no_run() {
    let sandbox = Sandbox::new(Store::Postgres);
    let defaults = include_str!("../../dataloader.toml");
    sandbox.write("dataloader.toml", format!("{defaults}\n[stream]\ndatabase_timeout_ms = 100\n"));
    busy_day(&sandbox, 2 * ROWS);
    sandbox.drop_in("events", "new.jsonl", known_events("new"));
    let log = sandbox.run_once().ok().stderr;
    assert!(log.contains("no answer for"), "the refresh took longer than that: {log}");
    sandbox.assert_at_rest();
}

/// When a line of the log was written.
fn written_at(line: &str) -> Option<Timestamp> {
    line.split(' ').next()?.parse().ok()
}

/// When the last refresh that took long began and ended, by the log.
fn long_refresh(log: &str) -> Option<(Timestamp, Timestamp)> {
    let line = log.lines().rfind(|line| line.contains("modelled") && line.ends_with('s') && !line.ends_with("ms"))?;
    let took: f64 = line.rsplit_once("took=")?.1.trim_end_matches('s').parse().ok()?;
    let ended = written_at(line)?;
    Some((ended - SignedDuration::from_secs_f64(took), ended))
}

#[test]
fn a_sqlite_file_is_written_while_a_large_day_of_it_is_modelled() {
    let sandbox = Sandbox::new(Store::Sqlite);
    busy_day(&sandbox, 2 * ROWS);
    let pipeline = sandbox.pipeline(["-v"]).spawn();
    let mut dropped = 0;
    wait_until("the day is modelled", || {
        // Of another day.
        sandbox.drop_in("events", format!("{dropped}.jsonl"), event(&dropped.to_string(), "ada", "2024-05-02 10:00:00"));
        dropped += 1;
        sandbox.wait_until_finished("events", dropped);
        long_refresh(&pipeline.stderr()).is_some()
    });
    let log = pipeline.stderr();
    let (began, ended) = long_refresh(&log).expect("it was modelled");
    let loaded = log.lines().filter(|line| line.contains(" loaded ")).filter_map(written_at);
    // A file that was committed just before the refresh may be mentioned just after it has begun.
    let meanwhile = loaded.filter(|at| *at > began + (ended.duration_since(began)) / 4 && *at < ended).count();
    println!("{meanwhile} of {dropped} files were loaded while a refresh ran for {}", ended.duration_since(began));
    assert!(meanwhile > 0, "no file was loaded while the day was modelled:\n{log}");
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    sandbox.assert_at_rest();
}
