//! `dataloader schema`, `completions` and `man`: what other programs want to know of this one.

use std::fs;

use clap::Command;

use super::DONE;
use crate::config;
use crate::error::{IoContext, Result};
use crate::terminal::cli::{CompletionsArgs, ManArgs};
use crate::terminal::output::{self, Format, Output};

/// Prints the JSON Schema of `dataloader.toml`.
///
/// # Errors
/// If standard output cannot be written.
pub fn schema() -> Result<u8> {
    output::stream(Format::Text, |out| writeln!(out, "{:#}", config::schema()))?;
    Ok(DONE)
}

/// Prints the completions of `program` for a shell.
///
/// # Errors
/// If standard output cannot be written.
pub fn completions(args: &CompletionsArgs, mut program: Command) -> Result<u8> {
    // Into memory first: the generator panics where it cannot write.
    let mut script = Vec::new();
    let name = program.get_name().to_owned();
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    output::stream(Format::Text, |out| out.write_all(&script))?;
    Ok(DONE)
}

/// Prints the man page of `program`, or writes a page for each of its commands into the directory that is named.
///
/// # Errors
/// If the directory or standard output cannot be written.
pub fn man(args: &ManArgs, program: Command, output: Output) -> Result<u8> {
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(program).render(&mut page).cannot("make the man page")?;
        output::stream(Format::Text, |out| out.write_all(&page))?;
        return Ok(DONE);
    };
    fs::create_dir_all(dir).cannot(format_args!("make {}", dir.display()))?;
    clap_mangen::generate_to(program, dir).cannot(format_args!("write the man pages into {}", dir.display()))?;
    let dir = dir.display().to_string();
    output.result(&serde_json::json!({ "dir": dir }), |out| writeln!(out, "the man pages are in {dir}"))?;
    Ok(DONE)
}
