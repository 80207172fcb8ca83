//! Applies noted changes to the modelled rows and occurrences of busy days, at a cost that depends on the change alone.

use super::occurrences::{self, Occurrences};
use super::plan::{Plan, now};
use super::{ModelTable, notes, tables};
use crate::dataset::Dataset;
use crate::store::connection::Connection;
use crate::store::error::StoreResult;
use crate::store::sql::{Dialect, Schema, day_literals, quote};

/// The settings that make PostgreSQL look up the few changed values one by one. It has no statistics of new tables, and could
/// decide to read all of a large one.
const LOOK_UP: &str = "set local enable_hashjoin = off; set local enable_mergejoin = off; set local enable_seqscan = off";
const LOOK_UP_END: &str =
    "set local enable_hashjoin to default; set local enable_mergejoin to default; set local enable_seqscan to default";

/// Inside a transaction that writes: applies the notes of the planned days. Returns `false`, and changes nothing, if a value
/// would occur less than never: then the occurrences are wrong, and the days must be recomputed.
pub(super) async fn apply(connection: &mut Connection, dataset: &Dataset, plan: &Plan) -> StoreResult<bool> {
    if plan.apply.is_empty() {
        return Ok(true);
    }
    let dialect = connection.dialect();
    let days = day_literals(plan.apply.iter().copied());
    let (occurrences, tables) = (occurrences::tables(dialect, dataset), tables(dataset));
    let mut prepare = Vec::new();
    if dialect == Dialect::Postgres {
        prepare.push(LOOK_UP.to_owned());
    }
    prepare.extend(occurrences.iter().map(|o| format!("create temporary table {} as {}", o.touched(), o.touched_by_notes(&days))));
    connection.run(prepare.join("; ")).await?;
    let negative: Vec<String> =
        occurrences.iter().map(|o| format!("select 1 as one from {} where b + c < 0", o.touched())).collect();
    let sql = format!("select count(*) from ({}) n", negative.join(" union all "));
    let is_right = connection.fetch_int(sql, &[]).await? == 0;

    let mut statements = Vec::new();
    if is_right {
        for (i, table) in tables.iter().enumerate() {
            statements.extend(change_rows(dialect, table, i, &occurrences, &days));
        }
        for table in &occurrences {
            statements.extend(change_occurrences(dialect, dataset, table));
        }
        statements.push(format!("delete from {} where day in ({days})", notes::table(dialect, dataset)));
        let busy = occurrences::busy(dialect, dataset);
        statements.push(format!("update {busy} set touched = {} where day in ({days})", now()));
    }
    statements.extend(occurrences.iter().map(|o| format!("drop table {}", o.touched())));
    if dialect == Dialect::Postgres {
        statements.push(LOOK_UP_END.to_owned());
    }
    connection.run(statements.join("; ")).await?;
    Ok(is_right)
}

/// The column that identifies a row while a transaction runs.
fn row(dialect: Dialect, dataset: &Dataset) -> &'static str {
    match dialect {
        Dialect::Postgres => "ctid",
        Dialect::Sqlite => notes::rowid(dataset).unwrap_or("rowid"),
    }
}

/// The statements that change the rows of a modelled table: each row with a change is replaced by its sum with the change. A
/// row that counts nothing any more is gone.
fn change_rows(dialect: Dialect, table: &ModelTable<'_>, index: usize, occurrences: &[Occurrences<'_>], days: &str) -> Vec<String> {
    let dataset = table.dataset;
    let modelled = dialect.table(Schema::Modelled, &table.name());
    let changed = format!("model_changed_{index}");
    let row = row(dialect, dataset);
    let columns = table.columns();
    let is_grouped = table.dimension.is_some();
    let counts: Vec<String> = columns[if is_grouped { 2 } else { 1 }..].iter().map(|name| quote(name)).collect();
    let position = table.dimension.and_then(|column| dataset.model.dimensions.iter().position(|d| *d == column));
    let group = position.map_or_else(|| "d".to_owned(), |i| format!("d, g{i}"));
    // r0 counts the rows, r1… the distinct values of each occurrence table.
    let only = |counted: usize, value: &str| -> String {
        (0..counts.len()).map(|i| format!(", {} as r{i}", if i == counted { value } else { "0" })).collect()
    };
    let dimension = table.dimension.map(|column| quote(&dataset.columns[column].name));
    let stored_group = match (&dimension, position) {
        (Some(dimension), Some(i)) => format!("\"date\" as d, {dimension} as g{i}"),
        _ => "\"date\" as d".to_owned(),
    };
    let stored: String = counts.iter().enumerate().map(|(i, count)| format!(", {count} as r{i}")).collect();
    let null_row = if dialect == Dialect::Postgres { "null::tid" } else { "null" };
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
    let results: String = (0..counts.len()).map(|i| format!(", r{i}")).collect();
    vec![
        format!(
            "create temporary table {changed} as select {group}, max(old) as old{sums} from ({}) p group by {group} having sum(new) > 0",
            parts.join(" union all ")
        ),
        format!("delete from {modelled} where \"date\" in ({days}) and {row} in (select old from {changed} where old is not null)"),
        format!("insert into {modelled} ({}) select {group}{results} from {changed} where r0 > 0", table.column_list()),
        format!("drop table {changed}"),
    ]
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
