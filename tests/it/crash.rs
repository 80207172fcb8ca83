//! Kill -9 at any moment of `load`: the database holds the state before or after, nothing between.

use std::time::{Duration, Instant};

use crate::support::{Sandbox, Signal, many_events, on_both_stores};

on_both_stores!(a_load_killed_at_any_moment_happened_as_a_whole_or_not);

const EVENTS: usize = 2_000;
const KILLS: u32 = 24;

/// Everything that a load of version `v<n>` of the file changes, after `loads` loads were committed.
fn state(version: u32, loads: u32) -> String {
    format!("{EVENTS}|v{version}|v{version}|{EVENTS}|1|{EVENTS}|{EVENTS}|{loads}|{}|1|{loads}", 3 * loads)
}

fn state_of(sandbox: &Sandbox) -> String {
    let sql = "SELECT (SELECT count(*) FROM {raw.events}), (SELECT min(username) FROM {raw.events}), \
               (SELECT max(username) FROM {raw.events}), (SELECT total_events FROM {modelled.events_by_date}), \
               (SELECT unique_users FROM {modelled.events_by_date}), \
               (SELECT total_events FROM {modelled.events_by_date_user_type}), \
               (SELECT count(*) FROM {raw.events_delta} d JOIN {raw.events} e ON e._load_id = d._load_id AND e.id = d.id), \
               (SELECT count(*) FROM {raw.loads}), (SELECT count(*) FROM {raw.batches}), (SELECT count(*) FROM {raw.rejects}), \
               (SELECT count(*) FROM {raw.loads} WHERE status = 'loaded' AND records_read = 2001)";
    sandbox.lines(sql).remove(0)
}

/// The keys that no column takes and that committed loads have brought.
fn noted_keys(sandbox: &Sandbox) -> Vec<String> {
    let table = if sandbox.is_sqlite() { "dataloader_unknown_keys" } else { "dataloader.unknown_keys" };
    sandbox.lines(&format!("SELECT place FROM {table} ORDER BY place"))
}

fn a_load_killed_at_any_moment_happened_as_a_whole_or_not(sandbox: &Sandbox) {
    let write = |version: u32| {
        // Each version has a key that no column takes.
        let events = many_events(EVENTS, &format!("v{version}")).replacen('{', &format!("{{\"k{version:02}\":1,"), 1);
        sandbox.write_events("x.jsonl", events + "{}\n")
    };
    let load = ["load", "--dataset", "events"];
    write(0);
    sandbox.run(load).code(3);
    let started = Instant::now();
    sandbox.run(load).code(3);
    let duration = started.elapsed();
    let (mut version, mut loads, mut keys) = (0, 2, vec!["k00".to_owned()]);
    assert_eq!(state_of(sandbox), state(version, loads));

    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for kill in 0..KILLS {
        write(kill + 1);
        // Each moment at random within a slice of its own, so that they cover the load from its start to beyond its end.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let part = f64::from(kill) + f64::from(u32::try_from(random >> 32).expect("32 bits")) / f64::from(u32::MAX);
        let moment = duration.mul_f64(1.2 * part / f64::from(KILLS));
        let mut background = sandbox.spawn(load);
        std::thread::sleep(moment.max(Duration::from_millis(1)));
        if background.is_running() {
            background.signal(Signal::Kill);
        }
        background.wait();
        sandbox.wait_until_the_kill_is_noticed();
        let found = state_of(sandbox);
        if found == state(kill + 1, loads + 1) {
            (version, loads) = (kill + 1, loads + 1);
            keys.push(format!("k{version:02}"));
        }
        assert_eq!(found, state(version, loads), "killed after {moment:?} of {duration:?}");
        assert_eq!(noted_keys(sandbox), keys, "killed after {moment:?} of {duration:?}");
    }
    sandbox.run(["model", "--check"]).ok();
    sandbox.run(load).code(3);
    assert_eq!(state_of(sandbox), state(KILLS, loads + 1));
}
