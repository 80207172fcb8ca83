//! A session of a PostgreSQL server: its settings, and whether it is one. A connection pooler may stand between: PgBouncer takes no
//! unknown parameters when a session starts, and in transaction pooling a connection has no session of its own.

use std::net::IpAddr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, Row as _};

use super::error::{Class, StoreError, StoreResult};

/// JIT compilation of this program's statements takes longer than running them. Floats come in the shortest form that is exact. A
/// client that disappears without closing the connection must not keep its locks for hours: the server ends the session after half
/// a minute without an answer, also while it sends data. sqlx itself sets no keepalive.
const SETTINGS: &str = "set jit = off; set extra_float_digits = 1; set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5; \
     set tcp_keepalives_count = 4; set tcp_user_timeout = '30s'";
/// The same while the server executes a statement. Servers before version 14 do not have it.
const NOTICE_GONE_CLIENT: &str = "; set client_connection_check_interval = '10s'";
const KNOWS_GONE_CLIENTS: u32 = 140_000;

/// How long the test for transaction pooling may take. A pool without a free session does not answer.
const TEST_TIME: Duration = Duration::from_secs(2);
/// How often two connections are compared: a pool that others use does not give both the same session each time.
const COMPARISONS: u32 = 3;

/// What helps against transaction pooling.
pub(super) const NEEDS_SESSION: &str =
    "set `pool_mode = session` for this database in PgBouncer, or name PostgreSQL itself in --database or DATABASE_URL";

/// Sets what the sessions of this program need.
///
/// # Errors
/// If the database fails.
pub(super) async fn configure(connection: &mut PgConnection) -> StoreResult<()> {
    let knows_gone_clients = connection.server_version_num().is_some_and(|version| version >= KNOWS_GONE_CLIENTS);
    let settings = [SETTINGS, if knows_gone_clients { NOTICE_GONE_CLIENT } else { "" }].concat();
    sqlx::raw_sql(AssertSqlSafe(settings)).execute(connection).await?;
    Ok(())
}

/// Refuses transaction pooling: statements would run in several sessions, without the locks and settings of the first.
///
/// # Errors
/// If that is what the server of these options does, or if the database fails.
pub(super) async fn refuse_shared(connection: &mut PgConnection, options: &PgConnectOptions) -> StoreResult<()> {
    let session = session(connection).await?;
    if session.is_of(options).await {
        return Ok(());
    }
    // Without an answer in time, or without a second connection, there is no sign of it.
    let test = is_shared(connection, session.process, options);
    match tokio::time::timeout(TEST_TIME, test).await {
        Ok(Ok(true)) => {
            Err(StoreError::new(Class::Refused, "a connection pooler gives each transaction another session").hint(NEEDS_SESSION))
        }
        Ok(Ok(false)) | Ok(Err(_)) | Err(_) => Ok(()),
    }
}

/// A session, as the server sees it.
struct Session {
    process: i32,
    address: Option<IpAddr>,
    port: Option<i32>,
}

async fn session(connection: &mut PgConnection) -> Result<Session, sqlx::Error> {
    // Without arguments: transaction pooling may not know prepared statements.
    let sql = "select pg_backend_pid(), host(inet_server_addr()), inet_server_port()";
    let row = sqlx::raw_sql(sql).fetch_one(connection).await?;
    let address: Option<String> = row.try_get(1)?;
    Ok(Session { process: row.try_get(0)?, address: address.and_then(|address| address.parse().ok()), port: row.try_get(2)? })
}

impl Session {
    /// Whether its server is the one that these options name, so that nothing stands between.
    async fn is_of(&self, options: &PgConnectOptions) -> bool {
        let port = options.get_port();
        if self.port != Some(i32::from(port)) || options.get_socket().is_some() {
            return false;
        }
        let host = options.get_host().trim_matches(['[', ']']);
        match tokio::net::lookup_host((host, port)).await {
            Ok(mut addresses) => addresses.any(|address| Some(address.ip().to_canonical()) == self.address),
            Err(_) => false,
        }
    }
}

/// Whether two connections use one session, or one connection several.
async fn is_shared(connection: &mut PgConnection, process: i32, options: &PgConnectOptions) -> Result<bool, sqlx::Error> {
    let mut other = options.connect().await?;
    let mut is_shared = false;
    for _ in 0..COMPARISONS {
        is_shared |= session(&mut other).await?.process == process || session(connection).await?.process != process;
    }
    // What was found counts, however the other connection ends.
    drop(other.close().await);
    Ok(is_shared)
}
