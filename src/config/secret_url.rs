//! URLs of databases and brokers, which may contain a password. This file keeps passwords out of logs and errors.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::error::{Error, Result};

const HIDDEN: &str = "***";

/// The URL of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// Example: `postgres://user:password@host:5432/database?sslmode=…`. Only the scheme is checked.
    Postgres(SecretUrl),
    /// The file of `sqlite://path`, relative to the working directory unless the path begins with `/`.
    Sqlite(PathBuf),
}

impl DatabaseUrl {
    /// Parses a URL. An unsupported scheme is a usage error that lists the supported ones.
    pub fn parse(url: &str) -> Result<Self> {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Ok(Self::Postgres(SecretUrl(url.to_owned())));
        }
        let Some(rest) = url.strip_prefix("sqlite:") else {
            return Err(Error::usage(format!("`{}` is no database this program knows", redact(url)))
                .hint("give sqlite://dataloader.db (a file) or postgres://user:password@host:5432/database"));
        };
        let path = rest.strip_prefix("//").unwrap_or(rest);
        if path.contains(":memory:") {
            return Err(Error::usage(format!("`{url}`: a database in memory would be gone when the command ends"))
                .hint("give a file: sqlite://dataloader.db"));
        }
        if path.contains('?') {
            return Err(Error::usage(format!("`{url}`: SQLite takes no parameters here"))
                .hint("give the file alone: sqlite://dataloader.db; a `?` in its name is written %3F"));
        }
        let path = percent_decode(path);
        if path.is_empty() || path.contains(&0) {
            return Err(Error::usage(format!("`{url}` names no file"))
                .hint("give sqlite://dataloader.db, or sqlite:///var/lib/dataloader.db"));
        }
        Ok(Self::Sqlite(PathBuf::from(OsString::from_vec(path))))
    }
}

/// Displays the URL without its password.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres(url) => url.fmt(f),
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
        }
    }
}

/// A URL that may contain a password. `Display` and `Debug` show `***` instead of the password.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// Parses the URL of a broker. Any other scheme than `amqp://` and `amqps://` is a usage error.
    pub fn parse_amqp(url: &str) -> Result<Self> {
        if url.starts_with("amqp://") || url.starts_with("amqps://") {
            return Ok(Self(url.to_owned()));
        }
        Err(Error::usage(format!("`{}` is no AMQP URL", redact(url)))
            .hint("give amqp://user:password@host:5672/vhost (amqps:// for TLS); the vhost `/` is written %2f"))
    }

    /// The whole URL with its password, for the client library only. Never print it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Removes this URL's password, in every spelling, from a text that a client library made.
    pub fn scrub(&self, text: &str) -> String {
        let mut text = text.replace(&self.0, &redact(&self.0));
        let (user, passwords) = credentials(&self.0);
        for password in passwords.iter().filter(|p| !p.is_empty() && Some(*p) != user.as_ref()) {
            text = replace_password(&text, password);
        }
        redact_urls(&text)
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact(&self.0))
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", redact(&self.0))
    }
}

/// Hides the password of every URL in `text`.
pub fn redact_urls(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(colon) = rest.find("://") {
        let is_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        let start = rest[..colon].trim_end_matches(is_scheme).len();
        // A URL ends at white space or at the end of a JSON string. After the last `@`, where no password can follow, it also
        // ends at another closing quote.
        let is_end = |c: char| c.is_whitespace() || matches!(c, '"' | '\\');
        let longest = rest[colon..].find(is_end).map_or(rest.len(), |i| colon + i);
        let host = rest[colon..longest].rfind('@').map_or(colon, |i| colon + i);
        let end = rest[host..longest].find(['\'', '`', '<', '>']).map_or(longest, |i| host + i);
        safe.push_str(&rest[..start]);
        safe.push_str(&redact(&rest[start..end]));
        rest = &rest[end..];
    }
    safe.push_str(rest);
    safe
}

/// Hides the password of one URL. The URL may be invalid, because the error may be about the URL itself. Everything up to the
/// last `@` counts as the password: a stray `@`, `/` or `?` in a password hides too much rather than too little.
fn redact(url: &str) -> String {
    let (base, query) = split_query(url);
    let url = match query {
        None => base.to_owned(),
        Some(query) => {
            let hide = |parameter: &str| match parameter.split_once('=') {
                Some((name, _)) if is_password_name(name) => format!("{name}={HIDDEN}"),
                _ => parameter.to_owned(),
            };
            format!("{base}?{}", query.split('&').map(hide).collect::<Vec<_>>().join("&"))
        }
    };
    let start = authority_start(&url);
    let Some(at) = url.rfind('@').filter(|&at| at >= start) else { return url };
    match url[start..at].find(':') {
        Some(colon) => format!("{}:{HIDDEN}{}", &url[..start + colon], &url[at..]),
        None => url,
    }
}

/// The user name in `url`, and every spelling of its passwords.
fn credentials(url: &str) -> (Option<String>, Vec<String>) {
    let (base, query) = split_query(url);
    let start = authority_start(base);
    // A `?` before the only `@` is part of the password.
    let at = base.rfind('@').or_else(|| url.rfind('@')).filter(|&at| at >= start);
    let (user, password) = match at.map(|at| &url[start..at]) {
        None => (None, None),
        Some(login) => match login.split_once(':') {
            None => (Some(login), None),
            Some((user, password)) => (Some(user), Some(password)),
        },
    };
    let in_query = query.unwrap_or_default().split('&').filter_map(|p| p.split_once('='));
    let raw = password.into_iter().chain(in_query.filter(|(name, _)| is_password_name(name)).map(|(_, value)| value));
    let decoded = |raw: &str| String::from_utf8_lossy(&percent_decode(raw)).into_owned();
    (user.map(decoded), raw.flat_map(|raw| [raw.to_owned(), decoded(raw)]).collect())
}

/// Replaces a long password everywhere. It replaces a short password only where it is a separate word, because it may occur
/// inside of other words.
fn replace_password(text: &str, password: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut done = 0;
    for (start, found) in text.match_indices(password) {
        let end = start + found.len();
        let in_word = text[..start].ends_with(char::is_alphanumeric) || text[end..].starts_with(char::is_alphanumeric);
        if password.len() >= 6 || !in_word {
            safe.push_str(&text[done..start]);
            safe.push_str(HIDDEN);
            done = end;
        }
    }
    safe.push_str(&text[done..]);
    safe
}

fn authority_start(url: &str) -> usize {
    url.find("://").map_or(0, |i| i + "://".len())
}

fn split_query(url: &str) -> (&str, Option<&str>) {
    match url.split_once('?') {
        Some((base, query)) => (base, Some(query)),
        None => (url, None),
    }
}

fn is_password_name(name: &str) -> bool {
    String::from_utf8_lossy(&percent_decode(name)).to_ascii_lowercase().contains("password")
}

/// Decodes escapes such as `%41`. A `%` without two hexadecimal digits is unchanged.
fn percent_decode(text: &str) -> Vec<u8> {
    percent_encoding::percent_decode_str(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_urls_name_a_file() {
        let path = |url: &str| match DatabaseUrl::parse(url).unwrap() {
            DatabaseUrl::Sqlite(path) => path,
            other => panic!("{other:?}"),
        };
        assert_eq!(path("sqlite://dataloader.db"), PathBuf::from("dataloader.db"));
        assert_eq!(path("sqlite:data/x.db"), PathBuf::from("data/x.db"));
        assert_eq!(path("sqlite:///var/my%20data/x%3F.db"), PathBuf::from("/var/my data/x?.db"));
        assert_eq!(path("sqlite://100%.db"), PathBuf::from("100%.db"));
        assert_eq!(DatabaseUrl::parse("sqlite:///a/b.db").unwrap().to_string(), "sqlite:///a/b.db");
    }

    #[test]
    fn unsupported_databases_are_explained() {
        for (url, expected) in [
            ("mysql://u:s3cret@h/db", "`mysql://u:***@h/db` is no database"),
            ("dataloader.db", "give sqlite://dataloader.db (a file) or postgres://"),
            ("sqlite::memory:", "would be gone"),
            ("sqlite://", "names no file"),
            ("sqlite://x.db?mode=ro", "takes no parameters"),
        ] {
            let error = DatabaseUrl::parse(url).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(expected), "{error}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
        assert!(SecretUrl::parse_amqp("http://h").unwrap_err().to_string().contains("amqps://"));
    }

    #[test]
    fn no_spelling_shows_the_password() {
        for (url, expected) in [
            ("postgres://u:s3cret@h:5432/db", "postgres://u:***@h:5432/db"),
            ("postgres://u@h:5432/db", "postgres://u@h:5432/db"),
            ("postgres://h/db", "postgres://h/db"),
            ("postgres://u:s3%40cret@h/db?sslmode=require", "postgres://u:***@h/db?sslmode=require"),
            ("postgres://u:s3@cr/et@h/db", "postgres://u:***@h/db"),
            ("postgres://u:s3?cret@h/db", "postgres://u:***@h/db"),
            ("postgres://u:s3#cret@h/db", "postgres://u:***@h/db"),
            ("postgres://h/db?user=u&password=s3@cret", "postgres://h/db?user=u&password=***"),
            ("postgres://h/db?pass%77ord=s3cret&sslpassword=s3cret", "postgres://h/db?pass%77ord=***&sslpassword=***"),
            ("postgres://u:s3cret@[::1]:5432/db", "postgres://u:***@[::1]:5432/db"),
            ("u:s3cret@h/db", "u:***@h/db"),
            ("amqp://guest:guest@127.0.0.1:5672/%2f", "amqp://guest:***@127.0.0.1:5672/%2f"),
        ] {
            assert_eq!(redact(url), expected);
            assert_eq!(format!("{:?}", SecretUrl(url.to_owned())), format!("{expected:?}"));
        }
    }

    #[test]
    fn foreign_error_texts_are_scrubbed() {
        let url = SecretUrl("postgres://loader:s3cr%40t!@h/db".to_owned());
        assert_eq!(url.scrub("cannot reach postgres://loader:s3cr%40t!@h/db"), "cannot reach postgres://loader:***@h/db");
        assert_eq!(url.scrub("bad password 's3cr@t!' for loader"), "bad password '***' for loader");
        assert_eq!(url.scrub("raw s3cr%40t! too"), "raw *** too");
        let short = SecretUrl("postgres://loader:a@h/db".to_owned());
        assert_eq!(short.scrub("a database, password \"a\""), "*** database, password \"***\"");
        let same = SecretUrl("postgres://postgres:postgres@h/db".to_owned());
        assert_eq!(same.scrub("no role \"postgres\""), "no role \"postgres\"");
    }

    #[test]
    fn urls_in_any_text_are_redacted() {
        let text = r#"cannot: "amqp://a:x@h/%2f", then postgres://b:y@h, https://example.org/a b"#;
        assert_eq!(redact_urls(text), r#"cannot: "amqp://a:***@h/%2f", then postgres://b:***@h, https://example.org/a b"#);
    }

    proptest::proptest! {
        #[test]
        fn any_text_can_be_redacted(before in ".*", password in "[^\\s\"\\\\]*", after in ".*") {
            redact_urls(&format!("{before}://{after}"));
            // A URL that names its password in two ways works nowhere.
            proptest::prop_assume!(!password.to_lowercase().contains("password") && !password.contains('%'));
            let text = redact_urls(&format!("cannot reach 'postgres://user:{password}@host/db' then {before}"));
            proptest::prop_assert!(text.starts_with("cannot reach 'postgres://user:***@host/db' then "), "{text}");
        }
    }
}
