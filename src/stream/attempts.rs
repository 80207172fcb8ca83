//! Attempts: counts in the database how often a message was taken alone and not answered. There it outlives the process, and all
//! consumers of a queue count together.

use tokio::sync::mpsc;

use super::link::Link;
use crate::error::Result;
use crate::store::attempts;
use crate::transport::amqp::consumer::Attempt;

/// Answers a consumer's questions until it is gone. While the database is away, nothing is answered.
///
/// # Errors
/// What waiting for the database does not mend, or that the retry policy gives up.
pub async fn count_attempts(mut link: Link, mut questions: mpsc::UnboundedReceiver<Attempt>) -> Result<()> {
    while let Some(question) = questions.recv().await {
        match question {
            Attempt::Begins(key, answer) => {
                let count = link.repeat(async |connection| attempts::begin(connection, key.as_bytes()).await).await?;
                // Whoever does not wait for the answer any more is about to end.
                let _ = answer.send(count);
            }
            Attempt::Ends(key) => link.repeat(async |connection| attempts::end(connection, key.as_bytes()).await).await?,
        }
    }
    link.close().await;
    Ok(())
}
