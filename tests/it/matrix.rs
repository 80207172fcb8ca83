//! Killed after every step that others can find: statements, commits, files made, written, renamed, synced and removed, messages
//! published, confirmed and acknowledged. The process is killed after step 1, then after step 2, and so on until a run ends by itself.
//! After each kill it is started again, and then everything must be there once. The same with steps that fail: refused, for want of
//! room, or done with their answer lost; the process goes on, or ends with an error that says so.
//! `./run.sh test matrix` tries all steps to be killed after and every kind of step to fail, other runs some.

use std::collections::BTreeSet;

use crate::support::{Outcome, Sandbox, event, on_both_stores, on_every_pipeline};

on_every_pipeline!(a_stream_killed_after_any_step_loads_every_record_once, a_stream_with_any_step_failing_loads_every_record_once,);
on_both_stores!(
    a_batch_load_killed_after_any_step_happened_as_a_whole_or_not,
    a_batch_load_with_any_step_failing_happened_as_a_whole_or_not,
    a_replay_killed_after_any_step_happened_as_a_whole_or_not,
    a_replay_with_any_step_failing_happened_as_a_whole_or_not,
    an_unload_killed_after_any_step_happened_as_a_whole_or_not,
    an_unload_with_any_step_failing_happened_as_a_whole_or_not,
);

/// Far more than any run has.
const MOST_STEPS: usize = 500;
/// Without `TEST_MATRIX=all`, one step of so many is tried.
const STRIDE: usize = 11;

fn is_all() -> bool {
    std::env::var("TEST_MATRIX").is_ok_and(|matrix| matrix == "all")
}

/// What becomes of a step: `killed` after it, or a failure: `refused`, `full`, `lost`.
#[derive(Debug, Clone, Copy)]
struct Step {
    fate: &'static str,
    number: usize,
}

/// Calls `round` with each step to be killed after, until it returns false because the run ended by itself. `least`: how many steps
/// there are at the least.
fn killed_after_each_step(least: usize, mut round: impl FnMut(Step) -> bool) {
    let mut last = 0;
    for number in (1..MOST_STEPS).step_by(if is_all() { 1 } else { STRIDE }) {
        if !round(Step { fate: "killed", number }) {
            eprintln!("{last} steps at the least");
            assert!(last + STRIDE >= least, "it ended by itself before step {number}: the steps are not counted");
            return;
        }
        last = number;
    }
    panic!("it still has steps after {MOST_STEPS}");
}

/// Calls `round` with steps that fail, one of each kind. `kinds`: how many there are at the least. The steps are those that `list` lists.
fn each_kind_of_step_fails(kinds: usize, mut round: impl FnMut(Step) -> bool, mut list: impl FnMut(Step) -> String) {
    let mut steps = Vec::new();
    for (fates, listed) in [(&["refused", "full"][..], 0), (&["lost"], 1)] {
        let numbers = first_of_each_kind(&list(Step { fate: "listed", number: listed }));
        assert!(numbers.len() >= kinds, "{numbers:?}");
        steps.extend(fates.iter().flat_map(|fate| numbers.iter().map(|number| Step { fate, number: *number })));
    }
    let mut failed = 0;
    for step in steps.into_iter().step_by(if is_all() { 1 } else { STRIDE }) {
        failed += usize::from(round(step));
    }
    assert!(failed > 0, "none of the steps has failed");
}

/// The number of the first step of each kind. Statements that begin alike are of one kind.
fn first_of_each_kind(listed: &str) -> Vec<usize> {
    let mut kinds = BTreeSet::new();
    let mut numbers = Vec::new();
    for line in listed.lines() {
        let Some((number, what)) = line.strip_prefix("step ").and_then(|rest| rest.split_once(": ")) else { continue };
        let kind = what.split(['(', '$', '=']).next().unwrap_or_default().trim_end_matches(char::is_numeric);
        if kinds.insert(kind.to_owned()) {
            numbers.push(number.parse().expect("a number"));
        }
    }
    numbers
}

/// Runs the program until it is killed after a step, or ends: by itself, or because a step fails. Returns what it did and whether that
/// has happened.
#[track_caller]
fn run_with(sandbox: &Sandbox, args: &[&str], step: Step) -> (Outcome, bool) {
    let Step { fate, number } = step;
    let outcome = sandbox.command(args.iter().copied()).env("DATALOADER_STEP", &format!("{fate}:{number}")).run();
    let Outcome { code, stderr, .. } = &outcome;
    let happened =
        stderr.lines().find(|line| line.starts_with("ended after step") || line.starts_with(&format!("step {number} fails")));
    if let Some(what) = happened {
        eprintln!("{fate}: {what:.100} → {code:?}");
    }
    match code {
        None => {
            assert_eq!(fate, "killed", "{stderr}");
            sandbox.wait_until_the_kill_is_noticed();
        }
        Some(0 | 3) => {}
        Some(1 | 4) => assert!(happened.is_some() && stderr.contains("error: "), "{code:?} with {step:?}: {stderr}"),
        _ => panic!("exit code {code:?} with {step:?}: {stderr}"),
    }
    assert!(!stderr.contains("panicked"), "{step:?}: {stderr}");
    let happened = happened.is_some();
    (outcome, happened)
}

/// Two events of a day and one record that is rejected.
fn events(round: usize) -> String {
    let day = format!("2024-05-{:02} 10:00:00", round % 20 + 1);
    [event(&format!("{round}-a"), "ada", &day), event(&format!("{round}-b"), "ben", &day), "{}".to_owned()].join("\n")
}

fn a_stream_killed_after_any_step_loads_every_record_once(sandbox: &Sandbox) {
    sandbox.run(["migrate"]).ok();
    let mut rounds = 0;
    killed_after_each_step(30, |step| stream_round(sandbox, &mut rounds, step).1);
}

fn a_stream_with_any_step_failing_loads_every_record_once(sandbox: &Sandbox) {
    sandbox.run(["migrate"]).ok();
    let (mut listed, mut rounds) = (Vec::new(), 0);
    for number in [0, 1] {
        listed.push(stream_round(sandbox, &mut rounds, Step { fate: "listed", number }).0.stderr);
    }
    each_kind_of_step_fails(15, |step| stream_round(sandbox, &mut rounds, step).1, |step| listed[step.number].clone());
}

/// Drops files and has a step killed or failing; after another run everything is there once.
fn stream_round(sandbox: &Sandbox, rounds: &mut usize, step: Step) -> (Outcome, bool) {
    *rounds += 1;
    let rounds = *rounds;
    // Names that are too long to follow a load key are kept beside the claim.
    sandbox.drop_in("events", format!("{rounds}-{}.jsonl", "x".repeat(225)), events(rounds));
    sandbox.drop_in("orgs", format!("{rounds}.json"), r#"[{"organization_key":"a"},{"organization_key":"b"}]"#);
    let cut = format!("[{}, {{", event(&format!("{rounds}-c"), "cy", "2024-05-01 10:00:00"));
    sandbox.drop_in("events", format!("{rounds}-cut.json"), cut);
    let (outcome, happened) = run_with(sandbox, &["run", "--once"], step);
    if happened {
        let again = sandbox.run_once();
        assert!(matches!(again.code, Some(0 | 3)), "after {step:?}: {again:?}");
    }
    let ids = sandbox.lines("SELECT count(*), count(DISTINCT id) FROM {raw.events}");
    assert_eq!(ids, [format!("{0}|{0}", 3 * rounds)], "events after {step:?}");
    assert_eq!(sandbox.lines("SELECT organization_key FROM {raw.orgs} ORDER BY 1"), ["a", "b"], "after {step:?}");
    assert_eq!(sandbox.count("raw.rejects"), rounds as u64, "rejects after {step:?}");
    let status = "SELECT status, count(*) FROM {raw.loads} GROUP BY status ORDER BY status";
    assert_eq!(sandbox.lines(status), [format!("failed|{rounds}"), format!("loaded|{}", 2 * rounds)], "after {step:?}");
    let files = (sandbox.names_in("events/processed").len(), sandbox.names_in("orgs/processed").len());
    assert_eq!((files, sandbox.names_in("events/failed").len()), ((rounds, rounds), 2 * rounds), "files after {step:?}");
    for place in ["events/.loading", "orgs/.loading"] {
        let all = std::fs::read_dir(sandbox.file("inbox").join(place)).expect("it is there").count();
        assert_eq!(all, 0, "in {place} after {step:?}, dot files included");
    }
    sandbox.assert_settled();
    (outcome, happened)
}

fn a_batch_load_killed_after_any_step_happened_as_a_whole_or_not(sandbox: &Sandbox) {
    let mut batch = Batch::begin(sandbox);
    killed_after_each_step(10, |step| batch.round(step).1);
}

fn a_batch_load_with_any_step_failing_happened_as_a_whole_or_not(sandbox: &Sandbox) {
    let mut batch = Batch::begin(sandbox);
    let listed = [0, 1].map(|number| batch.round(Step { fate: "listed", number }).0.stderr);
    each_kind_of_step_fails(8, |step| batch.round(step).1, |step| listed[step.number].clone());
}

/// Loads of versions of the same files.
struct Batch<'a> {
    sandbox: &'a Sandbox,
    version: usize,
    loads: usize,
}

impl<'a> Batch<'a> {
    fn begin(sandbox: &'a Sandbox) -> Self {
        let batch = Self { sandbox, version: 0, loads: 1 };
        batch.write(0);
        sandbox.run(["load"]).code(3);
        assert_eq!(batch.state(), batch.expected(0, 1));
        batch
    }

    /// Of two versions every second key is the same: rows are replaced, added and left.
    fn write(&self, version: usize) {
        let keys = (0..20).map(|key| key + version * 10);
        let lines: Vec<String> = keys.map(|key| event(&key.to_string(), &format!("v{version}"), "2024-05-01 10:00:00")).collect();
        self.sandbox.write_events("x.jsonl", lines.join("\n") + "\n{}");
        self.sandbox.write_orgs("o.json", format!(r#"[{{"organization_key":"v{version}"}}]"#));
    }

    fn state(&self) -> String {
        let latest = self.sandbox.lines("SELECT max(cast(substr(username, 2) as integer)), count(*) FROM {raw.events}");
        let others = self.sandbox.lines(
            "SELECT (SELECT organization_key FROM {raw.orgs}), (SELECT count(*) FROM {raw.loads}), (SELECT count(*) FROM {raw.rejects})",
        );
        format!("{} {}", latest[0], others[0])
    }

    fn expected(&self, version: usize, loads: usize) -> String {
        format!("{version}|{} v{version}|{}|1", 20 + 10 * version, 2 * loads)
    }

    fn round(&mut self, step: Step) -> (Outcome, bool) {
        let (version, loads) = (self.version, self.loads);
        self.write(version + 1);
        let (outcome, happened) = run_with(self.sandbox, &["load"], step);
        let found = self.state();
        let is_loaded = found == self.expected(version + 1, loads + 1);
        assert!(is_loaded || found == self.expected(version, loads), "after {step:?} of version {version}, {loads} loads: {found}");
        assert!(is_loaded || !matches!(outcome.code, Some(0 | 3)), "it said that it had loaded, with {step:?}");
        self.sandbox.run(["verify"]).ok();
        self.version += 1;
        self.loads += 1;
        if !is_loaded {
            self.sandbox.run(["load"]).code(3);
        }
        assert_eq!(self.state(), self.expected(self.version, self.loads), "after {step:?}");
        self.sandbox.assert_booked();
        (outcome, happened)
    }
}

fn a_replay_killed_after_any_step_happened_as_a_whole_or_not(sandbox: &Sandbox) {
    let mut rounds = 0;
    killed_after_each_step(8, |step| replay_round(sandbox, &mut rounds, step).1);
}

fn a_replay_with_any_step_failing_happened_as_a_whole_or_not(sandbox: &Sandbox) {
    let mut rounds = 0;
    let listed = [0, 1].map(|number| replay_round(sandbox, &mut rounds, Step { fate: "listed", number }).0.stderr);
    each_kind_of_step_fails(6, |step| replay_round(sandbox, &mut rounds, step).1, |step| listed[step.number].clone());
}

fn replay_round(sandbox: &Sandbox, rounds: &mut u64, step: Step) -> (Outcome, bool) {
    let strict = include_str!("../../dataloader.toml")
        .replace(r#"username          = "text""#, r#"username          = { type = "text", required = true }"#);
    let state = || (sandbox.count("raw.events"), sandbox.count("raw.rejects"));
    let done = *rounds;
    *rounds += 1;
    sandbox.write("dataloader.toml", &strict);
    let record = |id: &str| format!(r#"{{"id":"{done}-{id}","received_at":"2024-05-01 10:00:00"}}"#);
    sandbox.drop_in("events", format!("{done}.jsonl"), [record("a"), record("b")].join("\n"));
    sandbox.run_once().code(3);
    assert_eq!(state(), (2 * done, 2));
    std::fs::remove_file(sandbox.file("dataloader.toml")).expect("it is ours");
    let (outcome, happened) = run_with(sandbox, &["rejects", "replay"], step);
    assert!([(2 * done, 2), (2 * done + 2, 0)].contains(&state()), "after {step:?}: {:?}", state());
    assert!(state().1 == 0 || outcome.code != Some(0), "it said that it had replayed, with {step:?}");
    sandbox.run(["verify"]).ok();
    sandbox.run(["rejects", "replay"]).ok();
    assert_eq!(state(), (2 * done + 2, 0), "after {step:?}");
    sandbox.assert_settled();
    (outcome, happened)
}

fn an_unload_killed_after_any_step_happened_as_a_whole_or_not(sandbox: &Sandbox) {
    let mut rounds = 0;
    killed_after_each_step(8, |step| unload_round(sandbox, &mut rounds, step).1);
}

fn an_unload_with_any_step_failing_happened_as_a_whole_or_not(sandbox: &Sandbox) {
    let mut rounds = 0;
    let listed = [0, 1].map(|number| unload_round(sandbox, &mut rounds, Step { fate: "listed", number }).0.stderr);
    each_kind_of_step_fails(6, |step| unload_round(sandbox, &mut rounds, step).1, |step| listed[step.number].clone());
}

fn unload_round(sandbox: &Sandbox, rounds: &mut usize, step: Step) -> (Outcome, bool) {
    let state = || (sandbox.count("raw.events"), sandbox.count("raw.rejects"));
    *rounds += 1;
    sandbox.drop_in("events", format!("{rounds}.jsonl"), events(*rounds));
    sandbox.run_once().code(3);
    let id = sandbox.lines("SELECT max(id) FROM {raw.loads}").remove(0);
    let (outcome, happened) = run_with(sandbox, &["unload", &id], step);
    assert!([(2, 1), (0, 0)].contains(&state()), "after {step:?}: {:?}", state());
    sandbox.run(["verify"]).ok();
    let status = sandbox.lines(&format!("SELECT status FROM {{raw.loads}} WHERE id = {id}")).remove(0);
    assert_eq!(status == "unloaded", state() == (0, 0), "after {step:?}: {status}");
    if status != "unloaded" {
        assert_ne!(outcome.code, Some(0), "it said that it had unloaded, with {step:?}");
        sandbox.run(["unload", &id]).ok();
    }
    assert_eq!(state(), (0, 0), "after {step:?}");
    sandbox.assert_booked();
    (outcome, happened)
}
