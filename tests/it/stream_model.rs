//! The modelled tables follow what is dropped; other commands work beside the pipeline.

use std::time::{Duration, Instant};

use crate::support::{Sandbox, Signal, event, events_over_days, on_both_stores, on_every_pipeline, wait_until};

on_every_pipeline!(
    a_drop_is_modelled_shortly_after,
    days_are_right_however_many_files_touch_them,
    commands_work_beside_the_pipeline,
);

on_both_stores!(a_pipeline_models_what_another_left_behind, a_small_change_of_many_small_days_is_modelled_whole);

fn a_drop_is_modelled_shortly_after(sandbox: &Sandbox) {
    const BY_DATE: &str = "SELECT date, total_events, unique_events, unique_users FROM {modelled.events_by_date} ORDER BY date";
    let pipeline = sandbox.start_pipeline();
    let deadline = Instant::now() + Duration::from_secs(30);
    let two = [event("1", "ada", "2024-05-01 10:00:00"), event("2", "ben", "2024-05-01 11:00:00")].join("\n");
    sandbox.drop_in("events", "a.jsonl", &two);
    wait_until("the day is modelled", || sandbox.try_query(BY_DATE).is_ok_and(|rows| !rows.is_empty()));
    assert_eq!(sandbox.lines(BY_DATE), ["2024-05-01|2|2|2"]);
    sandbox.drop_in("events", "b.jsonl", two + &event("3", "ada", "2024-05-02 10:00:00"));
    wait_until("both days are modelled", || sandbox.lines(BY_DATE) == ["2024-05-01|4|2|2", "2024-05-02|1|1|1"]);
    assert!(Instant::now() < deadline, "two drops took longer than thirty seconds to be modelled");
    let by_type = "SELECT date, user_type, total_events FROM {modelled.events_by_date_user_type} ORDER BY date";
    assert_eq!(sandbox.lines(by_type), ["2024-05-01|Admin|4", "2024-05-02|Admin|1"]);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    sandbox.assert_settled();
}

fn days_are_right_however_many_files_touch_them(sandbox: &Sandbox) {
    let first = sandbox.start_pipeline();
    let second = sandbox.start_pipeline();
    for number in 0..60 {
        sandbox.drop_in("events", format!("{number}.jsonl"), events_over_days(&number.to_string(), 50));
    }
    sandbox.wait_until_finished("events", 60);
    let right = "SELECT count(*) FROM {modelled.events_by_date} WHERE total_events = 300 AND unique_events = 300";
    wait_until("every day is modelled", || sandbox.lines(right) == ["10"]);
    for pipeline in [first, second] {
        pipeline.signal(Signal::Terminate);
        pipeline.wait().ok();
    }
    sandbox.assert_settled();
}

fn a_small_change_of_many_small_days_is_modelled_whole(sandbox: &Sandbox) {
    // Together the days have more rows than a refresh recomputes at once while it holds the write lock.
    sandbox.drop_in("events", "many.jsonl", events_over_days("many", 3_000));
    sandbox.run_once().ok();
    sandbox.drop_in("events", "few.jsonl", events_over_days("few", 10));
    sandbox.run_once().ok();
    let right = "SELECT count(*) FROM {modelled.events_by_date} WHERE total_events = 301 AND unique_events = 301";
    assert_eq!(sandbox.lines(right), ["10"]);
    sandbox.assert_settled();
}

fn a_pipeline_models_what_another_left_behind(sandbox: &Sandbox) {
    sandbox.drop_in("events", "a.jsonl", events_over_days("a", 100));
    sandbox.run_once().ok();
    // As after a kill between the commit of a batch and the refresh.
    sandbox.execute("DELETE FROM {modelled.events_by_date} WHERE date <> '2024-05-05'");
    let marks = if sandbox.is_sqlite() { "dataloader_changed_days" } else { "dataloader.changed_days" };
    sandbox.execute(&format!("INSERT INTO {marks} (dataset, day) VALUES ('events', '2024-05-01'), ('events', '2024-05-10')"));
    let pipeline = sandbox.start_pipeline();
    let modelled = "SELECT date FROM {modelled.events_by_date} ORDER BY date";
    wait_until("the marked days are modelled", || sandbox.lines(modelled) == ["2024-05-01", "2024-05-05", "2024-05-10"]);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
}

fn commands_work_beside_the_pipeline(sandbox: &Sandbox) {
    let pipeline = sandbox.start_pipeline();
    let mut files = 0;
    for round in 0..3 {
        for number in 0..4 {
            sandbox.drop_in("events", format!("{round}-{number}.jsonl"), events_over_days(&format!("{round}-{number}"), 1_500));
            files += 1;
        }
        // While those are loaded and modelled.
        for command in [&["status"][..], &["report"], &["rejects", "list"], &["model", "--check"], &["migrate"]] {
            sandbox.run(command.iter().copied()).ok();
        }
        let shown = sandbox.command(["menu"]).stdin("3\n").run().ok();
        assert_eq!(shown.stderr, "");
    }
    sandbox.write_events("batch.jsonl", events_over_days("batch", 100));
    sandbox.run(["load", "--dataset", "events"]).ok();
    sandbox.wait_until_finished("events", files);
    let status = sandbox.run(["status", "--format", "json"]).ok().json();
    assert_eq!((&status["datasets"][0]["files"], &status["datasets"][0]["in_flight"]), (&(files + 1).into(), &0.into()));
    assert_eq!(status["datasets"][0]["loaded"], 12 * 1_500 + 100);
    pipeline.signal(Signal::Terminate);
    let outcome = pipeline.wait().ok();
    assert!(!outcome.stderr.contains("ERROR") && !outcome.stderr.contains("locked"), "{}", outcome.stderr);
    sandbox.assert_settled();
}
