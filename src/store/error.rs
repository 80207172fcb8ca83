//! Database errors, classified by what the caller can do about them.

use std::time::Duration;

use super::session::NEEDS_SESSION;
use crate::error::{Error, io_text};

/// The result of a statement.
pub type StoreResult<T> = Result<T, StoreError>;

/// What the caller can do about a failed statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A temporary state of the server: it is not reachable, restarting, busy or read-only, it cancelled the statement, it
    /// ended the session, or it chose this transaction as a deadlock victim. The caller connects again and repeats the whole
    /// transaction.
    Unavailable,
    /// A statement took longer than its limit, although the server answers on other connections. The caller repeats the
    /// transaction with more time.
    TimedOut,
    /// The user or password is wrong, the database does not exist, or its file cannot be opened. Repeating does not help.
    Refused,
    /// A row does not fit the table's types, constraints, indexes or triggers. The other rows can be loaded without it.
    BadRow,
    /// The disk (or memory) is full. Repeating helps when there is space again.
    Full,
    /// The database file is read-only, or this user may not write.
    ReadOnly,
    /// A table or column is missing, or the modelled tables were made for another definition. Another configuration or a person
    /// has changed them. Making the tables again may help.
    Changed,
    /// Any other error, including faults of this program.
    Other,
}

/// A failed statement or connection.
#[derive(Debug)]
pub struct StoreError {
    class: Class,
    message: String,
    hint: Option<String>,
    /// How long the caller waited for an answer that did not come.
    waited: Duration,
    /// Whether other rows were accepted in the same transaction.
    is_of_a_row: bool,
}

impl StoreError {
    /// An error that this program found itself.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), hint: None, waited: Duration::ZERO, is_of_a_row: false }
    }

    /// An error that this program found itself and that only a person can correct.
    pub fn other(message: impl Into<String>) -> Self {
        Self::new(Class::Other, message)
    }

    /// The database did not answer in that time.
    pub fn no_answer(class: Class, waited: Duration) -> Self {
        Self { waited, ..Self::new(class, format!("no answer for {waited:.0?}")) }
    }

    /// How long the caller waited for an answer that did not come; zero if the database answered.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Whether only some rows cause the error, while the table accepts others.
    pub fn is_of_a_row(&self) -> bool {
        self.is_of_a_row
    }

    pub(super) fn of_a_row(mut self) -> Self {
        self.is_of_a_row = true;
        self
    }

    /// Adds a hint for the user.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The hint, if there is one.
    pub(super) fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Puts before the message what it is about.
    #[must_use]
    pub fn context(mut self, context: &str) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// What the caller can do about the error.
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
        let message = match &error {
            sqlx::Error::Io(io) => io_text(io),
            sqlx::Error::Database(database) => database.message().to_owned(),
            other => other.to_string(),
        };
        let class = match &error {
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::WorkerCrashed => Class::Unavailable,
            // The server can end the session in the middle of a message.
            sqlx::Error::Protocol(_) => Class::Unavailable,
            sqlx::Error::Database(database) => {
                let code = database.code().unwrap_or_default();
                match database.try_downcast_ref::<sqlx::sqlite::SqliteError>() {
                    Some(_) if says_missing(&message) => Class::Changed,
                    Some(_) => sqlite_class(&code),
                    None => postgres_class(&code),
                }
            }
            _ => Class::Other,
        };
        let is_pooled = |database: &dyn sqlx::error::DatabaseError| {
            database.code().is_some_and(|code| PREPARED_STATEMENTS.contains(&code.as_ref()))
        };
        match error.as_database_error().is_some_and(is_pooled) {
            true => Self::new(class, message).hint(NEEDS_SESSION),
            false => Self::new(class, message),
        }
    }
}

/// No such prepared statement, and one that is there already. Only a pooler between this program and the server causes them.
const PREPARED_STATEMENTS: [&str; 2] = ["26000", "42P05"];

/// Classifies by SQLSTATE, <https://www.postgresql.org/docs/current/errcodes-appendix.html>. A server code that a row can cause
/// counts as the fault of the row. A code that the server does not define counts so too, because only a trigger of the table
/// can raise it. A missing table or permission (42), a missing schema (3F) or an internal error (XX) is never the fault of a
/// row: all records of a file would become rejects.
fn postgres_class(code: &str) -> Class {
    match (code.get(..2).unwrap_or_default(), code) {
        ("53", "53100" | "53200") => Class::Full,
        // 25006: read-only; 25P03, 25P04: transaction or session timeout; 55P03: lock not available.
        ("08" | "40" | "53" | "57", _) | (_, "25006" | "25P03" | "25P04" | "55P03") => Class::Unavailable,
        ("28", _) | (_, "3D000") => Class::Refused,
        ("20" | "21" | "22" | "23" | "27" | "2F" | "38" | "39" | "44" | "54" | "P0", _) => Class::BadRow,
        (_, "42501") => Class::ReadOnly,
        // No such table, column or schema; or a prepared statement whose result columns have changed.
        (_, "42P01" | "42703" | "3F000" | "0A000") => Class::Changed,
        (class, _) if SERVER_CLASSES.contains(&class) => Class::Other,
        _ => Class::BadRow,
    }
}

/// The SQLSTATE classes that the server defines and that the match above does not name.
const SERVER_CLASSES: [&str; 27] = [
    "00", "01", "02", "03", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "24", "25", "26", "2B", "2D", "34", "3B", "3D", "3F", "42",
    "55", "58", "72", "F0", "HV", "XX",
];

/// SQLite has no error code for a missing table or column, only the message.
fn says_missing(message: &str) -> bool {
    ["no such table", "no such column", "has no column"].iter().any(|text| message.contains(text))
}

/// Classifies by result code, <https://www.sqlite.org/rescode.html>.
fn sqlite_class(code: &str) -> Class {
    /// The shared memory file cannot grow.
    const IOERR_SHMSIZE: u32 = 4874;
    let extended = code.parse::<u32>().unwrap_or_default();
    match extended & 0xff {
        5 | 6 => Class::Unavailable,                    // BUSY, LOCKED
        13 | 7 => Class::Full,                          // FULL, NOMEM
        10 if extended == IOERR_SHMSIZE => Class::Full, // IOERR
        8 => Class::ReadOnly,                           // READONLY
        18..=20 => Class::BadRow,                       // TOOBIG, CONSTRAINT, MISMATCH
        3 | 14 | 23 => Class::Refused,                  // PERM, CANTOPEN, AUTH
        _ => Class::Other,
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let StoreError { class, message, hint, .. } = error;
        let error = match class {
            Class::Unavailable | Class::TimedOut => Error::unreachable(format!("the database is not available: {message}"))
                .hint("check that it is running and that --database or DATABASE_URL is right"),
            Class::Refused => Error::unreachable(format!("cannot connect to the database: {message}"))
                .hint("check user, password and name of the database, or the path of its file, in --database or DATABASE_URL"),
            Class::BadRow => Error::failed(format!("the database refuses a row: {message}"))
                .hint("compare the constraints, indexes and triggers of the table with the data"),
            Class::Full => {
                Error::failed(format!("the database is full: {message}")).hint("make room, then run the same command again")
            }
            Class::ReadOnly => Error::failed(format!("the database cannot be written: {message}")).hint(
                "check the permissions of the database file, or the rights of the database user: `dataloader doctor` names them",
            ),
            Class::Changed => Error::failed(format!("the tables were changed while this ran: {message}"))
                .hint("run the same command again; if it comes again, another configuration is at work on this database: use one"),
            Class::Other => Error::failed(message),
        };
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DatabaseUrl;
    use crate::store::ConnectionOptions;

    #[test]
    fn what_a_row_causes_is_told_from_what_passes_and_from_what_people_must_mend() {
        let classes = [
            (Class::BadRow, &["22003", "23505", "P0001", "54000", "44000", "38000", "21000", "2F003", "UE001", "45000"][..]),
            (
                Class::Unavailable,
                &["08006", "40P01", "40001", "53300", "57014", "57P01", "57P03", "57P05", "25006", "25P03", "55P03"],
            ),
            (Class::Full, &["53100", "53200"]),
            (Class::Refused, &["28P01", "28000", "3D000"]),
            (Class::ReadOnly, &["42501"]),
            (Class::Other, &["XX000", "XX001", "55000", "58030", "25P02"]),
            (Class::Changed, &["42P01", "42703", "3F000", "0A000"]),
        ];
        for (class, codes) in classes {
            for code in codes {
                assert_eq!(postgres_class(code), class, "{code}");
            }
        }
        for (code, class) in [("5", Class::Unavailable), ("517", Class::Unavailable), ("13", Class::Full), ("4874", Class::Full)] {
            assert_eq!(sqlite_class(code), class, "{code}");
        }
        for (code, class) in [("1811", Class::BadRow), ("8", Class::ReadOnly), ("14", Class::Refused), ("10", Class::Other)] {
            assert_eq!(sqlite_class(code), class, "{code}");
        }
    }

    /// The classes follow from codes and texts of the SQLite that this program is built with.
    #[tokio::test]
    async fn what_sqlite_says_is_understood() {
        let directory = tempfile::tempdir().unwrap();
        let connect = async |name: &str| {
            let url = DatabaseUrl::Sqlite(directory.path().join(name));
            ConnectionOptions::new(&url, Duration::ZERO).unwrap().connect().await
        };
        let mut connection = connect("x.db").await.unwrap();
        for sql in [
            "create table t (id integer not null check (id < 10))",
            "create trigger raises before insert on t when new.id = 7 begin select raise(abort, 'no sevens'); end",
            "create table logged (id integer)",
            "create trigger misses before insert on logged begin insert into log values (1); end",
        ] {
            connection.run(sql).await.unwrap();
        }
        for (sql, class) in [
            ("insert into t values (null)", Class::BadRow),
            ("insert into t values (10)", Class::BadRow),
            ("insert into t values (7)", Class::BadRow),
            ("insert into logged values (1)", Class::Changed),
            ("insert into u values (1)", Class::Changed),
            ("select other from t", Class::Changed),
            ("insert into t (id, other) values (1, 1)", Class::Changed),
            ("insert into", Class::Other),
        ] {
            let error = connection.run(sql).await.unwrap_err();
            assert_eq!(error.class(), class, "{sql}: {error}");
        }
        let mut other = connect("x.db").await.unwrap();
        connection.begin().await.unwrap();
        connection.run("insert into t values (1)").await.unwrap();
        assert_eq!(other.run("insert into t values (2)").await.unwrap_err().class(), Class::Unavailable, "it is locked");

        std::fs::write(directory.path().join("text.db"), "not a database, but longer than its header of 100 bytes. ".repeat(9))
            .unwrap();
        let opened = async { connect("text.db").await?.run("create table t (id)").await };
        assert_eq!(opened.await.unwrap_err().class(), Class::Other);
        let nowhere = connect("nowhere/x.db").await;
        assert_eq!(nowhere.err().map(|error| error.class()), Some(Class::Refused));
    }

    #[test]
    fn a_session_that_ends_in_any_way_is_unavailable() {
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        for error in [sqlx::Error::Io(reset), sqlx::Error::Protocol("unexpected end".to_owned()), sqlx::Error::WorkerCrashed] {
            assert_eq!(StoreError::from(error).class(), Class::Unavailable);
        }
        assert_eq!(StoreError::from(sqlx::Error::RowNotFound).class(), Class::Other);
    }

    #[test]
    fn only_what_cannot_be_reached_exits_so_and_the_nearer_hint_wins() {
        let exit_code = |class| Error::from(StoreError::new(class, "x")).exit_code();
        let unreachable = Error::unreachable("x").exit_code();
        for class in [Class::Unavailable, Class::TimedOut, Class::Refused] {
            assert_eq!(exit_code(class), unreachable, "{class:?}");
        }
        for class in [Class::BadRow, Class::Full, Class::ReadOnly, Class::Changed, Class::Other] {
            assert_eq!(exit_code(class), Error::failed("x").exit_code(), "{class:?}");
        }
        let error = Error::from(StoreError::new(Class::Full, "x").hint("ask for more quota"));
        assert_eq!(error.hint_text(), Some("ask for more quota"));
    }
}
