//! `dataloader infer`: the definition of a dataset for files that nobody has described yet.

use std::io::{self, Write};
use std::path::Path;

use super::{DONE, DRIFTED};
use crate::batch::input::Input;
use crate::config::{self, Config, ZSTD_WINDOW_MIB, names};
use crate::counted::counted;
use crate::dataset::Dataset;
use crate::error::{Error, IoContext, Result, io_text};
use crate::infer::drift::{Drift, Judge};
use crate::infer::findings;
use crate::infer::profile::{Profile, Profiler};
use crate::infer::proposal::propose;
use crate::infer::section::{Reading, section};
use crate::record::chunk::Chunk;
use crate::record::split::{SplitError, Splitter};
use crate::terminal::cli::InferArgs;
use crate::terminal::output::{Format, Output};

/// Prints a section that loads the files.
///
/// # Errors
/// If a file cannot be read to its end, or holds no record that could be loaded.
pub fn run(args: &InferArgs, output: Output) -> Result<u8> {
    let name = dataset_name(args)?;
    let files = Files::of(args, ZSTD_WINDOW_MIB);
    let mut profiler = Profiler::new(args.flatten);
    let read = files.read(|file, chunk, limit| profiler.add(file, chunk, limit));
    let profile = profiler.finish().cannot("write the temporary file")?;
    let fault = read.as_ref().err().map(|error| error.message().to_owned());
    let is_sample = read.as_ref().is_ok_and(|extent| *extent == Extent::Part);
    let reading = Reading { sources: &files.sources, is_sample, broken: fault.as_deref() };
    let Some(proposal) = propose(&profile, &name, args.flatten).cannot("read the temporary file")? else {
        return Err(read.err().unwrap_or_else(|| nothing(&profile, &reading)));
    };
    let text = section(&profile, &proposal, reading);
    // What is printed is always what the program reads.
    config::datasets_of("the section", text.clone())?;
    if read.is_ok() || output.format() == Format::Text {
        output.result(&findings::findings(&profile, &proposal, reading, &text), |out| out.write_all(text.as_bytes()))?;
    }
    read.map(|_| DONE)
}

/// Compares the files with the configuration.
///
/// # Errors
/// If the configuration has no such dataset, or a file cannot be read to its end.
pub fn check(config: &Config, args: &InferArgs, output: Output) -> Result<u8> {
    let dataset = match &args.dataset {
        Some(name) => config.dataset_named(name)?,
        None => config
            .dataset_named(&dataset_name(args)?)
            .map_err(|error| error.context("--dataset is not given, so it is after the files"))?,
    };
    let files = Files::of(args, config.zstd_window_mib);
    let takes_parts = dataset.columns.iter().any(|column| column.from.0.len() > 1);
    let mut profiler = Profiler::new(takes_parts);
    let mut judge = Judge::new(&dataset);
    let extent = files.read(|file, chunk, limit| {
        judge.add(file, chunk, limit);
        profiler.add(file, chunk, limit)
    })?;
    let profile = profiler.finish().cannot("write the temporary file")?;
    let reading = Reading { sources: &files.sources, is_sample: extent == Extent::Part, broken: None };
    let drift = Drift::of(&profile, &dataset, judge.rejected());
    let value = findings::drift(&profile, &dataset.name, &drift, reading);
    output.result(&value, |out| write_drift(out, &profile, &dataset, &drift, reading))?;
    Ok(if drift.is_empty() { DONE } else { DRIFTED })
}

fn write_drift(out: &mut dyn Write, profile: &Profile, dataset: &Dataset, drift: &Drift, reading: Reading<'_>) -> io::Result<()> {
    let place = |first| reading.file_and_record(first);
    for key in &drift.unknown {
        let first = key.first.map(|first| format!(", first in {}", place(first))).unwrap_or_default();
        let from = key.place.to_string();
        writeln!(out, "unknown key  {from:?}: in {}{first}; it stays in `_extra`", counted(key.records, "record"))?;
    }
    for rejected in &drift.rejected {
        let (records, first, reason) = (counted(rejected.records, "record"), place(rejected.first), rejected.reason.as_str());
        writeln!(out, "reject       {reason}: {records}, first {first}: {}", rejected.detail)?;
    }
    for wider in &drift.wider {
        let (column_type, narrowest, values) = (wider.column_type.name(), wider.narrowest.name(), counted(wider.values, "value"));
        let first = wider.first.map(|first| format!(", first in {}", place(first))).unwrap_or_default();
        writeln!(out, "wider type   {}: {column_type}, but {narrowest} fits all {values}{first}", wider.column)?;
    }
    let (records, name) = (counted(profile.records, "record"), &dataset.name);
    let sample = if reading.is_sample { " (a sample)" } else { "" };
    let s = if profile.records == 1 { "s" } else { "" };
    if drift.is_empty() {
        return writeln!(out, "{records}{sample} fit{s} the dataset {name}");
    }
    writeln!(out, "{records}{sample} differ{s} from the dataset {name}")?;
    if drift.unknown.is_empty() && drift.rejected.is_empty() {
        writeln!(out, "every record loads whole: only types are wider than these values, which is right where others may come")?;
    }
    Ok(())
}

/// The name of the section: as asked for, or after the file; after the directory of several.
fn dataset_name(args: &InferArgs) -> Result<String> {
    if let Some(name) = &args.dataset {
        if names::is_dataset_name(name) {
            return Ok(name.clone());
        }
        let hint = "use ASCII letters, digits and `_`, a letter first, at most 45 in all, and none of the program's own names, such as loads";
        return Err(Error::usage(format!("a dataset cannot be named `{name}`")).hint(hint));
    }
    let named_after = match &args.files[..] {
        [file] if file != Path::new("-") => file.file_name(),
        [first, ..] => first.parent().and_then(Path::file_name),
        [] => None,
    };
    let text = named_after.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let stem = text.split('.').find(|part| !part.is_empty()).unwrap_or_default();
    Ok(names::dataset_name(stem))
}

/// What is read.
struct Files {
    inputs: Vec<Input>,
    sources: Vec<String>,
    /// So many records.
    limit: u64,
    zstd_window_mib: u32,
}

#[derive(PartialEq, Eq)]
enum Extent {
    Whole,
    Part,
}

impl Files {
    fn of(args: &InferArgs, zstd_window_mib: u32) -> Self {
        let inputs: Vec<Input> = args.files.iter().map(|file| Input::from_argument(file)).collect();
        let sources = inputs.iter().map(Input::to_string).collect();
        Self { inputs, sources, limit: args.sample.unwrap_or(u64::MAX), zstd_window_mib }
    }

    /// Passes all chunks to `each`, with the number of the file and of the records that count.
    fn read(&self, mut each: impl FnMut(usize, &Chunk, u64) -> io::Result<()>) -> Result<Extent> {
        let mut records = 0;
        for (file, input) in self.inputs.iter().enumerate() {
            let mut splitter = Splitter::new(input.text(self.zstd_window_mib)?);
            while let Some(chunk) = splitter.next_chunk().map_err(|error| cannot_read(input, &error, records))? {
                let left = self.limit - records;
                if left > 0 {
                    each(file, &chunk, left).cannot("write the temporary file")?;
                }
                if chunk.records() > left {
                    return Ok(Extent::Part);
                }
                records += chunk.records();
            }
        }
        Ok(Extent::Whole)
    }
}

fn cannot_read(input: &Input, error: &SplitError, records: u64) -> Error {
    let read = format!("read before it: {}", counted(records, "record"));
    match error {
        SplitError::Io(error) => Error::failed(format!("cannot read {input}: {}; {read}", io_text(error))),
        boundary => {
            Error::failed(format!("{input}: {boundary}; {read}")).hint("repair the file; --sample N reads its first records only")
        }
    }
}

/// Why nothing can be proposed.
fn nothing(profile: &Profile, reading: &Reading<'_>) -> Error {
    let files = if reading.sources.len() == 1 { reading.sources[0].clone() } else { "the files".to_owned() };
    match profile.unloadable.first() {
        None if profile.records == 0 => Error::failed(format!("no records in {files}")).hint("name files with JSON objects"),
        None => Error::failed(format!("no record of {files} has a key")).hint("name files whose objects are not empty"),
        Some(fault) => {
            let (reason, place, detail) = (fault.reason.as_str(), reading.place(fault.first), &fault.detail);
            let records = counted(profile.records, "record");
            Error::failed(format!("none of the {records} of {files} could be loaded: {reason}, first {place}: {detail}"))
                .hint("a record is a JSON object; `dataloader explain` says what the reason means")
        }
    }
}
