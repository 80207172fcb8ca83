//! A small HTTP client: it sends what a test wants sent, also what no browser would.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::process::Background;
use super::{PATIENCE, wait_until};

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.body))
    }

    fn parse(text: &str) -> Option<Self> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines.filter_map(|line| line.split_once(": ")).map(|(n, v)| (n.to_lowercase(), v.to_owned())).collect();
        Some(Self { status, headers, body: body.to_owned() })
    }
}

/// A page that a process serves.
#[derive(Debug, Clone, Copy)]
pub struct Page(pub SocketAddr);

impl Page {
    /// The page of a process that was started with `--http 0` or the like, once it says where it is.
    #[track_caller]
    pub fn of(process: &mut Background) -> Self {
        process.wait_for_stderr("the page is at http://");
        let said = process.stderr();
        let address = said.split("the page is at http://").nth(1).and_then(|rest| rest.split('/').next());
        Self(address.and_then(|address| address.parse().ok()).expect("an address"))
    }

    pub fn port(self) -> u16 {
        self.0.port()
    }

    /// A connection that has sent nothing.
    #[track_caller]
    pub fn connect(self) -> TcpStream {
        let stream = TcpStream::connect(self.0).expect("the page listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream
    }

    /// Sends these bytes and reads to the end; `None` if there is no answer.
    #[track_caller]
    pub fn send(self, bytes: impl AsRef<[u8]>) -> Option<Answer> {
        let mut stream = self.connect();
        stream.write_all(bytes.as_ref()).ok()?;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        Answer::parse(&String::from_utf8_lossy(&answer))
    }

    /// A request with these header lines besides `Host`.
    #[track_caller]
    pub fn request(self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let host = format!("localhost:{}", self.port());
        let own = if headers.iter().any(|(name, _)| *name == "host") { vec![] } else { vec![("host", host.as_str())] };
        let lines: String = own.iter().chain(headers).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
        let answer = self.send(format!("{method} {path} HTTP/1.1\r\n{lines}{length}\r\n{body}"));
        answer.unwrap_or_else(|| panic!("no answer to {method} {path}"))
    }

    #[track_caller]
    pub fn get(self, path: &str) -> Answer {
        self.request("GET", path, &[], "")
    }

    /// A form of the page, as a browser sends it.
    #[track_caller]
    pub fn post(self, path: &str, form: &str) -> Answer {
        self.request("POST", path, &[("content-type", "application/x-www-form-urlencoded")], form)
    }

    /// The value of a metric, with its labels as they are written.
    #[track_caller]
    pub fn metric(self, sample: &str) -> Option<f64> {
        let metrics = self.get("/metrics").body;
        let line = metrics.lines().find(|line| line.strip_prefix(sample).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Waits until the page answers this path with a body that contains `text`.
    #[track_caller]
    pub fn wait_for(self, path: &str, text: &str) -> Answer {
        let mut last = None;
        wait_until(&format!("{path} says {text:?}"), || {
            let answer = self.get(path);
            let found = answer.body.contains(text);
            last = Some(answer);
            found
        });
        last.expect("it was asked")
    }
}
