//! Batch: reads all files of each dataset, or only some dates of them, into the delta table, upserts the delta into the master
//! table and refreshes the modelled tables. One run is one transaction: all or nothing.

pub mod extract; // reads and parses files on threads
pub mod input; // the files
mod new_files; // those whose content is not loaded yet
mod plan; // what a load would change
mod dataset_run; // a dataset and its files in a run
pub mod limit; // how many rejects a run may have
mod session; // what a load leaves to its caller

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::civil::Date;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::config::{Config, DatabaseUrl};
use crate::dataset::{Dataset, Repeats, StreamMode};
use crate::error::{Error, Result};
use crate::record::content::ContentHash;
use crate::record::parse::DayRange;
use crate::record::row::Reject;
use crate::store::chunk_lines::{self, ChunkLine};
use crate::store::ledger::{self, Counts, FinishedLoad, LoadStatus};
use crate::store::lock::{self, Lock};
use crate::store::model::{self, Change};
use crate::store::{
    Appender, Connection, Database, Day, Dialect, Indexes, RawTable, StoreError, StoreResult, indexes, open_rejects, unknown_keys,
    upsert,
};

use dataset_run::DatasetRun;
use extract::{Extracted, ExtractedChunk, Extraction, Progress, extract};
use input::{Input, files_of};
use limit::RejectLimit;
use new_files::keep_new;
use session::Busy;

use crate::summary::plan::Plan;
use crate::summary::{LoadSummary, NewKey};
pub use limit::MaxRejects;
pub use session::Session;

/// What to load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    pub datasets: Vec<Arc<Dataset>>,
    /// The days to load, for datasets that have a day.
    pub days: DayRange,
    /// Files to read instead of those in the directory of the only dataset.
    pub inputs: Option<Vec<Input>>,
    /// Whether to load only files whose content the dataset does not have yet.
    pub only_new: bool,
    pub max_rejects: Option<MaxRejects>,
    /// Whether files without a record may empty the table of a dataset without a day.
    pub allow_empty: bool,
    /// Whether to read and validate only.
    pub dry_run: bool,
    /// A directory that a PostgreSQL server shares; rows are loaded through a file there.
    pub stage_dir: Option<PathBuf>,
}

impl LoadOptions {
    /// Options to load the files in the directories of these datasets: all days, or the days from the first to the last of
    /// `days`.
    ///
    /// # Errors
    /// If a stage directory is set for a database that cannot read it.
    pub fn new(config: &Config, datasets: Vec<Arc<Dataset>>, days: Option<RangeInclusive<Date>>) -> Result<Self> {
        if config.stage_dir.is_some() && matches!(config.database, DatabaseUrl::Sqlite(_)) {
            return Err(Error::usage("--stage-dir is for PostgreSQL: SQLite has no server that could read a file")
                .hint("leave it out, or name a PostgreSQL database with --database"));
        }
        let days =
            days.map_or(DayRange::ALL, |days| DayRange { from: Some(Day::of(*days.start()).0), to: Some(Day::of(*days.end()).0) });
        let stage_dir = config.stage_dir.clone();
        Ok(Self { datasets, days, inputs: None, only_new: false, max_rejects: None, allow_empty: false, dry_run: false, stage_dir })
    }

    fn extraction(&self, config: &Config, dialect: Dialect) -> Extraction {
        let (parsers, zstd_window_mib) = (config.stream.parsers, config.zstd_window_mib);
        Extraction { days: self.days, dialect, parsers, zstd_window_mib }
    }
}

/// How long a load waits for the SQLite lock of another load; in practice without a limit.
const LOCK_WAIT: Duration = Duration::from_secs(24 * 60 * 60);
/// Rejects are collected in memory up to this many bytes, then written.
const REJECT_BUFFER_BYTES: usize = 4 << 20;

/// Loads the files and returns a summary, and the session unless it was a dry run.
///
/// # Errors
/// If a directory or file cannot be read, if the record boundaries in a file are lost, if too many records are rejected, or if
/// the database fails. Nothing of the run is loaded then. A file that failed gets a ledger row with the error.
pub async fn load(config: &Config, options: &LoadOptions, progress: &Arc<Progress>) -> Result<(LoadSummary, Option<Session>)> {
    let started = Instant::now();
    let mut runs = Vec::new();
    for dataset in &options.datasets {
        let inputs = match &options.inputs {
            Some(inputs) => inputs.clone(),
            None => files_of(dataset, &config.data_dir)?,
        };
        if inputs.is_empty() {
            let dir = config.data_dir.join(&dataset.dir);
            tracing::warn!("no file for dataset {} in {}: its table stays as it is", dataset.name, dir.display());
        }
        runs.push(DatasetRun::new(dataset, inputs));
    }

    let database = Database::new(&config.database, LOCK_WAIT)?;
    let (mut session, mut plan) = (None, None);
    if options.dry_run {
        plan = Some(try_out(&database, config, options, &mut runs, progress).await?);
    } else {
        session = Some(load_in_session(database, config, options, &mut runs, progress).await?);
    }
    let summary =
        LoadSummary { datasets: runs.into_iter().map(DatasetRun::summary).collect(), elapsed: started.elapsed(), plan, left: None };
    Ok((summary, session))
}

/// Reads and validates the files, and says what a load of them would change.
async fn try_out(
    database: &Database,
    config: &Config,
    options: &LoadOptions,
    runs: &mut [DatasetRun],
    progress: &Arc<Progress>,
) -> Result<Plan> {
    let mut seen = plan::look(database, config).await?;
    if options.only_new
        && let Some(connection) = &mut seen.connection
        && seen.tells_contents
    {
        keep_new_of(connection, config, runs, progress).await.map_err(|error| database.explain(error))?;
    }
    announce(runs, progress);
    validate(config, options, runs, progress).await?;
    plan::complete(database, seen, runs).await
}

async fn load_in_session(
    database: Database,
    config: &Config,
    options: &LoadOptions,
    runs: &mut [DatasetRun],
    progress: &Arc<Progress>,
) -> Result<Session> {
    let mut connection = database.open(&config.datasets, Indexes::Leave).await?;
    let error = match load_with(&mut connection, config, options, runs, progress).await {
        Ok(busy) => return Ok(Session { connection, database, busy }),
        Err(Failure::Store(error)) => database.explain(error),
        Err(Failure::Run(error)) => error,
        Err(Failure::File(failed)) => {
            record_failure(&mut connection, &failed).await;
            failed.error
        }
    };
    connection.close().await;
    Err(error)
}

/// Why a run failed.
enum Failure {
    Store(StoreError),
    File(Box<FailedFile>),
    /// Too many rejects, or nothing to load: not the fault of a single file.
    Run(Error),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

struct FailedFile {
    dataset: String,
    source: String,
    bytes: u64,
    sha256: Option<ContentHash>,
    host: Option<&'static str>,
    counts: Counts,
    started_at: Timestamp,
    error: Error,
}

/// Loads what is to be loaded. Without a new file there is no transaction. Returns the datasets that are to be prepared for more
/// small loads.
async fn load_with(
    connection: &mut Connection,
    config: &Config,
    options: &LoadOptions,
    runs: &mut [DatasetRun],
    progress: &Arc<Progress>,
) -> Result<Vec<Busy>, Failure> {
    if options.only_new {
        // Without the lock, so that other loads need not wait until the files are hashed.
        keep_new_of(connection, config, runs, progress).await?;
        if runs.iter().all(|run| run.files.is_empty()) {
            return Ok(Vec::new());
        }
    }
    announce(runs, progress);
    load_in_transaction(connection, config, options, runs, progress).await
}

/// Adds the files to what the progress bar expects.
fn announce(runs: &[DatasetRun], progress: &Progress) {
    let stored: u64 = runs.iter().flat_map(|run| &run.files).map(|file| file.input.stored_bytes()).sum();
    progress.stored_total.fetch_add(stored, Ordering::Relaxed);
}

async fn keep_new_of(
    connection: &mut Connection,
    config: &Config,
    runs: &mut [DatasetRun],
    progress: &Arc<Progress>,
) -> StoreResult<()> {
    for run in runs {
        keep_new(connection, run, config.stream.parsers, progress).await?;
        tracing::debug!(
            dataset = run.dataset.name,
            new = run.files.len(),
            unchanged = run.unchanged,
            "files compared with the ledger"
        );
    }
    Ok(())
}

/// Returns the datasets that are to be prepared for more small loads.
async fn load_in_transaction(
    connection: &mut Connection,
    config: &Config,
    options: &LoadOptions,
    runs: &mut [DatasetRun],
    progress: &Arc<Progress>,
) -> Result<Vec<Busy>, Failure> {
    let done = async {
        connection.begin_bulk().await?;
        lock::transaction(connection, Lock::Load).await?;
        if options.only_new {
            // The load that held the lock may have brought some of them.
            keep_new_of(connection, config, runs, progress).await?;
        }
        let mut limit = RejectLimit::new(options.max_rejects);
        let mut timer = Instant::now();
        for run in runs.iter_mut().filter(|run| !run.files.is_empty()) {
            stage(connection, config, options, run, &mut limit, progress).await?;
            if run.dataset.stream == StreamMode::Append {
                merge(connection, options, run).await?;
            }
            run.elapsed = timer.elapsed();
            timer = Instant::now();
        }
        limit.finish().map_err(Failure::Run)?;
        let mut changed: Vec<&mut DatasetRun> = runs.iter_mut().filter(|run| !run.files.is_empty()).collect();
        changed.sort_by(|a, b| a.dataset.name.cmp(&b.dataset.name));
        let mut busy = Vec::new();
        for run in changed {
            model::hold_still(connection, &run.dataset).await?;
            if run.dataset.stream == StreamMode::Upsert {
                // Only now: it comes after all that the stream has written.
                merge(connection, options, run).await?;
            }
            note_keys(connection, run).await?;
            indexes::index_rows(connection, &run.dataset).await?;
            let change = model::refresh_within(connection, &run.dataset).await?;
            let lacks_occurrences = change == Change::AgainUnprepared;
            let lacks_key_index = change != Change::Once && run.misses_key_index;
            if lacks_occurrences || lacks_key_index {
                busy.push(Busy { dataset: Arc::clone(&run.dataset), lacks_occurrences, lacks_key_index });
            }
            run.elapsed += timer.elapsed();
            timer = Instant::now();
        }
        connection.commit().await?;
        Ok(busy)
    }
    .await;
    if done.is_err() {
        // If the connection is lost, the database rolls back by itself.
        drop(connection.rollback().await);
    }
    done
}

/// Reads the files of a dataset into its delta.
async fn stage(
    connection: &mut Connection,
    config: &Config,
    options: &LoadOptions,
    run: &mut DatasetRun,
    limit: &mut RejectLimit,
    progress: &Arc<Progress>,
) -> Result<(), Failure> {
    let dataset = Arc::clone(&run.dataset);
    if dataset.repeats == Repeats::Skip {
        // What the run brings is in flight, and its ledger rows cannot be seen before its commit.
        lock::transaction(connection, Lock::Contents(&dataset.name)).await?;
    }
    upsert::clear_delta(connection, &dataset).await?;
    run.ids = ledger::reserve_ids(connection, run.files.len()).await?;
    let ids = run.ids.clone();
    // Standard input is not included: the data of this pipe is not related to the data of an earlier one.
    let files = run.files.iter().filter(|file| file.input != Input::StandardInput);
    let sources: Vec<&str> = files.map(|file| file.source.as_str()).collect();
    open_rejects::supersede(connection, &dataset, &sources).await?;
    let how = options.extraction(config, connection.dialect());
    let mut extracted = extract(&dataset, run.inputs(), how, progress);
    // No other statement can run during a COPY. Rejects are written after its end; if there are too many of them, the COPY ends
    // early.
    let mut next = Next::Resume;
    while next == Next::Resume {
        let mut waiting: Vec<(usize, Vec<Reject>)> = Vec::new();
        let mut waiting_bytes = 0;
        let mut appender = Appender::begin(connection, &dataset, RawTable::Delta, options.stage_dir.as_deref()).await?;
        let received = receive(&mut extracted, run, limit, async |mut chunk: ExtractedChunk| {
            chunk.rows.set_load(ids[chunk.file]);
            appender.push(chunk.rows).await?;
            if !chunk.parsed.rejects.is_empty() {
                waiting_bytes += chunk.parsed.rejects.iter().map(|reject| reject.record.len() + 256).sum::<usize>();
                waiting.push((chunk.file, chunk.parsed.rejects));
            }
            Ok(if waiting_bytes > REJECT_BUFFER_BYTES { Flow::Pause } else { Flow::Continue })
        })
        .await;
        next = match received {
            Ok(next) => next,
            Err(failure) => {
                appender.abort().await;
                return Err(failure);
            }
        };
        appender.finish().await?;
        for (file, rejected) in waiting {
            open_rejects::insert(connection, ids[file], &dataset, &rejected).await?;
        }
    }
    if !options.allow_empty {
        run.check_any_record().map_err(Failure::Run)?;
    }
    run.check_any_loadable()
}

/// Moves the delta of a dataset into its master and books the files.
async fn merge(connection: &mut Connection, options: &LoadOptions, run: &mut DatasetRun) -> Result<(), Failure> {
    for file in &mut run.files {
        file.load_key = Uuid::now_v7();
    }
    let load_key = run.files.last().map(|file| file.load_key).unwrap_or_default();
    let one_after_the_other = options.only_new && run.dataset.day.is_some() && run.files.len() > 1;
    let superseded = if one_after_the_other { upsert::keep_latest(connection, &run.dataset).await? } else { 0 };
    let days: BTreeSet<Day> = run.days.keys().copied().collect();
    let brought = upsert::Brought { rows: run.counts().loaded - superseded, days: &days, load_key };
    let upserted = upsert::upsert(connection, &run.dataset, brought).await?;
    (run.replaced, run.misses_key_index) = (superseded + upserted.replaced, upserted.misses_key_index);
    Ok(book(connection, run, &run.ids).await?)
}

/// Notes the keys that no column takes and that no load had before. The dataset is held still: its writers wait for that, and not
/// for the keys while this waits for them.
async fn note_keys(connection: &mut Connection, run: &mut DatasetRun) -> StoreResult<()> {
    let noted = unknown_keys::note(connection, &run.dataset.name, run.noted_keys().into_iter()).await?;
    let file = |id: i64| run.ids.iter().position(|other| *other == id).map(|file| run.files[file].input.to_string());
    run.new_keys = noted
        .into_iter()
        .filter_map(|noted| NewKey::new(&run.dataset, &noted.key, Some(noted.load_id), file(noted.load_id).unwrap_or_default()))
        .collect();
    Ok(())
}

/// Whether to continue after a chunk.
enum Flow {
    Continue,
    /// Pause, so that other statements can run.
    Pause,
}

/// What to do after a [`receive`].
#[derive(PartialEq, Eq)]
enum Next {
    /// Receive again after the pause.
    Resume,
    /// Stop: all files were read to their ends.
    End,
}

/// Counts every chunk of an extraction and passes it to `take`, until the end or a pause.
async fn receive(
    extracted: &mut mpsc::Receiver<Extracted>,
    run: &mut DatasetRun,
    limit: &mut RejectLimit,
    mut take: impl AsyncFnMut(ExtractedChunk) -> Result<Flow, Failure>,
) -> Result<Next, Failure> {
    while let Some(message) = extracted.recv().await {
        match message {
            Extracted::Chunk(chunk) => {
                limit.add(run.add(&chunk)).map_err(Failure::Run)?;
                if let Flow::Pause = take(chunk).await? {
                    return Ok(Next::Resume);
                }
            }
            Extracted::End { file, bytes, sha256, records } => {
                let file = &mut run.files[file];
                (file.bytes, file.sha256) = (bytes, sha256);
                file.records = Some(records);
            }
            Extracted::Failed { file, bytes, sha256, error } => return Err(run.failed(file, bytes, sha256, error)),
        }
    }
    // A thread that panics ends without a message. The records that it held must not be missing silently.
    if let Some(file) = run.files.iter().find(|file| file.records != Some(file.counts.read)) {
        let message = format!("{}: reading it stopped before its end; nothing was loaded", file.input);
        return Err(Failure::Run(
            Error::failed(message).hint("this is a fault of dataloader: please report it with the lines above"),
        ));
    }
    Ok(Next::End)
}

/// Writes the ledger rows and chunk lines of a dataset's files.
async fn book(connection: &mut Connection, run: &DatasetRun, ids: &[i64]) -> StoreResult<()> {
    let finished: Vec<FinishedLoad<'_>> = run
        .files
        .iter()
        .zip(ids)
        .enumerate()
        .map(|(i, (file, id))| FinishedLoad {
            id: *id,
            load_key: file.load_key,
            dataset: &run.dataset.name,
            source: &file.source,
            bytes: file.bytes,
            counts: file.counts,
            started_at: file.started_at,
            status: LoadStatus::Loaded,
            error: None,
            sha256: file.sha256,
            host: file.host(),
            rows_removed: if i == 0 { run.replaced } else { 0 },
        })
        .collect();
    ledger::insert_finished(connection, &finished).await?;
    let lines: Vec<ChunkLine> = run
        .files
        .iter()
        .zip(ids)
        .flat_map(|(file, id)| file.chunks.iter().map(|line| ChunkLine { load_id: *id, ..*line }))
        .collect();
    chunk_lines::insert(connection, &lines).await
}

/// Writes the ledger row of a failed file in its own transaction, after the run was rolled back. An error here is only logged,
/// because the user already gets an error.
async fn record_failure(connection: &mut Connection, failed: &FailedFile) {
    let written = async {
        connection.begin().await?;
        let ids = ledger::reserve_ids(connection, 1).await?;
        let message = failed.error.message().to_owned();
        let load = FinishedLoad {
            id: ids[0],
            load_key: Uuid::now_v7(),
            dataset: &failed.dataset,
            source: &failed.source,
            bytes: failed.bytes,
            counts: failed.counts,
            started_at: failed.started_at,
            status: LoadStatus::Failed,
            error: Some(&message),
            sha256: failed.sha256,
            host: failed.host,
            rows_removed: 0,
        };
        ledger::insert_finished(connection, &[load]).await?;
        connection.commit().await
    };
    if let Err(error) = written.await {
        tracing::warn!("cannot write the failure of {} into the ledger: {error}", failed.source);
    }
}

/// Reads and parses everything without writing.
async fn validate(config: &Config, options: &LoadOptions, runs: &mut [DatasetRun], progress: &Arc<Progress>) -> Result<()> {
    let mut limit = RejectLimit::new(options.max_rejects);
    let checked: Result<(), Failure> = async {
        for run in runs.iter_mut() {
            let started = Instant::now();
            // The rows are encoded and dropped: the same work as a load, without a database.
            let how = options.extraction(config, Dialect::Postgres);
            let mut extracted = extract(&run.dataset, run.inputs(), how, progress);
            receive(&mut extracted, run, &mut limit, async |_| Ok(Flow::Continue)).await?;
            if let Err(error) = run.check_any_record()
                && !options.allow_empty
            {
                tracing::warn!("a load would fail: {error}");
            }
            run.check_any_loadable()?;
            run.elapsed = started.elapsed();
        }
        limit.finish().map_err(Failure::Run)
    }
    .await;
    checked.map_err(|failure| match failure {
        Failure::Store(error) => error.into(),
        Failure::File(failed) => failed.error,
        Failure::Run(error) => error,
    })
}
