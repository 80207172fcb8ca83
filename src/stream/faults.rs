//! Faults: errors that end the run. Every stage can report one, and no stage ends early without a report.

use tokio::sync::mpsc;

use crate::error::Error;

/// Where stages report errors that they cannot recover from. The supervisor ends the run with the first one.
#[derive(Debug, Clone)]
pub struct Faults(mpsc::UnboundedSender<Error>);

impl Faults {
    /// Returns the reporting end and the supervisor's end.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Error>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// Reports a fault. After the end of the run it has no receiver, and is dropped.
    pub fn report(&self, error: Error) {
        drop(self.0.send(error));
    }

    /// A guard for a stage to keep. It reports a fault if the stage disappears while the run goes on, for example by a panic.
    pub fn watch(&self, stage: &'static str) -> StageWatch {
        StageWatch { stage, faults: Some(self.clone()) }
    }
}

/// Reports a fault when it is dropped. An actor that panics is dropped with everything it owns.
#[derive(Debug)]
pub struct StageWatch {
    stage: &'static str,
    /// `None` once the stage has ended normally.
    faults: Option<Faults>,
}

impl StageWatch {
    /// Ends the stage normally, without a fault.
    pub fn end(mut self) {
        self.faults = None;
    }
}

impl Drop for StageWatch {
    fn drop(&mut self) {
        if let Some(faults) = &self.faults {
            faults.report(
                Error::failed(format!("the {} stopped unexpectedly", self.stage))
                    .hint("start again: what was not committed is loaded then; please report the panic above"),
            );
        }
    }
}
