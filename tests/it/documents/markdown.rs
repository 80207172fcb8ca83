//! What a document says, as far as these tests look: by its backticks, brackets and bars.

use std::fs;
use std::path::PathBuf;

use super::{read, root};

/// A document, by its path in the repository.
pub struct Document {
    pub name: String,
    pub text: String,
}

pub fn documents() -> Vec<Document> {
    let mut names: Vec<String> =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(str::to_owned).to_vec();
    let pages = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.extend(pages.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}")));
    names.sort();
    names.into_iter().map(|name| Document { text: read(&root().join(&name)), name }).collect()
}

/// A code span, whose language is empty, or a fenced block.
pub struct Code {
    pub line: usize,
    pub language: String,
    pub text: String,
}

impl Document {
    pub fn directory(&self) -> PathBuf {
        root().join(&self.name).parent().unwrap().to_owned()
    }

    /// The targets of `[…](target)`, each with its line.
    pub fn links(&self) -> Vec<(usize, String)> {
        let targets = |line: &str| -> Vec<String> {
            line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned()).collect()
        };
        self.text.lines().enumerate().flat_map(|(number, line)| targets(line).into_iter().map(move |t| (number + 1, t))).collect()
    }

    pub fn codes(&self) -> Vec<Code> {
        let mut codes = Vec::new();
        let mut block: Option<Code> = None;
        for (number, line) in self.text.lines().enumerate() {
            match (&mut block, line.strip_prefix("```")) {
                (None, Some(language)) => {
                    block = Some(Code { line: number + 1, language: language.to_owned(), text: String::new() });
                }
                (None, None) => {
                    codes.extend(spans(line).into_iter().map(|text| Code { line: number + 1, language: String::new(), text }));
                }
                (Some(_), Some(_)) => codes.extend(block.take()),
                (Some(block), None) => block.text.extend([line, "\n"]),
            }
        }
        assert!(block.is_none(), "{}: a fenced block has no end", self.name);
        codes
    }

    /// The rows of all tables whose first column has this heading.
    pub fn table(&self, heading: &str) -> Vec<Vec<String>> {
        let cells = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        let mut rows = Vec::new();
        let mut is_inside = false;
        for line in self.text.lines() {
            if !line.starts_with('|') {
                is_inside = false;
            } else if cells(line)[0] == heading {
                is_inside = true;
            } else if is_inside && !line.starts_with("| ---") {
                rows.push(cells(line));
            }
        }
        rows
    }
}

/// The code spans of a line: what stands between two equal runs of backticks.
pub fn spans(line: &str) -> Vec<String> {
    let mut spans = Vec::new();
    let mut rest = line;
    while let Some(start) = rest.find('`') {
        rest = &rest[start..];
        let ticks = &rest[..rest.len() - rest.trim_start_matches('`').len()];
        rest = &rest[ticks.len()..];
        let Some(end) = rest.find(ticks) else { break };
        spans.push(rest[..end].trim().to_owned());
        rest = &rest[end + ticks.len()..];
    }
    spans
}

impl Code {
    pub fn at(&self, document: &Document, problem: &str) -> String {
        format!("{}:{}: {problem}", document.name, self.line)
    }

    /// The simple commands in it, word by word.
    pub fn commands(&self) -> Vec<Vec<String>> {
        if !matches!(self.language.as_str(), "" | "sh") {
            return Vec::new();
        }
        let mut commands = Vec::new();
        for line in self.text.lines() {
            let line = format!(" {line}");
            let line = line.split(" #").next().unwrap_or_default();
            for command in line.split(" | ").flat_map(|part| part.split("; ")).flat_map(|part| part.split(" && ")) {
                let words: Vec<String> = command.split_whitespace().map(|word| word.trim_end_matches(',').to_owned()).collect();
                if !words.is_empty() {
                    commands.push(words);
                }
            }
        }
        commands
    }

    /// Names with an underscore in them: settings, environment variables, columns, tables, reasons. Not those that are cut by a
    /// placeholder.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let words = self.text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words
            .filter(|word| word.trim_matches('_') == *word && word.contains('_') && !word.starts_with(|c: char| c.is_ascii_digit()))
    }

    /// The datasets that a configuration here defines.
    pub fn example_datasets(&self) -> impl Iterator<Item = &str> {
        let sections = self.text.lines().filter_map(|line| line.strip_prefix("[datasets.")).filter(|_| self.language == "toml");
        sections.filter_map(|rest| rest.split([']', '.']).next())
    }
}
