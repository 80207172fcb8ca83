//! Compares the modelled tables with a full recomputation from the raw rows, which uses simpler queries.

use super::refresh::{Check, Computed, refresh_alone};
use super::{DayFilter, Days, ModelTable, tables};
use crate::dataset::Dataset;
use crate::store::connection::{Arg, Connection};
use crate::store::error::StoreResult;
use crate::store::schema;
use crate::store::sql::{Day, Dialect, Schema, day_literals, quote};

/// A modelled table that differs from a recomputation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    pub table: String,
    /// Rows in the table that should not be there.
    pub surplus: i64,
    /// Rows that are missing in the table.
    pub missing: i64,
}

/// Refreshes as [`super::refresh`] does. It compares every modelled table after the refresh with a full recomputation from the
/// same snapshot.
///
/// # Errors
/// As [`super::refresh`].
pub async fn refresh_and_check(
    connection: &mut Connection,
    dataset: &Dataset,
    days: Days,
) -> StoreResult<(Option<usize>, Vec<Difference>)> {
    let (refreshed, differences) = refresh_alone(connection, dataset, days, Check::Yes).await?;
    Ok((refreshed.days, differences))
}

/// Compares the modelled tables with a recomputation. The computed days replace the stored rows of these days.
pub(super) async fn compare(connection: &mut Connection, dataset: &Dataset, computed: &Computed) -> StoreResult<Vec<Difference>> {
    let dialect = connection.dialect();
    let mut differences = Vec::new();
    for (i, table) in tables(dataset).iter().enumerate() {
        let stored = format!("select {} from {}", table.column_list(), dialect.table(Schema::Modelled, &table.name()));
        let have = match &computed.filter {
            None => stored,
            Some(DayFilter::All) => format!("select * from {}", Computed::rows_of(i)),
            Some(DayFilter::In(list)) => {
                format!("{stored} where \"date\" not in ({list}) union all select * from {}", Computed::rows_of(i))
            }
        };
        differences.extend(compare_table(connection, table, &have, &table.recompute(dialect, "")).await?);
    }
    Ok(differences)
}

/// Compares the rows that a modelled table has with those that it should have, each given by a query.
async fn compare_table(
    connection: &mut Connection,
    table: &ModelTable<'_>,
    have: &str,
    want: &str,
) -> StoreResult<Option<Difference>> {
    // Rows are counted before they are compared: EXCEPT alone would not notice a duplicate row.
    let ordinals = (1..=table.columns().len()).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
    let counted = |rows: &str| format!("select r.*, count(*) as n from ({rows}) r group by {ordinals}");
    let (have, want) = (counted(have), counted(want));
    let count =
        |left: &str, right: &str| format!("select count(*) from (select * from ({left}) l except select * from ({right}) r) d");
    let surplus = connection.fetch_int(count(&have, &want), &[]).await?;
    let missing = connection.fetch_int(count(&want, &have), &[]).await?;
    Ok((surplus != 0 || missing != 0).then(|| Difference { table: table.name(), surplus, missing }))
}

/// What a comparison of the modelled tables as they are has found.
#[derive(Debug)]
pub enum Stored {
    Compared {
        /// Days that wait for a refresh. They were left out.
        pending: Vec<String>,
        differences: Vec<Difference>,
    },
    /// The tables are not there, or were made for another definition.
    OfAnotherDefinition,
    /// This user may not read which days wait for a refresh.
    Unreadable,
}

/// Inside a snapshot: compares the modelled tables as they are with a full recomputation, apart from days that wait for a refresh.
/// Only reads.
///
/// # Errors
/// If the database fails.
pub async fn compare_stored(connection: &mut Connection, dataset: &Dataset) -> StoreResult<Stored> {
    let dialect = connection.dialect();
    if !schema::catalogue(connection, Schema::Dataloader).await?.contains_key(&dialect.bare_table(Schema::Dataloader, "datasets")) {
        return Ok(Stored::OfAnotherDefinition);
    }
    if !schema::may_read(connection, "changed_days").await? {
        return Ok(Stored::Unreadable);
    }
    let sql = format!("select definition from {} where name = $1", dialect.table(Schema::Dataloader, "datasets"));
    let stored = connection.fetch(sql, &[Arg::Text(Some(&dataset.name))]).await?;
    if stored.first().and_then(|row| row[0].text()) != Some(super::definition(dataset).as_str()) {
        return Ok(Stored::OfAnotherDefinition);
    }
    let pending = super::pending(connection, dataset).await?.days;
    let list = day_literals(pending.iter().filter_map(|day| Day::parse(day)));
    let except = |day: &str| if list.is_empty() { String::new() } else { format!(" and {day} not in ({list})") };
    let mut differences = Vec::new();
    for table in &tables(dataset) {
        let (columns, modelled) = (table.column_list(), dialect.table(Schema::Modelled, &table.name()));
        let have = format!("select {columns} from {modelled} where 1 = 1{}", except("\"date\""));
        let day = dialect.day(dataset.day_column().expect("only datasets with a day have modelled tables"));
        let want = table.recompute(dialect, &except(&day));
        differences.extend(compare_table(connection, table, &have, &want).await?);
    }
    Ok(Stored::Compared { pending, differences })
}

impl ModelTable<'_> {
    /// The query for the rows of this table in the order of its columns, in the simplest way, to check the result of
    /// [`super::counts`]. Raw rows without a day are not counted; a table has such rows from the time before its dataset had a
    /// day. `condition` is added to that.
    fn recompute(&self, dialect: Dialect, condition: &str) -> String {
        let dataset = self.dataset;
        let raw = dialect.table(Schema::Raw, &dataset.name);
        let day = dialect.day(dataset.day_column().expect("only datasets with a day have modelled tables"));
        let filter = format!(" where {day} is not null{condition}");
        let column = |index: usize| quote(&dataset.columns[index].name);

        // In the query, the grouping columns are named d and g, independent of the dataset's column names.
        let group = if self.dimension.is_some() { "d, g" } else { "d" };
        let grouped = match self.dimension {
            None => format!("{day} as d"),
            Some(dimension) => format!("{day} as d, {} as g", column(dimension)),
        };
        let count = dataset.model.distinct.len();
        // One column per distinct count. The part of the query that computes this count gives its value; the other parts give
        // 0.
        let counts = |counted: Option<usize>| -> String {
            (0..count).map(|i| format!(", {} as c{i}", if Some(i) == counted { "count(*)" } else { "0" })).collect()
        };
        let sums: String = (0..count).map(|i| format!(", sum(c{i})")).collect();

        let keys: Vec<String> = dataset.key.iter().enumerate().map(|(i, k)| format!("{} as k{i}", column(*k))).collect();
        let key_names: Vec<String> = (0..keys.len()).map(|i| format!("k{i}")).collect();
        let mut parts = vec![format!(
            "select {group}, sum(n) as total, count(*) as uniq{counts} from \
             (select {group}, count(*) as n from (select {grouped}, {keys} from {raw}{filter}) r group by {group}, {key_names}) k \
             group by {group}",
            counts = counts(None),
            keys = keys.join(", "),
            key_names = key_names.join(", "),
        )];
        for (i, (_, counted)) in dataset.model.distinct.iter().enumerate() {
            let value = column(*counted);
            parts.push(format!(
                "select {group}, 0 as total, 0 as uniq{counts} from \
                 (select distinct {grouped}, {value} as v from {raw}{filter} and {value} is not null) v group by {group}",
                counts = counts(Some(i)),
            ));
        }
        format!("select {group}, sum(total), sum(uniq){sums} from ({}) p group by {group}", parts.join(" union all "))
    }
}
