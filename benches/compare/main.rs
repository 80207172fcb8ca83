//! Compares the program with the usual tools, in one run on one machine: `./run.sh bench`.
//!
//! The benches need `psql`, `sqlite3`, and a private PostgreSQL server in `DATABASE_URL`. Its user must be allowed to create
//! databases and to run `CHECKPOINT`. The `amqp` benches also need a private RabbitMQ server in `AMQP_URL`. Arguments select
//! measurements by the beginning of their names. `DATALOADER_BENCH_EVENTS` and `DATALOADER_BENCH_RUNS` can make a run quicker;
//! only figures with the default values are comparable.

use std::error::Error;
use std::process::ExitCode;

mod bench; // shared by all: files, the server, the program's command lines
mod process; // processes under measurement
mod server; // PostgreSQL
mod broker; // RabbitMQ

mod batch; // `load`
mod stream; // `run` in one process
mod latency; // small files
mod amqp; // `run` over RabbitMQ

mod table; // rows of figures and targets, printed as they arrive

use bench::Bench;
use table::Row;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A measurement that returns rows of the table.
type Measurement = fn(&Bench) -> Result<Vec<Row>>;

const MEASUREMENTS: [(&str, Measurement); 19] = [
    ("load", batch::load),
    ("load-sqlite", batch::load_sqlite),
    ("load-memory", batch::memory),
    ("load-new", batch::load_new),
    ("load-few", batch::load_few),
    ("raw", batch::raw),
    ("help", batch::help),
    ("size", batch::size),
    ("stream", stream::throughput),
    ("stream-watched", stream::watched),
    ("stream-memory", stream::memory),
    ("stream-outage", stream::outage),
    ("latency", latency::drops),
    ("latency-history", latency::history),
    ("latency-growth", latency::growth),
    ("amqp", amqp::throughput),
    ("amqp-many", amqp::many),
    ("amqp-latency", amqp::drops),
    ("amqp-foreign", amqp::foreign),
];

fn main() -> ExitCode {
    // `cargo bench` adds `--bench`.
    let chosen: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    match run(&chosen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(chosen: &[String]) -> Result<()> {
    if let Some(unknown) = chosen.iter().find(|c| !MEASUREMENTS.iter().any(|(name, _)| name.starts_with(c.as_str()))) {
        let names = MEASUREMENTS.map(|(name, _)| name).join(", ");
        return Err(format!("no measurement begins with {unknown}: there are {names}").into());
    }
    let bench = Bench::prepare()?;
    println!("{} events, medians of {}\n\n{}", bench.events, bench.runs, table::HEADER);
    for (name, measure) in MEASUREMENTS {
        if !chosen.is_empty() && !chosen.iter().any(|c| name.starts_with(c.as_str())) {
            continue;
        }
        if name.starts_with("amqp") && std::env::var_os("AMQP_URL").is_none() {
            println!("{name:<34} not measured: AMQP_URL is not set");
            continue;
        }
        for row in measure(&bench).map_err(|e| format!("{name}: {e}"))? {
            println!("{row}");
        }
    }
    Ok(())
}
