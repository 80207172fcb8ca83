//! The command line program: arguments → configuration → command → exit code.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, BufReader};
use std::process::ExitCode;

use dataloader::batch::LoadOptions;
use dataloader::batch::input::Input;
use dataloader::cli::{self, Cli, Command, LoadArgs, ModelArgs, RejectsAction, RejectsArgs};
use dataloader::config::Config;
use dataloader::error::{Error, Result};
use dataloader::output::{self, Format, Output};
use dataloader::patience::GIVE_UP_AFTER;
use dataloader::pipeline::{self, RunOptions};
use dataloader::store::{Database, Indexes};
use dataloader::{drop, generate, health, load, logging, menu, model, rejects, report, signals, status};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::parse(&args) {
        Ok(cli) => cli,
        Err(instead) => return ExitCode::from(cli::explain(&instead, &args)),
    };
    match run(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            Output::new(cli.global.format).error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Everything was done.
const DONE: u8 = 0;
/// A check found a difference.
const DIFFERENT: u8 = 1;
/// No pipeline is alive here, or one is not connected.
const UNHEALTHY: u8 = 1;
/// The work is done, but records were rejected or a file failed.
const REJECTED: u8 = 3;

/// Returns the exit code of a command that did its work.
fn run(cli: &Cli) -> Result<u8> {
    logging::start(cli.global.log_format, cli.global.verbosity())?;
    let config = Config::load(cli.config_file(), cli.settings()?)?;
    tracing::debug!(source = %config.source, database = %config.database, "configuration read");
    let output = Output::new(cli.global.format);
    match &cli.command {
        Command::Load(args) => signals::interruptible(load(&config, args, output)),
        Command::Report(args) => signals::interruptible(async {
            let datasets = config.datasets_named(args.dataset.as_slice())?;
            let report = report::report(&config, &datasets).await?;
            output.result(&report, |out| report.write(out))?;
            Ok(DONE)
        }),
        Command::Status => signals::interruptible(async {
            let status = status::status(&config).await?;
            output.result(&status, |out| status.write(out))?;
            Ok(DONE)
        }),
        Command::Rejects(args) => signals::interruptible(rejects(&config, args, output)),
        Command::Model(args) => signals::interruptible(model(&config, args, output)),
        Command::Menu(_) if output.format() == Format::Json => Err(Error::usage("the menu is for people: it has no --format json")
            .hint("programs use `dataloader load` and `dataloader drop`")),
        Command::Menu(_) => {
            signals::interruptible(menu::run(&config, BufReader::new(io::stdin()), &mut io::stdout()))?;
            Ok(DONE)
        }
        Command::Drop(args) => {
            let dropped = drop::drop_copies(&config, args.file.as_deref(), &args.dataset, args.times)?;
            output.result(&dropped, |out| dropped.write(out))?;
            Ok(DONE)
        }
        Command::Health => {
            let health = health::health()?;
            output.result(&health, |out| writeln!(out, "{health}"))?;
            Ok(if health.healthy { DONE } else { UNHEALTHY })
        }
        Command::Generate(args) => {
            output::stream(|out| generate::generate(args.events, args.seed, out))?;
            Ok(DONE)
        }
        Command::Migrate => signals::interruptible(async {
            Database::new(&config.database, GIVE_UP_AFTER)?.open(&config.datasets, Indexes::MakeOverRows).await?.close().await;
            output.result(&serde_json::json!({ "database": config.database.to_string() }), |out| {
                writeln!(out, "the tables in {} are up to date", config.database)
            })?;
            Ok(DONE)
        }),
        Command::Run(args) => {
            let summary = pipeline::run(&config, RunOptions::new(args.once))?;
            if !args.once {
                return Ok(DONE);
            }
            output.result(&summary, |out| summary.write(out))?;
            Ok(if summary.has_rejects() || summary.has_failures() { REJECTED } else { DONE })
        }
    }
}

async fn load(config: &Config, args: &LoadArgs, output: Output) -> Result<u8> {
    let inputs: Vec<Input> = args.files.iter().map(|file| Input::from_argument(file)).collect();
    let mut sources = BTreeSet::new();
    if let Some(twice) = inputs.iter().find(|input| !sources.insert(input.source())) {
        return Err(Error::usage(format!("{twice} is named twice, so that its records would be loaded twice")));
    }
    let options = LoadOptions {
        inputs: (!inputs.is_empty()).then_some(inputs),
        max_rejects: args.max_rejects,
        dry_run: args.dry_run,
        ..LoadOptions::new(config, config.datasets_named(&args.datasets)?, args.days())?
    };
    let loaded = load::load(config, &options).await?;
    output.result(&loaded.summary, |out| loaded.write(out))?;
    Ok(if loaded.summary.has_rejects() { REJECTED } else { DONE })
}

async fn rejects(config: &Config, args: &RejectsArgs, output: Output) -> Result<u8> {
    let datasets = config.datasets_named(args.dataset.as_slice())?;
    match args.action {
        RejectsAction::List => rejects::list(config, &datasets, output).await?,
        RejectsAction::Export => rejects::export(config, &datasets).await?,
        RejectsAction::Replay => {
            let replay = rejects::replay(config, &datasets).await?;
            output.result(&replay, |out| replay.write(out))?;
        }
    }
    Ok(DONE)
}

async fn model(config: &Config, args: &ModelArgs, output: Output) -> Result<u8> {
    let refreshed = model::refresh(config, args.full, args.check).await?;
    output.result(&refreshed, |out| refreshed.write(out))?;
    Ok(if refreshed.differences.is_empty() { DONE } else { DIFFERENT })
}
