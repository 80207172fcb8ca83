//! Compares the tables that are there with the definitions of the datasets, and says what is missing as SQL statements.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{Catalogue, Indexes, catalogue, has_rows};
use crate::dataset::{ColumnType, Dataset, StreamMode};
use crate::store::connection::{Connection, Field};
use crate::store::error::{StoreError, StoreResult};
use crate::store::indexes::{self, RawIndex};
use crate::store::sql::{Dialect, Schema, quote, raw_columns};
use crate::store::{model, stream_upsert};

/// The statements that bring the tables to their definitions.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) statements: Vec<String>,
    /// Those that this user may not run and that can wait: indexes.
    pub(super) forbidden: Vec<String>,
    /// The datasets whose modelled tables were made for another definition.
    pub(super) replaced: Vec<String>,
}

impl Plan {
    /// Reports what this user may not do.
    pub(super) fn report(&self) {
        for statement in &self.forbidden {
            indexes::report_forbidden(statement);
        }
    }
}

/// Compares the catalogue with the definitions and returns what is missing.
///
/// # Errors
/// If a table differs from its definition in more than missing columns, or the database fails.
pub(super) async fn plan(connection: &mut Connection, datasets: &[Arc<Dataset>], indexes: Indexes) -> StoreResult<Plan> {
    let there = There::read(connection).await?;
    let mut plan = Plan::default();
    // Sorted by name: every transaction that locks several datasets takes them in this order, so none deadlocks.
    let mut datasets: Vec<&Arc<Dataset>> = datasets.iter().collect();
    datasets.sort_by(|a, b| a.name.cmp(&b.name));
    for dataset in datasets {
        plan.statements.extend(there.missing_of_raw(dataset)?);
        let model = there.model_of(dataset);
        if there.replaces_a_model(dataset, model) {
            plan.replaced.push(dataset.name.clone());
        }
        plan.statements.extend(there.missing_of_model(dataset, model));
        let makes_indexes = match indexes {
            Indexes::Make => true,
            Indexes::MakeOverRows => {
                there.has_raw(&dataset.name) && has_rows(connection, &there.dialect.table(Schema::Raw, &dataset.name)).await?
            }
            Indexes::Leave => false,
        };
        let missing = if makes_indexes { there.missing_indexes(dataset, model) } else { Vec::new() };
        // Whoever makes the tables may also make their indexes.
        if !missing.is_empty() && model != ModelFit::Differs && !indexes::may_make(connection, dataset).await? {
            plan.forbidden.extend(missing);
        } else {
            plan.statements.extend(missing);
        }
    }
    Ok(plan)
}

/// The statements by which [`ensure`](super::ensure) makes the tables of the datasets where there is none yet, after the migrations.
pub fn first_statements(dialect: Dialect, datasets: &[Arc<Dataset>]) -> Vec<String> {
    let mut statements = Vec::new();
    for dataset in datasets {
        statements.push(create_raw(dialect, dataset, &dataset.name, false));
        statements.push(create_raw(dialect, dataset, &format!("{}_delta", dataset.name), true));
        statements.extend(model::replace(dialect, dataset, None, std::iter::empty()));
        if dataset.stream == StreamMode::Upsert {
            statements.extend(stream_upsert::create_messages(dialect, dataset));
        }
    }
    // There is nothing to drop, and no row whose day could be marked.
    statements.retain(|statement| statement.starts_with("create "));
    statements
}

/// What is in the database.
struct There {
    dialect: Dialect,
    raw: Catalogue,
    modelled: Catalogue,
    /// The tables of the program's own.
    kept: Catalogue,
    /// The names of the indexes of the raw tables.
    indexes: HashSet<String>,
    /// What the modelled tables of each dataset were made for.
    definitions: HashMap<String, String>,
}

/// How the modelled tables of a dataset, and the tables that they are kept up to date with, fit its definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ModelFit {
    Fits,
    /// Some of the tables with the notes of changes are missing: an earlier version made the others.
    LacksNotes,
    /// They are missing, or were made for another definition.
    Differs,
}

impl There {
    async fn read(connection: &mut Connection) -> StoreResult<Self> {
        let dialect = connection.dialect();
        let definitions = dialect.table(Schema::Dataloader, "datasets");
        let rows = connection.fetch(format!("select name, definition from {definitions}"), &[]).await?;
        let text = |i: usize, row: &[Field]| row[i].text().unwrap_or_default().to_owned();
        Ok(Self {
            dialect,
            raw: catalogue(connection, Schema::Raw).await?,
            modelled: catalogue(connection, Schema::Modelled).await?,
            kept: catalogue(connection, Schema::Dataloader).await?,
            indexes: indexes::found(connection).await?,
            definitions: rows.iter().map(|row| (text(0, row), text(1, row))).collect(),
        })
    }

    fn has_raw(&self, table: &str) -> bool {
        self.raw.contains_key(&self.dialect.bare_table(Schema::Raw, table))
    }

    fn has_kept(&self, table: &str) -> bool {
        self.kept.contains_key(&self.dialect.bare_table(Schema::Dataloader, table))
    }

    fn has_index(&self, index: RawIndex, dataset: &Dataset) -> bool {
        self.indexes.contains(&index.bare_name(self.dialect, dataset))
    }

    fn missing_of_raw(&self, dataset: &Dataset) -> StoreResult<Vec<String>> {
        let mut statements = Vec::new();
        for (table, is_delta) in [(dataset.name.clone(), false), (format!("{}_delta", dataset.name), true)] {
            match self.raw.get(&self.dialect.bare_table(Schema::Raw, &table)) {
                Some(columns) => statements.extend(missing_columns(self.dialect, dataset, &table, columns)?),
                None => statements.push(create_raw(self.dialect, dataset, &table, is_delta)),
            }
        }
        Ok(statements)
    }

    fn model_of(&self, dataset: &Dataset) -> ModelFit {
        let is_there = |table: &String| self.modelled.contains_key(&self.dialect.bare_table(Schema::Modelled, table));
        if self.definitions.get(&dataset.name) != Some(&model::definition(dataset))
            || !model::table_names(dataset).iter().all(is_there)
        {
            return ModelFit::Differs;
        }
        match model::note_table_names(dataset).iter().all(|table| self.has_kept(table)) {
            true => ModelFit::Fits,
            false => ModelFit::LacksNotes,
        }
    }

    /// Whether modelled tables of another definition are replaced.
    fn replaces_a_model(&self, dataset: &Dataset, model: ModelFit) -> bool {
        let has_model = |old: &&String| !old.is_empty() && !old.starts_with(';');
        model == ModelFit::Differs
            && self.definitions.get(&dataset.name).filter(has_model).is_some_and(|old| *old != model::definition(dataset))
    }

    /// Whether the table with the keys of the stream's messages can be used. It holds for as long as the key does, whatever else
    /// of the definition changes.
    fn has_messages(&self, dataset: &Dataset) -> bool {
        let definition = model::definition(dataset);
        self.definitions.get(&dataset.name).is_some_and(|old| model::key_of(old) == model::key_of(&definition))
            && self.has_kept(&stream_upsert::messages_name(dataset))
    }

    fn missing_of_model(&self, dataset: &Dataset, model: ModelFit) -> Vec<String> {
        let dialect = self.dialect;
        let mut statements = Vec::new();
        if model != ModelFit::Fits && dialect == Dialect::Postgres {
            // The raw table is locked before the modelled tables, in the same order as in a refresh and a batch load.
            let raw = dialect.table(Schema::Raw, &dataset.name);
            statements.push(format!("lock table {raw} in share row exclusive mode"));
        }
        let messages = dialect.bare_table(Schema::Dataloader, &stream_upsert::messages_name(dataset));
        let has_messages = self.has_messages(dataset);
        let outdated = self.kept.keys().filter(|table| !(has_messages && **table == messages));
        match model {
            ModelFit::Fits => {}
            ModelFit::LacksNotes => statements.extend(model::replace_notes(dialect, dataset, outdated)),
            ModelFit::Differs => {
                // The new definition may have another day column and another key.
                let indexes = [RawIndex::Day, RawIndex::Key].into_iter().filter(|index| self.has_index(*index, dataset));
                statements.extend(indexes.map(|index| format!("drop index {}", index.name(dialect, dataset))));
                let (name, definition) = (&dataset.name, model::definition(dataset));
                let old = self.definitions.get(name).map(String::as_str);
                statements.extend(model::replace(dialect, dataset, old, outdated));
                // A definition contains only identifiers and punctuation, so nothing needs to be escaped.
                statements.push(format!(
                    "insert into {} (name, definition) values ('{name}', '{definition}') \
                     on conflict (name) do update set definition = excluded.definition",
                    dialect.table(Schema::Dataloader, "datasets")
                ));
            }
        }
        if dataset.stream == StreamMode::Upsert && !has_messages {
            statements.extend(stream_upsert::create_messages(dialect, dataset));
        }
        statements
    }

    fn missing_indexes(&self, dataset: &Dataset, model: ModelFit) -> Vec<String> {
        let wanted = [Some(RawIndex::Day), (dataset.stream == StreamMode::Upsert).then_some(RawIndex::Key)];
        // Those that are there were dropped with the model of another definition.
        let is_there = |index: &RawIndex| model != ModelFit::Differs && self.has_index(*index, dataset);
        let missing = wanted.into_iter().flatten().filter(|index| !is_there(index));
        missing.filter_map(|index| index.create(self.dialect, dataset)).collect()
    }
}

fn create_raw(dialect: Dialect, dataset: &Dataset, table: &str, is_delta: bool) -> String {
    let columns: Vec<String> =
        raw_columns(dataset).map(|(name, column_type)| format!("{} {}", quote(name), dialect.column_type(column_type))).collect();
    // The delta can be loaded again from the files, so it needs no write-ahead log.
    let unlogged = if is_delta && dialect == Dialect::Postgres { "unlogged " } else { "" };
    format!("create {unlogged}table {} ({})", dialect.table(Schema::Raw, table), columns.join(", "))
}

/// `ALTER TABLE` statements for the columns that the definition has and the table does not have.
pub(super) fn missing_columns(
    dialect: Dialect,
    dataset: &Dataset,
    table: &str,
    found: &[(String, String)],
) -> StoreResult<Vec<String>> {
    let raw = dialect.table(Schema::Raw, table);
    let defined: Vec<(&str, ColumnType)> = raw_columns(dataset).collect();
    let mut differences = Vec::new();
    for (name, found_type) in found {
        match defined.iter().find(|(defined, _)| defined == name) {
            None => differences.push(format!("the table has a column {name}, which the definition does not name")),
            Some((_, defined)) if dialect.column_type(*defined) != found_type => differences.push(format!(
                "column {name} is {found_type} in the table, and {} in the definition",
                dialect.column_type(*defined)
            )),
            Some(_) => {}
        }
    }
    if !differences.is_empty() {
        return Err(StoreError::other(format!("table {raw} does not fit dataset {}: {}", dataset.name, differences.join("; ")))
            .hint("change the definition in dataloader.toml back, or alter or rename the table"));
    }
    Ok(defined
        .into_iter()
        .filter(|(name, _)| !found.iter().any(|(found, _)| found == name))
        .map(|(name, column_type)| format!("alter table {raw} add column {} {}", quote(name), dialect.column_type(column_type)))
        .collect())
}
