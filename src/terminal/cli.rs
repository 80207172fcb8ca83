//! The command line: commands, flags and help texts. This file checks the syntax of flags; the commands check their meaning.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};
use jiff::civil::Date;

use crate::config::{DatabaseUrl, HttpAddress, MenuMode, Settings, hide_arguments};
use crate::error::{Error, Result};
use crate::record::row::RejectReason;
use crate::terminal::logging::{LogFormat, Verbosity};
use crate::terminal::output::{Format, Output};
use crate::visible::{Form, visible};

mod about;
mod doctor;
mod drill;
mod infer;
mod load;
mod run;
mod verify;

pub use about::{CompletionsArgs, ExplainArgs, ManArgs};
pub use doctor::DoctorArgs;
pub use drill::DrillArgs;
pub use infer::InferArgs;
pub use load::LoadArgs;
pub use run::RunArgs;
pub use verify::VerifyArgs;

/// A command line that was parsed successfully.
#[derive(Debug)]
pub struct Cli {
    pub global: GlobalArgs,
    /// [`Command::Run`] if the command line names no command.
    pub command: Command,
}

#[derive(Debug, Parser)]
#[command(
    name = "dataloader",
    version,
    about = "Loads JSON files into PostgreSQL or SQLite and models them per day, in batch or as they arrive",
    after_help = EXAMPLES,
    max_term_width = 100
)]
struct Arguments {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(flatten, next_help_heading = "Options of `run`, the default command")]
    run: RunArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  dataloader load                          Load the files of all datasets, show the daily totals
  dataloader load --date 2020-12-05        The same for the events of one day
  dataloader                               Watch inbox/<dataset>/ and load every file dropped there
  dataloader report                        The daily totals again
  DATABASE_URL=postgres://user:password@host/database dataloader load

The database is the file dataloader.db unless --database or DATABASE_URL names another. Datasets are
defined in dataloader.toml. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 done but
records were rejected or a file failed, 4 database or broker not reached, 130 interrupted.";

/// Flags of every command, before or after its name.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// sqlite://FILE or postgres://USER:PASSWORD@HOST:PORT/NAME [env: DATABASE_URL] [default: sqlite://dataloader.db]
    // A string, because clap's error about another type would show the password.
    #[arg(long, value_name = "URL", global = true)]
    database: Option<String>,
    /// Datasets and settings [env: DATALOADER_CONFIG] [default: dataloader.toml, else the built-in one]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Holds the datasets' directories [env: DATALOADER_DATA_DIR] [default: raw_data]
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// Results on standard output: text (the default), or one JSON object
    #[arg(long, value_name = "text|json", value_enum, default_value_t = Format::Text, global = true)]
    #[arg(hide_default_value = true, hide_possible_values = true)]
    pub format: Format,
    /// Logs on standard error: text (the default), or one JSON object per line
    #[arg(long, value_name = "text|json", value_enum, default_value_t = LogFormat::Text, global = true)]
    #[arg(hide_default_value = true, hide_possible_values = true)]
    pub log_format: LogFormat,
    /// Log more, twice: even more [env: RUST_LOG]
    #[arg(short, long, action = ArgAction::Count, global = true)]
    verbose: u8,
    /// Log errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
}

impl GlobalArgs {
    /// How much to log, if a flag says so.
    pub fn verbosity(&self) -> Option<Verbosity> {
        match (self.quiet, self.verbose) {
            (true, _) => Some(Verbosity::Quiet),
            (false, 0) => None,
            (false, 1) => Some(Verbosity::Debug),
            (false, _) => Some(Verbosity::Trace),
        }
    }
}

/// In the order in which a newcomer meets them.
#[derive(Debug, Subcommand)]
pub enum Command {
    Load(LoadArgs),
    Run(RunArgs),
    Report(ReportArgs),
    Status(StatusArgs),
    Rejects(RejectsArgs),
    Unload(UnloadArgs),
    Model(ModelArgs),
    Verify(VerifyArgs),
    Serve(ServeArgs),
    Menu(MenuArgs),
    Drop(DropArgs),
    Infer(InferArgs),
    Generate(GenerateArgs),
    Migrate(MigrateArgs),
    /// Exits 0 if the pipeline started here is alive and connected, else 1
    Health,
    Doctor(DoctorArgs),
    Drill(DrillArgs),
    Explain(ExplainArgs),
    /// Writes the JSON Schema of dataloader.toml to standard output, for editors
    Schema,
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// Creates or upgrades the tables; the commands that write do so by themselves
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dataloader migrate
  dataloader migrate --backfill    After a column was added to dataloader.toml")]
pub struct MigrateArgs {
    /// Fill columns that the definition has more than before from `_extra`, and take the values out of it
    #[arg(long)]
    pub backfill: bool,
}

/// Shows the modelled tables: totals and unique counts per day
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Only this dataset
    #[arg(long, value_name = "NAME")]
    pub dataset: Option<String>,
    /// Write charts and tables to FILE instead, as one page that opens anywhere
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Shows the ledger: files, records read, loaded, rejected, skipped, in flight
///
/// And what the pipeline of this working directory does: rates, how busy each stage is, which one limits, and what waits.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Show it again every second, until interrupted
    #[arg(long)]
    pub watch: bool,
}

/// Lists, exports, replays or discards the records that could not be loaded
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dataloader rejects list
  dataloader rejects export --dataset events > repair.ndjson
  dataloader load --dataset events repair.ndjson       Once the records are repaired
  dataloader rejects replay                            Once dataloader.toml is repaired
  dataloader rejects discard --reason not_an_object    Once nobody needs them")]
pub struct RejectsArgs {
    #[command(subcommand)]
    pub action: RejectsAction,
    /// Only this dataset
    #[arg(long, value_name = "NAME", global = true)]
    pub dataset: Option<String>,
    /// Only those with this reason, as in `rejects list`
    #[arg(long, value_name = "REASON", global = true, value_parser = parse_reason)]
    pub reason: Option<String>,
    /// Only those of the load with this number
    #[arg(long, value_name = "ID", global = true)]
    pub load: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum RejectsAction {
    /// Shows where each open reject came from, and why it was rejected
    List,
    /// Writes the original records to standard output, one to a line
    Export,
    /// Parses them again; those that load now leave the list
    Replay,
    /// Deletes them for good, and says how many; the ledger still counts them
    Discard,
}

/// Takes loads back: their rows and rejects go, their days are modelled again
///
/// All of the named loads or none. The ledger keeps them, as `unloaded`; what comes late of one is passed over. Rows that a load had
/// replaced do not come back, and no rejects that a replay had loaded. A file that is dropped or loaded again is a new load.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dataloader unload 7            The load 7
  dataloader unload 7 8 9        Three loads, together

The ids are in raw.loads (SQLite: raw_loads), with the file that each load came from.")]
pub struct UnloadArgs {
    /// Loads that are loaded or failed, by their ids
    #[arg(value_name = "ID", required = true, value_parser = clap::value_parser!(i64).range(1..))]
    pub ids: Vec<i64>,
}

/// Refreshes the modelled tables for the days that changed
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Recompute all days, not only the changed ones
    #[arg(long)]
    pub full: bool,
    /// Then compare with a full recompute; exits 1 on a difference
    #[arg(long)]
    pub check: bool,
}

/// Shows the page of a database, without a pipeline in this process
///
/// Without a host the address is of this machine only. Any other needs a token in DATALOADER_HTTP_TOKEN, which browsers ask for
/// as a password (any user name), and programs send as `Authorization: Bearer`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dataloader serve                                   http://127.0.0.1:8080/
  dataloader run --http 8080                         The same page, with the pipeline of that process
  DATALOADER_HTTP_TOKEN=... dataloader serve --http 0.0.0.0:8080")]
pub struct ServeArgs {
    /// PORT, :PORT or HOST:PORT [env: DATALOADER_HTTP] [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", value_parser = |text: &str| HttpAddress::parse(text))]
    http: Option<HttpAddress>,
}

/// Shows an interactive menu
#[derive(Debug, Args)]
pub struct MenuArgs {
    /// Load files, or drop files into the inbox [env: DATALOADER_MODE] [default: batch]
    #[arg(long, value_name = "batch|stream", value_enum, hide_possible_values = true)]
    mode: Option<MenuMode>,
}

/// Puts a copy of a file into the inbox, whole at once and under a fresh name
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dataloader drop                                    The sample of the events
  dataloader drop my.json --dataset orgs
  dataloader drop --times 10")]
pub struct DropArgs {
    /// The file; default: `<dataset>_sample.json` in the dataset's directory
    pub file: Option<PathBuf>,
    /// What the file holds [default: events, or the dataset with `menu = true`]
    #[arg(long, value_name = "NAME")]
    pub dataset: Option<String>,
    /// Drop it N times
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub times: u32,
    /// The inbox that `run` watches [env: DATALOADER_INBOX] [default: inbox]
    #[arg(long, value_name = "DIR")]
    inbox: Option<PathBuf>,
}

/// Writes synthetic events to standard output, to try things out with
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dataloader generate --events 1000000 > raw_data/events/million.json
  dataloader generate --events 1000 --seed 7 | dataloader load --dataset events -")]
pub struct GenerateArgs {
    /// How many
    #[arg(long, value_name = "N")]
    pub events: u64,
    /// The same seed makes the same events
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
}

impl Cli {
    /// Parses a command line; its first argument is the program's name. The error can also be a request for help or for the
    /// version. [`explain`] prints all of them.
    pub fn parse(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, clap::Error> {
        let Arguments { global, run, command } = Arguments::try_parse_from(args)?;
        let command = match command {
            None => Command::Run(run),
            Some(Command::Run(after)) => Command::Run(after.or(run)),
            Some(command) => match run.first_given() {
                None => command,
                Some(flag) => {
                    let message =
                        format!("{flag} before the command is for `run`; what another command takes comes after its name");
                    return Err(usage("", ErrorKind::ArgumentConflict, message));
                }
            },
        };
        match &command {
            Command::Load(load) => load.check()?,
            Command::Infer(infer) => infer.check()?,
            _ => {}
        }
        Ok(Self { global, command })
    }

    /// The definition of the command line, for completions and man pages.
    pub fn definition() -> clap::Command {
        Arguments::command()
    }

    /// The value of `--config`.
    pub fn config_file(&self) -> Option<&Path> {
        self.global.config.as_deref()
    }

    /// The settings that the flags set.
    pub fn settings(&self) -> Result<Settings> {
        let database = self.global.database.as_deref().map(DatabaseUrl::parse).transpose();
        let global = Settings {
            database: database.map_err(|e| e.context("--database"))?,
            data_dir: self.global.data_dir.clone(),
            ..Settings::default()
        };
        Ok(match &self.command {
            Command::Run(run) => run.settings(global),
            Command::Load(load) => Settings { stage_dir: load.stage_dir.clone(), ..global },
            Command::Doctor(doctor) => doctor.settings(global),
            Command::Drill(drill) => drill.settings(global),
            Command::Drop(drop) => Settings { inbox: drop.inbox.clone(), ..global },
            Command::Verify(verify) => Settings { inbox: verify.inbox.clone(), ..global },
            Command::Serve(serve) => Settings { http: serve.http.clone(), ..global },
            Command::Menu(menu) => Settings { menu_mode: menu.mode, ..global },
            _ => global,
        })
    }
}

/// Prints the error of [`Cli::parse`]: help, the version or a usage error. Returns the exit code.
pub fn explain(instead: &clap::Error, args: &[OsString]) -> u8 {
    if !instead.use_stderr() {
        // A failure here cannot be reported anywhere.
        let _ = instead.print();
        return 0;
    }
    // clap quotes a misplaced argument, which may be a database URL with its password.
    let text = instead.to_string();
    let safe = hide_arguments(&text, args);
    let shown = visible(&safe, Form::Text);
    if asks_for_json(args) {
        Output::new(Format::Json).error(&in_one_line(&safe));
    } else if shown != text {
        let _ = write!(std::io::stderr(), "{shown}");
    } else {
        let _ = instead.print();
    }
    2
}

/// Whether the arguments contain `--format json`, although they are not a valid command line.
fn asks_for_json(args: &[OsString]) -> bool {
    let is_value = |pair: &[OsString]| pair[0] == "--format" && pair[1] == "json";
    args.iter().any(|arg| arg == "--format=json") || args.windows(2).any(is_value)
}

/// The first paragraph of clap's message, with clap's tip as the hint if there is one.
fn in_one_line(text: &str) -> Error {
    let message = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    let tip = text.lines().find_map(|line| line.trim_start().strip_prefix("tip: "));
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    Error::usage(message).hint(tip.unwrap_or("see `dataloader --help`"))
}

/// A usage error in clap's own format.
fn usage(subcommand: &str, kind: ErrorKind, message: impl Display) -> clap::Error {
    let mut command = Arguments::command();
    command.build();
    match command.find_subcommand_mut(subcommand) {
        Some(subcommand) => subcommand.error(kind, message),
        None => command.error(kind, message),
    }
}

/// Checks the name of a reject reason. The error is a sentence for the user.
fn parse_reason(text: &str) -> Result<String, String> {
    match RejectReason::from_name(text) {
        Some(reason) => Ok(reason.as_str().to_owned()),
        None => Err(format!("the reasons are {}", RejectReason::ALL.map(RejectReason::as_str).join(", "))),
    }
}

/// Parses a day such as `2020-12-05`, in the years 0001 to 9999. The error is a sentence for the user.
pub fn parse_day(text: &str) -> Result<Date, String> {
    let shape_is_right =
        text.len() == 10 && text.bytes().enumerate().all(|(i, b)| if matches!(i, 4 | 7) { b == b'-' } else { b.is_ascii_digit() });
    if !shape_is_right {
        return Err("a day is written YYYY-MM-DD, for example 2020-12-05".to_owned());
    }
    match Date::from_str(text) {
        Ok(day) if day.year() >= 1 => Ok(day),
        _ => Err("there is no such day in the calendar".to_owned()),
    }
}

#[cfg(test)]
mod tests;
