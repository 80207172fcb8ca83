//! The main job on the repository's samples: `load`, the daily totals, `load` again. The expected figures were counted apart
//! from the program.

use crate::support::{Sandbox, on_both_stores, write_samples};

on_both_stores!(
    the_sample_gives_its_daily_totals,
    loading_again_changes_nothing,
    loading_one_day_again_changes_nothing_else,
    one_day_alone_is_a_part_of_all,
    the_load_prints_what_it_did_and_the_totals,
    the_report_shows_the_modelled_tables,
);

const BY_DATE: [&str; 7] = [
    "2024-02-26|3|3|3",
    "2024-02-27|6|6|6",
    "2024-02-28|9|9|8",
    "2024-02-29|14|13|12",
    "2024-03-01|9|9|6",
    "2024-03-02|5|5|5",
    "2024-03-03|4|4|4",
];

const BY_USER_TYPE: [&str; 21] = [
    "2024-02-26|Admin|3|3|3",
    "2024-02-27||1|1|1",
    "2024-02-27|Admin|2|2|2",
    "2024-02-27|Creator|1|1|1",
    "2024-02-27|User|2|2|2",
    "2024-02-28|Admin|3|3|3",
    "2024-02-28|Creator|3|3|3",
    "2024-02-28|User|3|3|3",
    "2024-02-29|Admin|3|3|3",
    "2024-02-29|Creator|4|3|2",
    "2024-02-29|User|7|7|7",
    "2024-03-01||1|1|1",
    "2024-03-01|Admin|2|2|2",
    "2024-03-01|Creator|5|5|2",
    "2024-03-01|User|1|1|1",
    "2024-03-02|Admin|1|1|1",
    "2024-03-02|Creator|1|1|1",
    "2024-03-02|User|3|3|3",
    "2024-03-03|Admin|2|2|2",
    "2024-03-03|Creator|1|1|1",
    "2024-03-03|User|1|1|1",
];

/// Those of the two days that hold a null, repeated users and an event that is there twice, without the days before and after.
const BY_ORGANIZATION: [&str; 18] = [
    "2024-02-28|NULL|1|1|1",
    "2024-02-28|Copper\tKettle Works|1|1|1",
    "2024-02-28|Käsmann & Töchter|2|2|2",
    "2024-02-28|Sal's Bicycle Repairs|1|1|1",
    "2024-02-28|The \"Quiet\" Orchestra|2|2|1",
    "2024-02-28|Tidewrack Surveying, Ltd.|1|1|1",
    "2024-02-28|月見そば 製作所|1|1|1",
    "2024-02-29|Brambleway Bakery|1|1|1",
    "2024-02-29|Copper\tKettle Works|1|1|1",
    "2024-02-29|Fundação Maré Alta|1|1|1",
    "2024-02-29|Kvist, Alm og Døtre|1|1|1",
    "2024-02-29|Lumen \\ Loom|1|1|1",
    "2024-02-29|Nine Acre Nursery|1|1|1",
    "2024-02-29|Owl & Anchor 24/7|2|2|2",
    "2024-02-29|Papierdrachen|3|2|1",
    "2024-02-29|Snowfinch Outfitters|1|1|1",
    "2024-02-29|Çınaraltı Kitabevi|1|1|1",
    "2024-02-29|Οίκος Ελιάς|1|1|1",
];

/// `received_at, organization_name, user_type`, then the totals of the day, its users, of the organisation, of the user type.
const FACTS_OF_A_DAY: [&str; 9] = [
    "2024-02-28|NULL|User|9|8|1|3",
    "2024-02-28|Copper\tKettle Works|User|9|8|1|3",
    "2024-02-28|Käsmann & Töchter|Admin|9|8|2|3",
    "2024-02-28|Käsmann & Töchter|User|9|8|2|3",
    "2024-02-28|Sal's Bicycle Repairs|Admin|9|8|1|3",
    "2024-02-28|The \"Quiet\" Orchestra|Admin|9|8|2|3",
    "2024-02-28|The \"Quiet\" Orchestra|Creator|9|8|2|3",
    "2024-02-28|Tidewrack Surveying, Ltd.|Creator|9|8|1|3",
    "2024-02-28|月見そば 製作所|Creator|9|8|1|3",
];

/// Compares rows without regard to their order, which is a matter of each store's collation.
#[track_caller]
fn assert_rows(sandbox: &Sandbox, sql: &str, expected: &[&str]) {
    let (mut rows, mut expected) = (sandbox.lines(sql), expected.to_vec());
    rows.sort();
    expected.sort_unstable();
    assert_eq!(rows, expected);
}

#[track_caller]
fn assert_sample_is_modelled(sandbox: &Sandbox) {
    assert_eq!(sandbox.count("raw.events"), 50);
    assert_eq!(sandbox.count("raw.orgs"), 20);
    let by_date = "SELECT date, total_events, unique_events, unique_users FROM {modelled.events_by_date} ORDER BY 1";
    assert_eq!(sandbox.lines(by_date), BY_DATE);
    let by_type = "SELECT date, user_type, total_events, unique_events, unique_users FROM {modelled.events_by_date_user_type}";
    assert_rows(sandbox, by_type, &BY_USER_TYPE);
    let by_organization = "SELECT date, organization_name, total_events, unique_events, unique_users \
                           FROM {modelled.events_by_date_organization_name}";
    assert_rows(sandbox, &format!("{by_organization} WHERE date IN ('2024-02-28', '2024-02-29')"), &BY_ORGANIZATION);
    assert_eq!(sandbox.count("modelled.events_by_date_organization_name"), 41);
    let facts = "SELECT received_at, organization_name, user_type, total_events_by_date, total_events_by_date_unique_users, \
                 total_events_by_date_by_org, total_events_by_date_by_usertype FROM {modelled.fact_events}";
    assert_rows(sandbox, &format!("{facts} WHERE received_at = '2024-02-28'"), &FACTS_OF_A_DAY);
    assert_eq!(sandbox.count("modelled.fact_events"), 45);
    sandbox.run(["model", "--check"]).ok();
}

fn the_sample_gives_its_daily_totals(sandbox: &Sandbox) {
    write_samples(sandbox);
    sandbox.run(["load"]).ok();
    assert_sample_is_modelled(sandbox);
    assert_eq!(sandbox.count("raw.events_delta"), 50);
    let odd = "SELECT username, organization_name, plan_name, received_at, _extra FROM {raw.events} WHERE id LIKE '640cb2ad%' \
               ORDER BY received_at";
    let expected = [
        "Pim\tde Vries|Copper\tKettle Works|Small|2024-02-28 07:45:00.000000|NULL",
        "Pim\tde Vries|Copper\tKettle Works|Small|2024-02-29 11:30:30.303030|NULL",
    ];
    assert_eq!(sandbox.lines(odd), expected);
}

fn loading_again_changes_nothing(sandbox: &Sandbox) {
    write_samples(sandbox);
    sandbox.run(["load"]).ok();
    let again = sandbox.run(["load", "--format", "json"]).ok().json();
    assert_eq!(again["datasets"][0]["replaced"], 50);
    assert_eq!(again["datasets"][1]["replaced"], 20);
    assert_sample_is_modelled(sandbox);
    assert_eq!(sandbox.count("raw.events_delta"), 50);
}

fn loading_one_day_again_changes_nothing_else(sandbox: &Sandbox) {
    write_samples(sandbox);
    sandbox.run(["load"]).ok();
    let day = sandbox.run(["load", "--date", "2024-02-29", "--format", "json"]).ok().json();
    let events = &day["datasets"][0];
    assert_eq!((events["read"].as_u64(), events["loaded"].as_u64(), events["skipped"].as_u64()), (Some(50), Some(14), Some(36)));
    assert_eq!(day["datasets"][1]["loaded"], 20, "organisations are loaded in full either way");
    assert_sample_is_modelled(sandbox);
    assert_eq!(sandbox.lines("SELECT count(*), min(received_at) >= '2024-02-29' FROM {raw.events_delta}"), ["14|1"]);
}

fn one_day_alone_is_a_part_of_all(sandbox: &Sandbox) {
    write_samples(sandbox);
    sandbox.run(["load", "--date", "2024-02-29"]).ok();
    assert_eq!(sandbox.count("raw.events"), 14);
    assert_eq!(sandbox.lines("SELECT date, total_events FROM {modelled.events_by_date}"), ["2024-02-29|14"]);
    sandbox.run(["load", "--from", "2024-02-26", "--to", "2024-02-28"]).ok();
    assert_eq!(sandbox.count("raw.events"), 32);
    sandbox.run(["load", "--from", "2024-03-01", "--to", "2024-03-31"]).ok();
    assert_sample_is_modelled(sandbox);
}

fn the_load_prints_what_it_did_and_the_totals(sandbox: &Sandbox) {
    write_samples(sandbox);
    let outcome = sandbox.run(["load"]).ok();
    let words: Vec<Vec<&str>> = outcome.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(words.contains(&vec!["events", "1", "50", "50", "0", "0", "0"]), "{}", outcome.stdout);
    assert!(words.contains(&vec!["2024-02-29", "14", "13", "12"]), "{}", outcome.stdout);
}

fn the_report_shows_the_modelled_tables(sandbox: &Sandbox) {
    write_samples(sandbox);
    sandbox.run(["load"]).ok();
    let report = sandbox.run(["report", "--format", "json", "--dataset", "events"]).ok().json();
    let tables = report["datasets"][0]["tables"].as_array().expect("the tables of events");
    let names: Vec<_> = tables.iter().map(|table| table["table"].as_str().unwrap_or_default()).collect();
    assert_eq!(names, ["events_by_date", "events_by_date_organization_name", "events_by_date_user_type"]);
    let first = serde_json::json!({"date": "2024-02-26", "total_events": 3, "unique_events": 3, "unique_users": 3});
    assert_eq!(tables[0]["rows"][0], first);
    let text = sandbox.run(["report"]).ok().stdout;
    assert!(text.contains("modelled.events_by_date_user_type") && text.contains("月見そば 製作所"), "{text}");
}
