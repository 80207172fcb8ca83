//! Messages that were taken alone and not answered: how often.

use super::connection::{Arg, Connection};
use super::error::StoreResult;
use super::sql::{Dialect, Schema};

/// Counts one more attempt at the message; returns how many there were by now. That outlives this process, but not always a crash
/// of the database's machine: a count that is too low costs another attempt, and waiting for the disk more.
///
/// # Errors
/// If the database fails.
pub async fn begin(connection: &mut Connection, message: &[u8]) -> StoreResult<u64> {
    let dialect = connection.dialect();
    let table = dialect.table(Schema::Dataloader, "attempts");
    let no_wait = match dialect {
        Dialect::Postgres => "(select set_config('synchronous_commit', 'off', true)) no_wait",
        Dialect::Sqlite => "(select 1) no_wait",
    };
    let sql = format!(
        "insert into {table} as a (message, attempts) select $1, 1 from {no_wait} where true \
         on conflict (message) do update set attempts = a.attempts + 1 returning attempts"
    );
    Ok(connection.fetch_int(sql, &[Arg::Bytes(message)]).await?.unsigned_abs())
}

/// Forgets the message, likewise.
///
/// # Errors
/// If the database fails.
pub async fn end(connection: &mut Connection, message: &[u8]) -> StoreResult<()> {
    let dialect = connection.dialect();
    let table = dialect.table(Schema::Dataloader, "attempts");
    let no_wait = match dialect {
        Dialect::Postgres => " and (select set_config('synchronous_commit', 'off', true)) is not null",
        Dialect::Sqlite => "",
    };
    connection.execute(format!("delete from {table} where message = $1{no_wait}"), &[Arg::Bytes(message)]).await?;
    Ok(())
}
