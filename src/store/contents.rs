//! Contents: which files a dataset has already, by the hashes in the ledger, and whether a dropped file is loaded. Only a `loaded`
//! load that skipped no record has its content.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

use super::append::RawTable;
use super::connection::{Arg, Connection, Field};
use super::error::StoreResult;
use super::ledger::{IS_VOID, OpenLoad, id_list};
use super::lock::{self, Lock};
use super::schema;
use super::sql::Schema;
use crate::dataset::Dataset;
use crate::record::content::ContentHash;

/// The condition that a load has the content of its file.
const HAS_CONTENT: &str = "status = 'loaded' and records_skipped = 0";

/// Whether the ledger tells contents. That of version 0.1.0 did not, and whoever only reads does not upgrade it.
///
/// # Errors
/// If the database fails.
pub async fn are_told(connection: &mut Connection) -> StoreResult<bool> {
    let ledger = connection.dialect().bare_table(Schema::Raw, "loads");
    let raw = schema::catalogue(connection, Schema::Raw).await?;
    Ok(raw.get(&ledger).is_some_and(|columns| columns.iter().any(|(name, _)| name == "sha256")))
}

/// Those of the contents that the dataset has.
///
/// # Errors
/// If the database fails.
pub async fn known(connection: &mut Connection, dataset: &Dataset, contents: &[ContentHash]) -> StoreResult<HashSet<ContentHash>> {
    let dialect = connection.dialect();
    let loads = dialect.table(Schema::Raw, "loads");
    let mut known = HashSet::new();
    for contents in contents.chunks(1_000) {
        let contents: Vec<String> = contents.iter().map(ContentHash::to_string).collect();
        let args: Vec<Arg<'_>> =
            contents.iter().flat_map(|content| [Arg::Text(Some(&dataset.name)), Arg::Text(Some(content))]).collect();
        let named = dialect.tuples(contents.len(), 2);
        let sql = format!("select distinct sha256 from {loads} where (dataset, sha256) in (values {named}) and {HAS_CONTENT}");
        known.extend(connection.fetch(sql, &args).await?.iter().filter_map(|row| row[0].text()?.parse::<ContentHash>().ok()));
    }
    Ok(known)
}

/// For each file, by its content and its name in the ledger, the latest load that has the content, and the latest that loaded a
/// file of the name.
///
/// # Errors
/// If the database fails.
pub async fn loads_of(
    connection: &mut Connection,
    dataset: &Dataset,
    contents: &[Option<ContentHash>],
    sources: &[String],
) -> StoreResult<Vec<(Option<i64>, Option<i64>)>> {
    let hashes: Vec<String> = contents.iter().map(|content| content.map(|hash| hash.to_string()).unwrap_or_default()).collect();
    let by_content = latest(connection, dataset, "sha256", HAS_CONTENT, &hashes).await?;
    let by_source = latest(connection, dataset, "source", "status = 'loaded' and source <> '-'", sources).await?;
    let load = |known: &HashMap<String, i64>, value: &String| known.get(value).copied();
    Ok(hashes.iter().zip(sources).map(|(hash, source)| (load(&by_content, hash), load(&by_source, source))).collect())
}

/// The latest of the dataset's loads that fulfil a condition, by the values of a column of the ledger.
async fn latest(
    connection: &mut Connection,
    dataset: &Dataset,
    column: &str,
    condition: &str,
    values: &[String],
) -> StoreResult<HashMap<String, i64>> {
    let dialect = connection.dialect();
    let loads = dialect.table(Schema::Raw, "loads");
    let mut latest = HashMap::new();
    for values in values.chunks(1_000) {
        let args: Vec<Arg<'_>> = values.iter().flat_map(|value| [Arg::Text(Some(&dataset.name)), Arg::Text(Some(value))]).collect();
        let named = dialect.tuples(values.len(), 2);
        let sql = format!(
            "select {column}, max(id) from {loads} where (dataset, {column}) in (values {named}) and {condition} group by {column}"
        );
        let rows = connection.fetch(sql, &args).await?;
        latest.extend(rows.iter().filter_map(|row| Some((row[0].text()?.to_owned(), row[1].int()))));
    }
    Ok(latest)
}

/// The lengths of the decompressed texts that the dataset has. Plain text of another length is a content that it does not have.
///
/// # Errors
/// If the database fails.
pub async fn known_lengths(connection: &mut Connection, dataset: &Dataset) -> StoreResult<HashSet<u64>> {
    let loads = connection.dialect().table(Schema::Raw, "loads");
    let sql = format!("select distinct bytes from {loads} where dataset = $1 and sha256 is not null and {HAS_CONTENT}");
    let rows = connection.fetch(sql, &[Arg::Text(Some(&dataset.name))]).await?;
    Ok(rows.iter().map(|row| row[0].int_or_zero().unsigned_abs()).collect())
}

/// The contents of the latest load of a dataset that each batch load replaces in full. `None` if its table no longer holds just
/// the rows of that load, or if a content is not known.
///
/// # Errors
/// If the database fails.
pub async fn of_latest_load(connection: &mut Connection, dataset: &Dataset) -> StoreResult<Option<HashSet<ContentHash>>> {
    let dialect = connection.dialect();
    let loads = dialect.table(Schema::Raw, "loads");
    // The rows of a run have the same time.
    let latest = format!(
        "dataset = $1 and {HAS_CONTENT} and finished_at = (select max(finished_at) from {loads} where dataset = $1 and {HAS_CONTENT})"
    );
    let dataset_name = [Arg::Text(Some(&dataset.name))];
    let rows = connection.fetch(format!("select sha256, rows_loaded from {loads} where {latest}"), &dataset_name).await?;
    let contents: Option<HashSet<ContentHash>> = rows.iter().map(|row| row[0].text()?.parse().ok()).collect();
    let Some(contents) = contents.filter(|contents| !contents.is_empty()) else {
        // There may be no table yet.
        return Ok(None);
    };
    let brought: i64 = rows.iter().map(|row| row[1].int()).sum();
    let master = RawTable::Master.of(dialect, dataset);
    let sql =
        format!("select count(*), count(case when _load_id in (select id from {loads} where {latest}) then 1 end) from {master}");
    let held = connection.fetch(sql, &dataset_name).await?;
    let is_just_that = [0, 1].iter().all(|column| held[0][*column].int() == brought);
    Ok(is_just_that.then_some(contents))
}

/// What becomes of a dropped file of a dataset with `repeats = "skip"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is loaded. Its row is in the ledger, so that others of the same content wait for it.
    Load,
    /// The load with this id has its content. The file's row in the ledger says so.
    Repeats(i64),
    /// This load has the same content and is not finished.
    Waits(InFlight),
    /// A batch load of the dataset is in progress. What it brings is not known before its end.
    Held,
}

/// A load that is not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    pub id: i64,
    source: String,
    host: Option<String>,
}

impl fmt::Display for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "load {} of {}", self.id, self.source)?;
        self.host.as_ref().map_or(Ok(()), |host| write!(f, " on {host}"))
    }
}

/// Decides on a claimed file, in a transaction. A file that was admitted before goes on, also in another process.
///
/// # Errors
/// If the database fails.
pub async fn admit(connection: &mut Connection, load: OpenLoad<'_>, content: ContentHash, host: &str) -> StoreResult<Verdict> {
    connection.begin().await?;
    let verdict = if lock::try_share(connection, Lock::Contents(load.dataset)).await? {
        lock::transaction(connection, Lock::Admission(load.dataset)).await?;
        decide(connection, load, &content.to_string(), host).await?
    } else {
        Verdict::Held
    };
    connection.commit().await?;
    Ok(verdict)
}

/// Those of the datasets of which a batch load is in progress.
///
/// # Errors
/// If the database fails.
pub async fn held(connection: &mut Connection, datasets: &BTreeSet<String>) -> StoreResult<BTreeSet<String>> {
    let mut held = BTreeSet::new();
    if datasets.is_empty() {
        return Ok(held);
    }
    connection.begin().await?;
    for dataset in datasets {
        if !lock::try_share(connection, Lock::Contents(dataset)).await? {
            held.insert(dataset.clone());
        }
    }
    connection.commit().await?;
    Ok(held)
}

async fn decide(connection: &mut Connection, load: OpenLoad<'_>, content: &str, host: &str) -> StoreResult<Verdict> {
    if let Some(verdict) = decided_before(connection, load, content, host).await? {
        return Ok(verdict);
    }
    let dialect = connection.dialect();
    let loads = dialect.table(Schema::Raw, "loads");
    let (dataset, content_arg) = (Arg::Text(Some(load.dataset)), Arg::Text(Some(content)));
    let sql = format!(
        "select id, status, source, host, bytes from {loads} where dataset = $1 and sha256 = $2 and load_key <> $3 \
         and ({HAS_CONTENT} or status = 'loading') order by case status when 'loaded' then 0 else 1 end, id limit 1"
    );
    let others = connection.fetch(sql, &[dataset.clone(), content_arg.clone(), Arg::Uuid(load.load_key)]).await?;
    let text = |field: &Field| field.text().map(str::to_owned);
    let (verdict, status, finished_at, bytes, repeats) = match others.first() {
        Some(other) if other[1].text() == Some("loading") => {
            let (source, host) = (text(&other[2]).unwrap_or_default(), text(&other[3]));
            return Ok(Verdict::Waits(InFlight { id: other[0].int(), source, host }));
        }
        Some(other) => {
            let id = other[0].int();
            (Verdict::Repeats(id), "repeated", dialect.now(), Some(other[4].int_or_zero()), Some(id))
        }
        None => (Verdict::Load, "loading", "null", None, None),
    };
    let sql = format!(
        "insert into {loads} (load_key, dataset, source, status, sha256, host, bytes, repeats, finished_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, {finished_at}) \
         on conflict (load_key) do update set status = excluded.status, sha256 = excluded.sha256, host = excluded.host, \
         bytes = excluded.bytes, repeats = excluded.repeats, finished_at = excluded.finished_at"
    );
    let [source, status, host] = [load.source, status, host].map(|text| Arg::Text(Some(text)));
    let args = [Arg::Uuid(load.load_key), dataset, source, status, content_arg, host, Arg::Int(bytes), Arg::Int(repeats)];
    connection.execute(sql, &args).await?;
    Ok(verdict)
}

/// The verdict on a file that has a row in the ledger: its process was killed, or it was written to after it was read. `None` if
/// there is none, or if it was a repeat and has another content now.
async fn decided_before(
    connection: &mut Connection,
    load: OpenLoad<'_>,
    content: &str,
    host: &str,
) -> StoreResult<Option<Verdict>> {
    let loads = connection.dialect().table(Schema::Raw, "loads");
    let key = Arg::Uuid(load.load_key);
    let sql = format!("select status, sha256, repeats, {IS_VOID} from {loads} where load_key = $1");
    let rows = connection.fetch(sql, std::slice::from_ref(&key)).await?;
    let Some(own) = rows.first() else { return Ok(None) };
    let (is_same, is_void) = (own[1].text() == Some(content), own[3].int() != 0);
    match own[0].text() {
        Some("repeated") => return Ok(is_same.then(|| Verdict::Repeats(own[2].int_or_zero()))),
        Some("loading" | "loaded") if is_same => {}
        // It is read again. Until that is over, it has neither content.
        Some("loading" | "loaded" | "failed") if !is_void => {
            let sql = format!(
                "update {loads} set status = 'loading', sha256 = $2, host = $3, records_read = 0, bytes = null, error = null, \
                 finished_at = null where load_key = $1"
            );
            connection.execute(sql, &[key, Arg::Text(Some(content)), Arg::Text(Some(host))]).await?;
        }
        _ => {}
    }
    Ok(Some(Verdict::Load))
}

/// Those of the loads that are not finished, with how many records are counted on them.
///
/// # Errors
/// If the database fails.
pub async fn in_flight(connection: &mut Connection, loads: &BTreeSet<i64>) -> StoreResult<Vec<(i64, i64)>> {
    if loads.is_empty() {
        return Ok(Vec::new());
    }
    let (table, ids) = (connection.dialect().table(Schema::Raw, "loads"), id_list(loads.iter().copied()));
    let sql = format!("select id, rows_loaded + rows_rejected from {table} where status = 'loading' and id in ({ids}) order by id");
    Ok(connection.fetch(sql, &[]).await?.iter().map(|row| (row[0].int(), row[1].int())).collect())
}
