//! The commands and flags, and whether a command line has others.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use super::{dataloader, root};

/// The commands and flags, by the program's own help.
pub struct Program {
    /// By name; the one without is the program itself.
    commands: BTreeMap<String, Usage>,
    run_sh: BTreeSet<String>,
}

#[derive(Default)]
struct Usage {
    /// Each with whether a value follows.
    flags: BTreeMap<String, bool>,
    subcommands: BTreeSet<String>,
}

impl Usage {
    fn of(help: &str) -> Self {
        let mut usage = Self::default();
        let mut is_list = false;
        for line in help.lines() {
            is_list = line == "Commands:" || (is_list && !line.is_empty());
            let line_start = line.trim_start();
            if line_start.starts_with('-') {
                let words: Vec<&str> = line_start.split_whitespace().collect();
                let count = words.iter().take_while(|word| word.starts_with('-')).count();
                let has_value = words.get(count).is_some_and(|word| word.starts_with('<'));
                let flags = words[..count].iter().map(|word| word.trim_end_matches(['.', ',']).to_owned());
                usage.flags.extend(flags.map(|flag| (flag, has_value)));
            } else if is_list && line != "Commands:" && line.starts_with("  ") && !line.starts_with("   ") {
                usage.subcommands.extend(line_start.split_whitespace().next().map(str::to_owned));
            }
        }
        usage
    }
}

impl Program {
    pub fn ask() -> Self {
        let main = Usage::of(&dataloader(&["--help"]).0);
        let mut commands: BTreeMap<String, Usage> =
            main.subcommands.iter().map(|name| (name.clone(), Usage::of(&dataloader(&[name, "--help"]).0))).collect();
        commands.insert(String::new(), main);
        let output = Command::new(root().join("run.sh")).arg("help").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let verbs = help.lines().take_while(|line| !line.starts_with("Environment")).filter_map(|line| line.strip_prefix("  "));
        let run_sh = verbs.filter(|line| !line.starts_with(' ')).filter_map(|line| line.split_whitespace().next());
        Self { commands, run_sh: run_sh.map(str::to_owned).collect() }
    }

    /// The commands by name, without `help`.
    pub fn command_names(&self) -> BTreeSet<String> {
        self.commands.keys().filter(|name| !["", "help"].contains(&name.as_str())).cloned().collect()
    }

    /// What is wrong with a command line, if it is one of ours.
    pub fn problem(&self, words: &[String]) -> Option<String> {
        let is_assignment = |word: &&String| word.contains('=') && word.starts_with(|c: char| c.is_ascii_uppercase());
        let words = &words[words.iter().take_while(is_assignment).count()..];
        let first = words.first()?.as_str();
        let ours = words.iter().enumerate().position(|(i, word)| {
            // Also inside a container: `docker compose exec SERVICE dataloader …`.
            word == "dataloader" && (i == 0 || (i > 1 && words[i - 2] == "exec"))
        });
        if let Some(position) = ours {
            self.usage_problem(&words[position + 1..])
        } else if words.len() > 1 && (first == "cargo" && words[1] == "run") {
            let position = words.iter().position(|word| word == "--")?;
            self.usage_problem(&words[position + 1..])
        } else if first == "./run.sh" {
            let verb = words.get(1).filter(|verb| !self.run_sh.contains(*verb))?;
            Some(format!("./run.sh has no {verb}"))
        } else if words.len() > 1 && self.commands.contains_key(first) {
            self.usage_problem(words)
        } else if first.starts_with('-') {
            self.flag_problem(words)
        } else {
            None
        }
    }

    /// Arguments of the program.
    fn usage_problem(&self, args: &[String]) -> Option<String> {
        let main = &self.commands[""];
        let mut words = args.iter().map(String::as_str);
        let (mut command, mut usage) = ("", main);
        while let Some(word) = words.next() {
            if word.starts_with(['<', '>', '…']) {
                return None; // a placeholder, or a file that gets the output
            } else if word.starts_with('-') && word != "-" {
                let (flag, value) = word.split_once('=').map_or((word, None), |(flag, value)| (flag, Some(value)));
                match usage.flags.get(flag) {
                    None => return Some(format!("`dataloader {command}` has no {flag}")),
                    Some(true) if value.is_none() => drop(words.next()),
                    Some(_) => {}
                }
            } else if command.is_empty() {
                (command, usage) = match self.commands.get(word) {
                    None => return Some(format!("dataloader has no command {word}")),
                    Some(usage) => (word, usage),
                };
            } else if !usage.subcommands.is_empty() {
                let unknown = word.split('|').find(|name| !usage.subcommands.contains(*name));
                return unknown.map(|name| format!("`dataloader {command}` has no {name}"));
            }
        }
        None
    }

    /// Flags alone: of any command.
    fn flag_problem(&self, words: &[String]) -> Option<String> {
        let flags = words.iter().filter(|word| word.starts_with('-') && *word != "-");
        let mut names = flags.map(|word| word.split('=').next().unwrap_or_default());
        let unknown = names.find(|flag| !self.commands.values().any(|usage| usage.flags.contains_key(*flag)))?;
        Some(format!("no command has {unknown}"))
    }
}
