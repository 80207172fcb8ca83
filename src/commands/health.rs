//! `dataloader health`: whether the stream of this working directory is healthy.

use super::{DONE, UNHEALTHY};
use crate::error::Result;
use crate::heartbeat;
use crate::terminal::output::Output;

/// Prints the health that the heartbeats of this working directory show.
///
/// # Errors
/// If they cannot be read.
pub fn run(output: Output) -> Result<u8> {
    let health = heartbeat::health()?;
    output.result(&health, |out| writeln!(out, "{health}"))?;
    Ok(if health.healthy { DONE } else { UNHEALTHY })
}
