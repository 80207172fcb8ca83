//! Measures the stream over RabbitMQ, compared with the stream in one process.

use std::path::Path;
use std::slice;
use std::time::Instant;

use crate::Result;
use crate::bench::{Bench, POLL_INTERVAL};
use crate::broker::{Broker, PREFIX};
use crate::latency::{ALL, DROPS, drop_files, small_file};
use crate::process::Running;
use crate::server::OURS;
use crate::stream::{LOADED, run_once};
use crate::table::{Measure, Row, median, percentile};

/// One in this many events is published as a separate message.
const FOREIGN_SHARE: u64 = 5;
const FOREIGN_PER_SECOND: Measure = Measure::PerSecond(8_000.0);
/// The number of producers, and the number of consumers.
const WORKERS: usize = 4;

fn start(bench: &Bench, role: &str, inbox: &Path, more: &[&str]) -> Result<Running> {
    let args = ["--transport", "amqp", "--queue-prefix", PREFIX, "--role", role];
    bench.start_run(inbox, &[&args, more].concat())
}

/// Measures one file through producer and consumer, through the producer alone, and from the queue by one and by two consumers.
pub fn throughput(bench: &Bench) -> Result<Vec<Row>> {
    let file = slice::from_ref(&bench.json);
    let broker = Broker::connect(&bench.runtime)?;
    let (mut inproc, mut both, mut published, mut one, mut two) = (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..bench.runs {
        inproc.push(run_once(bench, file)?.committed);

        bench.fresh_database()?;
        let inbox = bench.inbox(file)?;
        let mut observer = bench.observe(POLL_INTERVAL)?;
        let begin = Instant::now();
        let mut processes = [start(bench, "consumer", &inbox, &[])?, start(bench, "producer", &inbox, &["--once"])?];
        let committed = observer.wait_for(LOADED, 1, &mut processes)?;
        both.push((committed - begin).as_secs_f64());
        let [mut consumer, mut producer] = processes;
        producer.wait()?;
        consumer.stop()?;
        bench.server.expect_events(OURS, "raw.events", bench.events)?;

        for (consumers, times) in [(1, &mut one), (2, &mut two)] {
            broker.clear()?;
            let inbox = bench.inbox(file)?;
            let begin = Instant::now();
            start(bench, "producer", &inbox, &["--once"])?.wait()?;
            published.push(begin.elapsed().as_secs_f64());
            times.push(consume(bench, consumers)?);
        }
        broker.clear()?;
    }
    let inproc = median(&inproc);
    Ok(vec![
        Row::ratio("amqp, producer and consumer", median(&both), "one process", inproc, 1.7),
        Row::ratio("amqp, publish alone", median(&published), "one process", inproc, 1.2),
        Row::ratio("amqp, two consumers", median(&two), "one consumer", median(&one), 1.0),
    ])
}

/// Loads the one file that is in the queues; returns the seconds until its last row is committed.
fn consume(bench: &Bench, consumers: usize) -> Result<f64> {
    bench.fresh_database()?;
    let inbox = bench.inbox(&[])?;
    let mut observer = bench.observe(POLL_INTERVAL)?;
    let begin = Instant::now();
    let mut processes = (0..consumers).map(|_| start(bench, "consumer", &inbox, &[])).collect::<Result<Vec<_>>>()?;
    let committed = observer.wait_for(LOADED, 1, &mut processes)?;
    processes.iter_mut().try_for_each(Running::stop)?;
    bench.server.expect_events(OURS, "raw.events", bench.events)?;
    Ok((committed - begin).as_secs_f64())
}

/// Measures several producers that share an inbox, with several consumers that share a queue. All events must arrive.
pub fn many(bench: &Bench) -> Result<Vec<Row>> {
    let files = bench.small_files()?;
    let broker = Broker::connect(&bench.runtime)?;
    bench.fresh_database()?;
    let inbox = bench.inbox(files)?;
    let mut observer = bench.observe(POLL_INTERVAL)?;
    let begin = Instant::now();
    let mut processes = (0..WORKERS).map(|_| start(bench, "consumer", &inbox, &[])).collect::<Result<Vec<_>>>()?;
    for _ in 0..WORKERS {
        processes.push(start(bench, "producer", &inbox, &["--once"])?);
    }
    let committed = observer.wait_for(LOADED, i64::try_from(files.len())?, &mut processes)?;
    let mut producers = processes.split_off(WORKERS);
    producers.iter_mut().try_for_each(Running::wait)?;
    processes.iter_mut().try_for_each(Running::stop)?;
    drop(broker);
    bench.server.expect_events(OURS, "raw.events", bench.events)?;
    let name = format!("amqp, {WORKERS} producers, {WORKERS} consumers");
    Ok(vec![Row::figure(name, Measure::Seconds((committed - begin).as_secs_f64()))])
}

/// Measures drops into an otherwise idle pipeline.
pub fn drops(bench: &Bench) -> Result<Vec<Row>> {
    let _broker = Broker::connect(&bench.runtime)?;
    bench.fresh_database()?;
    let inbox = bench.inbox(&[])?;
    let mut processes = [start(bench, "producer", &inbox, &[])?, start(bench, "consumer", &inbox, &[])?];
    let visible = drop_files(bench, &inbox, &mut processes, DROPS, &ALL, small_file)?.visible;
    processes.iter_mut().try_for_each(Running::stop)?;
    let ms = Measure::Milliseconds;
    Ok(vec![
        Row::at_most("amqp, drop to visible, median", ms(median(&visible)), ms(0.050)),
        Row::figure("amqp, drop to visible, 99 %", ms(percentile(&visible, 99))),
    ])
}

/// Measures another program's messages, one event each, from the first publish to the last commit, without and with message
/// ids.
pub fn foreign(bench: &Bench) -> Result<Vec<Row>> {
    let count = (bench.events / FOREIGN_SHARE).max(1);
    let records = bench.records(usize::try_from(count)?)?;
    let mut rows = vec![];
    for (name, with_id) in [("amqp, one event per message", false), ("amqp, the same with message_id", true)] {
        let mut rates = vec![];
        for _ in 0..bench.runs {
            let broker = Broker::connect(&bench.runtime)?;
            bench.fresh_database()?;
            let mut observer = bench.observe(POLL_INTERVAL)?;
            let mut consumer = start(bench, "consumer", &bench.inbox(&[])?, &[])?;
            broker.wait_for_consumer()?;
            let begin = Instant::now();
            let publishing = broker.publish(records.clone(), with_id)?;
            let booked = "select coalesce(sum(rows_loaded), 0)::bigint from raw.loads";
            let committed = observer.wait_for(booked, i64::try_from(count)?, slice::from_mut(&mut consumer))?;
            broker.finish(publishing)?;
            consumer.stop()?;
            bench.server.expect_events(OURS, "raw.events", count)?;
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            rates.push(count as f64 / (committed - begin).as_secs_f64());
        }
        rows.push(Row::at_least(name, Measure::PerSecond(median(&rates)), FOREIGN_PER_SECOND));
    }
    Ok(rows)
}
