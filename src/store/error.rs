//! What a database can answer besides "done", sorted by what the caller can do about it.

use crate::error::{Error, io_text};

/// The result of a statement.
pub type StoreResult<T> = Result<T, StoreError>;

/// What the caller can do about a failed statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The database is away, restarting, busy, or chose this transaction to end a deadlock: connect again, repeat all of it.
    Unavailable,
    /// Wrong user or password, no such database, or no place for its file: repeating does not help.
    Refused,
    /// A row does not fit the table's types or constraints: without it the others load.
    BadRow,
    /// No space (or memory) left: repeating helps once there is some.
    Full,
    /// The database, its file or this user may not write.
    ReadOnly,
    /// Anything else, our own mistakes among it.
    Other,
}

/// A failed statement or connection.
#[derive(Debug)]
pub struct StoreError {
    class: Class,
    message: String,
    hint: Option<String>,
}

impl StoreError {
    /// An error of our own finding.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), hint: None }
    }

    /// An error of our own finding that nothing but people can mend.
    pub fn other(message: impl Into<String>) -> Self {
        Self::new(Class::Other, message)
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What can be done about it.
    pub fn class(&self) -> Class {
        self.class
    }
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for StoreError {}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let class = match &error {
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::WorkerCrashed => Class::Unavailable,
            // The server's goodbye can be cut off in the middle of a message.
            sqlx::Error::Protocol(_) => Class::Unavailable,
            sqlx::Error::Database(database) => {
                let code = database.code().unwrap_or_default();
                match database.try_downcast_ref::<sqlx::sqlite::SqliteError>() {
                    Some(_) => sqlite_class(&code),
                    None => postgres_class(&code),
                }
            }
            _ => Class::Other,
        };
        let message = match &error {
            sqlx::Error::Io(io) => io_text(io),
            sqlx::Error::Database(database) => database.message().to_owned(),
            other => other.to_string(),
        };
        Self::new(class, message)
    }
}

/// By SQLSTATE, <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn postgres_class(code: &str) -> Class {
    match (code.get(..2).unwrap_or_default(), code) {
        ("53", "53100" | "53200") => Class::Full,
        ("08" | "40" | "53", _) | (_, "57P01" | "57P02" | "57P03" | "55P03") => Class::Unavailable,
        ("28", _) | (_, "3D000") => Class::Refused,
        ("22" | "23", _) => Class::BadRow,
        (_, "25006" | "42501") => Class::ReadOnly,
        _ => Class::Other,
    }
}

/// By primary result code, <https://www.sqlite.org/rescode.html>.
fn sqlite_class(code: &str) -> Class {
    match code.parse::<u32>().map_or(0, |extended| extended & 0xff) {
        5 | 6 => Class::Unavailable,   // BUSY, LOCKED
        13 | 7 => Class::Full,         // FULL, NOMEM
        8 => Class::ReadOnly,          // READONLY
        18..=20 => Class::BadRow,      // TOOBIG, CONSTRAINT, MISMATCH
        3 | 14 | 23 => Class::Refused, // PERM, CANTOPEN, AUTH
        _ => Class::Other,
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let StoreError { class, message, hint } = error;
        let error = match class {
            Class::Unavailable => Error::unreachable(format!("the database is not available: {message}"))
                .hint("check that it is running and that --database or DATABASE_URL is right"),
            Class::Refused => Error::unreachable(format!("cannot connect to the database: {message}"))
                .hint("check user, password and name of the database, or the path of its file, in --database or DATABASE_URL"),
            Class::BadRow => Error::failed(format!("the database refuses a row: {message}"))
                .hint("compare the constraints of the table with the data"),
            Class::Full => {
                Error::failed(format!("the database is full: {message}")).hint("make room, then run the same command again")
            }
            Class::ReadOnly => Error::failed(format!("the database cannot be written: {message}"))
                .hint("check the permissions of the database file, or of the database user"),
            Class::Other => Error::failed(message),
        };
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}
