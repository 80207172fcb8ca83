//! `dataloader doctor`: the flags of the run that it looks ahead to.

use std::path::PathBuf;

use clap::Args;

use crate::config::{Role, Settings, Transport, queue_prefix};

/// Checks what a run would meet, and says what mends it
///
/// Configuration, files, inbox, database, and with amqp the broker. Each line says `ok`, `warn` or `fail`, why, and the command that
/// mends it. Nothing is changed, and the right to read is enough. Exits 1 if anything is wrong.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dataloader doctor
  dataloader doctor --transport amqp
  dataloader doctor --format json")]
pub struct DoctorArgs {
    /// As of `run`: with amqp the broker is looked at [env: DATALOADER_TRANSPORT] [default: inproc]
    #[arg(long, value_name = "inproc|amqp", value_enum, hide_possible_values = true)]
    transport: Option<Transport>,
    /// As of `run`: only what this role needs [env: DATALOADER_ROLE] [default: all]
    #[arg(long, value_enum, hide_possible_values = true)]
    role: Option<Role>,
    /// As of `run` [env: DATALOADER_INBOX] [default: inbox]
    #[arg(long, value_name = "DIR")]
    inbox: Option<PathBuf>,
    /// As of `run` [env: DATALOADER_QUEUE_PREFIX] [default: dataloader]
    #[arg(long, value_name = "PREFIX", value_parser = |text: &str| queue_prefix(text))]
    queue_prefix: Option<String>,
}

impl DoctorArgs {
    /// The settings that these flags set, added to those of the global flags.
    pub(super) fn settings(&self, global: Settings) -> Settings {
        Settings {
            transport: self.transport,
            role: self.role,
            inbox: self.inbox.clone(),
            queue_prefix: self.queue_prefix.clone(),
            ..global
        }
    }
}
