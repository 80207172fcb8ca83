//! Killed after every step that others can find: statements, commits, files made, renamed, synced and removed, messages published,
//! confirmed and acknowledged. The process is killed after step 1, then after step 2, and so on until a run ends by itself. After
//! each kill it is started again, and then everything must be there once. `./run.sh test matrix` tries all steps, other runs some.

use crate::support::{Outcome, Sandbox, event, on_both_stores, on_every_pipeline};

on_every_pipeline!(a_stream_killed_after_any_step_loads_every_record_once);
on_both_stores!(
    a_batch_load_killed_after_any_step_happened_as_a_whole_or_not,
    a_replay_killed_after_any_step_happened_as_a_whole_or_not,
    an_unload_killed_after_any_step_happened_as_a_whole_or_not,
);

/// Far more than any run has.
const MOST_STEPS: usize = 500;
/// Without `TEST_MATRIX=all`, one step of so many is tried.
const STRIDE: usize = 11;

/// Calls `round` with the number of each step, until it returns false because the run ended by itself. `least`: how many steps
/// there are at the least.
fn for_each_step(least: usize, mut round: impl FnMut(usize) -> bool) {
    let is_all = std::env::var("TEST_MATRIX").is_ok_and(|matrix| matrix == "all");
    let mut last = 0;
    for step in (1..MOST_STEPS).step_by(if is_all { 1 } else { STRIDE }) {
        if !round(step) {
            eprintln!("{last} steps at the least");
            assert!(last + STRIDE >= least, "it ended by itself before step {step}: the steps are not counted");
            return;
        }
        last = step;
    }
    panic!("it still has steps after {MOST_STEPS}");
}

/// Runs the program until it is killed after a step, or ends by itself. Returns whether it was killed.
#[track_caller]
fn killed_after(sandbox: &Sandbox, args: &[&str], step: usize) -> bool {
    let command = sandbox.command(args.iter().copied()).env("DATALOADER_END_AFTER_STEP", &step.to_string());
    let Outcome { code, stderr, .. } = command.run();
    assert!(code.is_none() || matches!(code, Some(0 | 3)), "exit code {code:?} in place of step {step}: {stderr}");
    if code.is_none() {
        sandbox.wait_until_the_kill_is_noticed();
    }
    if let Some(what) = stderr.lines().find(|line| line.starts_with("ended after step")) {
        eprintln!("{what}");
    }
    code.is_none()
}

/// Two events of a day and one record that is rejected.
fn events(round: usize) -> String {
    let day = format!("2024-05-{:02} 10:00:00", round % 20 + 1);
    [event(&format!("{round}-a"), "ada", &day), event(&format!("{round}-b"), "ben", &day), "{}".to_owned()].join("\n")
}

fn a_stream_killed_after_any_step_loads_every_record_once(sandbox: &Sandbox) {
    sandbox.run(["migrate"]).ok();
    let mut rounds = 0;
    for_each_step(30, |step| {
        rounds += 1;
        // Names that are too long to follow a load key are kept beside the claim.
        sandbox.drop_in("events", format!("{rounds}-{}.jsonl", "x".repeat(225)), events(rounds));
        sandbox.drop_in("orgs", format!("{rounds}.json"), r#"[{"organization_key":"a"},{"organization_key":"b"}]"#);
        sandbox.drop_in(
            "events",
            format!("{rounds}-cut.json"),
            format!("[{}, {{", event(&format!("{rounds}-c"), "cy", "2024-05-01 10:00:00")),
        );
        let killed = killed_after(sandbox, &["run", "--once"], step);
        if killed {
            let outcome = sandbox.run_once();
            assert!(matches!(outcome.code, Some(0 | 3)), "after step {step}: {outcome:?}");
        }
        let ids = sandbox.lines("SELECT count(*), count(DISTINCT id) FROM {raw.events}");
        assert_eq!(ids, [format!("{0}|{0}", 3 * rounds)], "events after step {step}");
        assert_eq!(sandbox.lines("SELECT organization_key FROM {raw.orgs} ORDER BY 1"), ["a", "b"], "after step {step}");
        assert_eq!(sandbox.count("raw.rejects"), rounds as u64, "rejects after step {step}");
        let status = "SELECT status, count(*) FROM {raw.loads} GROUP BY status ORDER BY status";
        assert_eq!(sandbox.lines(status), [format!("failed|{rounds}"), format!("loaded|{}", 2 * rounds)], "after step {step}");
        let files = (sandbox.names_in("events/processed").len(), sandbox.names_in("orgs/processed").len());
        assert_eq!((files, sandbox.names_in("events/failed").len()), ((rounds, rounds), 2 * rounds), "files after step {step}");
        for place in ["events/.loading", "orgs/.loading"] {
            let all = std::fs::read_dir(sandbox.file("inbox").join(place)).expect("it is there").count();
            assert_eq!(all, 0, "in {place} after step {step}, dot files included");
        }
        sandbox.assert_settled();
        killed
    });
}

fn a_batch_load_killed_after_any_step_happened_as_a_whole_or_not(sandbox: &Sandbox) {
    let load = ["load"];
    let write = |version: usize| {
        // Of two versions every second key is the same: rows are replaced, added and left.
        let keys = (0..20).map(|key| key + version * 10);
        let lines: Vec<String> = keys.map(|key| event(&key.to_string(), &format!("v{version}"), "2024-05-01 10:00:00")).collect();
        sandbox.write_events("x.jsonl", lines.join("\n") + "\n{}");
        sandbox.write_orgs("o.json", format!(r#"[{{"organization_key":"v{version}"}}]"#));
    };
    let state = || {
        let latest = sandbox.lines("SELECT max(cast(substr(username, 2) as integer)), count(*) FROM {raw.events}");
        let others = sandbox.lines("SELECT (SELECT max(organization_key) FROM {raw.orgs}), (SELECT count(*) FROM {raw.loads}), (SELECT count(*) FROM {raw.rejects})");
        format!("{} {}", latest[0], others[0])
    };
    let expected = |version: usize, loads: usize| format!("{version}|{} v{version}|{}|1", 20 + 10 * version, 2 * loads);
    write(0);
    sandbox.run(load).code(3);
    assert_eq!(state(), expected(0, 1));
    let (mut version, mut loads) = (0, 1);
    for_each_step(10, |step| {
        write(version + 1);
        let killed = killed_after(sandbox, &load, step);
        let found = state();
        let happened = found == expected(version + 1, loads + 1);
        assert!(happened || found == expected(version, loads), "after step {step} of version {version}, {loads} loads: {found}");
        sandbox.run(["verify"]).ok();
        version += 1;
        loads += usize::from(happened);
        if !happened {
            sandbox.run(load).code(3);
            loads += 1;
        }
        assert_eq!(state(), expected(version, loads), "after step {step}");
        sandbox.assert_booked();
        killed
    });
}

fn a_replay_killed_after_any_step_happened_as_a_whole_or_not(sandbox: &Sandbox) {
    let replay = ["rejects", "replay"];
    let strict = include_str!("../../dataloader.toml")
        .replace(r#"username          = "text""#, r#"username          = { type = "text", required = true }"#);
    let state = || (sandbox.count("raw.events"), sandbox.count("raw.rejects"));
    let mut done = 0;
    for_each_step(8, |step| {
        sandbox.write("dataloader.toml", &strict);
        let record = |id: &str| format!(r#"{{"id":"{done}-{id}","received_at":"2024-05-01 10:00:00"}}"#);
        sandbox.drop_in("events", format!("{done}.jsonl"), [record("a"), record("b")].join("\n"));
        sandbox.run_once().code(3);
        assert_eq!(state(), (2 * done, 2));
        std::fs::remove_file(sandbox.file("dataloader.toml")).expect("it is ours");
        let killed = killed_after(sandbox, &replay, step);
        assert!([(2 * done, 2), (2 * done + 2, 0)].contains(&state()), "after step {step}: {:?}", state());
        sandbox.run(["verify"]).ok();
        sandbox.run(replay).ok();
        done += 1;
        assert_eq!(state(), (2 * done, 0), "after step {step}");
        sandbox.assert_settled();
        killed
    });
}

fn an_unload_killed_after_any_step_happened_as_a_whole_or_not(sandbox: &Sandbox) {
    let state = || (sandbox.count("raw.events"), sandbox.count("raw.rejects"));
    for_each_step(8, |step| {
        sandbox.drop_in("events", format!("{step}.jsonl"), events(step));
        sandbox.run_once().code(3);
        let id = sandbox.lines("SELECT max(id) FROM {raw.loads}").remove(0);
        let killed = killed_after(sandbox, &["unload", &id], step);
        assert!([(2, 1), (0, 0)].contains(&state()), "after step {step}: {:?}", state());
        sandbox.run(["verify"]).ok();
        let status = sandbox.lines(&format!("SELECT status FROM {{raw.loads}} WHERE id = {id}")).remove(0);
        assert_eq!(status == "unloaded", state() == (0, 0), "after step {step}: {status}");
        if status != "unloaded" {
            sandbox.run(["unload", &id]).ok();
        }
        assert_eq!(state(), (0, 0), "after step {step}");
        sandbox.assert_booked();
        killed
    });
}
