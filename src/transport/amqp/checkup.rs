//! What a run would meet on the broker, found without a change: queues are declared passively, and again with their arguments
//! only where they are there.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Connection};

use super::connection::{Broker, Fault, NOT_FOUND, answered, close, confirming_channel, reply_code, text, within};
use super::topology::Topology;
use crate::error::Result;

const ACCESS_REFUSED: u16 = 403;
const PRECONDITION_FAILED: u16 = 406;
/// How long a broker without an alarm may take to answer a message.
const PATIENCE: Duration = Duration::from_secs(3);

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// None where the broker speaks TLS only, or did not say.
    pub version: Option<String>,
    /// Whether the broker takes messages; none if this user may not try.
    pub takes_messages: Option<bool>,
    /// The queues of the datasets, then that of the dead letters.
    pub queues: Vec<(ShortString, QueueState)>,
}

/// One queue.
#[derive(Debug)]
pub enum QueueState {
    Missing,
    There {
        messages: u32,
    },
    /// It has other arguments, in the broker's words.
    Differs(String),
    /// This user may not declare it, in the broker's words.
    Refused(String),
}

/// Looks at the broker.
///
/// # Errors
/// If it cannot be reached, refuses the connection, or goes away.
pub async fn examine(broker: &Broker, topology: &Topology) -> Result<Found> {
    let connection = broker.connect_once("dataloader doctor", None).await.map_err(|error| broker.unreachable(&error))?;
    let found = look(&connection, topology).await;
    close(&connection).await;
    let (takes_messages, queues) = found.map_err(|fault| broker.explain(fault))?;
    Ok(Found { version: broker.address().and_then(|address| version(&address)), takes_messages, queues })
}

async fn look(connection: &Connection, topology: &Topology) -> Result<(Option<bool>, Vec<(ShortString, QueueState)>), Fault> {
    let mut queues = Vec::new();
    for (name, arguments) in topology.queues() {
        let state = queue(connection, name.clone(), arguments).await?;
        queues.push((name, state));
    }
    Ok((takes_messages(connection, topology).await?, queues))
}

async fn queue(connection: &Connection, name: ShortString, arguments: FieldTable) -> Result<QueueState, Fault> {
    let messages = match declare(connection, name.clone(), true, FieldTable::default()).await {
        Ok(messages) => messages,
        Err(error) => {
            return match reply_code(&error) {
                Some(NOT_FOUND) => Ok(QueueState::Missing),
                Some(ACCESS_REFUSED) => Ok(QueueState::Refused(text(&error))),
                _ => Err(Fault::Lost(error)),
            };
        }
    };
    match declare(connection, name, false, arguments).await {
        Ok(_) => Ok(QueueState::There { messages }),
        Err(error) => match reply_code(&error) {
            Some(PRECONDITION_FAILED) => Ok(QueueState::Differs(text(&error))),
            // Every run declares the queues.
            Some(ACCESS_REFUSED) => Ok(QueueState::Refused(text(&error))),
            _ => Err(Fault::Lost(error)),
        },
    }
}

/// Returns how many messages wait. Uses a channel of its own, because a refusal closes it.
async fn declare(connection: &Connection, name: ShortString, passive: bool, arguments: FieldTable) -> lapin::Result<u32> {
    answered(async {
        let channel = connection.create_channel().await?;
        let options = QueueDeclareOptions { passive, durable: true, ..Default::default() };
        let messages = channel.queue_declare(name, options, arguments).await?.message_count();
        channel.close(200, "done".into()).await?;
        Ok(messages)
    })
    .await
}

/// Publishes messages that no queue takes. A broker with an alarm answers the first one, then stops reading: only the second
/// one tells.
async fn takes_messages(connection: &Connection, topology: &Topology) -> Result<Option<bool>, Fault> {
    let channel = confirming_channel(connection).await?;
    let nowhere = format!("{}.doctor nowhere", topology.exchange());
    let answer = within::<_, lapin::Error>(PATIENCE, async {
        for _ in 0..2 {
            let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
            channel.basic_publish("".into(), nowhere.as_str().into(), options, b"", properties).await?.await?;
        }
        Ok(())
    });
    match answer.await {
        Ok(()) => Ok(Some(true)),
        Err(error) if reply_code(&error) == Some(ACCESS_REFUSED) => Ok(None),
        Err(_) if connection.status().connected() => Ok(Some(false)),
        Err(error) => Err(Fault::Lost(error)),
    }
}

/// The version that a broker says in its greeting. lapin does not pass it on.
fn version(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"AMQP\0\0\x09\x01").ok()?;
    let mut greeting = [0; 4096];
    let mut length = 0;
    while length < greeting.len() {
        match stream.read(&mut greeting[length..]) {
            Ok(read @ 1..) => length += read,
            _ => break,
        }
        if let Some(version) = version_in(&greeting[..length]) {
            return Some(version);
        }
    }
    None
}

/// The field `version` of the server's properties: its name with its length, `S`, four bytes of length, the text.
fn version_in(greeting: &[u8]) -> Option<String> {
    const FIELD: &[u8] = b"\x07versionS";
    let start = greeting.windows(FIELD.len()).position(|window| window == FIELD)? + FIELD.len();
    let length = u32::from_be_bytes(greeting.get(start..start + 4)?.try_into().ok()?);
    let text = greeting.get(start + 4..start + 4 + usize::try_from(length).ok()?)?;
    std::str::from_utf8(text).ok().filter(|text| text.len() < 32).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_in_a_greeting_and_waited_for_in_a_part_of_one() {
        let greeting = b"\x01\0\0....\x07productS\0\0\0\x08RabbitMQ\x07versionS\0\0\0\x063.12.1....";
        assert_eq!(version_in(greeting).as_deref(), Some("3.12.1"));
        assert_eq!(version_in(&greeting[..40]), None);
    }
}
