//! `dataloader health`: whether the pipeline of this working directory is alive.

use super::{DONE, UNHEALTHY};
use crate::error::Result;
use crate::heartbeat;
use crate::terminal::output::Output;

/// Prints what the heartbeats of this working directory say.
///
/// # Errors
/// If they cannot be read.
pub fn run(output: Output) -> Result<u8> {
    let health = heartbeat::health()?;
    output.result(&health, |out| writeln!(out, "{health}"))?;
    Ok(if health.healthy { DONE } else { UNHEALTHY })
}
