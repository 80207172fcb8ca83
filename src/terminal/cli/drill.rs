//! `dataloader drill`: how long, how, and on which database.

use clap::Args;

use crate::config::{Settings, Transport};

/// Tries the promises out: loads while its own processes are killed, then verifies
///
/// On a database that was made for it: it refuses one with tables. It drops generated files into an inbox of its own while processes that
/// it started are killed, ended and paused at random moments. In the end every record must be there exactly once, and `verify` must find
/// no difference. It uses the datasets of the built-in configuration, and over RabbitMQ queues of its own, which it deletes. The tables
/// stay, to be looked at. Exits 1 if anything is not as promised.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dataloader drill --database sqlite:///tmp/drill.db
  createdb drill && dataloader drill --database postgres://user:password@host/drill --minutes 10
  dataloader drill --database postgres://user:password@host/drill --transport amqp
  dataloader drill --database postgres://user:password@host/drill --restart-database 'sudo systemctl restart postgresql'")]
pub struct DrillArgs {
    /// In each process, or through RabbitMQ at AMQP_URL
    #[arg(long, value_name = "inproc|amqp", value_enum, hide_possible_values = true, default_value = "inproc")]
    transport: Transport,
    /// How long it goes on killing; 0 for the least that makes sense
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub minutes: u32,
    /// The same seed makes the same files and chooses the same moments [default: another one each time]
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// A shell command that restarts the database; it is run now and then
    #[arg(long, value_name = "CMD")]
    pub restart_database: Option<String>,
}

impl DrillArgs {
    /// The settings that these flags set, added to those of the global flags.
    pub(super) fn settings(&self, global: Settings) -> Settings {
        Settings { transport: Some(self.transport), ..global }
    }
}
