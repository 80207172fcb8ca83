//! Applies noted changes to the modelled rows and occurrences of busy days, at a cost that depends on the change alone.

use super::occurrences::{self, Occurrences};
use super::plan::{Plan, now};
use super::{ModelTable, notes, one_statement, tables};
use crate::dataset::Dataset;
use crate::store::connection::Connection;
use crate::store::error::StoreResult;
use crate::store::sql::{Dialect, Schema, day_literals, quote};

/// The settings that make PostgreSQL look up the few changed values one by one. It has no statistics of them, and could decide to
/// read all of a large table.
const LOOK_UP: &str = "set local enable_hashjoin = off; set local enable_mergejoin = off; set local enable_seqscan = off";
const LOOK_UP_END: &str =
    "set local enable_hashjoin to default; set local enable_mergejoin to default; set local enable_seqscan to default";

/// Inside a transaction that writes: applies the notes of the planned days. Returns `false`, and changes nothing, if a value
/// would occur less than never: then the occurrences are wrong, and the days must be recomputed.
pub(super) async fn apply(connection: &mut Connection, dataset: &Dataset, plan: &Plan) -> StoreResult<bool> {
    if plan.apply.is_empty() {
        return Ok(true);
    }
    let application = Application::new(connection.dialect(), dataset, &day_literals(plan.apply.iter().copied()));
    match connection.dialect() {
        Dialect::Postgres => {
            connection.run(LOOK_UP).await?;
            let is_right = connection.fetch_int(application.into_one_statement(), &[]).await? != 0;
            connection.run(LOOK_UP_END).await?;
            Ok(is_right)
        }
        Dialect::Sqlite => application.run(connection).await,
    }
}

/// What applies the notes of some days, as SQL.
struct Application {
    /// The touched values with their occurrences before and their changes: a query with a name for each occurrence table.
    touched: Vec<(String, String)>,
    /// The changed rows of each modelled table, computed from these; with names.
    changed: Vec<(String, String)>,
    /// A query that has a row for each value that would occur less than never.
    negative: String,
    /// The statements that write, computed from all of these. Each ends with a condition.
    changes: Vec<String>,
}

impl Application {
    fn new(dialect: Dialect, dataset: &Dataset, days: &str) -> Self {
        let occurrences = occurrences::tables(dialect, dataset);
        let negative: Vec<String> =
            occurrences.iter().map(|o| format!("select 1 as one from {} where b + c < 0", o.touched())).collect();
        let (mut changed, mut changes) = (Vec::new(), Vec::new());
        for (i, table) in tables(dataset).iter().enumerate() {
            let rows = ChangedRows { dialect, table, name: format!("model_changed_{i}"), days };
            changes.extend(rows.changes());
            changed.push((rows.name.clone(), rows.query(&occurrences)));
        }
        for table in &occurrences {
            changes.extend(change_occurrences(dialect, dataset, table));
        }
        changes.push(format!("delete from {} where day in ({days})", notes::table(dialect, dataset)));
        let busy = occurrences::busy(dialect, dataset);
        changes.push(format!("update {busy} set touched = {} where day in ({days})", now()));
        let touched = occurrences.iter().map(|o| (o.touched(), o.touched_by_notes(days))).collect();
        Self { touched, changed, negative: negative.join(" union all "), changes }
    }

    /// The statement for PostgreSQL. It returns 1, or 0 if nothing was changed.
    fn into_one_statement(mut self) -> String {
        let is_right = ("model_is_right".to_owned(), format!("select not exists ({}) as is_right", self.negative));
        for change in &mut self.changes {
            change.push_str(" and (select is_right from model_is_right)");
        }
        let queries = self.touched.into_iter().chain([is_right]).chain(self.changed);
        one_statement(queries, self.changes, "select is_right::int::bigint from model_is_right")
    }

    /// Runs on SQLite.
    async fn run(self, connection: &mut Connection) -> StoreResult<bool> {
        let create = |(name, query): &(String, String)| format!("create temporary table {name} as {query}");
        let drop = |(name, _): &(String, String)| format!("drop table {name}");
        connection.run(self.touched.iter().map(create).collect::<Vec<_>>().join("; ")).await?;
        let is_right = connection.fetch_int(format!("select count(*) from ({}) n", self.negative), &[]).await? == 0;
        let mut statements = Vec::new();
        if is_right {
            statements.extend(self.changed.iter().map(create));
            statements.extend(self.changes);
            statements.extend(self.changed.iter().map(drop));
        }
        statements.extend(self.touched.iter().map(drop));
        connection.run(statements.join("; ")).await?;
        Ok(is_right)
    }
}

/// The column that identifies a row while a transaction runs.
fn row(dialect: Dialect, dataset: &Dataset) -> &'static str {
    match dialect {
        Dialect::Postgres => "ctid",
        Dialect::Sqlite => notes::rowid(dataset).unwrap_or("rowid"),
    }
}

/// The rows of a modelled table that change: each is replaced by its sum with the change. A row that counts nothing any more is
/// gone.
struct ChangedRows<'a> {
    dialect: Dialect,
    table: &'a ModelTable<'a>,
    /// The name of the query.
    name: String,
    days: &'a str,
}

impl ChangedRows<'_> {
    fn modelled(&self) -> String {
        self.dialect.table(Schema::Modelled, &self.table.name())
    }

    /// The place of the table's dimension among those of the dataset.
    fn dimension(&self) -> Option<usize> {
        let dimension = self.table.dimension?;
        self.table.dataset.model.dimensions.iter().position(|d| *d == dimension)
    }

    fn group(&self) -> String {
        self.dimension().map_or_else(|| "d".to_owned(), |i| format!("d, g{i}"))
    }

    fn counts(&self) -> Vec<String> {
        let columns = self.table.columns();
        columns[if self.table.dimension.is_some() { 2 } else { 1 }..].iter().map(|name| quote(name)).collect()
    }

    fn query(&self, occurrences: &[Occurrences<'_>]) -> String {
        let (dataset, days, group, counts) = (self.table.dataset, self.days, self.group(), self.counts());
        let (row, modelled) = (row(self.dialect, dataset), self.modelled());
        // r0 counts the rows, r1… the distinct values of each occurrence table.
        let only = |counted: usize, value: &str| -> String {
            (0..counts.len()).map(|i| format!(", {} as r{i}", if i == counted { value } else { "0" })).collect()
        };
        let stored_group = match (self.table.dimension, self.dimension()) {
            (Some(column), Some(i)) => format!("\"date\" as d, {} as g{i}", quote(&dataset.columns[column].name)),
            _ => "\"date\" as d".to_owned(),
        };
        let stored: String = counts.iter().enumerate().map(|(i, count)| format!(", {count} as r{i}")).collect();
        let null_row = if self.dialect == Dialect::Postgres { "null::tid" } else { "null" };
        let mut parts = vec![
            format!("select {stored_group}, {row} as old, 0 as new{stored} from {modelled} where \"date\" in ({days})"),
            format!("select {group}, {null_row}, 1{} from {} group by {group}", only(0, "sum(c)"), occurrences[0].touched()),
        ];
        let difference = "sum(case when a > 0 then 1 else 0 end - case when b > 0 then 1 else 0 end)";
        for (i, table) in occurrences.iter().enumerate() {
            parts.push(format!(
                "select {group}, {null_row}, 1{} from \
                 (select {group}, sum(b) as b, sum(b + c) as a from {} group by {group}, {}) v group by {group}",
                only(i + 1, difference),
                table.touched(),
                table.value_list(),
            ));
        }
        let sums: String = (0..counts.len()).map(|i| format!(", sum(r{i}) as r{i}")).collect();
        let parts = parts.join(" union all ");
        format!("select {group}, max(old) as old{sums} from ({parts}) p group by {group} having sum(new) > 0")
    }

    fn changes(&self) -> [String; 2] {
        let (modelled, name, days) = (self.modelled(), &self.name, self.days);
        let (row, group, columns) = (row(self.dialect, self.table.dataset), self.group(), self.table.column_list());
        let results: String = (0..self.counts().len()).map(|i| format!(", r{i}")).collect();
        [
            format!(
                "delete from {modelled} where \"date\" in ({days}) and {row} in (select old from {name} where old is not null)"
            ),
            format!("insert into {modelled} ({columns}) select {group}{results} from {name} where r0 > 0"),
        ]
    }
}

/// The statements that replace the touched rows of an occurrence table.
fn change_occurrences(dialect: Dialect, dataset: &Dataset, table: &Occurrences<'_>) -> [String; 2] {
    let (name, touched, columns) = (table.name(), table.touched(), table.columns());
    let row = row(dialect, dataset);
    [
        format!("delete from {name} where {row} in (select old from {touched} where c <> 0 and old is not null)"),
        format!(
            "insert into {name} (build, {columns}, n) select build, {columns}, b + c from {touched} where c <> 0 and b + c > 0"
        ),
    ]
}
