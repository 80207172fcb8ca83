//! Measures `load`, compared with scripts for psql and sqlite3.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use dataloader::batch::extract::{Extracted, Extraction, extract};
use dataloader::batch::input::Input;
use dataloader::config::{Config, DatabaseUrl, Settings};
use dataloader::record::parse::DayRange;
use dataloader::retry::GIVE_UP_AFTER;
use dataloader::store::{Appender, Database, RawTable};

use crate::Result;
use crate::bench::{Bench, DATALOADER, peer_script};
use crate::process::Measured;
use crate::server::{OURS, PEER};
use crate::table::{Measure, Row, median};

/// The command of every batch row. The other datasets have no files here.
const LOAD: [&str; 5] = ["load", "--dataset", "events", "--format", "json"];
const HELP_RUNS: usize = 20;

/// Measures `load` into an empty master and into a master with the same rows. The psql script is measured in the same states.
pub fn load(bench: &Bench) -> Result<Vec<Row>> {
    let (mut ours, mut peers) = ([vec![], vec![]], [vec![], vec![]]);
    for _ in 0..bench.runs {
        bench.fresh_database()?;
        for times in &mut ours {
            bench.server.checkpoint()?;
            times.push(bench.dataloader(&bench.server.url(OURS), &LOAD).timed()?);
        }
        bench.server.expect_events(OURS, "raw.events", bench.events)?;

        bench.server.recreate(PEER)?;
        bench.server.psql(PEER).arg("-f").arg(peer_script("load_tables.sql")).timed()?;
        for times in &mut peers {
            bench.server.checkpoint()?;
            let mut psql = bench.server.psql(PEER);
            times.push(psql.arg("-f").arg(peer_script("load.sql")).stdin(File::open(&bench.csv)?).timed()?);
        }
        bench.server.expect_events(PEER, "events", bench.events)?;
    }
    let ([our_empty, our_same], [peer_empty, peer_same]) = (ours, peers);
    Ok(vec![
        Row::ratio("load, empty master", median(&our_empty), "psql script", median(&peer_empty), 0.6),
        Row::ratio("load, same rows in master", median(&our_same), "psql script", median(&peer_same), 0.6),
    ])
}

/// Measures only split, parse and COPY, compared with psql's `\copy`. Both write one logged table without indexes, each over a
/// new connection.
pub fn raw(bench: &Bench) -> Result<Vec<Row>> {
    let (mut ours, mut peers) = (vec![], vec![]);
    for _ in 0..bench.runs {
        bench.fresh_database()?;
        bench.server.checkpoint()?;
        let start = Instant::now();
        bench.runtime.block_on(copy(&bench.json, &bench.server.url(OURS)))?;
        ours.push(start.elapsed().as_secs_f64());
        bench.server.expect_events(OURS, "raw.events", bench.events)?;

        bench.server.recreate(PEER)?;
        bench.server.psql(PEER).arg("-f").arg(peer_script("load_tables.sql")).timed()?;
        bench.server.checkpoint()?;
        peers.push(bench.server.psql(PEER).args(["-c", COPY_CSV]).stdin(File::open(&bench.csv)?).timed()?);
        bench.server.expect_events(PEER, "events", bench.events)?;
    }
    Ok(vec![Row::ratio("JSON to rows in one table", median(&ours), r"psql \copy of CSV", median(&peers), 0.9)])
}

/// The fastest import of the peers.
pub const COPY_CSV: &str = r"\copy events from pstdin (format csv)";

async fn copy(json: &Path, url: &str) -> Result<()> {
    let flags = Settings { database: Some(DatabaseUrl::parse(url)?), ..Settings::default() };
    let config = Config::load(Some(&Path::new(env!("CARGO_MANIFEST_DIR")).join("dataloader.toml")), flags)?;
    let dataset = config.dataset_named("events")?;
    let database = Database::new(&config.database, GIVE_UP_AFTER)?;
    let (inputs, parsers) = (vec![Input::File(json.to_owned())], config.stream.parsers);
    let how = Extraction { days: DayRange::ALL, dialect: database.dialect(), parsers, zstd_window_mib: 64 };
    let mut extracted = extract(&dataset, inputs, how, &Arc::default());

    let mut connection = database.connect().await?;
    connection.begin().await?;
    let mut appender = Appender::begin(&mut connection, &dataset, RawTable::Master, None).await?;
    while let Some(message) = extracted.recv().await {
        match message {
            Extracted::Chunk(chunk) => appender.push(chunk.rows).await?,
            Extracted::End { .. } => {}
            Extracted::Failed { error, .. } => return Err(error.into()),
        }
    }
    appender.finish().await?;
    connection.commit().await?;
    connection.close().await;
    Ok(())
}

/// Measures `load` into a new SQLite file, compared with the sqlite3 script.
pub fn load_sqlite(bench: &Bench) -> Result<Vec<Row>> {
    let (mut ours, mut peers) = (vec![], vec![]);
    for _ in 0..bench.runs {
        let database = bench.fresh_file("ours.db")?;
        let url = format!("sqlite://{}", database.display());
        bench.dataloader(&url, &["migrate"]).timed()?;
        ours.push(bench.dataloader(&url, &LOAD).timed()?);

        let database = bench.fresh_file("peer.db")?;
        sqlite3(bench, &database, "load_sqlite_tables.sql")?.timed()?;
        peers.push(sqlite3(bench, &database, "load_sqlite.sql")?.timed()?);
    }
    Ok(vec![Row::ratio("load, SQLite", median(&ours), "sqlite3 script", median(&peers), 1.0)])
}

fn sqlite3(bench: &Bench, database: &Path, script: &str) -> Result<Command> {
    let mut command = Command::new("sqlite3");
    command.current_dir(bench.dir.path()).arg("-bail").arg(database).stdin(File::open(peer_script(script))?);
    Ok(command)
}

/// The first small loads prepare the tables for the next ones.
const UNMEASURED_LOADS: usize = 3;

/// Measures what finding the new file costs: `load --new` over small files of which one is new, less the load of one such file.
pub fn load_new(bench: &Bench) -> Result<Vec<Row>> {
    let files = bench.small_files()?;
    let [known @ .., one, new] = files else { return Err("load-new needs more events".into()) };
    let (known, unmeasured) = known.split_at(known.len().saturating_sub(UNMEASURED_LOADS));
    let url = bench.server.url(OURS);
    let mut beyond = vec![];
    for _ in 0..bench.runs {
        let data = bench.dir.path().join("new");
        if data.exists() {
            fs::remove_dir_all(&data)?;
        }
        let link = |file: &Path| fs::hard_link(file, data.join("events").join(file.file_name().unwrap_or_default()));
        fs::create_dir_all(data.join("events"))?;
        known.iter().try_for_each(|file| link(file))?;
        bench.fresh_database()?;
        let load = |args: &[&str]| {
            let mut command = bench.dataloader(&url, &LOAD);
            command.arg("--data-dir").arg(&data).args(args);
            command
        };
        load(&[]).timed()?;
        for file in unmeasured {
            load(&[]).arg(file).timed()?;
            link(file)?;
        }
        bench.server.checkpoint()?;
        let one_alone = load(&[]).arg(one).timed()?;
        link(one)?;
        link(new)?;
        bench.server.checkpoint()?;
        beyond.push(load(&["--new"]).timed()? - one_alone);
        bench.server.expect_events(OURS, "raw.events", bench.events)?;
    }
    let name = format!("load --new, 1 of {} files, beyond it", files.len());
    Ok(vec![Row::at_most(&name, Measure::Milliseconds(median(&beyond)), Measure::Milliseconds(0.300))])
}

/// Measures a `load` of two events into masters of different sizes that hold them already.
pub fn load_few(bench: &Bench) -> Result<Vec<Row>> {
    let few = bench.dir.path().join("few.jsonl");
    let mut rows = Vec::new();
    let mut measure = |store: &str, url: &str, events: u64| -> Result<()> {
        let file = bench.events_file("many", events)?;
        bench.dataloader(url, &LOAD).arg(&file).timed()?;
        fs::write(&few, bench.first_records(&file, 2)?.join("\n"))?;
        fs::remove_file(&file)?;
        let mut times = Vec::new();
        for run in 0..UNMEASURED_LOADS + bench.runs {
            let took = bench.dataloader(url, &LOAD).arg(&few).timed()?;
            if run >= UNMEASURED_LOADS {
                times.push(took);
            }
        }
        let name = format!("load of 2 into {} k, {store}", events / 1_000);
        rows.push(Row::at_most(name, Measure::Milliseconds(median(&times)), Measure::Milliseconds(0.050)));
        Ok(())
    };
    for events in [bench.events / 10, bench.events, bench.events * 10] {
        bench.fresh_database()?;
        measure("PostgreSQL", &bench.server.url(OURS), events)?;
    }
    for events in [bench.events / 5, bench.events * 2] {
        let database = bench.fresh_file("few.db")?;
        measure("SQLite", &format!("sqlite://{}", database.display()), events)?;
    }
    Ok(rows)
}

/// Measures the peak memory of `load` with one large array.
pub fn memory(bench: &Bench) -> Result<Vec<Row>> {
    let file = bench.large_file()?;
    bench.fresh_database()?;
    let peak = bench.dataloader(&bench.server.url(OURS), &LOAD).arg(file).peak_memory()?;
    bench.server.expect_events(OURS, "raw.events", bench.large_events())?;
    Ok(vec![Row::at_most("load, memory, 3 GB array", Measure::Megabytes(peak), Measure::Megabytes(100_000_000))])
}

/// Measures how long the program takes to start.
pub fn help(bench: &Bench) -> Result<Vec<Row>> {
    let url = bench.server.url(OURS);
    let times: Result<Vec<_>> = (0..HELP_RUNS).map(|_| bench.dataloader(&url, &["--help"]).timed()).collect();
    Ok(vec![Row::at_most("--help", Measure::Milliseconds(median(&times?)), Measure::Milliseconds(0.010))])
}

/// Measures the size of the binary.
pub fn size(_: &Bench) -> Result<Vec<Row>> {
    let bytes = fs::metadata(DATALOADER)?.len();
    Ok(vec![Row::at_most("binary size", Measure::Megabytes(bytes), Measure::Megabytes(25_000_000))])
}
