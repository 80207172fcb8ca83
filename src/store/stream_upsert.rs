//! The stream's upsert: a dropped record replaces the rows of its key that earlier loads brought. Load keys say what came
//! before, in whatever order the chunks are written, so the result is that of the drops one after the other.
//!
//! The rows of a load are staged in a temporary table first. Those that a later load has brought already are outdated and leave
//! it; then the older rows of the keys that are left are deleted, and the staged rows inserted.

use uuid::Uuid;

use super::append::{Part, RawTable, insert_parts};
use super::connection::{Arg, Connection, Field};
use super::error::StoreResult;
use super::ledger::id_list;
use super::model::{self, Noting};
use super::sql::{Dialect, Schema, quote};
use super::upsert::{PLANNING_AS_USUAL, Search, planning, same_key};
use crate::dataset::{ColumnType, Dataset};

/// The place of a load among the others. They sort in the order in which a transaction writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// The key of the load, which was made when it was claimed.
    Load(Uuid),
    /// A message of another program is a load of its own. Its key is made when it is written, so it is the latest of all.
    Message(Uuid),
}

/// Whose rows are written.
#[derive(Debug, Clone, Copy)]
pub struct Writing {
    pub load_id: i64,
    pub order: Order,
}

/// The temporary table of the staged rows.
const STAGED: &str = "upsert_staged";
/// The column of [`messages`] with the key of a message. No column of a dataset has a dot in its name.
const MESSAGE_KEY: &str = "\"message.key\"";

/// The table that says which key was last brought by which message: all messages of a program share a ledger row, whose key says
/// nothing about their order.
fn messages(dialect: Dialect, dataset: &Dataset) -> String {
    dialect.table(Schema::Dataloader, &messages_name(dataset))
}

/// The name of this table, without its schema.
pub(super) fn messages_name(dataset: &Dataset) -> String {
    format!("{}.messages", dataset.name)
}

/// The statements that create this table with its index.
pub(super) fn create_messages(dialect: Dialect, dataset: &Dataset) -> [String; 2] {
    let table = messages(dialect, dataset);
    let columns: Vec<String> = dataset
        .key
        .iter()
        .map(|key| &dataset.columns[*key])
        .map(|column| format!("{} {}", quote(&column.name), dialect.column_type(column.column_type)))
        .collect();
    let uuid = dialect.column_type(ColumnType::Uuid);
    let index = quote(&format!("{}.key", dialect.bare_table(Schema::Dataloader, &messages_name(dataset))));
    [
        format!("create table {table} ({}, {MESSAGE_KEY} {uuid} not null)", columns.join(", ")),
        format!("create index {index} on {table} ({})", dialect.key_index(dataset)),
    ]
}

/// Inside a transaction that [has locked the table](super::lock::tables): writes rows of one load, which are not empty. Returns
/// how many rows this removed: older rows of the same keys, and rows of its own that are outdated.
///
/// # Errors
/// If the database refuses a row or fails.
pub(super) async fn write(
    connection: &mut Connection,
    dataset: &Dataset,
    parts: &[Part<'_>],
    noting: Noting,
    writing: Writing,
) -> StoreResult<u64> {
    let dialect = connection.dialect();
    let master = RawTable::Master.of(dialect, dataset);
    connection.run(format!("create temporary table {STAGED} as select * from {master} where 1 = 0")).await?;
    insert_parts(connection, dataset, STAGED, parts).await?;
    if dialect == Dialect::Postgres {
        connection.run(planning(&Search::Keys, STAGED)).await?;
    }
    let removed = match writing.order {
        Order::Load(key) => {
            let outdated = remove_outdated(connection, dataset, writing.load_id, key).await?;
            outdated + replace_for_file(connection, dataset, noting, writing.load_id).await?
        }
        Order::Message(key) => replace_for_message(connection, dataset, noting, key).await?,
    };
    if dialect == Dialect::Postgres {
        connection.run(PLANNING_AS_USUAL).await?;
    }
    model::insert_from(connection, dataset, STAGED, [], noting).await?;
    connection.run(format!("drop table {STAGED}")).await?;
    Ok(removed)
}

/// Removes the staged rows whose keys a later load has brought already. Returns their number.
async fn remove_outdated(connection: &mut Connection, dataset: &Dataset, load_id: i64, key: Uuid) -> StoreResult<u64> {
    let dialect = connection.dialect();
    let master = RawTable::Master.of(dialect, dataset);
    let (loads, datasets) = (dialect.table(Schema::Raw, "loads"), dialect.table(Schema::Dataloader, "datasets"));
    let later = [Arg::Uuid(key)];
    let replaced = format!("select count(*) from {datasets} where name = '{}' and replaced_by > $1", dataset.name);
    if connection.fetch_int(replaced, &later).await? > 0 {
        // A batch load has replaced the whole table since.
        return connection.run(format!("delete from {STAGED}")).await;
    }
    // The few loads whose rows have these keys, not the rows.
    let conditions = same_key(connection, dataset, &Search::Keys, STAGED).await?;
    let found: Vec<String> = conditions
        .iter()
        .map(|condition| format!("select \"_load_id\" from {master} where {condition} and \"_load_id\" <> {load_id}"))
        .collect();
    let sql = format!(
        "select id, case when status = 'open' then 1 else 0 end from {loads} where id in ({}) and (status = 'open' or load_key > $1)",
        found.join(" union ")
    );
    let found = connection.fetch(sql, &later).await?;
    let is_message = |row: &Vec<Field>| row[1].int() != 0;
    let files: Vec<i64> = found.iter().filter(|row| !is_message(row)).map(|row| row[0].int()).collect();
    let mut removed = 0;
    if !files.is_empty() {
        removed +=
            delete_staged(connection, dataset, &master, &format!("\"_load_id\" in ({})", id_list(files.into_iter()))).await?;
    }
    if found.iter().any(is_message) {
        let messages = messages(dialect, dataset);
        removed += delete_staged(connection, dataset, &messages, &format!("{MESSAGE_KEY} > '{key}'")).await?;
    }
    Ok(removed)
}

/// Deletes the staged rows whose keys are in the rows of a table that fulfil a condition. Returns their number.
async fn delete_staged(connection: &mut Connection, dataset: &Dataset, table: &str, later: &str) -> StoreResult<u64> {
    const LATER: &str = "upsert_later";
    let keys = key_list(dataset);
    let conditions = same_key(connection, dataset, &Search::Keys, STAGED).await?;
    if conditions.is_empty() {
        return Ok(0);
    }
    // First the keys alone: the conditions need the staged rows as they are.
    let found: Vec<String> =
        conditions.iter().map(|condition| format!("select {keys} from {table} where {condition} and {later}")).collect();
    connection.run(format!("create temporary table {LATER} as {}", found.join(" union "))).await?;
    let deleted = delete_keys(connection, dataset, STAGED, &Search::Scan, LATER).await?;
    connection.run(format!("drop table {LATER}")).await?;
    Ok(deleted)
}

/// Deletes the rows of a table that is not the master whose keys are in `keys`. Returns their number.
async fn delete_keys(connection: &mut Connection, dataset: &Dataset, table: &str, search: &Search, keys: &str) -> StoreResult<u64> {
    let mut deleted = 0;
    for condition in same_key(connection, dataset, search, keys).await? {
        deleted += connection.run(format!("delete from {table} where {condition}")).await?;
    }
    Ok(deleted)
}

/// Deletes the master's rows that the staged rows of a file replace. Returns their number.
async fn replace_for_file(connection: &mut Connection, dataset: &Dataset, noting: Noting, load_id: i64) -> StoreResult<u64> {
    let master = RawTable::Master.of(connection.dialect(), dataset);
    let mut replaced = 0;
    for condition in same_key(connection, dataset, &Search::Keys, STAGED).await? {
        let earlier = format!("{condition} and coalesce(\"_load_id\", 0) <> {load_id}");
        replaced += model::delete(connection, dataset, &master, &earlier, noting).await?;
    }
    Ok(replaced)
}

/// Deletes the master's rows that the staged rows of a message replace: all of their keys, but for those that the same message
/// brought before. Notes that it has brought the keys. Returns the number of rows.
async fn replace_for_message(connection: &mut Connection, dataset: &Dataset, noting: Noting, key: Uuid) -> StoreResult<u64> {
    const FRESH: &str = "upsert_fresh";
    let dialect = connection.dialect();
    let (master, messages, keys) = (RawTable::Master.of(dialect, dataset), messages(dialect, dataset), key_list(dataset));
    connection.run(format!("create temporary table {FRESH} as select distinct {keys} from {STAGED}")).await?;
    let own = format!("(select * from {messages} where {MESSAGE_KEY} = '{key}') own");
    delete_keys(connection, dataset, FRESH, &Search::Scan, &own).await?;
    let mut replaced = 0;
    for condition in same_key(connection, dataset, &Search::Keys, FRESH).await? {
        replaced += model::delete(connection, dataset, &master, &condition, noting).await?;
    }
    delete_keys(connection, dataset, &messages, &Search::Keys, FRESH).await?;
    let value = dialect.uuid_literal(key);
    connection.run(format!("insert into {messages} ({keys}, {MESSAGE_KEY}) select {keys}, {value} from {FRESH}")).await?;
    connection.run(format!("drop table {FRESH}")).await?;
    Ok(replaced)
}

fn key_list(dataset: &Dataset) -> String {
    let keys: Vec<String> = dataset.key.iter().map(|column| quote(&dataset.columns[*column].name)).collect();
    keys.join(", ")
}
