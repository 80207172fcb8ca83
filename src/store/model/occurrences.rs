//! The occurrence tables of busy days. A table of totals can be kept up to date by adding and subtracting, a count of distinct
//! values cannot: it grows only if a value is new on its day, and shrinks only if the value is gone. So for each count there is
//! a table of how often each value occurs on a day, together with each combination of dimensions. It holds only busy days:
//! large ones that have changed in small steps.

use super::{Counted, counted, notes};
use crate::dataset::{ColumnType, Dataset};
use crate::store::append::RawTable;
use crate::store::sql::{Dialect, Schema, quote};

/// One occurrence table of a dataset.
pub(super) struct Occurrences<'a> {
    dialect: Dialect,
    dataset: &'a Dataset,
    values: Counted,
    index: usize,
}

/// Where the rows of an occurrence table come from: its columns as expressions over these rows.
struct Source {
    columns: Box<dyn Fn(usize) -> String>,
}

/// The occurrence tables of a dataset, that of the key first; none without a `day`.
pub(super) fn tables(dialect: Dialect, dataset: &Dataset) -> Vec<Occurrences<'_>> {
    if dataset.day.is_none() {
        return Vec::new();
    }
    counted(dataset).into_iter().enumerate().map(|(index, values)| Occurrences { dialect, dataset, values, index }).collect()
}

/// The table of the busy days: how often each was recomputed for a small change, and the number of its occurrences, if it has
/// any.
pub(super) fn busy(dialect: Dialect, dataset: &Dataset) -> String {
    dialect.table(Schema::Dataloader, &format!("{}.busy", dataset.name))
}

/// The names of all tables of the model besides the modelled ones, without schema.
pub(super) fn table_names(dataset: &Dataset) -> Vec<String> {
    if dataset.day.is_none() {
        return Vec::new();
    }
    let name = &dataset.name;
    let occurrences = (0..counted(dataset).len()).map(|i| format!("{name}.occ{i}"));
    [format!("{name}.notes"), format!("{name}.busy")].into_iter().chain(occurrences).collect()
}

/// The statements that create the tables of the notes, the busy days and the occurrences.
pub(super) fn create(dialect: Dialect, dataset: &Dataset) -> Vec<String> {
    if dataset.day.is_none() {
        return Vec::new();
    }
    // What can be computed from the raw rows needs no write-ahead log: after a crash all of it is gone together.
    let unlogged = if dialect == Dialect::Postgres { "unlogged " } else { "" };
    let (busy, day) = (busy(dialect, dataset), dialect.column_type(ColumnType::Date));
    let mut statements = vec![
        notes::create(dialect, dataset),
        format!(
            "create {unlogged}table {busy} (day {day} primary key, changes bigint not null, build bigint, touched bigint not null)"
        ),
    ];
    for table in tables(dialect, dataset) {
        let typed = |prefix: &str, columns: &[usize]| -> String {
            let column = |(i, column): (usize, &usize)| {
                format!("{prefix}{i} {}, ", dialect.column_type(dataset.columns[*column].column_type))
            };
            columns.iter().enumerate().map(column).collect()
        };
        let hash = if dialect == Dialect::Postgres { "h bigint not null, " } else { "" };
        statements.push(format!(
            "create {unlogged}table {} (build bigint not null, {hash}{}{}n bigint not null)",
            table.name(),
            typed("x", &table.values.columns),
            typed("g", &dataset.model.dimensions),
        ));
        let index =
            quote(&format!("{}.values", dialect.bare_table(Schema::Dataloader, &format!("{}.occ{}", dataset.name, table.index))));
        statements.push(format!("create index {index} on {} (build, {})", table.name(), table.identity()));
    }
    statements
}

impl Occurrences<'_> {
    /// The quoted name of the table.
    pub(super) fn name(&self) -> String {
        self.dialect.table(Schema::Dataloader, &format!("{}.occ{}", self.dataset.name, self.index))
    }

    /// The temporary table of a day's occurrences, before they are stored.
    pub(super) fn built(&self) -> String {
        format!("model_built_{}", self.index)
    }

    /// The temporary table of the values that a change touches: how often each occurred before, and the difference.
    pub(super) fn touched(&self) -> String {
        format!("model_touched_{}", self.index)
    }

    /// The columns besides `build` and `n`, in order.
    pub(super) fn columns(&self) -> String {
        let hash = if self.dialect == Dialect::Postgres { vec!["h".to_owned()] } else { Vec::new() };
        let dimensions = (0..self.dataset.model.dimensions.len()).map(|i| format!("g{i}"));
        hash.into_iter().chain(self.value_names()).chain(dimensions).collect::<Vec<_>>().join(", ")
    }

    /// The columns of the value.
    pub(super) fn value_list(&self) -> String {
        self.value_names().join(", ")
    }

    fn value_names(&self) -> Vec<String> {
        (0..self.values.columns.len()).map(|i| format!("x{i}")).collect()
    }

    /// The columns that find a value: in PostgreSQL its hash, because an entry of an index has at most 2.7 kB.
    fn identity(&self) -> String {
        match self.dialect {
            Dialect::Postgres => "h".to_owned(),
            Dialect::Sqlite => self.value_list(),
        }
    }

    /// The columns as expressions over a row of `source`: hash and value, then the dimensions.
    fn select(&self, source: &Source) -> (String, String) {
        let values: Vec<String> = self.values.columns.iter().map(|column| (source.columns)(*column)).collect();
        let mut select: Vec<String> = values.iter().enumerate().map(|(i, value)| format!("{value} as x{i}")).collect();
        if self.dialect == Dialect::Postgres {
            select.insert(0, format!("hash_record_extended(row({}), 0) as h", values.join(", ")));
        }
        let dimensions: String =
            self.dataset.model.dimensions.iter().enumerate().map(|(i, c)| format!(", {} as g{i}", (source.columns)(*c))).collect();
        (select.join(", "), dimensions)
    }

    /// A distinct count ignores nulls; a key counts them.
    fn only_values(&self, source: &Source) -> String {
        if self.values.is_key { String::new() } else { format!(" and {} is not null", (source.columns)(self.values.columns[0])) }
    }

    /// The query for the occurrences of a day, from the raw rows.
    pub(super) fn of_day(&self, day: &str, build: i64) -> String {
        let names: Vec<String> = self.dataset.columns.iter().map(|column| format!("r.{}", quote(&column.name))).collect();
        let source = Source { columns: Box::new(move |column| names[column].clone()) };
        let (values, dimensions) = self.select(&source);
        let day_column = self.dataset.day_column().expect("only datasets with a day have occurrences");
        let day_of = self.dialect.day_of(&format!("r.{}", quote(&day_column.name)), day_column.column_type);
        format!(
            "select {build} as build, q.*, count(*) as n from \
             (select {values}{dimensions} from {raw} r where {day_of} = '{day}'{filter}) q group by {columns}",
            raw = RawTable::Master.of(self.dialect, self.dataset),
            filter = self.only_values(&source),
            columns = self.columns(),
        )
    }

    /// The query for the values that the notes of these days touch. `b` is how often each occurred before, `c` the difference,
    /// and `old` the row of the occurrence table.
    pub(super) fn touched_by_notes(&self, days: &str) -> String {
        let dataset = self.dataset;
        let names: Vec<Option<String>> = (0..dataset.columns.len())
            .map(|column| notes::columns(dataset).contains(&column).then(|| format!("t.{}", notes::name_of(dataset, column))))
            .collect();
        let source = Source { columns: Box::new(move |column| names[column].clone().unwrap_or_default()) };
        let (values, dimensions) = self.select(&source);
        let (row, null_row, join) = match self.dialect {
            Dialect::Postgres => ("ctid", "null::tid", "join"),
            // SQLite does not reorder the tables of a cross join.
            Dialect::Sqlite => (notes::rowid(dataset).unwrap_or("rowid"), "null", "cross join"),
        };
        let from = format!(
            "from {notes} t join {busy} u on u.day = t.day where t.day in ({days}){filter}",
            notes = notes::table(self.dialect, dataset),
            busy = busy(self.dialect, dataset),
            filter = self.only_values(&source),
        );
        let hash = if self.dialect == Dialect::Postgres { " and o.h = k.h" } else { "" };
        let same: String = self
            .value_names()
            .iter()
            .map(|x| format!(" and {}", self.dialect.same(&format!("o.{x}"), &format!("k.{x}"))))
            .collect();
        let columns = self.columns();
        let of_table: Vec<String> = columns.split(", ").map(|column| format!("o.{column}")).collect();
        format!(
            "select d, build, {columns}, max(old) as old, sum(b) as b, sum(c) as c from (\
             select t.day as d, u.build, {values}{dimensions}, {null_row} as old, 0 as b, t.n as c {from} \
             union all \
             select k.d, o.build, {of_table}, o.{row}, o.n, 0 from (select distinct t.day as d, u.build, {values} {from}) k \
             {join} {table} o on o.build = k.build{hash}{same}) q group by d, build, {columns}",
            of_table = of_table.join(", "),
            table = self.name(),
        )
    }
}
