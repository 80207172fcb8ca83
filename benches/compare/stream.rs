//! Measures the stream in one process: throughput of `run` and its memory.

use std::fs::File;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::batch::COPY_CSV;
use crate::bench::{Bench, POLL_INTERVAL, peer_script};
use crate::process::Measured;
use crate::server::{OURS, Observer, PEER, PrivateServer};
use crate::table::{Measure, Row, median};

/// The number of loaded files. The commit of a file's last rows also sets this status.
pub const LOADED: &str = "select count(*) from raw.loads where status = 'loaded'";
const OUTAGE: Duration = Duration::from_secs(60);
const MEMORY: Measure = Measure::Megabytes(100_000_000);

/// Measures one file, then the same events as many files, compared with `\copy` into a table with the same index. Then it
/// compares the refresh of the models.
pub fn throughput(bench: &Bench) -> Result<Vec<Row>> {
    let small = bench.small_files()?;
    let (mut one, mut many, mut copies) = (vec![], vec![], vec![]);
    let (mut refreshes, mut models) = (vec![], vec![]);
    for _ in 0..bench.runs {
        let Times { committed, refreshed } = run_once(bench, slice::from_ref(&bench.json))?;
        one.push(committed);
        refreshes.push(refreshed);

        bench.server.recreate(PEER)?;
        let mut psql = bench.server.psql(PEER);
        psql.arg("-f").arg(peer_script("load_tables.sql")).args(["-c", "create index on events ((received_at::date))"]).timed()?;
        bench.server.checkpoint()?;
        copies.push(bench.server.psql(PEER).args(["-c", COPY_CSV]).stdin(File::open(&bench.csv)?).timed()?);
        bench.server.expect_events(PEER, "events", bench.events)?;
        bench.server.psql(PEER).args(["-c", "analyze events"]).timed()?;
        let settings = ["-c", "set work_mem = '256MB'", "-c", "set jit = off", "-c", "begin", "-f"];
        models.push(bench.server.psql(PEER).args(settings).arg(peer_script("model.sql")).args(["-c", "commit"]).timed()?);

        many.push(run_once(bench, small)?.committed);
    }
    let files = format!("stream, {} files", small.len());
    Ok(vec![
        Row::ratio("stream, one file", median(&one), r"psql \copy of CSV", median(&copies), 1.3),
        Row::ratio("stream, model after it", median(&refreshes), "psql queries", median(&models), 0.6),
        Row::ratio(files, median(&many), "one file", median(&one), 1.3),
    ])
}

/// Measures what watching costs: one file in turn without HTTP, and with it while the metrics are read every second and a page
/// is open.
pub fn watched(bench: &Bench) -> Result<Vec<Row>> {
    let (mut alone, mut watched) = (vec![], vec![]);
    for _ in 0..bench.runs {
        alone.push(run_once(bench, slice::from_ref(&bench.json))?.committed);
        // Freed at once, and very likely still free when the program binds it.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let ended = AtomicBool::new(false);
        let times = thread::scope(|scope| {
            scope.spawn(|| look_at(address, "/api/live", &ended));
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    look_at(address, "/metrics", &ended);
                    thread::sleep(Duration::from_secs(1));
                }
            });
            let times = run_with(bench, slice::from_ref(&bench.json), &["--http", &address.to_string()]);
            ended.store(true, Ordering::Relaxed);
            times
        })?;
        watched.push(times.committed);
    }
    Ok(vec![Row::ratio("stream, watched over HTTP", median(&watched), "without HTTP", median(&alone), 1.05)])
}

/// Reads an answer to its end. Tries until the server is there.
fn look_at(address: SocketAddr, path: &str, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        if let Ok(mut server) = TcpStream::connect(address) {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
            // The stream of events ends with the program, in whatever way.
            drop(server.write_all(request.as_bytes()).and_then(|()| io::copy(&mut server, &mut io::sink())));
            return;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Durations in seconds.
pub struct Times {
    /// From the start of the process until another connection sees the last row.
    pub committed: f64,
    /// From then to the end of the process. In this time the process refreshes all days.
    pub refreshed: f64,
}

/// Runs `run --once` with these files, which contain all the events, into an empty database.
pub fn run_once(bench: &Bench, files: &[PathBuf]) -> Result<Times> {
    run_with(bench, files, &[])
}

fn run_with(bench: &Bench, files: &[PathBuf], args: &[&str]) -> Result<Times> {
    bench.fresh_database()?;
    let inbox = bench.inbox(files)?;
    let mut observer = bench.observe(POLL_INTERVAL)?;
    let start = Instant::now();
    let mut run = bench.start_run(&inbox, &[&["--once"], args].concat())?;
    let committed = observer.wait_for(LOADED, i64::try_from(files.len())?, slice::from_mut(&mut run))?;
    run.wait()?;
    let refreshed = committed.elapsed().as_secs_f64();
    bench.server.expect_events(OURS, "raw.events", bench.events)?;
    Ok(Times { committed: (committed - start).as_secs_f64(), refreshed })
}

/// Measures the peak memory of `run` with one large array.
pub fn memory(bench: &Bench) -> Result<Vec<Row>> {
    bench.fresh_database()?;
    let inbox = bench.inbox(&[bench.large_file()?.to_owned()])?;
    let peak = bench.dataloader(&bench.server.url(OURS), &["run", "--once", "--inbox"]).arg(inbox).peak_memory()?;
    bench.server.expect_events(OURS, "raw.events", bench.large_events())?;
    Ok(vec![Row::at_most("stream, memory, 3 GB array", Measure::Megabytes(peak), MEMORY)])
}

/// Measures the same on a server of its own, which is down for a minute in the middle.
pub fn outage(bench: &Bench) -> Result<Vec<Row>> {
    let postgres = PrivateServer::start()?;
    let url = postgres.server.url(OURS);
    bench.fresh_database_on(&postgres.server)?;
    let inbox = bench.inbox(&[bench.large_file()?.to_owned()])?;
    let observe = || Observer::new(&bench.runtime, &url, POLL_INTERVAL);

    let mut run = bench.start_run_on(&url, &inbox, &[])?;
    observe()?.wait_for("select count(*) from raw.batches", 1, slice::from_mut(&mut run))?;
    postgres.stop()?;
    thread::sleep(OUTAGE);
    postgres.restart()?;
    let mut observer = observe()?;
    if observer.int(LOADED)? != 0 {
        return Err("the file was loaded before the database went away: DATALOADER_BENCH_EVENTS is too small".into());
    }
    observer.wait_for(LOADED, 1, slice::from_mut(&mut run))?;
    let peak = run.peak_memory()?;
    run.stop()?;
    postgres.server.expect_events(OURS, "raw.events", bench.large_events())?;
    Ok(vec![Row::at_most("stream, memory, database away", Measure::Megabytes(peak), MEMORY)])
}
