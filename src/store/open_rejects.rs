//! The open rejects: records that could not be loaded. Their original bytes are kept until they can be.

use super::connection::{Arg, Connection};
use super::error::StoreResult;
use super::ledger::int;
use super::sql::Schema;
use crate::dataset::Dataset;
use crate::record::row::Reject;

/// Writes rejects of a load.
///
/// # Errors
/// If the database fails.
pub async fn insert(connection: &mut Connection, load_id: i64, dataset: &Dataset, rejects: &[Reject]) -> StoreResult<()> {
    let rows: Vec<Vec<Arg<'_>>> = rejects
        .iter()
        .map(|reject| {
            vec![
                Arg::Int(Some(load_id)),
                Arg::Text(Some(&dataset.name)),
                int(reject.ordinal),
                int(reject.byte_offset),
                Arg::Text(Some(reject.reason.as_str())),
                Arg::Text(Some(&reject.detail)),
                Arg::Bytes(&reject.record),
            ]
        })
        .collect();
    let rejects = connection.dialect().table(Schema::Raw, "rejects");
    connection.insert(&format!("{rejects} (load_id, dataset, ordinal, byte_offset, reason, detail, record)"), "", &rows).await
}

/// Deletes the rejects of earlier loads of these sources, because the new load reports them again.
///
/// # Errors
/// If the database fails.
pub async fn supersede(connection: &mut Connection, dataset: &Dataset, sources: &[&str]) -> StoreResult<()> {
    /// The number of parameters per statement is limited. One statement per source would take longer than the load of many
    /// small files.
    const AT_ONCE: usize = 1_000;
    let dialect = connection.dialect();
    let (rejects, loads) = (dialect.table(Schema::Raw, "rejects"), dialect.table(Schema::Raw, "loads"));
    for sources in sources.chunks(AT_ONCE) {
        let args: Vec<Arg<'_>> =
            sources.iter().flat_map(|source| [Arg::Text(Some(&dataset.name)), Arg::Text(Some(source))]).collect();
        let named = dialect.tuples(sources.len(), 2);
        let sql = format!(
            "delete from {rejects} where load_id in \
             (select id from {loads} where (dataset, source) in (values {named}) and rows_rejected > 0)"
        );
        connection.execute(sql, &args).await?;
    }
    Ok(())
}

/// An open reject as `rejects list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct OpenReject {
    pub load_id: i64,
    pub dataset: String,
    pub source: String,
    pub ordinal: i64,
    pub byte_offset: i64,
    pub reason: String,
    pub detail: String,
    #[serde(skip)]
    pub record: Vec<u8>,
}

/// The start of a page of rejects: it begins after this load and ordinal.
pub type Cursor = (i64, i64);

/// Whether a page includes the bytes of the records, or only their positions and errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Records {
    With,
    Without,
}

/// Which open rejects are meant: those that fulfil all conditions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RejectFilter {
    /// Of one of these datasets; of any, if there is none.
    pub datasets: Vec<String>,
    pub reason: Option<String>,
    /// Of the load with this id.
    pub load: Option<i64>,
}

impl RejectFilter {
    /// Whether it means only some of the rejects of its datasets.
    pub fn is_partial(&self) -> bool {
        self.reason.is_some() || self.load.is_some()
    }

    /// The condition, which begins with `and` or is empty, and its arguments, which are added to `args`.
    fn condition<'a>(&'a self, args: &mut Vec<Arg<'a>>) -> String {
        let mut condition = String::new();
        if !self.datasets.is_empty() {
            let places: Vec<String> = (1..=self.datasets.len()).map(|i| format!("${}", args.len() + i)).collect();
            condition.push_str(&format!(" and r.dataset in ({})", places.join(", ")));
            args.extend(self.datasets.iter().map(|name| Arg::Text(Some(name))));
        }
        if let Some(reason) = &self.reason {
            args.push(Arg::Text(Some(reason)));
            condition.push_str(&format!(" and r.reason = ${}", args.len()));
        }
        if let Some(load) = self.load {
            args.push(Arg::Int(Some(load)));
            condition.push_str(&format!(" and r.load_id = ${}", args.len()));
        }
        condition
    }
}

/// How many open rejects there are.
///
/// # Errors
/// If the database fails.
pub async fn count(connection: &mut Connection, filter: &RejectFilter) -> StoreResult<i64> {
    let rejects = connection.dialect().table(Schema::Raw, "rejects");
    let mut args = Vec::new();
    let condition = filter.condition(&mut args);
    connection.fetch_int(format!("select count(*) from {rejects} r where 1 = 1{condition}"), &args).await
}

/// Deletes open rejects for good, and returns how many these were. The ledger still counts them.
///
/// # Errors
/// If the database fails.
pub async fn discard(connection: &mut Connection, filter: &RejectFilter) -> StoreResult<u64> {
    let rejects = connection.dialect().table(Schema::Raw, "rejects");
    let mut args = Vec::new();
    let condition = filter.condition(&mut args);
    connection.execute(format!("delete from {rejects} as r where 1 = 1{condition}"), &args).await
}

/// A page of the open rejects, sorted by load and ordinal.
///
/// # Errors
/// If the database fails.
pub async fn page(
    connection: &mut Connection,
    rejects_of: &RejectFilter,
    records: Records,
    after: Cursor,
    limit: u32,
) -> StoreResult<Vec<OpenReject>> {
    let dialect = connection.dialect();
    let (rejects, loads) = (dialect.table(Schema::Raw, "rejects"), dialect.table(Schema::Raw, "loads"));
    let mut args = vec![Arg::Int(Some(after.0)), Arg::Int(Some(after.1))];
    let filter = rejects_of.condition(&mut args);
    // Without statistics PostgreSQL expects the filter to keep one row in 200, and would sort all the rest for each page.
    let filter = if filter.is_empty() { filter } else { format!(" and case when true{filter} then true else false end") };
    let of_load = rejects_of.load.map_or_else(String::new, |load| format!(" and r.load_id = {load}"));
    let record = match records {
        Records::With => "r.record",
        Records::Without => "null",
    };
    // The page first, by the index alone: without statistics the join would read all the rest for each page.
    let sql = format!(
        "select r.load_id, r.dataset, l.source, r.ordinal, r.byte_offset, r.reason, r.detail, r.record \
         from (select r.load_id, r.dataset, r.ordinal, r.byte_offset, r.reason, r.detail, {record} as record from {rejects} r \
         where (r.load_id, r.ordinal) > ($1, $2){of_load}{filter} order by r.load_id, r.ordinal limit {limit}) r \
         join {loads} l on l.id = r.load_id order by r.load_id, r.ordinal"
    );
    let rows = connection.fetch(sql, &args).await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let [load_id, dataset, source, ordinal, byte_offset, reason, detail, record] =
                <[_; 8]>::try_from(row).expect("eight columns were selected");
            let text = |field: super::Field| field.text().unwrap_or_default().to_owned();
            OpenReject {
                load_id: load_id.int(),
                dataset: text(dataset),
                source: text(source),
                ordinal: ordinal.int(),
                byte_offset: byte_offset.int(),
                reason: text(reason),
                detail: text(detail),
                record: record.into_bytes(),
            }
        })
        .collect())
}

/// Deletes rejects that are loaded now.
///
/// # Errors
/// If the database fails.
pub async fn delete(connection: &mut Connection, loaded: &[&OpenReject]) -> StoreResult<()> {
    if loaded.is_empty() {
        return Ok(());
    }
    let rejects = connection.dialect().table(Schema::Raw, "rejects");
    let args: Vec<Arg<'_>> =
        loaded.iter().flat_map(|reject| [Arg::Int(Some(reject.load_id)), Arg::Int(Some(reject.ordinal))]).collect();
    let tuples = connection.dialect().tuples(loaded.len(), 2);
    let sql = format!("delete from {rejects} where (load_id, ordinal) in (values {tuples})");
    connection.execute(sql, &args).await.map(drop)
}
