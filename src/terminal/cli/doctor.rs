//! `dataloader doctor`: the flags of the run that it looks ahead to.

use clap::Args;

use super::run::PipelineArgs;
use crate::config::Settings;

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
    #[command(flatten)]
    pipeline: PipelineArgs,
}

impl DoctorArgs {
    /// The settings that these flags set, added to those of the global flags.
    pub(super) fn settings(&self, global: Settings) -> Settings {
        self.pipeline.settings(global)
    }
}
