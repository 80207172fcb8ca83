//! `dataloader explain`: what a reject reason or an exit code means, and what to do.

use std::io::{self, Write};

use serde::Serialize;

use super::DONE;
use crate::error::{Error, Result};
use crate::record::row::RejectReason;
use crate::terminal::cli::ExplainArgs;
use crate::terminal::output::Output;

/// One code, explained.
#[derive(Debug, Clone, Serialize)]
struct Explanation {
    code: String,
    kind: Kind,
    means: &'static str,
    #[serde(rename = "do")]
    remedy: &'static str,
}

/// Where users meet a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    RejectReason,
    ExitCode,
}

/// Prints the explanation of the code that the arguments name, or of all codes.
///
/// # Errors
/// If there is no such code.
pub fn run(args: &ExplainArgs, output: Output) -> Result<u8> {
    let all = all();
    match &args.code {
        None => output.result(&serde_json::json!({ "codes": all }), |out| write_all(&all, out))?,
        Some(code) => {
            let found = all.iter().find(|explanation| explanation.code == code.to_ascii_lowercase()).ok_or_else(|| {
                let codes: Vec<&str> = all.iter().map(|explanation| explanation.code.as_str()).collect();
                Error::usage(format!("unknown code `{}`", code.escape_debug())).hint(format!("the codes are: {}", codes.join(", ")))
            })?;
            output.result(found, |out| write_one(found, out))?;
        }
    }
    Ok(DONE)
}

fn write_all(all: &[Explanation], out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "Why records are rejected; `dataloader rejects list` shows them:")?;
    for explanation in all.iter().filter(|explanation| explanation.kind == Kind::RejectReason) {
        writeln!(out)?;
        write_one(explanation, out)?;
    }
    writeln!(out, "\nExit codes:")?;
    for explanation in all.iter().filter(|explanation| explanation.kind == Kind::ExitCode) {
        writeln!(out)?;
        write_one(explanation, out)?;
    }
    Ok(())
}

fn write_one(explanation: &Explanation, out: &mut dyn Write) -> io::Result<()> {
    let Explanation { code, means, remedy, .. } = explanation;
    let subject = if explanation.kind == Kind::RejectReason { "the record " } else { "" };
    writeln!(out, "{code}: {subject}{means}\n  {remedy}")
}

/// All codes: the reject reasons, then the exit codes.
fn all() -> Vec<Explanation> {
    let reasons = RejectReason::ALL.into_iter().map(|reason| {
        let (means, remedy) = of_reason(reason);
        Explanation { code: reason.as_str().to_owned(), kind: Kind::RejectReason, means, remedy }
    });
    let exits = EXIT_CODES.into_iter().map(|(code, means, remedy)| Explanation {
        code: code.to_string(),
        kind: Kind::ExitCode,
        means,
        remedy,
    });
    reasons.chain(exits).collect()
}

/// What is true of a record that was rejected for this reason, and what to do.
fn of_reason(reason: RejectReason) -> (&'static str, &'static str) {
    match reason {
        RejectReason::NotAnObject => ("is a number, a string or a list, and no object", "Repair the file."),
        RejectReason::MissingRequired => (
            "lacks a required column, or has null there",
            "Repair the record; or take `required` from the column in dataloader.toml, then `dataloader rejects replay`.",
        ),
        RejectReason::TypeMismatch => (
            "has a value that its column's type does not take",
            "Repair the record; or widen the type in dataloader.toml and in the table, then `dataloader rejects replay`.",
        ),
        RejectReason::OutOfRange => (
            "has a number or a time outside of what its column holds, or with more digits than it keeps",
            "Repair the record; or widen the type in dataloader.toml and in the table, then `dataloader rejects replay`.",
        ),
        RejectReason::NulCharacter => ("has \\u0000 in a string, which PostgreSQL cannot store", "Repair the record."),
        RejectReason::LoneSurrogate => ("has half of a UTF-16 pair in a string, as in \\ud800", "Repair the record."),
        RejectReason::InvalidUtf8 => ("is not UTF-8", "Repair the file's encoding."),
        RejectReason::TooDeep => ("is nested in more than 128 levels, itself included", "Repair the record."),
        RejectReason::TooLarge => ("is larger than 8 MiB; its first 64 KiB are kept", "Split it at its source."),
        RejectReason::InvalidJson => {
            ("does not parse as JSON; a stray comma between two records is one, too", "Repair the record.")
        }
        RejectReason::Constraint => (
            "was refused by the database: a constraint, a trigger, an index (stream only; it fails a batch load)",
            "Compare the table with the record; mend one of them, then `dataloader rejects replay`.",
        ),
    }
}

const EXIT_CODES: [(u8, &str, &str); 6] = [
    (0, "done", "Nothing."),
    (1, "failed, or a check found a difference", "Read the error and its hint; `dataloader doctor` checks what a run would meet."),
    (2, "wrong usage or configuration", "Do what the hint says; `dataloader COMMAND --help` lists the flags."),
    (
        3,
        "done, but records were rejected or a file failed (`load`, `run --once`), or records differ from the configuration (`infer --check`)",
        "`dataloader rejects list` shows the records, `dataloader status` the files.",
    ),
    (
        4,
        "the database or the broker could not be reached, or refused this user",
        "Check that it runs, and DATABASE_URL or AMQP_URL; `dataloader doctor` says what is wrong.",
    ),
    (130, "interrupted, with work left undone", "Start it again: a load was rolled back, and a stream resumes what was left."),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::{DIFFERENT, DRIFTED, INTERRUPTED, REJECTED, UNHEALTHY};

    #[test]
    fn every_code_that_the_program_ends_with_is_explained() {
        let explained: Vec<u8> = EXIT_CODES.iter().map(|(code, ..)| *code).collect();
        let errors = [Error::failed(""), Error::usage(""), Error::unreachable(""), Error::interrupted()];
        for code in errors.iter().map(Error::exit_code).chain([DONE, DIFFERENT, DRIFTED, UNHEALTHY, REJECTED, INTERRUPTED]) {
            assert!(explained.contains(&code), "{code}");
        }
    }
}
