//! What a load would change. It compares the files with one snapshot of the database and changes nothing; where there is no database yet, or none
//! that answers, it says so.

use std::time::Duration;

use super::dataset_run::DatasetRun;
use crate::config::Config;
use crate::error::Result;
use crate::record::content::ContentHash;
use crate::store::schema::{self, Migration};
use crate::store::unknown_keys;
use crate::store::{Class, Connection, Database, StoreResult, contents};
use crate::summary::NewKey;
use crate::summary::plan::{DatasetPlan, FileState, Plan, PlannedDay, PlannedFile};

/// How long the database may take to answer. The files are read without it, too.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of the database before the files are read.
pub(super) struct Seen {
    /// `None` if there is nothing to read.
    pub(super) connection: Option<Connection>,
    /// Whether the ledger tells contents.
    pub(super) tells_contents: bool,
    plan: Plan,
}

/// Looks at the database.
///
/// # Errors
/// If a load would fail: the tables do not fit the definitions, or a newer version of the program made them.
pub(super) async fn look(database: &Database, config: &Config) -> Result<Seen> {
    let mut seen = Seen { connection: None, tells_contents: false, plan: Plan::default() };
    let mut connection = match database.open_to_read_within(PATIENCE).await {
        Ok(Some(connection)) => connection,
        Ok(None) => {
            seen.plan.note = Some(database.says_nothing_is_there());
            seen.plan.statements = schema::first_statements(database.dialect(), &config.datasets);
            return Ok(seen);
        }
        Err(error) if matches!(error.class(), Class::Unavailable | Class::TimedOut | Class::Refused) => {
            let error = database.explain(error);
            seen.plan.note = Some(format!("what the database has is not known: {}", error.message()));
            return Ok(seen);
        }
        Err(error) => return Err(database.explain(error)),
    };
    let read = async {
        connection.begin_read().await?;
        let tells_contents = contents::are_told(&mut connection).await?;
        let migration = schema::migration(&mut connection, &config.datasets).await?;
        // No snapshot stays open while the files are read.
        connection.commit().await?;
        Ok((tells_contents, migration))
    };
    let (tells_contents, migration) = read.await.map_err(|error| database.explain(error))?;
    match migration {
        Migration::Unreadable => {
            seen.plan.note = Some("this user may not read what tells whether tables would change".to_owned());
        }
        Migration::OlderVersion => {
            seen.plan.note = Some("an earlier version of dataloader made the tables: the load upgrades them first".to_owned());
        }
        Migration::Statements(statements) => seen.plan.statements = statements,
    }
    (seen.connection, seen.tells_contents) = (Some(connection), tells_contents);
    Ok(seen)
}

/// Completes the plan after the files were read. The plans of the datasets are in their runs.
///
/// # Errors
/// If the database fails.
pub(super) async fn complete(database: &Database, mut seen: Seen, runs: &mut [DatasetRun]) -> Result<Plan> {
    for run in runs.iter_mut() {
        run.plan = Some(of_files(run));
        run.new_keys = new_keys(run, |_| false);
    }
    if let Some(mut connection) = seen.connection.take() {
        let compared = compare(&mut connection, seen.tells_contents, runs).await;
        connection.close().await;
        compared.map_err(|error| database.explain(error))?;
    }
    Ok(seen.plan)
}

/// The plan of a dataset as the files alone tell it.
fn of_files(run: &DatasetRun) -> DatasetPlan {
    let mut plan = DatasetPlan { rejects: run.reasons.counts(), ..DatasetPlan::default() };
    plan.files.extend(run.files.iter().map(|file| PlannedFile {
        source: file.source.clone(),
        state: FileState::New,
        load: None,
        read: file.counts.read,
        rows: file.counts.loaded,
        rejected: file.counts.rejected,
    }));
    plan.days.extend(run.days.iter().map(|(day, rows)| PlannedDay { day: day.to_string(), rows: *rows, there: 0 }));
    plan
}

/// The keys that no column takes, without those that were noted before.
fn new_keys(run: &DatasetRun, is_noted: impl Fn(&str) -> bool) -> Vec<NewKey> {
    let mut keys: Vec<_> = run.unknown.values().filter(|(_, key)| !is_noted(&key.place)).collect();
    keys.sort_by_key(|(file, key)| (*file, key.ordinal));
    keys.into_iter().filter_map(|(file, key)| NewKey::new(&run.dataset, key, None, run.files[*file].input.to_string())).collect()
}

/// Adds what the database has.
async fn compare(connection: &mut Connection, tells_contents: bool, runs: &mut [DatasetRun]) -> StoreResult<()> {
    connection.begin_read().await?;
    let noted = unknown_keys::list(connection).await?;
    for run in runs {
        let (dataset, mut plan) = (run.dataset.clone(), run.plan.take().unwrap_or_default());
        run.new_keys = new_keys(run, |place| noted.iter().any(|noted| noted.dataset == dataset.name && noted.key.place == place));
        if tells_contents {
            let hashes: Vec<Option<ContentHash>> = run.files.iter().map(|file| file.sha256).collect();
            let known = contents::loads_of(connection, &dataset, &hashes, &run.sources()).await?;
            for (file, (of_content, of_source)) in plan.files.iter_mut().zip(known) {
                (file.state, file.load) = match (of_content, of_source) {
                    (Some(load), _) => (FileState::There, Some(load)),
                    (None, Some(load)) => (FileState::Changed, Some(load)),
                    (None, None) => (FileState::New, None),
                };
            }
        }
        plan.files.extend(run.left_out.iter().map(|source| PlannedFile {
            source: source.clone(),
            state: FileState::There,
            load: None,
            read: 0,
            rows: 0,
            rejected: 0,
        }));
        let days: Vec<&str> = plan.days.iter().map(|day| day.day.as_str()).collect();
        let there = schema::rows_there(connection, &dataset, &days).await?;
        for day in &mut plan.days {
            day.there = there.of_days.get(&day.day).copied().unwrap_or_default();
        }
        plan.rows_there = there.rows;
        run.plan = Some(plan);
    }
    connection.commit().await
}
