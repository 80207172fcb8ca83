//! `dataloader infer`: the definition of a dataset for files that nobody has described yet.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::DONE;
use crate::batch::input::{Input, Text};
use crate::config::{self, ZSTD_WINDOW_MIB};
use crate::error::{Error, IoContext, Result, io_text};
use crate::infer::names;
use crate::infer::profile::{Profile, Profiler};
use crate::infer::proposal::propose;
use crate::infer::section::{Reading, section};
use crate::record::split::{SplitError, Splitter};
use crate::terminal::cli::InferArgs;
use crate::terminal::output::{self, Format, Output};

/// Prints a section that loads the files.
///
/// # Errors
/// If a file cannot be read to its end, or holds no record that could be loaded.
pub fn run(args: &InferArgs, _output: Output) -> Result<u8> {
    let name = dataset_name(args)?;
    let inputs: Vec<Input> = args.files.iter().map(|file| Input::from_argument(file)).collect();
    let sources: Vec<String> = inputs.iter().map(Input::to_string).collect();
    let Read { profile, is_sample, broken } = read(&inputs, args)?;
    let fault = broken.as_ref().map(|error| error.message().to_owned());
    let reading = Reading { sources: &sources, is_sample, broken: fault.as_deref() };
    let proposal = propose(&profile, &name, args.flatten).cannot("read the temporary file")?;
    match (proposal, broken) {
        (None, None) => Err(nothing(&profile, &reading)),
        (None, Some(broken)) => Err(broken),
        (Some(proposal), broken) => {
            let text = section(&profile, &proposal, reading);
            // What is printed is always what the program reads.
            config::datasets_of("the section", text.clone())?;
            output::stream(Format::Text, |out| out.write_all(text.as_bytes()))?;
            broken.map_or(Ok(DONE), Err)
        }
    }
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

/// What was read of the files.
struct Read {
    profile: Profile,
    /// Whether there may be more.
    is_sample: bool,
    /// Why a file could not be read to its end.
    broken: Option<Error>,
}

fn read(inputs: &[Input], args: &InferArgs) -> Result<Read> {
    let mut profiler = Profiler::new(args.flatten);
    let limit = args.sample.unwrap_or(u64::MAX);
    let (mut is_sample, mut broken) = (false, None);
    for (file, input) in inputs.iter().enumerate() {
        match read_one(input, file, &mut profiler, limit) {
            Ok(Extent::Whole) => {}
            Ok(Extent::Part) => is_sample = true,
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    Ok(Read { profile: profiler.finish().cannot("write the temporary file")?, is_sample, broken })
}

enum Extent {
    Whole,
    Part,
}

fn read_one(input: &Input, file: usize, profiler: &mut Profiler, limit: u64) -> Result<Extent> {
    let Text { text, .. } = input.open(&Arc::new(AtomicU64::new(0)), ZSTD_WINDOW_MIB)?;
    let mut splitter = Splitter::new(text);
    loop {
        let left = limit - profiler.records();
        match splitter.next_chunk() {
            Ok(None) => return Ok(Extent::Whole),
            Ok(Some(_)) if left == 0 => return Ok(Extent::Part),
            Ok(Some(chunk)) => {
                profiler.add(file, &chunk, left).cannot("write the temporary file")?;
                if chunk.records() > left {
                    return Ok(Extent::Part);
                }
            }
            Err(SplitError::Io(error)) => return Err(Error::failed(format!("cannot read {input}: {}", io_text(&error)))),
            Err(boundary) => {
                let read = profiler.records();
                return Err(Error::failed(format!("{input}: {boundary}; {read} records were read before it"))
                    .hint("repair the file; --sample N reads its first records only"));
            }
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
            let records = profile.records;
            Error::failed(format!("none of the {records} records of {files} could be loaded: {reason}, first {place}: {detail}"))
                .hint("a record is a JSON object; `dataloader explain` says what the reason means")
        }
    }
}
