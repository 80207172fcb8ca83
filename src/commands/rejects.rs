//! `dataloader rejects`: lists the records that could not be loaded, exports them for repair, or replays them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use indicatif::HumanCount;
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::DONE;
use crate::config::{Config, Transport};
use crate::dataset::{Dataset, StreamMode};
use crate::error::{Error, Result, io_text};
use crate::record::chunk::{Chunk, ChunkBody, Framing};
use crate::record::parse::{DayRange, Parser};
use crate::record::row::RejectReason;
use crate::retry::GIVE_UP_AFTER;
use crate::store::append::{Way, append_accepted};
use crate::store::ledger::{self, ChunkLine, Counts, FinishedLoad, LoadStatus};
use crate::store::lock::{self, Lock};
use crate::store::model::{self, Days, Noting};
use crate::store::open_rejects::{Cursor, OpenReject, Records, delete, page};
use crate::store::stream_upsert::{Order, Writing};
use crate::store::{Connection, Database, Day, Indexes, Rows, StoreResult};
use crate::terminal::cli::{RejectsAction, RejectsArgs};
use crate::terminal::output::{Format, Output, Printer};
use crate::terminal::table::{Align, Table};
use crate::transport::amqp::connection::Broker;
use crate::transport::amqp::dead_letters::{self, DeadLetterEntry};
use crate::transport::amqp::topology::Topology;

/// Lists, exports or replays the open rejects.
///
/// # Errors
/// As [`list`], [`export`] and [`replay`]; or if the dataset is unknown.
pub async fn run(config: &Config, args: &RejectsArgs, output: Output) -> Result<u8> {
    let datasets = config.datasets_named(args.dataset.as_slice())?;
    match args.action {
        RejectsAction::List => list(config, &datasets, output).await?,
        RejectsAction::Export => export(config, &datasets).await?,
        RejectsAction::Replay => {
            let replay = replay(config, &datasets).await?;
            output.result(&replay, |out| replay.write(out))?;
        }
    }
    Ok(DONE)
}

/// The source of a replay in the ledger.
pub const REPLAY_SOURCE: &str = "rejects replay";

/// How many rejects are in memory at a time. One has at most 8 MiB, and nearly all have far less.
const PAGE: u32 = 100;

/// Reads all open rejects of the datasets, page by page. If there are no tables, returns notes that say so.
async fn for_each_page(
    config: &Config,
    datasets: &[Arc<Dataset>],
    records: Records,
    mut take: impl FnMut(Vec<OpenReject>) -> io::Result<()>,
) -> Result<Vec<String>> {
    let database = Database::new(&config.database, GIVE_UP_AFTER)?;
    let Some(mut connection) = database.open_to_read().await? else { return Ok(vec![database.says_nothing_is_there()]) };
    let names: Vec<String> = datasets.iter().map(|dataset| dataset.name.clone()).collect();
    let mut after: Cursor = (0, 0);
    loop {
        let rejects = page(&mut connection, &names, records, after, PAGE).await.map_err(|error| database.explain(error))?;
        let Some(last) = rejects.last() else { break };
        after = (last.load_id, last.ordinal);
        match take(rejects) {
            Ok(()) => {}
            // The reader of the pipe has closed it: `dataloader rejects export | head`.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            Err(error) => return Err(Error::failed(format!("cannot write to standard output: {}", io_text(&error)))),
        }
    }
    connection.close().await;
    Ok(Vec::new())
}

/// Lists the open rejects in constant memory.
///
/// # Errors
/// If the database or the broker fails, or standard output cannot be written.
pub async fn list(config: &Config, datasets: &[Arc<Dataset>], output: Output) -> Result<()> {
    match output.format() {
        Format::Json => list_for_programs(config, datasets).await,
        Format::Text => list_for_people(config, datasets).await,
    }
}

/// Writes one JSON object, page by page.
async fn list_for_programs(config: &Config, datasets: &[Arc<Dataset>]) -> Result<()> {
    let mut out = Printer::start();
    out.print(|out| write!(out, "{{\"rejects\":["))?;
    let mut separator = "";
    let notes = for_each_page(config, datasets, Records::Without, |page| {
        out.write(|out| {
            for reject in &page {
                write!(out, "{separator}")?;
                serde_json::to_writer(&mut *out, reject)?;
                separator = ",";
            }
            Ok(())
        })
    })
    .await?;
    out.print(|out| write!(out, "],\"dead_letters\":["))?;
    let mut separator = "";
    for_each_dead_letter(config, datasets, |letter| {
        out.print(|out| {
            write!(out, "{}", std::mem::replace(&mut separator, ","))?;
            serde_json::to_writer(&mut *out, &letter).map_err(io::Error::from)
        })
    })
    .await?;
    out.print(|out| {
        write!(out, "]")?;
        if !notes.is_empty() {
            write!(out, ",\"notes\":")?;
            serde_json::to_writer(&mut *out, &notes)?;
        }
        writeln!(out, "}}")
    })
}

/// Writes a table: the first page on a terminal, otherwise all pages. The columns are as wide as their widest values, so more
/// than one page is read twice: first to measure, then to write.
async fn list_for_people(config: &Config, datasets: &[Arc<Dataset>]) -> Result<()> {
    let mut first = Vec::new();
    let (mut count, mut widths) = (0, Vec::new());
    let notes = for_each_page(config, datasets, Records::Without, |page| {
        count += page.len();
        widths = widest(&widths, &reject_table(&page).widths());
        if first.is_empty() {
            first = page;
        }
        Ok(())
    })
    .await?;
    let mut out = Printer::start();
    if count == 0 {
        out.print(|out| writeln!(out, "{}", notes.first().map_or("no open rejects", String::as_str)))?;
    } else if count == first.len() || io::stdout().is_terminal() {
        out.print(|out| writeln!(out, "{}", reject_table(&first)))?;
        let more = count - first.len();
        if more > 0 {
            let more = HumanCount(more as u64);
            out.print(|out| writeln!(out, "and {more} more: `dataloader rejects list | less` shows all"))?;
        }
    } else {
        let mut is_first = true;
        for_each_page(config, datasets, Records::Without, |page| {
            let mut part = reject_table(&page);
            part.widen(&widths);
            let text = if std::mem::take(&mut is_first) { part.to_string() } else { part.without_header() };
            out.write(|out| writeln!(out, "{text}"))
        })
        .await?;
    }
    list_dead_letters(config, datasets, &mut out).await
}

/// Writes the dead letters as a table: the first page on a terminal, otherwise all. The columns get wider from page to page if
/// they must.
async fn list_dead_letters(config: &Config, datasets: &[Arc<Dataset>], out: &mut Printer) -> Result<()> {
    let (mut page, mut widths, mut written, mut more) = (Vec::new(), Vec::new(), 0_usize, 0_u64);
    let mut write = |page: &mut Vec<DeadLetterEntry>, written: &mut usize, out: &mut Printer| {
        let mut table = dead_letter_table(page);
        widths = widest(&widths, &table.widths());
        table.widen(&widths);
        let text = if *written == 0 { format!("\n{table}") } else { table.without_header() };
        *written += page.len();
        page.clear();
        out.print(|out| writeln!(out, "{text}"))
    };
    for_each_dead_letter(config, datasets, |letter| {
        if written > 0 && io::stdout().is_terminal() {
            more += 1;
            return Ok(());
        }
        page.push(letter);
        if page.len() == PAGE as usize { write(&mut page, &mut written, out) } else { Ok(()) }
    })
    .await?;
    if !page.is_empty() {
        write(&mut page, &mut written, out)?;
    }
    if more > 0 {
        out.print(|out| writeln!(out, "and {} more: `dataloader rejects list | less` shows all", HumanCount(more)))?;
    }
    Ok(())
}

fn widest(a: &[u16], b: &[u16]) -> Vec<u16> {
    (0..a.len().max(b.len())).map(|i| a.get(i).max(b.get(i)).copied().unwrap_or_default()).collect()
}

fn reject_table(rejects: &[OpenReject]) -> Table {
    let columns = [
        ("load", Align::Right),
        ("dataset", Align::Left),
        ("record", Align::Right),
        ("byte", Align::Right),
        ("reason", Align::Left),
        ("detail", Align::Left),
        ("source", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for reject in rejects {
        table.row([
            reject.load_id.to_string(),
            reject.dataset.clone(),
            reject.ordinal.to_string(),
            reject.byte_offset.to_string(),
            reject.reason.clone(),
            reject.detail.clone(),
            reject.source.clone(),
        ]);
    }
    table
}

/// Passes each dead letter of these datasets to `take`; none without RabbitMQ.
async fn for_each_dead_letter(
    config: &Config,
    datasets: &[Arc<Dataset>],
    mut take: impl FnMut(DeadLetterEntry) -> Result<()>,
) -> Result<()> {
    let Some((broker, topology)) = dead_letter_queue(config)? else { return Ok(()) };
    let is_wanted = |letter: &DeadLetterEntry| match &letter.dataset {
        Some(name) => datasets.iter().any(|dataset| dataset.name == *name),
        None => datasets.len() == config.datasets.len(),
    };
    dead_letters::list(&broker, &topology, |letter| if is_wanted(&letter) { take(letter) } else { Ok(()) }).await
}

/// The broker and the queues with the dead letters; none without RabbitMQ.
fn dead_letter_queue(config: &Config) -> Result<Option<(Broker, Topology)>> {
    Ok(match config.transport {
        Transport::Inproc => None,
        Transport::Amqp => Some((Broker::new(&config.amqp_url)?, Topology::new(&config.queue_prefix, &config.datasets)?)),
    })
}

fn dead_letter_table(letters: &[DeadLetterEntry]) -> Table {
    let columns = [
        ("dead letter of", Align::Left),
        ("bytes", Align::Right),
        ("reason", Align::Left),
        ("detail", Align::Left),
        ("app_id", Align::Left),
        ("message_id", Align::Left),
        ("source", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for letter in letters {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        table.row([
            text(&letter.dataset),
            letter.bytes.to_string(),
            letter.reason.clone(),
            letter.detail.clone(),
            text(&letter.app_id),
            text(&letter.message_id),
            text(&letter.source),
        ]);
    }
    table
}

/// Writes the original records to standard output, one per line. The output is NDJSON if the records are JSON.
///
/// # Errors
/// If the database fails or standard output cannot be written.
pub async fn export(config: &Config, datasets: &[Arc<Dataset>]) -> Result<()> {
    let notes = for_each_page(config, datasets, Records::With, |page| {
        let mut out = io::stdout().lock();
        for reject in page {
            out.write_all(&one_line(&reject.record))?;
        }
        out.flush()
    })
    .await?;
    for note in notes {
        tracing::warn!("{note}");
    }
    Ok(())
}

/// The record as one line. Line breaks are replaced by spaces: between JSON tokens they have no meaning, and an NDJSON record
/// cannot contain them.
fn one_line(record: &[u8]) -> Vec<u8> {
    let mut line: Vec<u8> = record.iter().map(|&byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }).collect();
    line.push(b'\n');
    line
}

/// The result of a replay.
#[derive(Debug, Clone, Serialize)]
pub struct Replay {
    pub datasets: Vec<DatasetReplay>,
}

/// The result of a replay for one dataset: `read == loaded + rejected`.
#[derive(Debug, Clone, Serialize)]
pub struct DatasetReplay {
    pub dataset: String,
    /// Number of replayed rejects.
    pub read: u64,
    pub loaded: u64,
    /// Rejects that still cannot be loaded.
    pub rejected: u64,
    /// Dead letters that are in the dataset's queue again; absent without RabbitMQ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub republished: Option<u64>,
}

/// Parses the open rejects again and appends those that can now be loaded. The same transaction deletes them from
/// `raw.rejects`.
///
/// # Errors
/// If the database or the broker fails. Datasets that were finished before the error stay replayed.
pub async fn replay(config: &Config, datasets: &[Arc<Dataset>]) -> Result<Replay> {
    let database = Database::new(&config.database, GIVE_UP_AFTER)?;
    let mut connection = database.open(&config.datasets, Indexes::Make).await?;
    let names: Vec<String> = datasets.iter().map(|dataset| dataset.name.clone()).collect();
    let republished = match dead_letter_queue(config)? {
        Some((broker, topology)) => Some(dead_letters::replay(&broker, &topology, &names).await?),
        None => None,
    };
    let mut replay = Replay { datasets: Vec::new() };
    for dataset in datasets {
        let done = async {
            connection.begin().await?;
            let counts = replay_dataset(&mut connection, dataset).await?;
            connection.commit().await?;
            // The refresh has its own transaction: a few records are not worth blocking the writers for its whole duration.
            model::refresh(&mut connection, dataset, Days::none()).await?;
            Ok(counts)
        };
        let counts = done.await.map_err(|error| database.explain(error))?;
        replay.datasets.push(DatasetReplay {
            dataset: dataset.name.clone(),
            read: counts.read,
            loaded: counts.loaded,
            rejected: counts.rejected,
            republished: republished.as_ref().map(|letters| letters.get(&dataset.name).copied().unwrap_or(0)),
        });
    }
    connection.close().await;
    Ok(replay)
}

async fn replay_dataset(connection: &mut Connection, dataset: &Arc<Dataset>) -> StoreResult<Counts> {
    // A batch load deletes rejects too, so only one of the two may run at a time.
    lock::transaction(connection, Lock::Load).await?;
    lock::tables(connection, &BTreeMap::from([(dataset.name.as_str(), &**dataset)])).await?;
    // It comes now, whenever its records came first.
    let (load_key, mut removed) = (Uuid::now_v7(), 0);
    let started_at = Timestamp::now();
    let mut parser = Parser::new(Arc::clone(dataset));
    let names = [dataset.name.clone()];
    let mut after: Cursor = (0, 0);
    let mut load_id = None;
    let (mut counts, mut days, mut lines) = (Counts::default(), BTreeSet::new(), Vec::new());
    loop {
        let mut rejects = page(connection, &names, Records::With, after, PAGE).await?;
        let Some(last) = rejects.last() else { break };
        after = (last.load_id, last.ordinal);
        // Only the beginning of a too large record was stored.
        rejects.retain(|reject| RejectReason::from_name(&reject.reason) != Some(RejectReason::TooLarge));
        let load_id = match load_id {
            Some(id) => id,
            None => *load_id.insert(ledger::reserve_ids(connection, 1).await?[0]),
        };
        let chunk = chunk_of(&rejects, counts.read + 1);
        let mut rows = Rows::new(connection.dialect());
        let parsed = parser.parse(&chunk, &DayRange::ALL, &mut rows);
        rows.set_load(load_id);

        let still_rejected: BTreeSet<u64> = parsed.rejects.iter().map(|reject| reject.ordinal - chunk.first_ordinal).collect();
        let mut good: Vec<&OpenReject> =
            rejects.iter().zip(0..).filter(|(_, i)| !still_rejected.contains(i)).map(|(reject, _)| reject).collect();
        // Small as a page is, all of them can be many.
        let noting = Noting::of(dataset, counts.read + parsed.rows);
        let way = match dataset.stream {
            StreamMode::Append => Way::Append,
            StreamMode::Upsert => Way::Upsert(Writing { load_id, order: Order::Load(load_key) }),
        };
        let accepted = append_accepted(connection, dataset, &rows, noting, way).await?;
        removed += accepted.removed;
        for refused in accepted.refused.iter().rev() {
            good.remove(refused.row);
        }
        delete(connection, &good).await?;

        let (first_ordinal, records) = (chunk.first_ordinal, chunk.records());
        lines.push(ChunkLine { load_id, seq: lines.len() as u64, first_ordinal, records, digest: chunk.digest() });
        let loaded = good.len() as u64;
        let read = rejects.len() as u64;
        counts += Counts { read, loaded, rejected: read - loaded, skipped: 0 };
        if noting == Noting::Days {
            days.extend(parsed.days.iter().map(|day| Day(*day)));
        }
    }
    if let Some(id) = load_id {
        let load = FinishedLoad {
            id,
            load_key,
            dataset: &dataset.name,
            source: REPLAY_SOURCE,
            bytes: 0,
            counts,
            started_at,
            status: LoadStatus::Loaded,
            error: None,
            sha256: None,
            host: None,
            rows_removed: removed,
        };
        ledger::insert_finished(connection, &[load]).await?;
        ledger::insert_chunks(connection, &lines).await?;
        model::mark(connection, dataset, days).await?;
    }
    Ok(counts)
}

/// The rejected records as one chunk.
fn chunk_of(rejects: &[OpenReject], first_ordinal: u64) -> Chunk {
    let mut text = Vec::new();
    let mut spans = Vec::with_capacity(rejects.len());
    let at = |text: &Vec<u8>| u32::try_from(text.len()).expect("a page of records of at most 8 MiB");
    for reject in rejects {
        let start = at(&text);
        text.extend_from_slice(&reject.record);
        spans.push(start..at(&text));
    }
    Chunk { seq: 0, first_ordinal, first_byte_offset: 0, body: ChunkBody::Records { framing: Framing::Stream, text, spans } }
}

impl Replay {
    /// Writes the text output.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        for DatasetReplay { dataset, read, loaded, rejected, republished } in &self.datasets {
            match read {
                0 => writeln!(out, "{dataset}: no open rejects")?,
                _ => writeln!(out, "{dataset}: {read} replayed, {loaded} loaded, {rejected} still rejected")?,
            }
            if let Some(letters @ 1..) = republished {
                writeln!(out, "{dataset}: {letters} dead letters are in the queue again")?;
            }
        }
        Ok(())
    }
}
