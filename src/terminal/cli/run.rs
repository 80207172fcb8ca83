//! The arguments of `run`.

use std::path::PathBuf;

use clap::Args;

use crate::config::{HttpAddress, Role, Settings, Transport, queue_prefix};

/// Watches the inbox and loads every file dropped there (the default command)
///
/// Files in `<inbox>/<dataset>/` are claimed, loaded and moved to processed/ or failed/ there. Rows are appended: a file that is
/// dropped twice is loaded twice, but for datasets with `stream = "upsert"`. Interrupt once to finish what is in flight and exit, twice to exit at once.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dataloader                                         All in one process
  dataloader run --once                              Load what the inbox holds now, then exit
  dataloader run --transport amqp --role producer    Publish the files' records to RabbitMQ
  dataloader run --transport amqp --role consumer    Load them; start as many as you like

Try it: `dataloader drop` in another terminal puts the sample into the inbox.")]
pub struct RunArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Finish what an earlier run left, load what the inbox holds now, then exit
    #[arg(long)]
    pub once: bool,
    /// Show the page, metrics and health at this address: PORT, :PORT or HOST:PORT [env: DATALOADER_HTTP] [default: none]
    #[arg(long, value_name = "ADDR", value_parser = |text: &str| HttpAddress::parse(text))]
    http: Option<HttpAddress>,
}

impl RunArgs {
    /// Merges the flags before the command with those after it, as in `dataloader --once run --inbox X`.
    pub(super) fn or(self, before: Self) -> Self {
        Self { pipeline: self.pipeline.or(before.pipeline), once: self.once || before.once, http: self.http.or(before.http) }
    }

    /// The first flag that is set.
    pub(super) fn first_given(&self) -> Option<&'static str> {
        let PipelineArgs { transport, role, inbox, queue_prefix } = &self.pipeline;
        let given = [
            (transport.is_some(), "--transport"),
            (role.is_some(), "--role"),
            (inbox.is_some(), "--inbox"),
            (queue_prefix.is_some(), "--queue-prefix"),
            (self.once, "--once"),
            (self.http.is_some(), "--http"),
        ];
        given.into_iter().find_map(|(given, flag)| given.then_some(flag))
    }

    /// The settings that these flags set, added to those of the global flags.
    pub(super) fn settings(&self, global: Settings) -> Settings {
        Settings { http: self.http.clone(), ..self.pipeline.settings(global) }
    }
}

/// Which pipeline: the flags that `run` shares with the command that checks its surroundings.
#[derive(Debug, Args)]
pub(super) struct PipelineArgs {
    /// In this process, or through RabbitMQ [env: DATALOADER_TRANSPORT] [default: inproc]
    #[arg(long, value_name = "inproc|amqp", value_enum, hide_possible_values = true)]
    transport: Option<Transport>,
    /// With amqp: producer (needs no database), consumer (needs no inbox) or all [env: DATALOADER_ROLE] [default: all]
    #[arg(long, value_enum, hide_possible_values = true)]
    role: Option<Role>,
    /// Watched: `DIR/<dataset>/` [env: DATALOADER_INBOX] [default: inbox]
    #[arg(long, value_name = "DIR")]
    inbox: Option<PathBuf>,
    /// With amqp: the names of exchange and queues begin with it [env: DATALOADER_QUEUE_PREFIX] [default: dataloader]
    #[arg(long, value_name = "PREFIX", value_parser = |text: &str| queue_prefix(text))]
    queue_prefix: Option<String>,
}

impl PipelineArgs {
    fn or(self, before: Self) -> Self {
        Self {
            transport: self.transport.or(before.transport),
            role: self.role.or(before.role),
            inbox: self.inbox.or(before.inbox),
            queue_prefix: self.queue_prefix.or(before.queue_prefix),
        }
    }

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
