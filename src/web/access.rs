//! Access: who may ask. A token, or on this machine the right name of the host; forms only from our own pages.

use std::net::{IpAddr, SocketAddr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, ORIGIN};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Who may ask, and the token of the forms.
#[derive(Debug)]
pub struct Access {
    /// The digest of the token, if one is set. Digests have equal lengths, and comparing them tells nothing of the token.
    token: Option<[u8; 32]>,
    /// Is in every form of our pages. Another site cannot read it.
    form_token: String,
}

/// Why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The token is missing or wrong.
    Token,
    /// The request was sent to a name that is not this machine's own.
    Host,
    /// The form was not sent by our own page.
    Foreign,
}

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

impl Access {
    /// Access with this token, or for everybody on this machine.
    pub fn new(token: Option<&str>) -> Self {
        // Random: two version 4 UUIDs have 244 random bits.
        let form_token = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        Self { token: token.map(digest), form_token }
    }

    /// The token of the forms.
    pub fn form_token(&self) -> &str {
        &self.form_token
    }

    /// Checks a request.
    ///
    /// # Errors
    /// If it may not be answered.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        match &self.token {
            Some(token) => match given_token(headers) {
                Some(given) if equal(&digest(&given), token) => Ok(()),
                _ => Err(Refusal::Token),
            },
            // A page of another site may have a name that leads to this machine. The browser then sends that name.
            None if is_loopback_name(headers) => Ok(()),
            None => Err(Refusal::Host),
        }
    }

    /// Checks that a form comes from one of our pages.
    ///
    /// # Errors
    /// If it does not, or if that cannot be seen.
    pub fn check_form(&self, headers: &HeaderMap, form_token: Option<&str>) -> Result<(), Refusal> {
        let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let is_own_origin = match (text(&ORIGIN), text(&HOST)) {
            (None, _) => true,
            (Some(origin), Some(host)) => origin.split_once("://").is_some_and(|(_, sender)| sender.eq_ignore_ascii_case(host)),
            (Some(_), None) => false,
        };
        let is_own_site = matches!(text(&FETCH_SITE), None | Some("same-origin" | "none"));
        let is_own_form = form_token.is_some_and(|given| equal(&digest(given), &digest(&self.form_token)));
        if is_own_origin && is_own_site && is_own_form { Ok(()) } else { Err(Refusal::Foreign) }
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// Compares in constant time.
fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b))) == 0
}

/// The token of `Authorization: Bearer TOKEN`, or the password of `Basic`, with any user name.
fn given_token(headers: &HeaderMap) -> Option<String> {
    let (scheme, value) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => Some(value.trim().to_owned()),
        "basic" => {
            let decoded = String::from_utf8(STANDARD.decode(value.trim()).ok()?).ok()?;
            decoded.split_once(':').map(|(_, password)| password.to_owned())
        }
        _ => None,
    }
}

/// Whether the request names this machine itself: an address of the loopback, or `localhost`, with any port.
fn is_loopback_name(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next().and_then(|host| host.to_str().ok()), hosts.next()) else { return false };
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && !name.contains(':') => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&str, &str)| (HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        fields.iter().map(field).collect()
    }

    #[test]
    fn without_a_token_only_names_of_this_machine_are_answered() {
        let access = Access::new(None);
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:80", "127.9.9.9:1", "[::1]", "[::1]:8080"] {
            assert_eq!(access.check(&headers(&[("host", host)])), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "192.168.1.2:8080",
            "127.0.0.1.evil.example",
            "",
            "::1x",
        ] {
            assert_eq!(access.check(&headers(&[("host", host)])), Err(Refusal::Host), "{host}");
        }
        assert_eq!(access.check(&headers(&[])), Err(Refusal::Host));
    }

    #[test]
    fn a_token_is_asked_for_whatever_the_host() {
        let access = Access::new(Some("s3cret"));
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        let check = |given: &str| access.check(&headers(&[("host", "page.example"), ("authorization", given)]));
        for given in ["Bearer s3cret", "bearer s3cret", &basic("anyone:s3cret"), &basic(":s3cret")] {
            assert_eq!(check(given), Ok(()), "{given}");
        }
        for given in ["Bearer s3cre", "Bearer s3crets", "Bearer", "s3cret", &basic("s3cret"), "Basic %%", "Digest s3cret", ""] {
            assert_eq!(check(given), Err(Refusal::Token), "{given}");
        }
        assert_eq!(access.check(&headers(&[("host", "127.0.0.1")])), Err(Refusal::Token));
    }

    #[test]
    fn a_form_is_taken_from_our_own_page_only() {
        let access = Access::new(None);
        let own = access.form_token().to_owned();
        let check = |fields: &[(&str, &str)], token: Option<&str>| access.check_form(&headers(fields), token);
        let host = ("host", "localhost:8080");
        let from = |origin| ("origin", origin);
        let site = |site| ("sec-fetch-site", site);
        assert_eq!(check(&[host], Some(&own)), Ok(()));
        assert_eq!(check(&[host, from("http://localhost:8080"), site("same-origin")], Some(&own)), Ok(()));
        let foreign = Err(Refusal::Foreign);
        assert_eq!(check(&[host], None), foreign);
        assert_eq!(check(&[host], Some("0")), foreign);
        for origin in ["http://evil.example", "null", "http://localhost:9090", "localhost:8080"] {
            assert_eq!(check(&[host, from(origin)], Some(&own)), foreign, "{origin}");
        }
        for origin in ["cross-site", "same-site"] {
            assert_eq!(check(&[host, site(origin)], Some(&own)), foreign, "{origin}");
        }
        assert_ne!(own, Access::new(None).form_token(), "it is another one in every process");
    }
}
