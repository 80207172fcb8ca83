//! Measures how long a small file takes from the inbox to the tables.

use std::fs;
use std::path::Path;
use std::slice;
use std::time::{Duration, Instant};

use dataloader::commands::generate::generate;
use dataloader::config::{Config, DatabaseUrl, Settings};
use dataloader::retry::GIVE_UP_AFTER;
use dataloader::store::model::{self, Days};
use dataloader::store::{Database, Day};

use crate::Result;
use crate::bench::Bench;
use crate::process::{Measured, Running};
use crate::server::OURS;
use crate::table::{Measure, Row, median, percentile};

/// The interval between two queries. It can only make a measured latency longer.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
pub const DROPS: u64 = 200;
/// The history has this many times the events, spread over `HISTORY_DAYS` days.
const HISTORY: u64 = 10;
const HISTORY_DAYS: u64 = 1_000;
const HISTORY_DROPS: u64 = 50;
/// The day of the history that the drops change.
const CHANGED_DAY: &str = "2021-05-15";
const FILE_EVENTS: u64 = 36;
const MODELLED: Measure = Measure::Milliseconds(0.300);

/// The results to wait for after each drop. Each query returns a number of events.
pub struct Watched<'a> {
    raw: &'a str,
    modelled: &'a str,
}

/// All events of small tables.
pub const ALL: Watched<'_> = Watched {
    raw: "select count(*) from raw.events",
    modelled: "select coalesce(sum(total_events), 0)::bigint from modelled.events_by_date",
};

/// The seconds of each drop, from the rename into the inbox until another connection sees the result.
pub struct Latencies {
    pub visible: Vec<f64>,
    pub modelled: Vec<f64>,
}

/// Drops files one by one, each after the previous one is modelled. `file` returns the text of each. The first drop is not
/// measured.
pub fn drop_files(
    bench: &Bench,
    inbox: &Path,
    pipeline: &mut [Running],
    drops: u64,
    watched: &Watched<'_>,
    file: impl Fn(u64) -> Result<Vec<u8>>,
) -> Result<Latencies> {
    let mut observer = bench.observe(POLL_INTERVAL)?;
    let mut latencies = Latencies { visible: vec![], modelled: vec![] };
    let written = bench.dir.path().join("drop.json");
    for i in 0..=drops {
        let (raw, modelled) = (observer.int(watched.raw)?, observer.int(watched.modelled)?);
        fs::write(&written, file(i)?)?;
        let start = Instant::now();
        fs::rename(&written, inbox.join(format!("events/drop-{i}.json")))?;
        let events = i64::try_from(FILE_EVENTS)?;
        let visible = observer.wait_for(watched.raw, raw + events, pipeline)?;
        let modelled = observer.wait_for(watched.modelled, modelled + events, pipeline)?;
        // The first drop also waits for the pipeline to start.
        if i > 0 {
            latencies.visible.push((visible - start).as_secs_f64());
            latencies.modelled.push((modelled - start).as_secs_f64());
        }
    }
    Ok(latencies)
}

/// A small file whose events are on all days of a month.
pub fn small_file(seed: u64) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    generate(FILE_EVENTS, seed, &mut text)?;
    Ok(text)
}

/// Measures drops into an otherwise idle pipeline.
pub fn drops(bench: &Bench) -> Result<Vec<Row>> {
    bench.fresh_database()?;
    let inbox = bench.inbox(&[])?;
    let mut run = bench.start_run(&inbox, &[])?;
    let Latencies { visible, modelled } = drop_files(bench, &inbox, slice::from_mut(&mut run), DROPS, &ALL, small_file)?;
    run.stop()?;
    let ms = Measure::Milliseconds;
    Ok(vec![
        Row::at_most("drop to visible, median", ms(median(&visible)), ms(0.025)),
        Row::at_most("drop to visible, 99 %", ms(percentile(&visible, 99)), ms(0.100)),
        Row::at_most("drop to modelled, 99 %", ms(percentile(&modelled, 99)), MODELLED),
    ])
}

/// Measures drops on one day of a long history, and the time to model that day.
pub fn history(bench: &Bench) -> Result<Vec<Row>> {
    let url = bench.server.url(OURS);
    bench.fresh_database()?;
    let rows = bench.events * HISTORY;
    bench.server.psql(OURS).args(["-c", &history_rows(rows)]).timed()?;
    let full = bench.dataloader(&url, &["model", "--full"]).timed()?;
    bench.server.psql(OURS).args(["-c", "vacuum analyze"]).timed()?;
    bench.server.checkpoint()?;

    let inbox = bench.inbox(&[])?;
    let mut run = bench.start_run(&inbox, &[])?;
    let raw = format!("select count(*) from raw.events where received_at::date = '{CHANGED_DAY}'");
    let modelled =
        format!("select coalesce(sum(total_events), 0)::bigint from modelled.events_by_date where date = '{CHANGED_DAY}'");
    let watched = Watched { raw: &raw, modelled: &modelled };
    let latencies = drop_files(bench, &inbox, slice::from_mut(&mut run), HISTORY_DROPS, &watched, file_of_changed_day)?;
    run.stop()?;

    let day_rows = bench.observe(POLL_INTERVAL)?.int(&raw)?;
    let refreshes: Result<Vec<_>> = (0..bench.runs).map(|_| bench.runtime.block_on(refresh_changed_day(&url))).collect();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let per_row = median(&refreshes?) / day_rows as f64;
    let millions = rows / 1_000_000;
    Ok(vec![
        Row::at_most(
            format!("drop to modelled, {millions} M rows, 99 %"),
            Measure::Milliseconds(percentile(&latencies.modelled, 99)),
            MODELLED,
        ),
        Row::figure("refresh per row of the day", Measure::Microseconds(per_row)),
        Row::figure(format!("model --full, {millions} M rows"), Measure::Seconds(full)),
    ])
}

/// The first two drops into a large day are recomputed, and build its occurrences.
const GROWTH_DROPS: u64 = 102;
const UNMEASURED: usize = 1;
/// How long, and how often, files are dropped without a pause for the model.
const STREAM_SECONDS: u64 = 60;
const STREAM_INTERVAL: Duration = Duration::from_millis(100);

/// Measures the same drops into one day of ever more rows: the line should be flat.
pub fn growth(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for events in [bench.events / 10, bench.events, bench.events * 5, bench.events * 10] {
        bench.fresh_database()?;
        bench.server.psql(OURS).args(["-c", &day_rows(events)]).timed()?;
        bench.dataloader(&bench.server.url(OURS), &["model", "--full"]).timed()?;
        bench.server.psql(OURS).args(["-c", "vacuum analyze"]).timed()?;
        bench.server.checkpoint()?;
        let inbox = bench.inbox(&[])?;
        let mut run = bench.start_run(&inbox, &[])?;
        let Latencies { modelled, .. } =
            drop_files(bench, &inbox, slice::from_mut(&mut run), GROWTH_DROPS, &ALL, file_of_changed_day)?;
        let thousands = events / 1_000;
        let measured = Measure::Milliseconds(percentile(&modelled[UNMEASURED..], 99));
        rows.push(Row::at_most(format!("drop to modelled, day of {thousands} k, 99 %"), measured, MODELLED));
        if events == bench.events {
            let lag = Measure::Milliseconds(longest_lag(bench, &inbox, slice::from_mut(&mut run))?);
            rows.push(Row::at_most("a drop every 100 ms, longest lag", lag, Measure::Milliseconds(1.0)));
        }
        run.stop()?;
    }
    Ok(rows)
}

/// Drops files at a steady pace, whether they are modelled or not. Returns the seconds that the last to be modelled took.
fn longest_lag(bench: &Bench, inbox: &Path, pipeline: &mut [Running]) -> Result<f64> {
    let mut observer = bench.observe(POLL_INTERVAL)?;
    let before = observer.int(ALL.modelled)?;
    let written = bench.dir.path().join("drop.json");
    let start = Instant::now();
    let mut dropped = Vec::new();
    let (mut modelled, mut longest) = (0, Duration::ZERO);
    while start.elapsed() < Duration::from_secs(STREAM_SECONDS) {
        let number = dropped.len() as u64;
        fs::write(&written, file_of_changed_day(GROWTH_DROPS + 1 + number)?)?;
        fs::rename(&written, inbox.join(format!("events/stream-{number}.json")))?;
        dropped.push(Instant::now());
        let next = start + STREAM_INTERVAL * u32::try_from(dropped.len())?;
        while Instant::now() < next {
            let files = usize::try_from((observer.int(ALL.modelled)? - before) / i64::try_from(FILE_EVENTS)?)?;
            for at in &dropped[modelled..files] {
                longest = longest.max(at.elapsed());
            }
            modelled = files;
            std::thread::sleep(POLL_INTERVAL);
        }
    }
    let all = before + i64::try_from(dropped.len())? * i64::try_from(FILE_EVENTS)?;
    let end = observer.wait_for(ALL.modelled, all, pipeline)?;
    Ok(dropped[modelled..].iter().map(|at| end - *at).fold(longest, Duration::max).as_secs_f64())
}

/// SQL that makes events of one day, and its index.
fn day_rows(rows: u64) -> String {
    let users = (rows / 5).max(1);
    format!(
        r#"insert into raw.events (id, event_type, username, user_email, user_type, organization_name, plan_name, received_at)
        select md5(i::text), (array['User Created', 'User Updated', 'User Deleted'])[1 + i % 3], 'user ' || u,
               'user' || u || '@example.com', (array['Admin', 'User', 'Creator'])[1 + u % 3], 'organization ' || u % 20,
               (array['Small', 'Medium', 'Enterprise'])[1 + u % 4],
               timestamp '{CHANGED_DAY}' + interval '1 second' * (i * 86400.0 / {rows})
        from (select i, i * 7919 % {users} as u from generate_series(0, {rows} - 1::bigint) i) e;
        create index if not exists "events.day" on raw.events ((received_at::date))"#
    )
}

/// SQL that makes events in order of time, as a history grows, with the same number on every day.
fn history_rows(rows: u64) -> String {
    let (users, seconds) = ((rows / 5).max(1), HISTORY_DAYS * 86_400);
    format!(
        r#"insert into raw.events (id, event_type, username, user_email, user_type, organization_name, plan_name, received_at)
        select md5(u::text), (array['User Created', 'User Updated', 'User Deleted'])[1 + i % 3], 'user ' || u,
               'user' || u || '@example.com', (array['Admin', 'User', 'Creator'])[1 + u % 3], 'organization ' || u % 20,
               (array['Small', 'Medium', 'Enterprise'])[1 + u % 4],
               timestamp '2020-01-01' + interval '1 second' * (i * {seconds}.0 / {rows})
        from (select i, i * 7919 % {users} as u from generate_series(0, {rows} - 1::bigint) i) e;
        create index "events.day" on raw.events ((received_at::date))"#
    )
}

fn file_of_changed_day(seed: u64) -> Result<Vec<u8>> {
    let text = String::from_utf8(small_file(seed)?)?;
    let key = r#""received_at": ""#;
    let moved = text.split(key).enumerate().map(|(i, part)| match i {
        0 => part.to_owned(),
        _ => format!("{key}{CHANGED_DAY}{}", &part[CHANGED_DAY.len()..]),
    });
    Ok(moved.collect::<String>().into_bytes())
}

/// Runs only the refresh, as the stream does; returns its seconds.
async fn refresh_changed_day(url: &str) -> Result<f64> {
    let flags = Settings { database: Some(DatabaseUrl::parse(url)?), ..Settings::default() };
    let config = Config::load(Some(&Path::new(env!("CARGO_MANIFEST_DIR")).join("dataloader.toml")), flags)?;
    let dataset = config.dataset_named("events")?;
    let mut connection = Database::new(&config.database, GIVE_UP_AFTER)?.connect().await?;
    let start = Instant::now();
    connection.begin_bulk().await?;
    model::refresh(&mut connection, &dataset, Days::These(Day::parse(CHANGED_DAY).into_iter().collect())).await?;
    connection.commit().await?;
    let seconds = start.elapsed().as_secs_f64();
    connection.close().await;
    Ok(seconds)
}
