//! Faults that end the run: every stage can report one, and none disappears without one.

use tokio::sync::mpsc;

use crate::error::Error;

/// Where stages report what they cannot mend. The supervisor ends the process with the first.
#[derive(Debug, Clone)]
pub struct Faults(mpsc::UnboundedSender<Error>);

impl Faults {
    /// The reporting end and the supervisor's.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Error>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// Reports a fault. After the end of the run nobody listens, and nobody needs to.
    pub fn report(&self, error: Error) {
        drop(self.0.send(error));
    }

    /// For a stage to keep: reports if the stage goes away, by a panic or otherwise, while the run goes on.
    pub fn watch(&self, stage: &'static str) -> StageWatch {
        StageWatch { stage, faults: Some(self.clone()) }
    }
}

/// Reports when it is dropped: an actor that panics is dropped with all it owns.
#[derive(Debug)]
pub struct StageWatch {
    stage: &'static str,
    /// `None` once the stage has ended as it should.
    faults: Option<Faults>,
}

impl StageWatch {
    /// The stage ends as it should.
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
