//! The server: accepts connections and bounds what each of them may take. Nobody can make it hold more than a fixed number of
//! connections, headers or seconds, and a client that says nothing gives way to one that does.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use super::Site;
use super::routes;
use crate::config::HttpAddress;
use crate::error::{Error, Result, io_text};

/// Connections at a time. Beyond that the oldest one that has asked nothing gives way.
const MOST_CONNECTIONS: usize = 256;
/// How long a client may take to send its request's headers, in at most this many bytes.
const HEADER_TIME: Duration = Duration::from_secs(5);
const HEADER_BYTES: usize = 16 * 1024;
/// How long a request and its answer may take.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// The same for live parts, after which the browser connects anew, and for a replay.
const LONG_TIME: Duration = Duration::from_secs(600);

/// A server that listens and does not answer yet.
#[derive(Debug)]
pub struct Server {
    listener: std::net::TcpListener,
    address: SocketAddr,
    site: Arc<Site>,
}

impl Server {
    /// Listens on the address.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub fn bind(address: &HttpAddress, site: Site) -> Result<Self> {
        let cannot = |error: std::io::Error| {
            Error::failed(format!("cannot listen on {address}: {}", io_text(&error)))
                .hint("stop the program that uses the port, or give another address with --http")
        };
        let mut addresses = (address.host(), address.port()).to_socket_addrs().map_err(cannot)?;
        let address = addresses.next().ok_or_else(|| cannot(std::io::ErrorKind::AddrNotAvailable.into()))?;
        let listener = std::net::TcpListener::bind(address).map_err(cannot)?;
        listener.set_nonblocking(true).map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        Ok(Self { listener, address, site: Arc::new(site) })
    }

    /// Answers requests for as long as it is polled.
    ///
    /// # Errors
    /// If the listener cannot be used.
    pub async fn serve(self) -> Result<Infallible> {
        let listener = TcpListener::from_std(self.listener)
            .map_err(|error| Error::failed(format!("cannot listen on {}: {}", self.address, io_text(&error))))?;
        tracing::info!("the page is at http://{}/", self.address);
        let seats = Seats::default();
        let site = Arc::clone(&self.site);
        let serving = async {
            tokio::select! {
                never = accept(&listener, &seats, &site) => match never {},
                never = site.observe() => match never {},
            }
        };
        // All of it is on this thread.
        tokio::task::LocalSet::new().run_until(serving).await
    }

    /// Answers requests on a thread of its own, until the returned value is dropped. Nothing that a client does reaches the
    /// threads of the pipeline.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(self) -> Result<Running> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let cannot = |error: std::io::Error| Error::failed(format!("cannot start the thread of the page: {}", io_text(&error)));
        let runtime = runtime.map_err(cannot)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let serve = move || {
            let ended = runtime.block_on(async {
                tokio::select! {
                    served = self.serve() => served.map(|never| match never {}),
                    _ = stopped => Ok(()),
                }
            });
            if let Err(error) = ended {
                tracing::error!("the page has ended: {error}");
            }
            // A database that does not answer must not delay the end of the run.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("page".to_owned()).spawn(serve).map_err(cannot)?;
        Ok(Running { stop: Some(stop), thread: Some(thread) })
    }
}

/// A server on its own thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has ended only the page.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: &TcpListener, seats: &Seats, site: &Arc<Site>) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let seat = Arc::new(Seat::default());
                let task = tokio::task::spawn_local(attend(stream, Arc::clone(&seat), Arc::clone(site)));
                seats.take(seat, task.abort_handle());
            }
            // Too many open files, for instance. What is open ends by itself.
            Err(error) => {
                tracing::debug!("the page cannot accept a connection: {}", io_text(&error));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Answers the one request of a connection.
async fn attend(stream: TcpStream, seat: Arc<Seat>, site: Arc<Site>) {
    let answer = {
        let seat = Arc::clone(&seat);
        service_fn(move |request| {
            let (site, seat) = (Arc::clone(&site), Arc::clone(&seat));
            async move {
                seat.has_asked.store(true, Ordering::Relaxed);
                if routes::takes_long(&request) {
                    seat.long.notify_one();
                }
                Ok::<_, Infallible>(routes::answer(&site, request).await)
            }
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(HEADER_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    tokio::pin!(connection);
    let is_over = tokio::select! {
        _ = &mut connection => true,
        () = tokio::time::sleep(ANSWER_TIME) => true,
        () = seat.long.notified() => false,
    };
    if !is_over {
        // What is not over then is cut off.
        let _ = tokio::time::timeout(LONG_TIME, connection).await;
    }
}

/// A connection.
#[derive(Debug, Default)]
struct Seat {
    /// Whether its request has arrived.
    has_asked: AtomicBool,
    /// Its answer takes long.
    long: Notify,
}

/// The open connections, the oldest first.
#[derive(Debug, Default)]
struct Seats(Mutex<VecDeque<(Arc<Seat>, AbortHandle)>>);

impl Seats {
    /// Adds a connection. If there are too many, the oldest that has asked nothing is cut off, else the oldest.
    fn take(&self, seat: Arc<Seat>, task: AbortHandle) {
        let mut seats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seats.len() >= MOST_CONNECTIONS {
            seats.retain(|(_, task)| !task.is_finished());
        }
        if seats.len() >= MOST_CONNECTIONS {
            let silent = seats.iter().position(|(seat, _)| !seat.has_asked.load(Ordering::Relaxed));
            if let Some((_, task)) = seats.remove(silent.unwrap_or(0)) {
                task.abort();
            }
        }
        seats.push_back((seat, task));
    }
}
