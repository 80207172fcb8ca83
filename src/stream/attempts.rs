//! Attempts: counts in the database how often a message was processed alone and not acknowledged. The count survives the
//! process, and all consumers of a queue share it.

use tokio::sync::mpsc;

use super::link::Link;
use crate::error::Result;
use crate::store::attempts;
use crate::transport::amqp::consumer::Attempt;

/// Answers a consumer's questions until the consumer ends. It answers nothing while the database is unavailable.
///
/// # Errors
/// Errors that waiting for the database does not fix, and errors of a database for which the retry policy stops waiting.
pub async fn count_attempts(mut link: Link, mut questions: mpsc::UnboundedReceiver<Attempt>) -> Result<()> {
    while let Some(question) = questions.recv().await {
        match question {
            Attempt::Begins(key, answer) => {
                let count = link.repeat(async |connection| attempts::begin(connection, key.as_bytes()).await).await?;
                // A consumer that no longer waits for the answer is about to end.
                let _ = answer.send(count);
            }
            Attempt::Ends(key, answer) => {
                link.repeat(async |connection| attempts::end(connection, key.as_bytes()).await).await?;
                let _ = answer.send(());
            }
        }
    }
    link.close().await;
    Ok(())
}
