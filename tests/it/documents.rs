//! What the documents name exists: paths, commands, flags, settings, environment variables, exit codes, log lines.
//!
//! Read are code spans and fenced blocks, found by their backticks. The problems of a test are reported together.

mod markdown; // links, tables, code spans and fenced blocks
mod program; // the commands and flags that there are
mod repository; // the files and names that there are

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use dataloader::record::row::RejectReason;

use markdown::{Code, documents, spans};
use program::Program;
use repository::{Repository, Sources};

/// README and ARCHITECTURE are read in one sitting.
const MOST_LINES: usize = 200;
/// Names of PostgreSQL's, PgBouncer's and RabbitMQ's.
const OF_OTHERS: [&str; 5] =
    ["pg_read_server_files", "change_password", "target_session_attrs", "ignore_startup_parameters", "default_pool_size"];

#[test]
fn readme_and_architecture_are_short() {
    for document in documents().iter().filter(|d| ["README.md", "ARCHITECTURE.md"].contains(&d.name.as_str())) {
        let lines = document.text.lines().count();
        assert!(lines <= MOST_LINES, "{} has {lines} lines, and {MOST_LINES} are the limit", document.name);
    }
}

#[test]
fn every_link_leads_somewhere_and_every_page_is_linked_from_the_readme() {
    let mut problems = Vec::new();
    let mut linked = BTreeSet::new();
    for document in documents() {
        for (line, target) in document.links() {
            let file = target.split('#').next().unwrap_or_default();
            if target.contains("://") || file.is_empty() {
                continue;
            }
            if !document.directory().join(file).exists() {
                problems.push(format!("{}:{line}: the link {target} leads nowhere", document.name));
            }
            if document.name == "README.md" {
                linked.insert(file.to_owned());
            }
        }
    }
    for document in documents().iter().filter(|document| document.name != "README.md" && !linked.contains(&document.name)) {
        problems.push(format!("README.md does not link {}", document.name));
    }
    report(&problems);
}

#[test]
fn every_command_and_flag_exists() {
    let program = Program::ask();
    let mut problems = Vec::new();
    for document in documents() {
        for code in document.codes() {
            for command in code.commands() {
                problems.extend(program.problem(&command).map(|problem| code.at(&document, &problem)));
            }
        }
    }
    report(&problems);
}

#[test]
fn the_readme_names_every_command() {
    let program = Program::ask();
    let readme = documents().into_iter().find(|document| document.name == "README.md").unwrap();
    let named: BTreeSet<String> = readme.table("command").iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
    assert_eq!(named, program.command_names());
}

#[test]
fn every_setting_variable_and_name_exists() {
    let sources = Sources::read();
    let mut problems = Vec::new();
    for document in documents() {
        let codes = document.codes();
        let examples: Vec<&str> = codes.iter().flat_map(Code::example_datasets).collect();
        for code in codes.iter().filter(|code| code.language != "text") {
            let is_known = |name: &str| {
                // On SQLite the schema is a prefix.
                let table = name.strip_prefix("raw_").or(name.strip_prefix("modelled_")).unwrap_or(name);
                sources.words.contains(name) || sources.words.contains(table) || OF_OTHERS.contains(&name)
            };
            let invented = code.names().filter(|name| !is_known(name) && !examples.iter().any(|example| name.contains(example)));
            problems.extend(invented.map(|name| code.at(&document, &format!("nothing is called {name}"))));
        }
    }
    report(&problems);
}

#[test]
fn every_example_of_a_configuration_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dataloader.toml");
    let mut problems = Vec::new();
    for document in documents() {
        for code in document.codes().iter().filter(|code| code.language == "toml") {
            fs::write(&file, &code.text).unwrap();
            // Any command reads the configuration; this one does nothing else.
            let output = dataloader(&["generate", "--events", "1", "--config", file.to_str().unwrap()]);
            if output.1 != Some(0) {
                problems.push(code.at(&document, &output.0));
            }
        }
    }
    report(&problems);
}

#[test]
fn every_path_exists() {
    let repository = Repository::list();
    let mut problems = Vec::new();
    for document in documents() {
        for code in document.codes().iter().filter(|code| matches!(code.language.as_str(), "" | "sh")) {
            let missing =
                code.text.split(|c: char| c.is_whitespace() || "\"'`,;()".contains(c)).filter(|word| repository.misses(word));
            problems.extend(missing.map(|word| code.at(&document, &format!("there is no {word}"))));
        }
    }
    report(&problems);
}

#[test]
fn exit_codes_are_those_of_the_help() {
    let help = dataloader(&["--help"]).0.replace('\n', " ");
    let listed = help.split("Exit codes: ").nth(1).expect("the help lists the exit codes");
    let known: BTreeSet<String> = listed.split(',').filter_map(|part| first_number(part.trim())).collect();
    let mut problems = Vec::new();
    for document in documents() {
        for (number, line) in document.text.lines().enumerate() {
            for said in ["exit code ", "exits ", "exit code: "].iter().flat_map(|words| line.split(words).skip(1)) {
                if let Some(code) = first_number(said).filter(|code| !known.contains(code)) {
                    problems.push(format!("{}:{}: no command exits {code}", document.name, number + 1));
                }
            }
        }
        let table = document.table("exit code");
        let named: BTreeSet<String> = table.iter().map(|row| row[0].clone()).collect();
        if !table.is_empty() && named != known {
            problems.push(format!("{}: its table has the exit codes {named:?}, the help {known:?}", document.name));
        }
    }
    report(&problems);
}

#[test]
fn every_reject_reason_is_explained() {
    let page = documents().into_iter().find(|document| document.name == "docs/rejects.md").unwrap();
    let explained: BTreeSet<String> = page.table("reason").iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
    assert_eq!(explained, RejectReason::ALL.iter().map(|reason| reason.as_str().to_owned()).collect());
}

#[test]
fn the_table_of_faults_quotes_the_program() {
    let sources = Sources::read();
    let page = documents().into_iter().find(|document| document.name == "docs/operations.md").unwrap();
    let rows = page.table("what happens");
    assert!(!rows.is_empty(), "docs/operations.md has a table of faults");
    let mut problems = Vec::new();
    for row in rows {
        for quoted in row[1..3].iter().flat_map(|cell| spans(cell)) {
            for part in quoted.split('…').map(str::trim).filter(|part| !part.is_empty()) {
                // `cannot …` is put before many actions in one place.
                if !sources.program.contains(part.strip_prefix("cannot ").unwrap_or(part)) {
                    problems.push(format!("docs/operations.md, {}: nothing says `{part}`", row[0]));
                }
            }
        }
    }
    report(&problems);
}

#[test]
fn both_descriptions_of_the_continuous_integration_run_the_same() {
    let verbs = |file: &str| -> BTreeSet<String> {
        let text = read(&root().join(file));
        text.split("./run.sh ")
            .skip(1)
            .filter_map(|rest| rest.split_whitespace().next())
            .map(|verb| verb.trim_end_matches(':').to_owned())
            .collect()
    };
    assert_eq!(verbs(".ci/run"), verbs(".github/workflows/ci.yml"));
}

fn report(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn first_number(text: &str) -> Option<String> {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    (!digits.is_empty()).then_some(digits)
}

/// What the program says on both outputs, and its exit code.
fn dataloader(args: &[&str]) -> (String, Option<i32>) {
    let output = Command::new(env!("CARGO_BIN_EXE_dataloader")).args(args).env("COLUMNS", "100").output().unwrap();
    (String::from_utf8([output.stdout, output.stderr].concat()).unwrap(), output.status.code())
}
