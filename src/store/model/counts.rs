//! The queries that compute the modelled tables. Distinct values are counted as the number of rows minus the surplus of
//! repeated values: most keys, and most users of a day, occur only once. This reads the rows three times, whatever the number
//! of dimensions. Grouping the rows by key for every table would sort or hash all of them for each table.

use super::{Counted, DayFilter, ModelTable, counted, one_statement};
use crate::dataset::{ColumnType, Dataset};
use crate::store::sql::{Dialect, Schema, quote};

/// The temporary tables from which the modelled tables of a dataset are computed. Only one refresh at a time creates them on a
/// connection.
pub(super) struct DayCounts<'a> {
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

impl<'a> DayCounts<'a> {
    pub(super) fn new(dialect: Dialect, dataset: &'a Dataset, days: &DayFilter) -> Self {
        let day = dataset.day_column().expect("only datasets with a day have modelled tables");
        let column = format!("r.{}", quote(&day.name));
        let day = dialect.day_of(&column, day.column_type);
        let filter = match days {
            // The day of a row is null exactly if the column is null, and the column is cheaper to test.
            DayFilter::All => format!("{column} is not null"),
            DayFilter::In(list) => format!("{day} in ({list})"),
        };
        // With the index, SQLite would read all rows in index order, each from another place in the file.
        let hint = if dialect == Dialect::Sqlite && matches!(days, DayFilter::All) { " not indexed" } else { "" };
        let source = format!("from {} r{hint} where {filter}", dialect.table(Schema::Raw, &dataset.name));
        Self { dialect, dataset, source, day }
    }

    /// The statements that create the temporary tables, in order.
    pub(super) fn prepare(&self) -> Vec<String> {
        let mut statements = Vec::new();
        if self.dialect == Dialect::Postgres {
            // Without current statistics, PostgreSQL overestimates the number of groups that parallel workers return.
            statements.push("set local parallel_tuple_cost = 0".to_owned());
        }
        statements.push(self.create(TOTALS, &self.totals()));
        for (i, values) in self.counted().iter().enumerate() {
            let (repeated, surplus) = (format!("{REPEATED}_{i}"), format!("{SURPLUS}_{i}"));
            let find = self.create(&repeated, &self.repeated(values));
            match self.dialect {
                Dialect::Postgres => statements.extend([
                    // Sorting uses parallel workers. A hash table of values that mostly occur once does not gain from them.
                    "set local enable_hashagg = off".to_owned(),
                    find,
                    "set local enable_hashagg to default".to_owned(),
                    // Statistics make the join hash this table and not the rows.
                    format!("analyze {repeated}"),
                ]),
                // SQLite has no statistics of a new table. Without the index it may search the whole table for each row, or all
                // rows of a day for each row of the table.
                Dialect::Sqlite => {
                    let columns = names("i", self.identity(values).len());
                    statements.extend([find, format!("create index temp.{repeated}_index on {repeated} ({columns})")]);
                }
            }
            statements.push(self.create(&surplus, &self.surplus(values, &repeated)));
        }
        statements
    }

    /// The statements that compute few rows and insert them into the modelled tables of the dataset; on PostgreSQL it is one.
    pub(super) fn insert_few(&self, tables: &[ModelTable<'_>]) -> Vec<String> {
        let inserts = tables.iter().map(|table| {
            let modelled = self.dialect.table(Schema::Modelled, &table.name());
            format!("insert into {modelled} ({}) {}", table.column_list(), self.rows_of(table))
        });
        if self.dialect == Dialect::Sqlite {
            return self.prepare().into_iter().chain(inserts).chain(self.clean_up()).collect();
        }
        let mut queries = vec![(TOTALS.to_owned(), self.totals())];
        for (i, values) in self.counted().iter().enumerate() {
            let (repeated, surplus) = (format!("{REPEATED}_{i}"), format!("{SURPLUS}_{i}"));
            let surplus_query = self.surplus(values, &repeated);
            queries.extend([(repeated, self.repeated(values)), (surplus, surplus_query)]);
        }
        vec![one_statement(queries, inserts, "select 1")]
    }

    /// The statements that drop the temporary tables.
    pub(super) fn clean_up(&self) -> Vec<String> {
        let sets = (0..self.counted().len()).flat_map(|i| [format!("{REPEATED}_{i}"), format!("{SURPLUS}_{i}")]);
        std::iter::once(TOTALS.to_owned()).chain(sets).map(|table| format!("drop table {table}")).collect()
    }

    /// The query for the rows of a modelled table, in the order of its columns, which are named `r0, r1, …`.
    pub(super) fn rows_of(&self, table: &ModelTable<'_>) -> String {
        let dimensions = &self.dataset.model.dimensions;
        let dimension = table.dimension.and_then(|column| dimensions.iter().position(|d| *d == column));
        let group = dimension.map_or_else(|| "d".to_owned(), |i| format!("d, g{i}"));
        let counted = self.counted();
        // c0 counts the rows, c1… the rows with a value to count. s0… are the surpluses to subtract.
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
        let sums = (0..counted.len()).map(|i| format!("sum(c{i}) - sum(s{i})"));
        let columns = group.split(", ").map(str::to_owned).chain(["sum(c0)".to_owned()]).chain(sums);
        let columns: Vec<String> = columns.enumerate().map(|(i, column)| format!("{column} as r{i}")).collect();
        format!("select {} from ({}) p group by {group}", columns.join(", "), parts.join(" union all "))
    }

    fn counted(&self) -> Vec<Counted> {
        counted(self.dataset)
    }

    /// The query for the number of rows, and of rows with a value, per day and combination of dimensions.
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

    /// The query for the identities that more than one row has.
    fn repeated(&self, values: &Counted) -> String {
        let identity = self.identity(values);
        let select: Vec<String> = identity.iter().enumerate().map(|(i, part)| format!("{part} as i{i}")).collect();
        let by = (1..=identity.len()).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
        format!(
            "select {select} {source}{filter} group by {by} having count(*) > 1",
            select = select.join(", "),
            source = self.source,
            filter = self.only_values(values),
        )
    }

    /// The query for how often the repeated values occur per day and combination of dimensions.
    fn surplus(&self, values: &Counted, repeated: &str) -> String {
        let (select, by) = self.grouping();
        let columns: Vec<String> = values.columns.iter().map(|column| self.sortable(*column)).collect();
        let select_values: String = columns.iter().enumerate().map(|(i, column)| format!(", {column} as v{i}")).collect();
        // In a key, nulls are equal.
        let equals = if self.dialect == Dialect::Sqlite && values.is_key { "is" } else { "=" };
        let conditions: Vec<String> =
            self.identity(values).iter().enumerate().map(|(i, part)| format!("{part} {equals} x.i{i}")).collect();
        // SQLite does not reorder the tables of a cross join.
        let join = if self.dialect == Dialect::Sqlite { "cross join" } else { "join" };
        let from = self.source.replacen(" where ", &format!(" {join} {repeated} x on {} where ", conditions.join(" and ")), 1);
        format!(
            "select {select}{select_values}, count(*) as n {from}{filter} group by {by}, {columns}",
            filter = self.only_values(values),
            columns = columns.join(", "),
        )
    }

    /// The expressions that are equal for rows of a day with the same values. In PostgreSQL this is one hash, which is never
    /// null and fast to sort. A collision does no harm: the hash only selects rows, which are then grouped by their values.
    /// SQLite has no such function, so there it is the values and the day.
    fn identity(&self, values: &Counted) -> Vec<String> {
        let mut parts: Vec<String> = values.columns.iter().map(|column| self.sortable(*column)).collect();
        // If the day comes from one of the values, equal values imply the same day.
        if !self.dataset.day.is_some_and(|day| values.columns.contains(&day)) {
            parts.push(self.day.clone());
        }
        match self.dialect {
            Dialect::Postgres => vec![format!("hash_record_extended(row({}), 0)", parts.join(", "))],
            Dialect::Sqlite => parts,
        }
    }

    /// The day and the dimensions, as a select list with the names `d, g0, g1, …` and as a `group by` list.
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

    /// The column in a collation that is cheap to sort. It does not change which values are equal.
    fn sortable(&self, index: usize) -> String {
        match (self.dialect, self.dataset.columns[index].column_type) {
            (Dialect::Postgres, ColumnType::Text) => format!("{} collate \"C\"", self.column(index)),
            _ => self.column(index),
        }
    }

    /// The filter for rows with a value. A distinct count ignores nulls; a key counts them.
    fn only_values(&self, values: &Counted) -> String {
        if values.is_key { String::new() } else { format!(" and {} is not null", self.column(values.columns[0])) }
    }
}

/// `v0, v1, …`
fn names(prefix: &str, count: usize) -> String {
    (0..count).map(|i| format!("{prefix}{i}")).collect::<Vec<_>>().join(", ")
}
