//! The PostgreSQL servers of a URL. Whoever writes takes the first that accepts writes, whoever only reads the first that answers.

use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};

use super::error::{Class, StoreError, StoreResult};
use super::session;
use crate::config::SecretUrl;
use crate::hosts::{HOST_TIME, Hosts};

/// The servers of a URL. Clones share what is known of them.
#[derive(Debug, Clone)]
pub struct Servers {
    hosts: Hosts<Server>,
    /// Whether a server that accepts no writes is passed over, if there are several.
    writes: bool,
}

/// A PostgreSQL server, or what stands before it.
#[derive(Debug)]
struct Server {
    options: PgConnectOptions,
    /// Whether its connections are known to have sessions of their own.
    has_sessions: AtomicBool,
}

impl Servers {
    /// The servers of this URL. Connects to none yet.
    ///
    /// # Errors
    /// If the URL is not valid.
    pub(super) fn new(url: &SecretUrl) -> StoreResult<Self> {
        let (url, dropped) = url.without_unknown_secrets();
        for name in dropped {
            tracing::warn!("the database URL's parameter `{name}` is ignored; the password is given as `password`");
        }
        let servers: Vec<Server> = url.hosts().iter().map(Server::new).collect::<StoreResult<_>>()?;
        let named = servers.into_iter().map(|server| (server.name(), server));
        Ok(Self { hosts: Hosts::new("the database", named), writes: true })
    }

    /// The same servers for connections that only read.
    pub(super) fn read_only(self) -> Self {
        Self { writes: false, ..self }
    }

    /// The server that was connected last, as `HOST:PORT`.
    pub(super) fn connected(&self) -> Option<&str> {
        self.hosts.connected()
    }

    pub(super) fn are_several(&self) -> bool {
        self.hosts.are_several()
    }

    /// Tries each server once. Also returns the options of the one that is connected.
    ///
    /// # Errors
    /// If none is right; with the reason of each, if there are several.
    pub(super) async fn connect(&self) -> StoreResult<(PgConnection, PgConnectOptions)> {
        let mut failures = Vec::new();
        for attempt in self.hosts.attempts() {
            match self.connect_to(attempt.options()).await {
                Ok(connection) => {
                    let options = attempt.options().options.clone();
                    attempt.succeeded();
                    return Ok((connection, options));
                }
                Err(error) => failures.push((attempt.name(), error)),
            }
        }
        Err(summary(failures))
    }

    async fn connect_to(&self, server: &Server) -> StoreResult<PgConnection> {
        if !self.hosts.are_several() {
            return server.connect().await;
        }
        let connected = tokio::time::timeout(HOST_TIME, async {
            let mut connection = server.connect().await?;
            if self.writes && is_read_only(&mut connection).await? {
                drop(connection.close().await);
                return Err(StoreError::new(Class::Unavailable, READ_ONLY));
            }
            Ok(connection)
        });
        connected.await.unwrap_or_else(|_| Err(StoreError::no_answer(Class::Unavailable, HOST_TIME)))
    }
}

const READ_ONLY: &str = "it accepts no writes";

impl Server {
    fn new(url: &SecretUrl) -> StoreResult<Self> {
        // No parameters for the start of a session: PgBouncer does not know them. They are set when the session is there.
        let options = url.expose().parse::<PgConnectOptions>()?.application_name("dataloader").extra_float_digits(None);
        Ok(Self { options: options.disable_statement_logging(), has_sessions: AtomicBool::new(false) })
    }

    /// `HOST:PORT`, or the directory of its socket.
    fn name(&self) -> String {
        match self.options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", self.options.get_host(), self.options.get_port()),
        }
    }

    async fn connect(&self) -> StoreResult<PgConnection> {
        let mut connection = PgConnection::connect_with(&self.options).await?;
        if !self.has_sessions.load(Ordering::Relaxed) {
            session::refuse_shared(&mut connection, &self.options).await?;
            self.has_sessions.store(true, Ordering::Relaxed);
        }
        session::configure(&mut connection).await?;
        Ok(connection)
    }
}

/// Whether the server is a standby, or its transactions are read-only by default.
async fn is_read_only(connection: &mut PgConnection) -> StoreResult<bool> {
    let sql = "select (pg_is_in_recovery() or current_setting('transaction_read_only')::boolean)::text";
    let row = sqlx::raw_sql(sql).fetch_one(connection).await?;
    Ok(row.try_get::<String, _>(0)? == "true")
}

/// One error for those of all servers. While one of them is a standby, it may become the right one. Otherwise refused credentials
/// and a missing database are not waited for.
fn summary(mut failures: Vec<(&str, StoreError)>) -> StoreError {
    if failures.len() == 1 {
        return failures.remove(0).1;
    }
    let has = |class: Class| failures.iter().any(|(_, error)| error.class() == class);
    let has_standby = failures.iter().any(|(_, error)| error.to_string() == READ_ONLY);
    let class = match (has_standby, has(Class::Refused), has(Class::Unavailable)) {
        (false, true, _) => Class::Refused,
        (true, _, _) | (_, _, true) => Class::Unavailable,
        _ => failures[0].1.class(),
    };
    let text = failures.iter().map(|(name, error)| format!("{name}: {error}")).collect::<Vec<_>>().join("; ");
    let hint = failures.iter().find(|(_, error)| error.class() == class).and_then(|(_, error)| error.hint_text());
    let summary = StoreError::new(class, text);
    match hint {
        Some(hint) => summary.hint(hint),
        None => summary,
    }
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::PgSslMode;

    use super::*;
    use crate::config::DatabaseUrl;

    #[test]
    fn each_host_has_the_login_and_the_parameters_of_the_url() {
        let url = DatabaseUrl::parse("postgres://u:p%2C@db1,db2:5433,[::1]:5434/name?sslmode=verify-full").unwrap();
        let DatabaseUrl::Postgres(url) = url else { unreachable!("its scheme says so") };
        let servers = Servers::new(&url).unwrap();
        assert_eq!(servers.connected(), None);
        let mut names = Vec::new();
        for attempt in servers.hosts.attempts() {
            names.push(attempt.name());
            let options = &attempt.options().options;
            assert_eq!((options.get_username(), options.get_database()), ("u", Some("name")));
            assert!(matches!(options.get_ssl_mode(), PgSslMode::VerifyFull));
        }
        assert_eq!(names, ["db1:5432", "db2:5433", "[::1]:5434"]);
    }

    #[test]
    fn the_class_of_several_failures_is_that_of_the_one_that_matters() {
        let class = |failures: [(Class, &str); 2]| {
            summary(failures.into_iter().map(|(class, text)| ("h", StoreError::new(class, text))).collect()).class()
        };
        let (away, standby, refused) =
            ((Class::Unavailable, "refused"), (Class::Unavailable, READ_ONLY), (Class::Refused, "no such user"));
        assert_eq!(class([away, away]), Class::Unavailable);
        assert_eq!(class([away, refused]), Class::Refused);
        assert_eq!(class([refused, standby]), Class::Unavailable, "the standby may take over");
        let error = summary(vec![("a:1", StoreError::other("x")), ("b:2", StoreError::other("y"))]);
        assert_eq!(error.to_string(), "a:1: x; b:2: y");
    }
}
