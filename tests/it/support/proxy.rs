//! A network between a program and a server that a test may hold: what is sent meanwhile does not arrive, and nobody is told.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// A port of this machine that leads to the server of a URL; what it carries ends with it.
#[derive(Debug)]
pub struct Proxy {
    url: String,
    line: Arc<Line>,
}

#[derive(Debug, Default)]
struct Line {
    held: Mutex<Held>,
    changed: Condvar,
    /// Whether new connections end at once.
    is_down: AtomicBool,
    /// Both ends of each connection.
    ends: Mutex<Vec<TcpStream>>,
}

/// What does not arrive at the moment.
#[derive(Debug, Default, Clone, Copy)]
struct Held {
    requests: bool,
    answers: bool,
}

#[derive(Clone, Copy)]
enum Direction {
    Requests,
    Answers,
}

impl Proxy {
    /// To the server that `url` names; nothing is held.
    #[track_caller]
    pub fn to(url: &str) -> Self {
        let (before, server, after) = split_at_authority(url);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let line = Arc::new(Line::default());
        let (server, connections) = (server.to_owned(), Arc::clone(&line));
        // Ends with the tests' own process; until then it waits for connections that nobody makes.
        thread::spawn(move || {
            for program in listener.incoming().flatten() {
                if connections.is_down.load(Ordering::Relaxed) {
                    continue;
                }
                // Without a server the program sees its connection end, as it would without this.
                if let Ok(server) = TcpStream::connect(&server) {
                    connections.carry_both_ways(&program, &server);
                }
            }
        });
        Self { url: format!("{before}{address}{after}"), line }
    }

    /// The same URL, through this.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Nothing that the program sends from now on arrives.
    pub fn hold_requests(&self) {
        self.line.hold(Held { requests: true, answers: false });
    }

    /// Nothing that the server sends from now on arrives.
    pub fn hold_answers(&self) {
        self.line.hold(Held { requests: false, answers: true });
    }

    /// Nothing arrives from now on, on either side.
    pub fn hold(&self) {
        self.line.hold(Held { requests: true, answers: true });
    }

    /// What was held arrives, and all that comes.
    pub fn release(&self) {
        self.line.hold(Held::default());
    }

    /// All connections end, and new ones at once, until it is up again.
    pub fn go_down(&self) {
        self.line.is_down.store(true, Ordering::Relaxed);
        self.cut();
    }

    pub fn come_up(&self) {
        self.line.is_down.store(false, Ordering::Relaxed);
    }

    /// Both sides see the end of all connections, and what was held is lost. New connections are possible.
    pub fn cut(&self) {
        for end in self.line.ends().drain(..) {
            // One that has ended already needs no end.
            drop(end.shutdown(Shutdown::Both));
        }
        self.release();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Line {
    fn ends(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self, held: Held) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
        self.changed.notify_all();
    }

    fn pass(&self, direction: Direction) {
        let is_held = |held: &mut Held| match direction {
            Direction::Requests => held.requests,
            Direction::Answers => held.answers,
        };
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(held, is_held));
    }

    fn carry_both_ways(self: &Arc<Self>, program: &TcpStream, server: &TcpStream) {
        for (from, to, direction) in [(program, server, Direction::Requests), (server, program, Direction::Answers)] {
            let (Ok(from), Ok(to), Ok(end)) = (from.try_clone(), to.try_clone(), from.try_clone()) else { return };
            self.ends().push(end);
            let line = Arc::clone(self);
            thread::spawn(move || line.carry(from, to, direction));
        }
    }

    fn carry(&self, mut from: TcpStream, mut to: TcpStream, direction: Direction) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            self.pass(direction);
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        self.pass(direction);
        drop(to.shutdown(Shutdown::Write));
    }
}

/// The URL of these hosts together, which differ in nothing else.
pub fn several_hosts(urls: &[&str]) -> String {
    let (before, _, after) = split_at_authority(urls[0]);
    let hosts: Vec<&str> = urls.iter().map(|url| split_at_authority(url).1).collect();
    format!("{before}{}{after}", hosts.join(","))
}

/// `host:port` of a URL.
pub fn host_of(url: &str) -> &str {
    split_at_authority(url).1
}

/// Before, `host:port`, and after.
pub fn split_at_authority(url: &str) -> (&str, &str, &str) {
    let start = url.find("://").map_or(0, |scheme| scheme + 3);
    let end = url[start..].find(['/', '?']).map_or(url.len(), |end| start + end);
    let start = url[start..end].rfind('@').map_or(start, |user| start + user + 1);
    (&url[..start], &url[start..end], &url[end..])
}
