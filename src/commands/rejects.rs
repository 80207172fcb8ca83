//! `dataloader rejects`: lists the records that could not be loaded, exports them for repair, replays or discards them.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use indicatif::HumanCount;

use super::DONE;
use crate::answers::dead_letters;
use crate::answers::replay::{DatasetReplay, Replay, discard, replay};
use crate::config::Config;
use crate::dataset::Dataset;
use crate::error::{Error, Result, io_text};
use crate::retry::GIVE_UP_AFTER;
use crate::store::Database;
use crate::store::open_rejects::{Cursor, OpenReject, Records, RejectFilter, page};
use crate::terminal::cli::{RejectsAction, RejectsArgs};
use crate::terminal::output::{Format, Output, Printer};
use crate::terminal::table::{Align, Table};
use crate::transport::amqp::dead_letters::DeadLetterEntry;

/// Lists, exports, replays or discards the open rejects.
///
/// # Errors
/// If the database or the broker fails, or if the dataset is unknown.
pub async fn run(config: &Config, args: &RejectsArgs, output: Output) -> Result<u8> {
    let selected = Selected {
        datasets: config.datasets_named(args.dataset.as_slice())?,
        filter: RejectFilter { datasets: args.dataset.iter().cloned().collect(), reason: args.reason.clone(), load: args.load },
    };
    match args.action {
        RejectsAction::List => list(config, &selected, output).await?,
        RejectsAction::Export => export(config, &selected).await?,
        RejectsAction::Replay => {
            let replay = replay(config, &selected.filter).await?;
            output.result(&replay, |out| write_replay(&replay, out))?;
        }
        RejectsAction::Discard => {
            let discard = discard(config, &selected.filter).await?;
            output.result(&discard, |out| {
                discard.datasets.iter().try_for_each(|d| writeln!(out, "{}: {} discarded", d.dataset, d.discarded))
            })?;
        }
    }
    Ok(DONE)
}

/// The rejects that the arguments select.
struct Selected {
    datasets: Vec<Arc<Dataset>>,
    filter: RejectFilter,
}

/// How many rejects are in memory at a time. One has at most 8 MiB, and nearly all have far less.
const PAGE: u32 = 100;

/// Reads all open rejects of the datasets, page by page. If there are no tables, returns notes that say so.
async fn for_each_page(
    config: &Config,
    selected: &Selected,
    records: Records,
    mut take: impl FnMut(Vec<OpenReject>) -> io::Result<()>,
) -> Result<Vec<String>> {
    let database = Database::new(&config.database, GIVE_UP_AFTER)?;
    let Some(mut connection) = database.open_to_read().await? else { return Ok(vec![database.says_nothing_is_there()]) };
    // Without a name those of datasets that are no longer configured are not meant.
    let datasets = selected.datasets.iter().map(|dataset| dataset.name.clone()).collect();
    let filter = RejectFilter { datasets, ..selected.filter.clone() };
    let mut after: Cursor = (0, 0);
    loop {
        let rejects = page(&mut connection, &filter, records, after, PAGE).await.map_err(|error| database.explain(error))?;
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
async fn list(config: &Config, selected: &Selected, output: Output) -> Result<()> {
    match output.format() {
        Format::Json => list_for_programs(config, selected).await,
        Format::Text => list_for_people(config, selected).await,
    }
}

/// Writes one JSON object, page by page.
async fn list_for_programs(config: &Config, selected: &Selected) -> Result<()> {
    let mut out = Printer::start(Format::Json);
    out.print(|out| write!(out, "{{\"rejects\":["))?;
    let mut separator = "";
    let notes = for_each_page(config, selected, Records::Without, |page| {
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
    dead_letters::for_each(config, &selected.datasets, &selected.filter, |letter| {
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
async fn list_for_people(config: &Config, selected: &Selected) -> Result<()> {
    let mut first = Vec::new();
    let (mut count, mut widths) = (0, Vec::new());
    let notes = for_each_page(config, selected, Records::Without, |page| {
        count += page.len();
        widths = widest(&widths, &reject_table(&page).widths());
        if first.is_empty() {
            first = page;
        }
        Ok(())
    })
    .await?;
    let mut out = Printer::start(Format::Text);
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
        for_each_page(config, selected, Records::Without, |page| {
            let mut part = reject_table(&page);
            part.widen(&widths);
            let text = if std::mem::take(&mut is_first) { part.to_string() } else { part.without_header() };
            out.write(|out| writeln!(out, "{text}"))
        })
        .await?;
    }
    list_dead_letters(config, selected, &mut out).await
}

/// Writes the dead letters as a table: the first page on a terminal, otherwise all. The columns get wider from page to page if
/// they must.
async fn list_dead_letters(config: &Config, selected: &Selected, out: &mut Printer) -> Result<()> {
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
    dead_letters::for_each(config, &selected.datasets, &selected.filter, |letter| {
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
async fn export(config: &Config, selected: &Selected) -> Result<()> {
    if io::stdout().is_terminal() {
        tracing::warn!("the records come as they are: a terminal obeys control characters in them; give a file with > or a pipe");
    }
    let notes = for_each_page(config, selected, Records::With, |page| {
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

/// Writes the text output.
fn write_replay(replay: &Replay, out: &mut dyn Write) -> io::Result<()> {
    for DatasetReplay { dataset, read, loaded, rejected, republished } in &replay.datasets {
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
