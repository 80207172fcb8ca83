//! Contents: which files a dataset has already, by the hashes in the ledger. Only a `loaded` load that skipped no record has its
//! content.

use std::collections::HashSet;

use super::append::RawTable;
use super::connection::{Arg, Connection};
use super::error::StoreResult;
use super::sql::Schema;
use crate::dataset::Dataset;
use crate::record::content::ContentHash;

/// The condition that a load has the content of its file.
const HAS_CONTENT: &str = "status = 'loaded' and records_skipped = 0";

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
    let brought: i64 = rows.iter().map(|row| row[1].int()).sum();
    let master = RawTable::Master.of(dialect, dataset);
    let sql =
        format!("select count(*), count(case when _load_id in (select id from {loads} where {latest}) then 1 end) from {master}");
    let held = connection.fetch(sql, &dataset_name).await?;
    let is_just_that = [0, 1].iter().all(|column| held[0][*column].int() == brought);
    Ok(contents.filter(|contents| !contents.is_empty() && is_just_that))
}
