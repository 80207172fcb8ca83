//! Connections to RabbitMQ: connecting, waiting for the broker, giving up, reconnecting. A connection counts as made when its
//! handshake is complete.
//!
//! lapin can reconnect by itself. This module does it instead, because publisher and consumer each have work to do after a lost
//! connection: the publisher publishes unconfirmed messages again, and the consumer forgets the deliveries that it can no
//! longer acknowledge.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lapin::options::ConfirmSelectOptions;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind, Event};

use super::tap::Tap;
use super::topology::Topology;
use crate::config::SecretUrl;
use crate::error::{Error, Result, io_text};
use crate::hosts::{HOST_TIME, Hosts};
use crate::retry::{GIVE_UP_AFTER, MENTION_EVERY, Retry, RetryPolicy};
use crate::vitals::{Stage, Target, Vitals, Wait};

/// Seconds between heartbeats, where the URL does not set it. A broker that has vanished is detected after twice this time.
const HEARTBEAT: u16 = 10;
/// Time limit for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time limit for the broker's answers to requests that move no messages.
pub(super) const ANSWER: Duration = Duration::from_secs(30);
/// Time limit for closing a connection.
pub(super) const GOODBYE: Duration = Duration::from_secs(5);

const ACCESS_REFUSED: u16 = 403;
const NOT_ALLOWED: u16 = 530;
/// The reply to a request for a queue that is not there.
pub(super) const NOT_FOUND: u16 = 404;

/// Why the work with a connection ended.
#[derive(Debug)]
pub(super) enum Fault {
    /// The connection or the channel is lost: connect again.
    Lost(lapin::Error),
    /// An error that the user has to solve.
    Fatal(Error),
}

impl From<lapin::Error> for Fault {
    fn from(error: lapin::Error) -> Self {
        Self::Lost(error)
    }
}

impl Fault {
    /// What a test has happen at a step.
    pub(super) fn of_test() -> Self {
        Self::Lost(std::io::Error::new(std::io::ErrorKind::ConnectionReset, "a test cuts the connection").into())
    }
}

/// A broker to connect to.
#[derive(Debug, Clone)]
pub struct Broker {
    url: SecretUrl,
    /// The nodes that the URL names.
    hosts: Hosts<AMQPUri>,
}

impl Broker {
    /// The broker at this URL. Does not connect yet.
    ///
    /// # Errors
    /// If the URL is invalid. Its scheme was checked before.
    pub fn new(url: &SecretUrl) -> Result<Self> {
        let uris: Vec<AMQPUri> = url.hosts().iter().map(uri).collect::<Result<_>>()?;
        let named = uris.into_iter().map(|uri| (host(&uri), uri));
        Ok(Self { url: url.clone(), hosts: Hosts::new("RabbitMQ", named) })
    }

    /// The node that was connected last, as `HOST:PORT`.
    pub fn connected(&self) -> Option<&str> {
        self.hosts.connected()
    }

    /// Where it listens without TLS, as `HOST:PORT`; none where it speaks TLS.
    pub(super) fn address(&self) -> Option<String> {
        self.hosts.last().filter(|uri| uri.scheme == AMQPScheme::AMQP).map(host)
    }

    /// Makes one attempt to connect to each node, until one accepts. `name` is shown to the broker's operators. `tap` limits what is read.
    pub(super) async fn connect_once(&self, name: &str, tap: Option<&Tap>) -> Result<Connection, lapin::Error> {
        let properties = ConnectionProperties::default()
            .with_connection_name(name.into())
            .with_client_property("product".into(), "dataloader".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let limit = if self.hosts.are_several() { HOST_TIME } else { HANDSHAKE };
        let mut failures = Vec::new();
        for attempt in self.hosts.attempts() {
            let (uri, properties) = (attempt.options().clone(), properties.clone());
            let connected = match tap {
                None => within(limit, Connection::connect_uri(uri, properties)).await,
                Some(tap) => {
                    tap.allow_portion();
                    within(limit, Connection::connect_uri_with_runtime(uri, properties, tap.runtime())).await
                }
            };
            match connected {
                Ok(connection) => {
                    attempt.succeeded();
                    return Ok(connection);
                }
                Err(error) => failures.push((attempt.name(), error)),
            }
        }
        Err(summary(failures))
    }

    /// Connects; gives up after ten seconds.
    ///
    /// # Errors
    /// If the broker refuses the connection, or is unavailable for ten seconds.
    pub(super) async fn connect(&self, name: &'static str) -> Result<Connection> {
        Connector::new(self.clone(), name, RetryPolicy::Limited, Vitals::default().stage(name)).connect(None).await
    }

    /// The error for a broker that accepts no messages.
    pub(super) fn takes_nothing(&self) -> Error {
        let seconds = GIVE_UP_AFTER.as_secs();
        Error::unreachable(format!("RabbitMQ at {self} has taken no messages for {seconds} seconds"))
            .hint("look for alarms of disk or memory with `rabbitmqctl status`; what is in the queues stays there")
    }

    /// The error for a broker that cannot be reached, as the user sees it.
    pub(super) fn unreachable(&self, error: &lapin::Error) -> Error {
        let text = self.url.scrub(&text(error));
        if is_refusal(error) {
            return Error::unreachable(format!("RabbitMQ at {} refuses: {text}", self.url))
                .hint("check user, password and vhost in AMQP_URL");
        }
        Error::unreachable(format!("cannot reach RabbitMQ at {}: {text}", self.url))
            .hint("check that it is running and that AMQP_URL is right")
    }

    /// Turns a fault into an error, for a command that does not wait.
    pub(super) fn explain(&self, fault: Fault) -> Error {
        match fault {
            Fault::Lost(error) => self.unreachable(&error),
            Fault::Fatal(error) => error,
        }
    }
}

impl std::fmt::Display for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.url.fmt(f)
    }
}

/// What one node is connected with.
fn uri(url: &SecretUrl) -> Result<AMQPUri> {
    let mut uri: AMQPUri = url.expose().parse().map_err(|error: String| {
        Error::usage(format!("the AMQP URL {url} is wrong: {}", url.scrub(&error)))
            .hint("give amqp://user:password@host:5672/vhost; the vhost `/` is written %2f")
    })?;
    if let Some(address) = ipv6_address(url.expose()) {
        uri.authority.host = address;
    }
    uri.query.heartbeat.get_or_insert(HEARTBEAT);
    Ok(uri)
}

/// `HOST:PORT`.
fn host(uri: &AMQPUri) -> String {
    let authority = &uri.authority;
    let host = if authority.host.contains(':') { format!("[{}]", authority.host) } else { authority.host.clone() };
    format!("{host}:{}", authority.port)
}

/// One error for those of all nodes. A refusal is told from nodes that are away.
fn summary(mut failures: Vec<(&str, lapin::Error)>) -> lapin::Error {
    let refusal = failures.iter().position(|(_, error)| is_refusal(error));
    match (refusal, failures.len()) {
        (Some(at), _) => failures.swap_remove(at).1,
        (None, 1) => failures.remove(0).1,
        (None, _) => {
            let reasons: Vec<String> = failures.iter().map(|(name, error)| format!("{name}: {}", text(error))).collect();
            lapin::Error::from(std::io::Error::other(reasons.join("; ")))
        }
    }
}

/// The host of a URL such as `amqp://user@[::1]:5672`. lapin's parser does not recognise such a host.
fn ipv6_address(url: &str) -> Option<String> {
    let authority = url.split_once("://")?.1.split(['/', '?']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    Some(host.strip_prefix('[')?.split_once(']')?.0.to_owned())
}

/// Whether a publisher or a consumer is connected at the moment. The heartbeat reads it.
#[derive(Debug, Clone, Default)]
pub struct Connected(Arc<AtomicBool>);

impl Connected {
    /// Returns true while it is connected.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What publisher and consumer share: the broker, what is declared on it, the retry policy, and the place where they report
/// their waits.
#[derive(Debug, Clone)]
pub struct Route {
    pub broker: Broker,
    pub topology: Topology,
    pub retry_policy: RetryPolicy,
    pub vitals: Vitals,
}

impl Route {
    /// A connector for the stage of this name. `name` is shown to the broker's operators.
    pub(super) fn connector(&self, name: &'static str, stage: &'static str) -> Connector {
        Connector::new(self.broker.clone(), name, self.retry_policy, self.vitals.stage(stage))
    }
}

/// Connects as often as needed.
pub(super) struct Connector {
    broker: Broker,
    name: &'static str,
    connected: Connected,
    ever_connected: bool,
    retry: Retry,
    stage: Stage,
}

impl Connector {
    fn new(broker: Broker, name: &'static str, retry_policy: RetryPolicy, stage: Stage) -> Self {
        let retry = Retry::new(retry_policy);
        Self { broker, name, connected: Connected::default(), ever_connected: false, retry, stage }
    }

    /// The stage that connects. It is reported as waiting while the broker is unavailable.
    pub fn stage(&self) -> Stage {
        self.stage.clone()
    }

    pub fn connected(&self) -> Connected {
        self.connected.clone()
    }

    /// Connects, through the tap if there is one. Pauses first if nothing has succeeded since the last attempt.
    ///
    /// # Errors
    /// If the retry policy gives up, or if the broker refuses the connection and has never accepted one from this process.
    pub async fn connect(&mut self, tap: Option<&Tap>) -> Result<Connection> {
        loop {
            self.retry.pause().await;
            let error = match self.broker.connect_once(self.name, tap).await {
                Ok(connection) => {
                    if self.ever_connected {
                        tracing::info!("connected again to RabbitMQ at {}", self.broker);
                    } else {
                        tracing::debug!("connected to RabbitMQ at {}", self.broker);
                    }
                    self.ever_connected = true;
                    self.connected.0.store(true, Ordering::Relaxed);
                    self.stage.goes_on();
                    self.stage.idle();
                    return Ok(connection);
                }
                Err(error) => error,
            };
            if is_refusal(&error) && !self.ever_connected {
                return Err(self.broker.unreachable(&error));
            }
            self.failed(&error)?;
        }
    }

    /// Whether the broker has ever accepted a connection from this process.
    pub fn was_connected(&self) -> bool {
        self.ever_connected
    }

    /// Notes a success. A connection alone is none: the broker may accept it and close it again.
    pub fn progress(&mut self) {
        self.retry.succeeded();
    }

    /// Notes that the connection is lost.
    ///
    /// # Errors
    /// If the retry policy gives up.
    pub fn lost(&mut self, error: &lapin::Error) -> Result<()> {
        self.connected.0.store(false, Ordering::Relaxed);
        self.failed(error)
    }

    fn failed(&mut self, error: &lapin::Error) -> Result<()> {
        self.retry.failed(Duration::ZERO);
        if !self.retry.goes_on() {
            return Err(self.broker.unreachable(error));
        }
        let (broker, text) = (&self.broker, self.broker.url.scrub(&text(error)));
        let waits_for = Wait::new(Target::Broker, format!("RabbitMQ at {broker}: {text}"));
        self.retry.report(&self.stage, waits_for, |_| {
            tracing::warn!("RabbitMQ at {broker} is unavailable: {text}; retrying");
        });
        Ok(())
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        self.connected.0.store(false, Ordering::Relaxed);
    }
}

/// A resource alarm of the broker, as a connection learns of it. While the broker is short of disk or memory, it reads nothing
/// from connections that publish.
pub(super) struct Alarm {
    broker: Broker,
    stage: Stage,
    /// The reason of the current alarm, and when the log last reported it.
    up: Option<(String, Instant)>,
}

impl Alarm {
    /// No alarm yet. `stage` is reported as waiting while there is an alarm.
    pub fn new(broker: &Broker, stage: &Stage) -> Self {
        Self { broker: broker.clone(), stage: stage.clone(), up: None }
    }

    pub fn is_up(&self) -> bool {
        self.up.is_some()
    }

    /// # Errors
    /// If the event is the end of the connection.
    pub fn heed(&mut self, event: Event) -> Result<(), Fault> {
        match event {
            Event::ConnectionBlocked(reason) => {
                self.up = Some((reason.to_string(), Instant::now()));
                self.say();
            }
            Event::ConnectionUnblocked => self.is_over(),
            Event::Error(error) => return Err(Fault::Lost(error)),
            _ => {}
        }
        Ok(())
    }

    /// Ends the alarm: the broker accepts messages again.
    pub fn is_over(&mut self) {
        if self.up.take().is_some() {
            tracing::info!("RabbitMQ at {} takes messages again", self.broker);
            self.stage.goes_on();
            self.stage.idle();
        }
    }

    /// Completes when the log should report the alarm again.
    pub async fn said_long_ago(&self) {
        match &self.up {
            Some((_, said)) => tokio::time::sleep_until((*said + MENTION_EVERY).into()).await,
            None => std::future::pending().await,
        }
    }

    /// Reports the alarm, if there is one.
    pub fn say(&mut self) {
        if let Some((reason, said)) = &mut self.up {
            *said = Instant::now();
            let what = format!("RabbitMQ at {}, which takes no messages: {reason}", self.broker);
            self.stage.waits_for(Wait::new(Target::Broker, what));
            tracing::warn!("RabbitMQ at {} takes no messages: {reason}; waiting until it has room again", self.broker);
        }
    }
}

/// Whether the broker refuses the user: wrong user or password, or a vhost that does not exist or that this user may not use.
fn is_refusal(error: &lapin::Error) -> bool {
    matches!(reply_code(error), Some(ACCESS_REFUSED | NOT_ALLOWED))
}

/// The reply code with which the broker closed the channel or connection.
pub(super) fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// The error in the words of the broker or of the operating system.
pub(super) fn text(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        ErrorKind::IOError(error) => io_text(error),
        _ => error.to_string(),
    }
}

/// Waits for the broker's answers to requests that move no messages, with a time limit. The limit is necessary: a request that
/// is sent while the connection ends may never get an answer from lapin, as its thread is gone.
pub(super) async fn answered<T, E: From<lapin::Error>>(requests: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    within(ANSWER, requests).await
}

pub(super) async fn within<T, E: From<lapin::Error>>(
    limit: Duration,
    requests: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match tokio::time::timeout(limit, requests).await {
        Ok(answer) => answer,
        Err(_) => Err(lapin::Error::from(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer")).into()),
    }
}

/// Opens a channel with publisher confirms.
pub(super) async fn confirming_channel(connection: &Connection) -> lapin::Result<Channel> {
    answered(async {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    })
    .await
}

/// Closes a channel before its connection. If a channel is only dropped, lapin closes it in the background while the connection
/// closes. When that fails, the connection ends with an error.
pub(super) async fn close_channel(channel: &Channel) -> lapin::Result<()> {
    answered(channel.close(200, "done".into())).await
}

/// Closes a connection. Does nothing for one that is already lost.
pub(super) async fn close(connection: &Connection) {
    if let Err(error) = within(GOODBYE, connection.close(200, "done".into())).await {
        tracing::debug!("closing the connection to RabbitMQ: {}", text(&error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_host_is_understood() {
        for (url, host) in [
            ("amqp://u:p@[::1]:5672/%2f", "::1"),
            ("amqps://[fe80::1]", "fe80::1"),
            ("amqp://127.0.0.1:5672", "127.0.0.1"),
            ("amqp://u:p@mq.example.org/x?heartbeat=5", "mq.example.org"),
        ] {
            let broker = Broker::new(&SecretUrl::parse_amqp(url).unwrap()).unwrap();
            assert_eq!(broker.hosts.last().unwrap().authority.host, host, "{url}");
        }
    }

    #[test]
    fn each_node_has_the_login_and_the_vhost_of_the_url() {
        let broker = Broker::new(&SecretUrl::parse_amqp("amqps://u:p@mq1,mq2:5673,[::1]/v?heartbeat=5").unwrap()).unwrap();
        let names: Vec<&str> = broker.hosts.attempts().map(|attempt| attempt.name()).collect();
        assert_eq!(names, ["mq1:5671", "mq2:5673", "[::1]:5671"]);
        for uri in broker.hosts.attempts().map(|attempt| attempt.options()) {
            assert_eq!((uri.vhost.as_str(), uri.authority.userinfo.username.as_str(), uri.query.heartbeat), ("v", "u", Some(5)));
        }
    }

    #[test]
    fn a_wrong_url_is_a_usage_error_without_its_password() {
        let error = Broker::new(&SecretUrl::parse_amqp("amqp://u:s3cret@h:port/").unwrap()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}
