//! The command line program: arguments → configuration → command → exit code.

use std::ffi::OsString;
use std::process::ExitCode;

use dataloader::cli::{self, Cli};
use dataloader::config::Config;
use dataloader::error::{Error, Result};
use dataloader::logging;
use dataloader::output::Output;

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

/// Returns the exit code of a command that did its work.
fn run(cli: &Cli) -> Result<u8> {
    logging::start(cli.global.log_format, cli.global.verbosity())?;
    let config = Config::load(cli.config_file(), cli.settings()?)?;
    tracing::debug!(source = %config.source, database = %config.database, "configuration read");
    Err(Error::failed("this version can read its configuration, and nothing more yet"))
}
