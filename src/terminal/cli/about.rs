//! The commands about the program itself: what a code means, the schema of the configuration, completions, man pages.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

/// Says what a reject reason or an exit code means, and what to do
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dataloader explain                    All of them
  dataloader explain type_mismatch      A reason of `rejects list`
  dataloader explain 3                  An exit code")]
pub struct ExplainArgs {
    /// A reject reason or an exit code; without it all are listed
    #[arg(value_name = "CODE")]
    pub code: Option<String>,
}

/// Writes completions for a shell to standard output
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dataloader completions bash > ~/.local/share/bash-completion/completions/dataloader
  dataloader completions zsh > ~/.zfunc/_dataloader
  dataloader completions fish > ~/.config/fish/completions/dataloader.fish")]
pub struct CompletionsArgs {
    /// bash, elvish, fish, powershell or zsh
    #[arg(value_name = "SHELL", value_enum, hide_possible_values = true)]
    pub shell: Shell,
}

/// Writes the man page to standard output, or a page for each command into a directory
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dataloader man | man -l -
  dataloader man ~/.local/share/man/man1")]
pub struct ManArgs {
    /// Made if it is not there
    #[arg(value_name = "DIR")]
    pub dir: Option<PathBuf>,
}
