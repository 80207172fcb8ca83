//! How the modelled tables are computed. Distinct values are counted by exception: most keys, and most users of a day, occur
//! once, so the rows are the count, less what those that occur more often have too many. That reads the rows three times
//! whatever the number of dimensions; grouping them by key for every table would sort or hash all of them for each.

use super::{DayFilter, ModelTable};
use crate::dataset::{ColumnType, Dataset};
use crate::store::sql::{Dialect, Schema, quote};

/// The temporary tables that hold what the modelled tables of a dataset are computed from; only one refresh at a time makes
/// them on a connection.
pub(super) struct Counts<'a> {
    dialect: Dialect,
    dataset: &'a Dataset,
    /// `… from raw where <filter>`.
    source: String,
    day: String,
}

/// The prefix of the temporary tables' names.
const TOTALS: &str = "model_totals";
const REPEATED: &str = "model_repeated";
const SURPLUS: &str = "model_surplus";

impl<'a> Counts<'a> {
    pub(super) fn new(dialect: Dialect, dataset: &'a Dataset, days: DayFilter<'_>) -> Self {
        let day = dataset.day_column().expect("only datasets with a day have modelled tables");
        let day = dialect.day_of(&format!("r.{}", quote(&day.name)), day.column_type);
        let filter = match days {
            DayFilter::All => format!("{day} is not null"),
            DayFilter::In(list) => format!("{day} in ({list})"),
        };
        let source = format!("from {} r where {filter}", dialect.table(Schema::Raw, &dataset.name));
        Self { dialect, dataset, source, day }
    }

    /// The statements that make the temporary tables, in order.
    pub(super) fn prepare(&self) -> Vec<String> {
        let mut statements = vec![self.create(TOTALS, &self.totals())];
        for (i, values) in self.counted().iter().enumerate() {
            let (repeated, surplus) = (format!("{REPEATED}_{i}"), format!("{SURPLUS}_{i}"));
            statements.push(self.create(&repeated, &self.repeated(values)));
            if self.dialect == Dialect::Postgres {
                // So that the join hashes this and not the rows.
                statements.push(format!("analyze {repeated}"));
            }
            statements.push(self.create(&surplus, &self.surplus(values, &repeated)));
        }
        statements
    }

    /// The statements that remove them.
    pub(super) fn clean_up(&self) -> Vec<String> {
        let sets = (0..self.counted().len()).flat_map(|i| [format!("{REPEATED}_{i}"), format!("{SURPLUS}_{i}")]);
        std::iter::once(TOTALS.to_owned()).chain(sets).map(|table| format!("drop table {table}")).collect()
    }

    /// The rows of a modelled table, in the order of its columns.
    pub(super) fn rows_of(&self, table: &ModelTable<'_>) -> String {
        let dimensions = &self.dataset.model.dimensions;
        let dimension = table.dimension.and_then(|column| dimensions.iter().position(|d| *d == column));
        let group = dimension.map_or_else(|| "d".to_owned(), |i| format!("d, g{i}"));
        let counted = self.counted();
        // c0 counts the rows, c1… the rows with a value to count; s… what of these is too much.
        let zeros = |set: usize, value: &str| -> String {
            (0..counted.len()).map(|i| format!(", {} as s{i}", if i == set { value } else { "0" })).collect()
        };
        let no_rows: String = (0..counted.len()).map(|i| format!(", 0 as c{i}")).collect();
        let rows: String = (0..counted.len()).map(|i| format!(", c{i}")).collect();
        let mut parts = vec![format!("select {group}{rows}{} from {TOTALS}", zeros(counted.len(), ""))];
        for (i, values) in counted.iter().enumerate() {
            let names = names("v", values.columns.len());
            parts.push(format!(
                "select {group}{no_rows}{} from {SURPLUS}_{i} group by {group}, {names} having sum(n) > 1",
                zeros(i, "sum(n) - 1")
            ));
        }
        let counts: String = (0..counted.len()).map(|i| format!(", sum(c{i}) - sum(s{i})")).collect();
        format!("select {group}, sum(c0){counts} from ({}) p group by {group}", parts.join(" union all "))
    }

    /// What is counted: the keys, then each `distinct` entry.
    fn counted(&self) -> Vec<Counted> {
        let keys = Counted { columns: self.dataset.key.clone(), is_key: true };
        let distinct = self.dataset.model.distinct.iter().map(|(_, column)| Counted { columns: vec![*column], is_key: false });
        std::iter::once(keys).chain(distinct).collect()
    }

    /// Rows, and rows with a value, per day and combination of dimensions.
    fn totals(&self) -> String {
        let counts: String = self
            .counted()
            .iter()
            .enumerate()
            .map(|(i, values)| match values.is_key {
                true => format!(", count(*) as c{i}"),
                false => format!(", count({}) as c{i}", self.column(values.columns[0])),
            })
            .collect();
        let (select, by) = self.grouping();
        format!("select {select}{counts} {} group by {by}", self.source)
    }

    /// The values that a day has more than once.
    fn repeated(&self, values: &Counted) -> String {
        let select: Vec<String> =
            values.columns.iter().enumerate().map(|(i, column)| format!("{} as v{i}", self.sortable(*column))).collect();
        let by = (2..=values.columns.len() + 1).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
        // The day last: where it is part of the key, the key alone tells the rows apart.
        format!(
            "select {day} as d, {select} {source}{filter} group by {by}, 1 having count(*) > 1",
            day = self.day,
            select = select.join(", "),
            source = self.source,
            filter = self.only_values(values),
        )
    }

    /// How often each of them occurs per day and combination of dimensions.
    fn surplus(&self, values: &Counted, repeated: &str) -> String {
        let (select, by) = self.grouping();
        let conditions: Vec<String> =
            values.columns.iter().enumerate().map(|(i, column)| self.same(*column, &format!("x.v{i}"), values.is_key)).collect();
        let names = (0..values.columns.len()).map(|i| format!("x.v{i}")).collect::<Vec<_>>().join(", ");
        let from = self.source.replacen(
            " where ",
            &format!(" join {repeated} x on {} = x.d and {} where ", self.day, conditions.join(" and ")),
            1,
        );
        format!("select {select}, {names}, count(*) as n {from} group by {by}, {names}")
    }

    /// The day and the dimensions, as a select list with the names `d, g0, g1, …` and as a `group by`.
    fn grouping(&self) -> (String, String) {
        let dimensions = &self.dataset.model.dimensions;
        let select: String =
            dimensions.iter().enumerate().map(|(i, column)| format!(", {} as g{i}", self.column(*column))).collect();
        let by = (1..=dimensions.len() + 1).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
        (format!("{} as d{select}", self.day), by)
    }

    fn create(&self, table: &str, query: &str) -> String {
        format!("create temporary table {table} as {query}")
    }

    fn column(&self, index: usize) -> String {
        format!("r.{}", quote(&self.dataset.columns[index].name))
    }

    /// The column, in an order that is cheap to sort by: equal stays equal.
    fn sortable(&self, index: usize) -> String {
        match (self.dialect, self.dataset.columns[index].column_type) {
            (Dialect::Postgres, ColumnType::Text) => format!("{} collate \"C\"", self.column(index)),
            _ => self.column(index),
        }
    }

    /// Nulls are no value of a distinct count; of a key they are.
    fn only_values(&self, values: &Counted) -> String {
        if values.is_key { String::new() } else { format!(" and {} is not null", self.column(values.columns[0])) }
    }

    /// The column equals `other`; in a key nulls are equal too. By operators that both databases hash or index.
    fn same(&self, index: usize, other: &str, nulls: bool) -> String {
        let column = self.sortable(index);
        match (nulls, self.dialect) {
            (false, _) => format!("{column} = {other}"),
            (true, Dialect::Sqlite) => format!("{column} is {other}"),
            (true, Dialect::Postgres) => {
                let any = match self.dataset.columns[index].column_type {
                    ColumnType::Text => "''",
                    ColumnType::BigInt | ColumnType::Double | ColumnType::Numeric => "0",
                    ColumnType::Boolean => "false",
                    ColumnType::Date => "date 'epoch'",
                    ColumnType::Timestamp => "timestamp 'epoch'",
                    ColumnType::TimestampTz => "timestamptz 'epoch'",
                    ColumnType::Uuid => "uuid '00000000-0000-0000-0000-000000000000'",
                    ColumnType::Jsonb => "jsonb 'null'",
                };
                format!("coalesce({column}, {any}) = coalesce({other}, {any}) and ({column} is null) = ({other} is null)")
            }
        }
    }
}

/// Values of which the distinct ones are counted.
struct Counted {
    /// Indexes into the dataset's columns.
    columns: Vec<usize>,
    is_key: bool,
}

/// `v0, v1, …`
fn names(prefix: &str, count: usize) -> String {
    (0..count).map(|i| format!("{prefix}{i}")).collect::<Vec<_>>().join(", ")
}
