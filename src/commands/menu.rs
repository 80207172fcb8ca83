//! `dataloader menu`: numbered choices, read line by line, so that it works over a pipe, in tmux and in `docker exec -it`.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;

use jiff::civil::Date;
use tokio::sync::mpsc;

use super::DONE;
use super::drop::sample_of;
use super::load::{Loaded, load};
use crate::batch::LoadOptions;
use crate::config::{Config, MenuMode};
use crate::dataset::Dataset;
use crate::error::{Error, Result, io_text};
use crate::inbox::{Symlinks, drop_file};
use crate::terminal::cli::parse_day;
use crate::terminal::output::{Format, Output, write_error};
use crate::visible::{Form, VisibleWriter};

/// The user's own file, in the dataset's directory.
const CUSTOM_SAMPLE: &str = "custom_sample.json";

const RULE: &str = "----------------------------------------------";

/// Shows the menu on standard output and reads the choices from standard input.
///
/// # Errors
/// If standard output cannot be written, or if JSON is asked for.
pub async fn run(config: &Config, output: Output) -> Result<u8> {
    if output.format() == Format::Json {
        return Err(Error::usage("the menu is for people: it has no --format json")
            .hint("programs use `dataloader load` and `dataloader drop`"));
    }
    show(config, BufReader::new(io::stdin()), &mut VisibleWriter::new(io::stdout(), Form::Text)).await?;
    Ok(DONE)
}

/// Shows the menu of [`Config::menu_mode`] on `out` and executes the choices from `input`, until the user exits or the input
/// ends. An error of a load is shown, and the menu continues. If the future is dropped during a load (by a signal), the load is
/// rolled back.
///
/// # Errors
/// If `out` cannot be written. A closed pipe is no error.
async fn show(config: &Config, input: impl BufRead + Send + 'static, out: &mut impl Write) -> Result<()> {
    let mut console = Console { lines: lines_of(input), out, at_prompt: false };
    let done = match config.menu_mode {
        MenuMode::Batch => batch(config, &mut console).await,
        MenuMode::Stream => stream(config, &mut console).await,
    };
    match done {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::failed(format!("cannot write to standard output: {}", io_text(&error))))
        }
        _ => Ok(()),
    }
}

#[derive(Debug, Clone, Copy)]
enum BatchChoice {
    LoadAll,
    LoadDay,
    Exit,
    LoadOther,
}

async fn batch(config: &Config, console: &mut Console<'_, impl Write>) -> io::Result<()> {
    console.banner("batch: loads files into the database", &format!("{} into {}", config.data_dir.display(), config.database))?;
    let name = menu_name(config);
    let others: Vec<Arc<Dataset>> =
        config.datasets.iter().filter(|dataset| dataset.name != name && dataset.name != "orgs").cloned().collect();
    let mut choices = vec![
        (format!("load all {name}"), BatchChoice::LoadAll),
        (format!("load specific date from {name}"), BatchChoice::LoadDay),
        ("exit".to_owned(), BatchChoice::Exit),
    ];
    // Last, so that the other choices have the same numbers under every configuration.
    if !others.is_empty() {
        choices.push(("load another dataset".to_owned(), BatchChoice::LoadOther));
    }
    loop {
        let (datasets, day) = match console.choose(&choices).await? {
            Some(BatchChoice::LoadAll) => (config.datasets.clone(), None),
            Some(BatchChoice::LoadDay) => match console.ask_day().await? {
                Some(day) => (config.datasets.clone(), Some(day)),
                None => return Ok(()),
            },
            Some(BatchChoice::LoadOther) => match console.ask_dataset(&others).await? {
                Some(dataset) => (vec![dataset], None),
                None => return Ok(()),
            },
            Some(BatchChoice::Exit) | None => return Ok(()),
        };
        let loaded = load_files(config, datasets, day).await;
        writeln!(console.out)?;
        match loaded {
            Ok(loaded) => {
                loaded.write(console.out)?;
                loaded.end().await;
            }
            Err(error) => write_error(console.out, &error)?,
        }
    }
}

/// Loads these datasets. Those without a `day`, such as the organisations, are always loaded in full.
async fn load_files(config: &Config, datasets: Vec<Arc<Dataset>>, day: Option<Date>) -> Result<Loaded> {
    let options = LoadOptions::new(config, datasets, day.map(|day| day..=day))?;
    load(config, &options).await
}

#[derive(Debug, Clone, Copy)]
enum StreamChoice {
    DropSample,
    DropCustom,
    Exit,
}

async fn stream(config: &Config, console: &mut Console<'_, impl Write>) -> io::Result<()> {
    let inbox = config.inbox.join(menu_name(config));
    console.banner("stream: drops files for a running `dataloader`", &format!("into {}", inbox.display()))?;
    let choices = [
        ("drop file in raw data dir".to_owned(), StreamChoice::DropSample),
        ("drop custom file in raw data dir".to_owned(), StreamChoice::DropCustom),
        ("exit".to_owned(), StreamChoice::Exit),
    ];
    loop {
        let dropped = match console.choose(&choices).await? {
            Some(StreamChoice::DropSample) => drop_sample(config),
            Some(StreamChoice::DropCustom) => drop_custom(config),
            Some(StreamChoice::Exit) | None => return Ok(()),
        };
        writeln!(console.out)?;
        match dropped {
            Ok(line) => writeln!(console.out, "{line}")?,
            Err(error) => write_error(console.out, &error)?,
        }
    }
}

fn drop_sample(config: &Config) -> Result<String> {
    let dataset = config.menu_dataset()?;
    drop_into_inbox(config, &dataset, &sample_of(&dataset, &config.data_dir))
}

fn drop_custom(config: &Config) -> Result<String> {
    let dataset = config.menu_dataset()?;
    let file = config.data_dir.join(&dataset.dir).join(CUSTOM_SAMPLE);
    // If the check itself fails, the file may exist; opening it reports the error.
    if matches!(file.try_exists(), Ok(false)) {
        let file = std::path::absolute(&file).unwrap_or(file);
        return Ok(format!("no custom file yet: save yours as {}, then choose this again", file.display()));
    }
    drop_into_inbox(config, &dataset, &file)
}

fn drop_into_inbox(config: &Config, dataset: &Dataset, file: &Path) -> Result<String> {
    let dropped = drop_file(&config.inbox, &dataset.name, file, Symlinks::followed(config.follow_links))?;
    Ok(format!("dropped {}; `dataloader status` shows what became of it", dropped.display()))
}

/// The dataset's name in the choices. If there is none, each choice reports the error when it is chosen.
fn menu_name(config: &Config) -> String {
    config.menu_dataset().map_or_else(|_| "events".to_owned(), |dataset| dataset.name.clone())
}

/// The output and the input of the menu.
struct Console<'a, W: Write> {
    lines: mpsc::Receiver<String>,
    out: &'a mut W,
    /// Whether the cursor is after a question.
    at_prompt: bool,
}

impl<W: Write> Console<'_, W> {
    fn banner(&mut self, title: &str, detail: &str) -> io::Result<()> {
        writeln!(self.out, "{RULE}\ndataloader {}, {title}\n{detail}\n{RULE}", env!("CARGO_PKG_VERSION"))
    }

    /// Shows the choices, numbered from 1, and asks until the answer is one of them. Returns `None` at the end of input.
    async fn choose<T: Copy>(&mut self, choices: &[(String, T)]) -> io::Result<Option<T>> {
        writeln!(self.out)?;
        for (number, (text, _)) in (1..).zip(choices) {
            writeln!(self.out, "({number}) {text}")?;
        }
        while let Some(answer) = self.ask("Your choice: ").await? {
            if let Some((_, (_, choice))) = (1..).zip(choices).find(|(number, _)| answer == format!("{number}")) {
                return Ok(Some(*choice));
            }
            writeln!(self.out, "{answer:?} is not a choice: type a number from 1 to {}", choices.len())?;
        }
        Ok(None)
    }

    /// Asks until the answer is a date. Returns `None` at the end of input.
    async fn ask_day(&mut self) -> io::Result<Option<Date>> {
        while let Some(answer) = self.ask("Which date (YYYY-MM-DD): ").await? {
            match parse_day(&answer) {
                Ok(day) => return Ok(Some(day)),
                Err(wrong) => writeln!(self.out, "{answer:?} is not a date: {wrong}")?,
            }
        }
        Ok(None)
    }

    /// Asks until the answer is one of these datasets. Returns `None` at the end of input.
    async fn ask_dataset(&mut self, datasets: &[Arc<Dataset>]) -> io::Result<Option<Arc<Dataset>>> {
        let names = datasets.iter().map(|dataset| dataset.name.as_str()).collect::<Vec<_>>().join(", ");
        while let Some(answer) = self.ask(&format!("Which dataset ({names}): ")).await? {
            if let Some(dataset) = datasets.iter().find(|dataset| dataset.name == answer) {
                return Ok(Some(Arc::clone(dataset)));
            }
            writeln!(self.out, "{answer:?} is none of them")?;
        }
        Ok(None)
    }

    /// Asks and returns the next line of the input, trimmed; `None` at the end of input.
    async fn ask(&mut self, question: &str) -> io::Result<Option<String>> {
        write!(self.out, "{question}")?;
        self.out.flush()?;
        self.at_prompt = true;
        let Some(line) = self.lines.recv().await else { return Ok(None) };
        self.at_prompt = false;
        Ok(Some(line.trim().to_owned()))
    }
}

impl<W: Write> Drop for Console<'_, W> {
    /// Ends the line of an unanswered question, so that later output begins on its own line.
    fn drop(&mut self) {
        if self.at_prompt {
            let _ = writeln!(self.out);
        }
    }
}

/// The lines of `input`, read on a thread, so that a signal can end the menu while it waits for a line. The thread ends with
/// the input or with the process.
fn lines_of(mut input: impl BufRead + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut line = Vec::new();
        loop {
            line.clear();
            match input.read_until(b'\n', &mut line) {
                Ok(0) => return,
                // Not every terminal uses UTF-8. An unreadable answer is no valid choice.
                Ok(_) if sender.blocking_send(String::from_utf8_lossy(&line).into_owned()).is_err() => return,
                Ok(_) => {}
                Err(error) => return tracing::warn!("cannot read standard input: {}", io_text(&error)),
            }
        }
    });
    lines
}
