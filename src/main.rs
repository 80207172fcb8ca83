//! The command line program: arguments → configuration → command → exit code.

use std::ffi::OsString;
use std::process::ExitCode;

use dataloader::commands::{
    DONE, about, doctor, drill, drop, explain, generate, health, infer, load, menu, migrate, model, rejects, report, run, serve,
    status, unload, verify,
};
use dataloader::config::Config;
use dataloader::error::Result;
use dataloader::signals::{interruptible, interruptible_then, until_signal};
use dataloader::terminal::cli::{self, Cli, Command};
use dataloader::terminal::logging;
use dataloader::terminal::output::Output;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::parse(&args) {
        Ok(cli) => cli,
        Err(instead) => return ExitCode::from(cli::explain(&instead, &args)),
    };
    match execute(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            Output::new(cli.global.format).error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Returns the exit code of a command that did its work.
fn execute(cli: &Cli) -> Result<u8> {
    logging::start(cli.global.log_format, cli.global.verbosity())?;
    let output = Output::new(cli.global.format);
    // Not read for the commands that explain the program: they work beside a broken configuration.
    let config = || {
        let config = Config::load(cli.config_file(), cli.settings()?)?;
        tracing::debug!(source = %config.source, database = %config.database, "configuration read");
        Result::Ok(config)
    };
    match &cli.command {
        Command::Run(args) => run::run(&config()?, args, output),
        Command::Load(args) => interruptible_then(load::run(&config()?, args, output)),
        Command::Menu(_) => interruptible(menu::run(&config()?, output)),
        Command::Drop(args) => drop::run(&config()?, args, output),
        Command::Model(args) => interruptible(model::run(&config()?, args, output)),
        Command::Report(args) => interruptible(report::run(&config()?, args, output)),
        Command::Status(args) if args.watch => until_signal(status::watch(&config()?, output)).map(|()| DONE),
        Command::Status(_) => interruptible(status::run(&config()?, output)),
        Command::Rejects(args) => interruptible(rejects::run(&config()?, args, output)),
        Command::Verify(args) => interruptible(verify::run(&config()?, args, output)),
        Command::Unload(args) => interruptible(unload::run(&config()?, args, output)),
        Command::Serve(_) => serve::run(&config()?),
        Command::Health => config().and_then(|_| health::run(output)),
        Command::Migrate(args) => interruptible(migrate::run(&config()?, args, output)),
        Command::Infer(args) if args.check => infer::check(&config()?, args, output),
        Command::Infer(args) => infer::run(args, output),
        Command::Generate(args) => config().and_then(|_| generate::run(args)),
        Command::Doctor(_) => interruptible(doctor::run(cli.config_file(), cli.settings()?, output)),
        Command::Drill(args) => interruptible(drill::run(cli.settings()?, args, output)),
        Command::Explain(args) => explain::run(args, output),
        Command::Schema => about::schema(),
        Command::Completions(args) => about::completions(args, Cli::definition()),
        Command::Man(args) => about::man(args, Cli::definition(), output),
    }
}
