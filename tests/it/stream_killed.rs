//! Exactly once per drop, whoever dies: the real binary is killed at many moments, alone and beside others.

use std::time::Duration;

use crate::support::{Background, Choices, Sandbox, Signal, events_over_days, on_every_pipeline, wait_until};

on_every_pipeline!(
    killed_at_any_moment_every_record_is_loaded_once,
    killed_while_it_files_away_every_record_is_loaded_once,
    processes_share_an_inbox_and_one_of_them_dies,
    killed_at_any_moment_keys_are_noted_with_the_rows_that_have_them,
);

/// Another run of the tests can try other moments: `DATALOADER_TEST_SEED=7 ./run.sh test`.
fn choices() -> Choices {
    let seed = std::env::var("DATALOADER_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_240_501);
    println!("DATALOADER_TEST_SEED={seed}");
    Choices::seeded(seed)
}

type Dropped = Vec<(String, String, usize)>;

fn put(sandbox: &Sandbox, dropped: &mut Dropped, records: usize) {
    let name = format!("{}.jsonl", dropped.len());
    let contents = events_over_days(&dropped.len().to_string(), records);
    sandbox.drop_in("events", &name, &contents);
    dropped.push((name, contents, records));
}

/// Lets it run for a moment, then kills it if it still runs.
fn kill_after(mut process: Background, moment: Duration) {
    std::thread::sleep(moment);
    if process.is_running() {
        process.signal(Signal::Kill);
    }
    process.wait();
}

fn killed_at_any_moment_every_record_is_loaded_once(sandbox: &Sandbox) {
    let mut choices = choices();
    let mut dropped = Dropped::new();
    put(sandbox, &mut dropped, 20_000);
    for kill in 0..30 {
        // There is always something left to do, small and large.
        if kill % 3 == 0 {
            put(sandbox, &mut dropped, 3_000);
        }
        put(sandbox, &mut dropped, 5);
        let process = sandbox.pipeline([]).spawn();
        kill_after(process, Duration::from_millis(20 + choices.below(330)));
        if kill % 10 == 9 {
            // Where all is slow, none may have lived long enough to make the tables.
            sandbox.run(["migrate"]).ok();
            sandbox.assert_conserved();
        }
    }
    sandbox.run_once().ok();
    sandbox.assert_each_loaded_once(&dropped);
    sandbox.assert_settled();
}

/// Many tiny files, so that most of the time goes into claiming, committing and moving.
fn killed_while_it_files_away_every_record_is_loaded_once(sandbox: &Sandbox) {
    let mut choices = choices();
    let mut dropped = Dropped::new();
    for _ in 0..12 {
        for _ in 0..25 {
            put(sandbox, &mut dropped, 1);
        }
        let finished = sandbox.finished("events");
        let mut process = sandbox.pipeline([]).spawn();
        wait_until("it files something away", || !process.is_running() || sandbox.finished("events") > finished);
        kill_after(process, Duration::from_micros(choices.below(40_000)));
    }
    sandbox.run_once().ok();
    sandbox.assert_each_loaded_once(&dropped);
    sandbox.assert_settled();
}

/// Which load has brought each key that no column takes, by the rows and by the notes.
fn keys_of_rows_and_notes(sandbox: &Sandbox) -> [Vec<String>; 2] {
    let notes = if sandbox.is_sqlite() { "dataloader_unknown_keys" } else { "dataloader.unknown_keys" };
    let extra = "SELECT DISTINCT _extra, _load_id FROM {raw.events} WHERE _extra IS NOT NULL";
    let rows = sandbox.try_query(extra).unwrap_or_default().into_iter().map(|row| {
        let [extra, load] = [0, 1].map(|i| row[i].clone().expect("not null"));
        let extra: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&extra).expect("an object");
        format!("{} of {load}", extra.keys().next().expect("one key"))
    });
    let noted = sandbox.try_query(&format!("SELECT place, load_id FROM {notes}")).unwrap_or_default();
    let noted = noted.into_iter().map(|row| [0, 1].map(|i| row[i].clone().expect("not null")).join(" of "));
    [rows.collect(), noted.collect()].map(|mut keys: Vec<String>| {
        keys.sort();
        keys
    })
}

/// They are noted in the rows' transaction: neither lost nor doubled.
fn killed_at_any_moment_keys_are_noted_with_the_rows_that_have_them(sandbox: &Sandbox) {
    let (mut choices, mut files) = (choices(), 0);
    let mut put = |records: usize| {
        // The third record has a key that no other file has.
        let third = format!("\n{{\"k{files}\":1,");
        let contents = events_over_days(&files.to_string(), records);
        let (first, rest) = contents.split_at(contents.match_indices("\n{").nth(1).expect("three records").0);
        sandbox.drop_in("events", format!("{files}.jsonl"), first.to_owned() + &rest.replacen("\n{", &third, 1));
        files += 1;
    };
    for _ in 0..10 {
        put(3_000);
        for _ in 0..4 {
            put(5);
        }
        kill_after(sandbox.pipeline([]).spawn(), Duration::from_millis(20 + choices.below(330)));
        sandbox.wait_until_the_kill_is_noticed();
        let [rows, noted] = keys_of_rows_and_notes(sandbox);
        assert_eq!(rows, noted, "after a kill");
    }
    sandbox.run_once().ok();
    let [rows, noted] = keys_of_rows_and_notes(sandbox);
    assert_eq!((rows.len(), &rows), (files, &noted));
    let notes = if sandbox.is_sqlite() { "dataloader_unknown_keys" } else { "dataloader.unknown_keys" };
    assert_eq!(sandbox.lines(&format!("SELECT DISTINCT ordinal FROM {notes}")), ["3"]);
    sandbox.assert_settled();
}

fn processes_share_an_inbox_and_one_of_them_dies(sandbox: &Sandbox) {
    let mut choices = choices();
    let mut dropped = Dropped::new();
    let mut processes: Vec<Background> = (0..3).map(|_| sandbox.start_pipeline()).collect();
    for round in 0..4 {
        put(sandbox, &mut dropped, 6_000);
        for _ in 0..30 {
            put(sandbox, &mut dropped, 10);
        }
        std::thread::sleep(Duration::from_millis(choices.below(250)));
        if round < 3 {
            let victim = processes.remove(0);
            victim.signal(Signal::Kill);
            victim.wait();
            if round < 2 {
                processes.push(sandbox.start_pipeline());
            }
        }
    }
    // Those who live take over what the dead had claimed.
    sandbox.wait_until_finished("events", dropped.len());
    for process in processes {
        process.signal(Signal::Terminate);
        process.wait().ok();
    }
    // Over RabbitMQ what the dead had loaded, but not acknowledged, may still wait to be passed over.
    sandbox.run_once().ok();
    sandbox.assert_each_loaded_once(&dropped);
    sandbox.assert_settled();
}
