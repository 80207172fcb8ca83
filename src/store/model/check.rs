//! Compares the modelled tables with a full recomputation from the raw rows, which uses simpler queries.

use super::refresh::{Check, Computed, refresh_alone};
use super::{DayFilter, Days, ModelTable, tables};
use crate::dataset::Dataset;
use crate::store::connection::Connection;
use crate::store::error::StoreResult;
use crate::store::sql::{Dialect, Schema, quote};

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
        // Rows are counted before they are compared: EXCEPT alone would not notice a duplicate row.
        let ordinals = (1..=table.columns().len()).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
        let counted = |rows: &str| format!("select r.*, count(*) as n from ({rows}) r group by {ordinals}");
        let stored = format!("select {} from {}", table.column_list(), dialect.table(Schema::Modelled, &table.name()));
        let have = counted(&match &computed.filter {
            None => stored,
            Some(DayFilter::All) => format!("select * from {}", Computed::rows_of(i)),
            Some(DayFilter::In(list)) => {
                format!("{stored} where \"date\" not in ({list}) union all select * from {}", Computed::rows_of(i))
            }
        });
        let want = counted(&table.recompute(dialect));
        let count =
            |left: &str, right: &str| format!("select count(*) from (select * from ({left}) l except select * from ({right}) r) d");
        let surplus = connection.fetch_int(count(&have, &want), &[]).await?;
        let missing = connection.fetch_int(count(&want, &have), &[]).await?;
        if surplus != 0 || missing != 0 {
            differences.push(Difference { table: table.name(), surplus, missing });
        }
    }
    Ok(differences)
}

impl ModelTable<'_> {
    /// The query for the rows of this table in the order of its columns, in the simplest way, to check the result of
    /// [`super::counts`]. Raw rows without a day are not counted; a table has such rows from the time before its dataset had a
    /// day.
    fn recompute(&self, dialect: Dialect) -> String {
        let dataset = self.dataset;
        let raw = dialect.table(Schema::Raw, &dataset.name);
        let day = dialect.day(dataset.day_column().expect("only datasets with a day have modelled tables"));
        let filter = format!(" where {day} is not null");
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
