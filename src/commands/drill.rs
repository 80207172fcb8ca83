//! `dataloader drill`: tries the promises out. Files are dropped while processes are killed, and then all must be there once.

mod files; // what is dropped
mod processes; // what is killed

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::HumanCount;
use serde::Serialize;
use uuid::Uuid;

use self::files::{Dropped, Files};
use self::processes::{Incidents, Processes};
use super::generate::SplitMix64;
use super::{DIFFERENT, DONE, verify};
use crate::answers::status::{DatasetStatus, status};
use crate::answers::verify::{Scope, Verified, verify};
use crate::config::{Config, DatabaseUrl, Settings, Transport};
use crate::error::{Error, IoContext, Result};
use crate::retry::GIVE_UP_AFTER;
use crate::store::Database;
use crate::terminal::cli::DrillArgs;
use crate::terminal::output::Output;
use crate::transport::amqp;

/// So many moments are the least, however little time there is.
const LEAST_ROUNDS: u32 = 12;

/// What the drill did and found.
#[derive(Debug, Serialize)]
struct Drilled {
    seed: u64,
    seconds: f64,
    dropped: Dropped,
    incidents: Incidents,
    verified: Verified,
    /// What was not as promised, besides the differences that `verified` has.
    findings: Vec<String>,
    /// Where the files and the logs of the processes are, if anything was found.
    directory: Option<PathBuf>,
}

/// Drills on the database that the settings name, and prints what it did and found.
///
/// # Errors
/// If the database has tables, if it or the broker cannot be reached, or if a process cannot be started.
pub async fn run(settings: Settings, args: &DrillArgs, output: Output) -> Result<u8> {
    if settings.database.is_none() {
        return Err(Error::usage("a drill needs a database that was made for it").hint("make one and name it: --database URL"));
    }
    let id = Uuid::new_v4();
    let directory = std::env::temp_dir().join(format!("dataloader-drill-{}", id.simple()));
    let config = config(settings, &directory, id)?;
    refuse_a_used_database(&config).await?;
    make_directory(&directory)?;
    let seed = args.seed.unwrap_or(id.as_u64_pair().0);
    tracing::info!("drill with seed {seed} on {}, in {}", config.database, directory.display());
    let began = Instant::now();
    let (dropped, incidents, mut findings) = incidents(&config, args, seed, &directory).await?;
    let status = status(&config).await?;
    findings.extend(dropped.compare(&status.datasets));
    let verified = verify(&config, &Scope { datasets: config.datasets.clone(), loads: [].into() }).await?;
    let is_sound = findings.is_empty() && verified.differences.is_empty();
    if is_sound {
        tidy_up(&config, &directory).await?;
    }
    let directory = (!is_sound).then_some(directory);
    let drilled = Drilled { seed, seconds: began.elapsed().as_secs_f64(), dropped, incidents, verified, findings, directory };
    output.result(&drilled, |out| drilled.write(out, &status.datasets))?;
    Ok(if is_sound { DONE } else { DIFFERENT })
}

/// The built-in configuration, with an inbox and queues of the drill's own.
fn config(settings: Settings, directory: &Path, id: Uuid) -> Result<Config> {
    let mut config = Config::built_in(settings)?;
    config.inbox = directory.join("inbox");
    config.queue_prefix = format!("dataloader-drill-{}", id.simple());
    // The processes have another working directory.
    if let DatabaseUrl::Sqlite(file) = &mut config.database {
        *file = std::path::absolute(&*file).cannot("find the working directory")?;
    }
    Ok(config)
}

/// Nothing is touched that the drill did not make.
async fn refuse_a_used_database(config: &Config) -> Result<()> {
    let database = Database::new(&config.database, GIVE_UP_AFTER)?;
    if database.is_untouched().await? {
        return Ok(());
    }
    Err(Error::usage(format!("{database} is in use: a drill touches nothing that it did not make"))
        .hint("give a database that was made for it: a file that is not there yet, or one without the schemas raw, modelled and dataloader"))
}

fn make_directory(directory: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(directory).cannot(format_args!("make {}", directory.display()))
}

/// Drops files and lets things happen to the processes until the time is over; then lets them finish.
async fn incidents(config: &Config, args: &DrillArgs, seed: u64, directory: &Path) -> Result<(Dropped, Incidents, Vec<String>)> {
    let mut random = SplitMix64::new(seed);
    let mut files = Files::new(config, directory);
    let mut processes = Processes::new(config, directory)?;
    let until = Instant::now() + Duration::from_secs(60) * args.minutes;
    let mut round = 0;
    while round < LEAST_ROUNDS || Instant::now() < until {
        processes.replace_the_dead()?;
        files.drop_some(&mut random)?;
        tokio::time::sleep(Duration::from_millis(20 + random.below(600))).await;
        match &args.restart_database {
            Some(command) if round % 5 == 3 => processes.restart_database(command).await?,
            _ => processes.strike(&mut random).await?,
        }
        round += 1;
    }
    processes.finish().await?;
    let (incidents, findings) = processes.into_report();
    Ok((files.dropped, incidents, findings))
}

/// Deletes what is of no more use when all is as promised. The tables stay, to be looked at.
async fn tidy_up(config: &Config, directory: &Path) -> Result<()> {
    if config.transport == Transport::Amqp {
        let topology = amqp::topology::Topology::new(&config.queue_prefix, &config.datasets)?.with_queues(config.queues);
        topology.delete(&amqp::connection::Broker::new(&config.amqp_url)?).await?;
    }
    std::fs::remove_dir_all(directory).cannot(format_args!("remove {}", directory.display()))
}

impl Drilled {
    /// Writes the text output.
    fn write(&self, out: &mut dyn Write, found: &[DatasetStatus]) -> io::Result<()> {
        let Self { seed, seconds, dropped, incidents, verified, findings, directory } = self;
        writeln!(out, "drilled for {seconds:.0} s with seed {seed}")?;
        let all = |number: fn(&DatasetStatus) -> i64| HumanCount(found.iter().map(number).sum::<i64>().unsigned_abs());
        writeln!(
            out,
            "dropped {} files with {} records, {} of them not loadable",
            HumanCount(dropped.files()),
            HumanCount(dropped.records()),
            HumanCount(dropped.not_loadable())
        )?;
        writeln!(out, "{incidents}")?;
        writeln!(
            out,
            "in the ledger: {} files, {} records read, {} loaded, {} rejected",
            all(|dataset| dataset.files),
            all(|dataset| dataset.read),
            all(|dataset| dataset.loaded),
            all(|dataset| dataset.rejected)
        )?;
        verify::write(verified, out)?;
        findings.iter().try_for_each(|finding| writeln!(out, "NOT AS PROMISED {finding}"))?;
        match directory {
            None => writeln!(out, "every record is there exactly once"),
            Some(directory) => writeln!(out, "files and logs are kept in {}", directory.display()),
        }
    }
}
