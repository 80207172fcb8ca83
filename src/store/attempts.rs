//! Counts how often processing of a message was started and not finished. Such a message may be one that ends the process.

use super::connection::{Arg, Connection};
use super::error::StoreResult;
use super::sql::{Dialect, Schema};

/// Counts one more attempt at the message and returns the number of attempts so far. The count survives the end of this
/// process. It may be lost when the database's machine crashes, because the commit does not wait for the disk: one more attempt
/// costs less than that wait.
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

/// Deletes the count of the message. This commit does not wait for the disk either.
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
