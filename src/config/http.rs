//! Where the page is served, and who may see it.

use std::fmt;
use std::net::IpAddr;

use crate::error::{Error, Result};

/// The host of an address that names none: this machine only.
const LOOPBACK: &str = "127.0.0.1";

/// The address of the page: `HOST:PORT`, `:PORT` or `PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAddress {
    host: String,
    port: u16,
}

impl HttpAddress {
    /// The address of `serve` unless another one is given.
    pub fn of_serve() -> Self {
        Self { host: LOOPBACK.to_owned(), port: 8080 }
    }

    /// Parses an address.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Error::usage(format!("`{text}` is no address to listen on"))
                .hint("give PORT, :PORT or HOST:PORT, for example 8080, 0.0.0.0:8080 or [::1]:8080")
        };
        let (host, port) = match text.rsplit_once(':') {
            None => ("", text),
            Some((host, port)) => (host, port),
        };
        // An IPv6 address has colons of its own.
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if bare.is_none() && host.contains([':', '[', ']', '/', '@']) || bare.is_some_and(|host| host.parse::<IpAddr>().is_err()) {
            return Err(wrong());
        }
        if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let host = match bare.unwrap_or(host) {
            "" => LOOPBACK,
            host => host,
        };
        Ok(Self { host: host.to_owned(), port: port.parse().map_err(|_| wrong())? })
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether only programs of this machine can reach it.
    pub fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost") || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for HttpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// The token that clients of the page give. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpToken(String);

impl HttpToken {
    /// Takes the token from the environment. Nothing is allowed that a header cannot carry.
    pub fn parse(text: &str) -> Result<Self> {
        if text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::usage("the token has characters that a browser cannot send")
            .hint("use letters, digits and punctuation, no space"))
    }

    /// The token itself. Never print it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for HttpToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_host_is_of_this_machine_only() {
        for (text, shown, is_loopback) in [
            ("8080", "127.0.0.1:8080", true),
            (":8080", "127.0.0.1:8080", true),
            ("0", "127.0.0.1:0", true),
            ("localhost:80", "localhost:80", true),
            ("127.0.0.2:80", "127.0.0.2:80", true),
            ("[::1]:80", "[::1]:80", true),
            ("0.0.0.0:80", "0.0.0.0:80", false),
            ("[::]:80", "[::]:80", false),
            ("page.example:80", "page.example:80", false),
        ] {
            let address = HttpAddress::parse(text).unwrap();
            assert_eq!((address.to_string().as_str(), address.is_loopback()), (shown, is_loopback), "{text}");
        }
        for text in
            ["", ":", "localhost", "localhost:", "65536", "-1", "+80", "::1:80", "[::1", "[x]:80", "http://localhost:80", "8080 "]
        {
            let error = HttpAddress::parse(text).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn a_token_is_never_shown() {
        let token = HttpToken::parse("s3cret").unwrap();
        assert_eq!(format!("{token:?}"), "***");
        for text in ["a b", "ä", "a\n"] {
            assert_eq!(HttpToken::parse(text).unwrap_err().exit_code(), 2, "{text:?}");
        }
    }
}
