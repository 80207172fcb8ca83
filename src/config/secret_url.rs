//! URLs of databases and brokers, which may contain a password. This file keeps passwords out of logs and errors.

use std::ffi::OsString;
use std::fmt;
use std::ops::Range;
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
            return SecretUrl(url.to_owned()).with_hosts().map(Self::Postgres);
        }
        let Some(rest) = url.strip_prefix("sqlite:") else {
            if !url.contains("://") && url.contains('=') {
                // Not shown: it may contain a password, quoted in any way.
                return Err(Error::usage("a list of parameters (`host=… user=…`) is no URL")
                    .hint("give postgres://user:password@host:5432/database, or sqlite://dataloader.db (a file)"));
            }
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
            return Self(url.to_owned()).with_hosts();
        }
        Err(Error::usage(format!("`{}` is no AMQP URL", redact(url)))
            .hint("give amqp://user:password@host:5672/vhost (amqps:// for TLS); the vhost `/` is written %2f"))
    }

    /// The whole URL with its password, for the client library only. Never print it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// This URL for each of its hosts: `user@one:5432,two:5432/…` names two.
    pub fn hosts(&self) -> Vec<Self> {
        let hosts = hosts_of(&self.0);
        let (before, after) = (&self.0[..hosts.start], &self.0[hosts.end..]);
        self.0[hosts].split(',').map(|host| Self([before, host, after].concat())).collect()
    }

    /// This URL, if each of several hosts has a name.
    fn with_hosts(self) -> Result<Self> {
        let hosts = &self.0[hosts_of(&self.0)];
        if hosts.contains(',') && hosts.split(',').any(|host| host.is_empty() || host.starts_with(':')) {
            return Err(Error::usage(format!("the hosts in `{self}` are not all named"))
                .hint("give user:password@host1:port,host2:port, with the login once"));
        }
        Ok(self)
    }

    /// The URL for sqlx, which writes parameters that it does not know into a warning: without those that name a secret. Also
    /// returns the names of these.
    pub fn without_unknown_secrets(&self) -> (Self, Vec<&str>) {
        let (base, query) = split_query(&self.0);
        let Some(query) = query else { return (self.clone(), Vec::new()) };
        let name = |parameter: &&str| {
            parameter.split('=').next().is_some_and(|name| percent_decode(name) != b"password" && is_password_name(name))
        };
        let (dropped, kept): (Vec<&str>, Vec<&str>) = query.split('&').partition(name);
        let url = format!("{base}?{}", kept.join("&"));
        (Self(url), dropped.iter().filter_map(|parameter| parameter.split('=').next()).collect())
    }

    /// Removes this URL's password, in every spelling, from a text that a client library made.
    pub fn scrub(&self, text: &str) -> String {
        let mut text = text.replace(&self.0, &redact(&self.0));
        let (user, passwords) = credentials(&self.0);
        for password in passwords.iter().filter(|p| !p.is_empty() && Some(*p) != user.as_ref()) {
            text = replace_password(&text, password);
        }
        hide_passwords(&text)
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

/// Hides every password in `text` that can be recognised: those of URLs, and what follows `password=` or a similar name.
pub fn hide_passwords(text: &str) -> String {
    hide_parameters(&redact_urls(text))
}

/// The same for a text that quotes arguments of the command line: there, the ends of each are known.
pub fn hide_arguments(text: &str, args: &[OsString]) -> String {
    let mut safe = text.to_owned();
    for arg in args.iter().filter_map(|arg| arg.to_str()).filter(|arg| arg.contains("://")) {
        safe = safe.replace(arg, &redact(arg));
    }
    hide_passwords(&safe)
}

/// Hides the values of parameters such as `sslpassword=…`, as in a query or in a list for libpq. A value ends at white space or at
/// the end of a JSON string: with an odd value this hides too much rather than too little.
fn hide_parameters(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(equals) = rest.find('=') {
        let before = rest[..equals].trim_end_matches(' ');
        let start = before.trim_end_matches(|c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '%')).len();
        safe.push_str(&rest[..=equals]);
        let in_query = before[..start].ends_with(['?', '&']);
        rest = &rest[equals + 1..];
        if is_password_name(&before[start..]) {
            let value = rest.trim_start_matches(' ');
            let end = value_end(value, in_query);
            if end > 0 {
                safe.push_str(HIDDEN);
                rest = &value[end..];
            }
        }
    }
    safe.push_str(rest);
    safe
}

/// The length of the value of a parameter at the beginning of `text`.
fn value_end(text: &str, in_query: bool) -> usize {
    // In JSON a quote at once is the end of the string, if the next part of the object follows it.
    let is_quoted = |quote: &&str| text.strip_prefix(*quote).is_some_and(|rest| !in_query && !rest.starts_with([',', '}', ']']));
    let quote = ["'", "\\\"", "\""].into_iter().find(is_quoted);
    let start = quote.map_or(0, str::len);
    let mut is_escaped = false;
    for (i, c) in text[start..].char_indices() {
        let (at, rest) = (start + i, &text[start + i..]);
        match quote {
            Some(quote) if rest.starts_with(quote) && !is_escaped => return at + quote.len(),
            None if c == '"' || rest.starts_with("\\\"") || c.is_whitespace() && !is_escaped || in_query && c == '&' => return at,
            _ => is_escaped = c == '\\' && !is_escaped,
        }
    }
    text.len()
}

/// Hides the password of every URL in `text`.
fn redact_urls(text: &str) -> String {
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

/// Where the hosts of a URL stand in it, with their ports.
fn hosts_of(url: &str) -> Range<usize> {
    let start = authority_start(url);
    let (base, _) = split_query(url);
    // An `@` after the path is in a parameter. A `?` before the only `@` is part of the password.
    let in_password = || url.rfind('@').filter(|_| !base[start..].contains('/'));
    let start = base.rfind('@').or_else(in_password).filter(|&at| at >= start).map_or(start, |at| at + 1);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |end| start + end);
    start..end
}

fn split_query(url: &str) -> (&str, Option<&str>) {
    match url.split_once('?') {
        Some((base, query)) => (base, Some(query)),
        None => (url, None),
    }
}

fn is_password_name(name: &str) -> bool {
    let name = String::from_utf8_lossy(&percent_decode(name)).to_ascii_lowercase();
    ["passw", "pwd", "secret", "token"].iter().any(|word| name.contains(word)) || name.ends_with("pass") || name == "pw"
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
            ("host=h password=s3cret", "is no URL"),
            ("sqlite://x.db?passwd=s3cret", "?passwd=***"),
        ] {
            let error = DatabaseUrl::parse(url).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let error = hide_passwords(&error.to_string());
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
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
            ("postgres://u:s3cret@h1:5432,h2/db", "postgres://u:***@h1:5432,h2/db"),
            ("postgres://u:s3cret@h1,u:s3cret@h2/db", "postgres://u:***@h2/db"),
            ("u:s3cret@h/db", "u:***@h/db"),
            ("amqp://guest:guest@127.0.0.1:5672/%2f", "amqp://guest:***@127.0.0.1:5672/%2f"),
        ] {
            assert_eq!(redact(url), expected);
            assert_eq!(format!("{:?}", SecretUrl(url.to_owned())), format!("{expected:?}"));
        }
    }

    #[test]
    fn hosts_are_told_from_passwords_and_parameters() {
        for (url, expected) in [
            ("postgres://u:a,b@h1:1,h2:2/d,b?x=y,z", &["postgres://u:a,b@h1:1/d,b?x=y,z", "postgres://u:a,b@h2:2/d,b?x=y,z"][..]),
            ("amqp://mq1,[::1]:2", &["amqp://mq1", "amqp://[::1]:2"]),
            ("postgres://h1,h2/db?password=s3@cret", &["postgres://h1/db?password=s3@cret", "postgres://h2/db?password=s3@cret"]),
            ("postgres://u:a,b?c@h/db", &["postgres://u:a,b?c@h/db"]),
        ] {
            let hosts: Vec<String> = SecretUrl(url.to_owned()).hosts().into_iter().map(|host| host.0).collect();
            assert_eq!(hosts, expected);
        }
        for url in ["postgres://u:s3cret@h1,,h2/db", "postgres://u:s3cret@h1,/db", "postgres://u:s3cret@h1,:5433/db"] {
            let error = DatabaseUrl::parse(url).unwrap_err();
            assert!(error.exit_code() == 2 && !error.to_string().contains("s3cret"), "{error}");
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
        assert_eq!(hide_passwords(text), r#"cannot: "amqp://a:***@h/%2f", then postgres://b:***@h, https://example.org/a b"#);
    }

    #[test]
    fn passwords_of_parameters_are_hidden_in_any_text() {
        for (text, expected) in [
            ("cannot: host=h password=s3cret user=u", "cannot: host=h password=*** user=u"),
            ("host=h password = 's3 cr\\'et' user=u", "host=h password =*** user=u"),
            ("host=h PASSWORD=s3\\ cret", "host=h PASSWORD=***"),
            (r#"{"message":"x passwd=","y":1}"#, r#"{"message":"x passwd=","y":1}"#),
            (r#"a password="s3 cret" b"#, r#"a password=*** b"#),
            (r#"{"message":"x passwd=s3cret","y":1}"#, r#"{"message":"x passwd=***","y":1}"#),
            (r#"{"message":"x \"passwd=s3cret\"","y":1}"#, r#"{"message":"x \"passwd=***\"","y":1}"#),
            ("postgres://h/db?sslpassword=s3'c&sslmode=off", "postgres://h/db?sslpassword=***&sslmode=off"),
            ("postgres://h/db?pass%77d=s3cret", "postgres://h/db?pass%77d=***"),
            ("a=b c=d, e==f", "a=b c=d, e==f"),
        ] {
            assert_eq!(hide_passwords(text), expected);
        }
        let url = "postgres://u:my s3cret@h/db";
        assert_eq!(
            hide_arguments(&format!("unexpected argument '{url}'"), &[url.into()]),
            "unexpected argument 'postgres://u:***@h/db'"
        );
    }

    #[test]
    fn parameters_that_sqlx_would_show_are_not_passed_on() {
        let url = SecretUrl("postgres://h/db?ssl%70assword=a&sslmode=off&password=b&passwd=c".to_owned());
        let (passed, dropped) = url.without_unknown_secrets();
        assert_eq!(passed.expose(), "postgres://h/db?sslmode=off&password=b");
        assert_eq!(dropped, ["ssl%70assword", "passwd"]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_can_be_redacted(before in ".*", password in "[^\\s\"\\\\]*", after in ".*") {
            hide_passwords(&format!("{before}://{after}"));
            hide_passwords(&format!("{before}password={after}"));
            // A URL that names its password in two ways works nowhere.
            proptest::prop_assume!(!password.to_lowercase().contains("password") && !password.contains('%'));
            let text = redact_urls(&format!("cannot reach 'postgres://user:{password}@host/db' then {before}"));
            proptest::prop_assert!(text.starts_with("cannot reach 'postgres://user:***@host/db' then "), "{text}");
        }
    }
}
