//! The ledger against the rows, the chunk lines and the rejects.

use std::collections::BTreeSet;
use std::sync::Arc;

use uuid::Uuid;

use super::{Difference, Verified, VerifiedDataset, shortened};
use crate::dataset::Dataset;
use crate::store::{Arg, Connection, Dialect, Field, RawTable, Schema, StoreResult, schema};

/// A row of the ledger, and what there is of its load.
#[derive(Debug, Clone)]
pub(super) struct Booked {
    pub id: i64,
    pub key: Uuid,
    pub dataset: String,
    pub source: String,
    pub status: String,
    pub records_read: i64,
    pub sha256: Option<String>,
    pub host: Option<String>,
    /// Whether its end is known.
    has_end: bool,
    rows_loaded: i64,
    rows_rejected: i64,
    records_skipped: i64,
    /// `None` where that is not known.
    rows_removed: Option<i64>,
    /// Rows in the table.
    rows: i64,
    /// Records in its chunk lines; `None` if there are none.
    chunk_records: Option<i64>,
    /// Chunk lines that do not begin where the one before ends.
    gaps: i64,
    /// Open rejects.
    rejects: i64,
}

/// The loads of a dataset.
pub(super) struct Loads {
    loads: Vec<Booked>,
    /// Whether all of them are here.
    are_all: bool,
}

/// Reads the loads of a dataset with what there is of each, or those of these ids; `None` if the dataset has no table.
pub(super) async fn of_dataset(connection: &mut Connection, dataset: &Dataset, ids: &BTreeSet<i64>) -> StoreResult<Option<Loads>> {
    let dialect = connection.dialect();
    let catalogue = schema::catalogue(connection, Schema::Raw).await?;
    if !catalogue.contains_key(&dialect.bare_table(Schema::Raw, &dataset.name)) {
        return Ok(None);
    }
    let ledger = catalogue.get(&dialect.bare_table(Schema::Raw, "loads")).cloned().unwrap_or_default();
    // The ledger of an earlier version has fewer columns, and whoever only reads does not upgrade it.
    let column = |name: &str, null: &str| {
        if ledger.iter().any(|(found, _)| found == name) { format!("l.{name}") } else { format!("cast(null as {null})") }
    };
    let [sha256, host] = ["sha256", "host"].map(|name| column(name, "text"));
    let rows_removed = column("rows_removed", "bigint");
    let [loads, batches, rejects] = ["loads", "batches", "rejects"].map(|table| dialect.table(Schema::Raw, table));
    let raw = RawTable::Master.of(dialect, dataset);
    let list = ids.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
    let only = |id: &str| if ids.is_empty() { String::new() } else { format!(" and {id} in ({list})") };
    let before =
        "coalesce(sum(records) over (partition by load_id order by seq rows between unbounded preceding and 1 preceding), 0)";
    let sql = format!(
        "select l.id, l.load_key, l.source, l.status, l.records_read, l.rows_loaded, l.rows_rejected, l.records_skipped, \
         {rows_removed}, {sha256}, {host}, case when l.bytes is null then 0 else 1 end, \
         coalesce(t.n, 0), b.records, coalesce(b.gaps, 0), coalesce(r.n, 0) from {loads} l \
         left join (select _load_id, count(*) as n from {raw} where 1 = 1{rows_of} group by _load_id) t on t._load_id = l.id \
         left join (select load_id, cast(sum(records) as bigint) as records, \
           cast(sum(case when first_ordinal = 1 + before then 0 else 1 end) as bigint) as gaps \
           from (select load_id, records, first_ordinal, {before} as before from {batches} where 1 = 1{of_load}) c \
           group by load_id) b on b.load_id = l.id \
         left join (select load_id, count(*) as n from {rejects} where dataset = $1{of_load} group by load_id) r on r.load_id = l.id \
         where l.dataset = $1{these} order by l.id",
        rows_of = only("_load_id"),
        of_load = only("load_id"),
        these = only("l.id"),
    );
    let found = connection.fetch(sql, &[Arg::Text(Some(&dataset.name))]).await?;
    let loads = found.iter().map(|row| Booked::of(&dataset.name, row)).collect();
    Ok(Some(Loads { loads, are_all: ids.is_empty() }))
}

impl Booked {
    fn of(dataset: &str, row: &[Field]) -> Self {
        let text = |i: usize| row[i].text().unwrap_or_default().to_owned();
        let optional = |i: usize| if row[i] == Field::Null { None } else { Some(row[i].int()) };
        Self {
            id: row[0].int(),
            key: text(1).parse().unwrap_or_default(),
            dataset: dataset.to_owned(),
            source: text(2),
            status: text(3),
            records_read: row[4].int(),
            rows_loaded: row[5].int(),
            rows_rejected: row[6].int(),
            records_skipped: row[7].int(),
            rows_removed: optional(8),
            sha256: row[9].text().map(str::to_owned),
            host: row[10].text().map(str::to_owned),
            has_end: row[11].int() != 0,
            rows: row[12].int(),
            chunk_records: optional(13),
            gaps: row[14].int(),
            rejects: row[15].int(),
        }
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.status == "loading"
    }

    /// Whether its rows are out of the table, or never came.
    fn is_without_rows(&self) -> bool {
        matches!(self.status.as_str(), "unloaded" | "repeated")
    }

    pub(super) fn difference(&self, difference: String) -> Difference {
        Difference { dataset: self.dataset.clone(), load: Some(self.id), file: Some(self.source.clone()), difference }
    }

    /// What does not agree. `is_untouched`: no load of the dataset has removed rows, so each has all of its own.
    fn judge(&self, is_untouched: bool) -> Vec<String> {
        let Self { rows, rejects, records_read, rows_loaded, rows_rejected, records_skipped, .. } = self;
        let accounted = rows_loaded + rows_rejected + records_skipped;
        let mut found = Vec::new();
        if matches!(self.status.as_str(), "loaded" | "open") && *records_read != accounted {
            found.push(format!(
                "{records_read} records were read, but {rows_loaded} loaded + {rows_rejected} rejected + {records_skipped} skipped are {accounted}"
            ));
        }
        // A batch run that failed has no chunk lines, and has brought nothing.
        let is_rolled_back = self.status == "failed" && self.chunk_records.is_none() && *rows_loaded == 0;
        let chunk_records = self.chunk_records.unwrap_or(0);
        if self.status != "repeated" && !is_rolled_back && chunk_records != accounted {
            found.push(format!("its chunk lines hold {chunk_records} records, the ledger accounts for {accounted}"));
        }
        // A file that changed may leave gaps: what would have filled them is not loaded any more.
        let is_complete = self.has_end || self.status != "failed";
        if self.gaps > 0 && is_complete && self.status != "unloaded" {
            found.push(format!("{} of its chunk lines do not begin where the one before ends", self.gaps));
        }
        let (most_rows, most_rejects) = if self.is_without_rows() { (0, 0) } else { (*rows_loaded, *rows_rejected) };
        if *rows > most_rows || (is_untouched && *rows < most_rows) {
            found.push(format!("{rows} rows are in the table, {most_rows} were loaded"));
        }
        if *rejects > most_rejects {
            found.push(format!("{rejects} rejects are open, {most_rejects} records were rejected"));
        }
        found
    }
}

impl Loads {
    /// Adds what does not agree, and names what is in flight.
    pub(super) fn judge(&self, counts: &mut VerifiedDataset, verified: &mut Verified) {
        let is_untouched = self.is_untouched();
        let mut in_flight = Vec::new();
        for load in &self.loads {
            if load.is_in_flight() {
                in_flight.push(format!("{} ({})", load.id, load.source));
                continue;
            }
            counts.loads += 1;
            (counts.rows, counts.open_rejects) = (counts.rows + load.rows, counts.open_rejects + load.rejects);
            verified.differences.extend(load.judge(is_untouched).into_iter().map(|found| load.difference(found)));
        }
        if !in_flight.is_empty() {
            verified.notes.push(format!("{}: in flight, and not compared: {}", counts.dataset, shortened(&in_flight)));
        }
    }

    /// Whether no row of the dataset was ever removed.
    fn is_untouched(&self) -> bool {
        self.are_all
            && self.loads.iter().all(|load| load.rows_removed == Some(0) || load.is_without_rows())
            && !self.loads.iter().any(|load| load.status == "unloaded" && load.rows_removed != Some(load.rows_loaded))
    }

    pub(super) fn into_booked(self) -> Vec<Booked> {
        self.loads
    }
}

/// Compares the rows of the whole table with the sums of the ledger.
pub(super) async fn totals(
    connection: &mut Connection,
    dataset: &Dataset,
    loads: &Loads,
    counts: &mut VerifiedDataset,
    verified: &mut Verified,
) -> StoreResult<()> {
    let raw = RawTable::Master.of(connection.dialect(), dataset);
    counts.rows = connection.fetch_int(format!("select count(*) from {raw}"), &[]).await?;
    let of_loads: i64 = loads.loads.iter().map(|load| load.rows).sum();
    let mut add = |difference: String| {
        verified.differences.push(Difference { dataset: dataset.name.clone(), load: None, file: None, difference });
    };
    if counts.rows != of_loads {
        add(format!("{} rows are of no load in the ledger", counts.rows - of_loads));
    }
    let removed: Option<i64> = loads.loads.iter().map(|load| load.rows_removed).sum();
    let loaded: i64 = loads.loads.iter().map(|load| load.rows_loaded).sum();
    match removed {
        Some(removed) if loaded - removed != of_loads && !loads.is_untouched() => {
            let expected = loaded - removed;
            add(format!("{of_loads} rows of its loads are in the table, but {loaded} loaded - {removed} removed are {expected}"));
        }
        Some(_) => {}
        None => verified.notes.push(format!(
            "{}: how many rows loads of earlier versions replaced is not known: the table's rows are not compared with the sums of the ledger",
            dataset.name
        )),
    }
    Ok(())
}

/// Finds chunk lines and rejects without a load, and names datasets that are not verified.
pub(super) async fn strays(connection: &mut Connection, datasets: &[Arc<Dataset>], verified: &mut Verified) -> StoreResult<()> {
    let dialect: Dialect = connection.dialect();
    let [loads, batches, rejects] = ["loads", "batches", "rejects"].map(|table| dialect.table(Schema::Raw, table));
    for (what, table) in [("chunk lines", batches), ("open rejects", rejects)] {
        let sql = format!(
            "select load_id, count(*) from {table} where load_id not in (select id from {loads}) group by load_id order by load_id"
        );
        for row in connection.fetch(sql, &[]).await? {
            let (id, count) = (row[0].int(), row[1].int());
            let difference = format!("{count} {what} are of this load, which is not in the ledger");
            verified.differences.push(Difference { dataset: String::new(), load: Some(id), file: None, difference });
        }
    }
    let found = connection.fetch(format!("select distinct dataset from {loads} order by dataset"), &[]).await?;
    let others: Vec<String> = found.iter().filter_map(|row| row[0].text().map(str::to_owned)).collect();
    let others: Vec<String> = others.into_iter().filter(|name| !datasets.iter().any(|dataset| dataset.name == *name)).collect();
    if !others.is_empty() {
        verified.notes.push(format!("not asked for or not configured, and not compared: {}", shortened(&others)));
    }
    Ok(())
}
