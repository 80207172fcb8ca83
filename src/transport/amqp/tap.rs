//! Tap: limits how many bytes are read from a connection. RabbitMQ sends as many messages ahead as the prefetch count allows,
//! whatever their size, and lapin loads everything that arrives into memory. What the tap does not read stays with the broker.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::{AsyncRead, AsyncWrite, Stream};
use tokio::sync::Notify;

/// How much may be read at a time, before the consumer checks its memory again. A smaller amount would cost throughput.
const PORTION: usize = 512 << 10;
/// The small amount that is read regularly even while the tap is closed. It may contain heartbeats of the broker, which are 8
/// bytes long.
const TRICKLE: usize = 64;
/// How often this small amount is allowed. A broker that seems silent for two heartbeat intervals, which are one second at least,
/// would be taken for dead.
pub(super) const TRICKLE_EVERY: Duration = Duration::from_secs(1);

/// The tap of one connection. It starts with one portion, which is enough for the handshake and some answers.
#[derive(Debug, Clone)]
pub(super) struct Tap(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    used_up: Notify,
}

#[derive(Debug)]
struct State {
    /// How many bytes may still be read.
    left: usize,
    /// Whether the connection is given up.
    given_up: bool,
    /// The last reader that waited, for more from the broker or for the tap.
    reader: Option<Waker>,
}

/// Ends the connection of a tap when it is dropped.
#[derive(Debug)]
pub(super) struct EndOnDrop(Tap);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        let reader = {
            let mut state = self.0.lock();
            state.given_up = true;
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl Tap {
    pub fn new() -> Self {
        Self(Arc::new(Shared { state: Mutex::new(State { left: PORTION, given_up: false, reader: None }), used_up: Notify::new() }))
    }

    /// A guard that ends the connection. lapin only asks the broker to close a connection that is dropped, and can forget that
    /// request. The broker would keep the unacknowledged messages for a consumer that is gone.
    pub fn end_on_drop(&self) -> EndOnDrop {
        EndOnDrop(self.clone())
    }

    /// Completes when everything that was allowed has been read.
    pub async fn used_up(&self) {
        loop {
            // Registered before the check, so that no change between the two is missed.
            let change = self.0.used_up.notified();
            if self.lock().left == 0 {
                return;
            }
            change.await;
        }
    }

    /// Allows a portion to be read, no more than that.
    pub fn allow_portion(&self) {
        self.allow(PORTION);
    }

    /// Allows a trickle to be read, unless more is allowed already.
    pub fn allow_trickle(&self) {
        self.allow(TRICKLE);
    }

    /// The runtime for a connection that reads through this tap.
    pub fn runtime(&self) -> Runtime<RuntimeParts<Tokio, Tapped>> {
        let tokio = Tokio::current();
        Runtime::new(RuntimeParts::new(tokio.clone(), Tapped { tokio, tap: self.clone() }))
    }

    fn allow(&self, bytes: usize) {
        let reader = {
            let mut state = self.lock();
            state.left = state.left.max(bytes);
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// tokio's reactor, with TCP streams that read through a tap.
#[derive(Debug, Clone)]
pub(super) struct Tapped {
    tokio: Tokio,
    tap: Tap,
}

impl Reactor for Tapped {
    type TcpStream = TappedStream;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: io::Read + io::Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.tokio.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.tokio.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.tokio.interval(duration)
    }

    fn tcp_connect_addr(&self, address: SocketAddr) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let (connect, tap) = (self.tokio.tcp_connect_addr(address), self.tap.clone());
        async move { Ok(TappedStream { stream: connect.await?, tap }) }
    }
}

/// A TCP stream that reads through a tap.
pub(super) struct TappedStream {
    stream: <Tokio as Reactor>::TcpStream,
    tap: Tap,
}

impl AsyncRead for TappedStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let Self { stream, tap } = &mut *self;
        let mut state = tap.lock();
        if state.given_up {
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::ConnectionAborted)));
        }
        if !state.reader.as_ref().is_some_and(|reader| reader.will_wake(context.waker())) {
            state.reader = Some(context.waker().clone());
        }
        if state.left == 0 {
            return Poll::Pending;
        }
        let most = buffer.len().min(state.left);
        let read = std::task::ready!(Pin::new(stream).poll_read(context, &mut buffer[..most]))?;
        state.left -= read;
        if state.left == 0 {
            tap.0.used_up.notify_waiters();
        }
        Poll::Ready(Ok(read))
    }
}

impl AsyncWrite for TappedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn no_more_is_read_than_was_allowed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tap = Tap::new();
        let connect = tap.runtime().tcp_connect_addr(listener.local_addr().unwrap());
        let (stream, accepted) = tokio::join!(connect, listener.accept());
        let (mut stream, mut other_end) = (stream.unwrap(), accepted.unwrap().0);
        let sender = tokio::spawn(async move { other_end.write_all(&vec![b'x'; PORTION + TRICKLE + 1]).await });
        let reader = tokio::spawn(async move {
            let mut text = Vec::new();
            stream.read_to_end(&mut text).await.map(|_| text.len())
        });
        tap.used_up().await;
        assert!(!reader.is_finished());
        tap.allow_trickle();
        tap.used_up().await;
        assert!(!reader.is_finished() && tap.lock().left == 0);
        tap.allow_portion();
        sender.await.unwrap().unwrap();
        assert_eq!(reader.await.unwrap().unwrap(), PORTION + TRICKLE + 1);
        assert_eq!(tap.lock().left, PORTION - 1);
    }

    #[tokio::test]
    async fn a_connection_that_is_given_up_ends_though_nothing_arrives() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tap = Tap::new();
        let connect = tap.runtime().tcp_connect_addr(listener.local_addr().unwrap());
        let (stream, accepted) = tokio::join!(connect, listener.accept());
        let (mut stream, _other_end) = (stream.unwrap(), accepted.unwrap().0);
        let guard = tap.end_on_drop();
        let mut text = Vec::new();
        let end = async {
            // The reader waits by now.
            tokio::task::yield_now().await;
            drop(guard);
        };
        let (read, ()) = tokio::join!(stream.read_to_end(&mut text), end);
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
