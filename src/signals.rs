//! Waits for SIGINT and SIGTERM, and runs commands that they can interrupt.

use std::convert::Infallible;
use std::future::Future;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, ErrorKind, Result};

/// The signals that ask the process to end.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Starts listening. From then on the signals no longer end the process by themselves.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|error| Error::failed(format!("cannot listen for signals: {error}")));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Runs a service on a runtime of its own until a signal arrives, which is its regular end.
///
/// # Errors
/// The error that ended the service.
pub fn until_signal(service: impl Future<Output = Result<Infallible>>) -> Result<()> {
    let served = interruptible(service).map(|never| match never {});
    served.or_else(|error| if error.kind() == ErrorKind::Interrupted { Ok(()) } else { Err(error) })
}

/// Runs a command on a runtime of its own until it is done or a signal arrives. A signal drops the command, and the database
/// rolls its transaction back.
///
/// # Errors
/// The error of the command, or that a signal interrupted it.
pub fn interruptible<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    interruptible_then(async { command.await.map(|done| (done, async {})) })
}

/// As [`interruptible`], for a command that also returns work which may be left undone. A signal ends this work, too, but the
/// command is done.
///
/// # Errors
/// As [`interruptible`].
pub fn interruptible_then<T, W: Future<Output = ()>>(command: impl Future<Output = Result<(T, W)>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::failed(format!("cannot start the runtime: {error}")))?;
    runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let (done, work) = tokio::select! {
            done = command => done?,
            () = signals.next() => return Err(Error::interrupted()),
        };
        tokio::select! {
            () = work => {}
            () = signals.next() => {}
        }
        Ok(done)
    })
}
