//! The files of the repository, and the names in them.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::{read, root};

/// Directories of the inbox, which are not in the repository.
const INBOX: [&str; 3] = [".loading/", "processed/", "failed/"];

/// What the names in documents are looked for in.
pub struct Sources {
    pub words: HashSet<String>,
    /// The program's own text, string literals that go on in the next line put together.
    pub program: String,
}

impl Sources {
    pub fn read() -> Self {
        let (mut all, mut program) = (String::new(), String::new());
        for file in &Repository::list().files {
            let is_ours =
                ["src/", "tests/", "benches/", "migrations/", "scripts/", "docker/"].iter().any(|dir| file.starts_with(dir))
                    || ["run.sh", "docker-compose.yml", "Dockerfile", ".env.example", "dataloader.toml", "Cargo.toml"]
                        .contains(&file.as_str());
            // The corpus is data, some of it no text.
            if !is_ours || file.starts_with("tests/it/documents") || file.starts_with("tests/corpus") {
                continue;
            }
            let text = read(&root().join(file));
            if file.starts_with("src/") {
                let lines = text.lines().map(|line| line.trim_end().strip_suffix('\\').map_or(format!("{line}\n"), str::to_owned));
                let joined = lines.fold(String::new(), |joined, line| {
                    let goes_on = !joined.is_empty() && !joined.ends_with('\n');
                    joined + if goes_on { line.trim_start() } else { &line }
                });
                program.push_str(&joined);
            }
            all.push_str(&text);
        }
        let words = all.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.contains('_'));
        Self { words: words.map(str::to_owned).collect(), program }
    }
}

/// The files of the repository, and its directories with a slash at the end.
pub struct Repository {
    files: Vec<String>,
    directories: Vec<String>,
    /// What users put into it.
    ignored: String,
}

impl Repository {
    pub fn list() -> Self {
        let mut repository = Self { files: Vec::new(), directories: Vec::new(), ignored: read(&root().join(".gitignore")) };
        repository.add(root(), "");
        repository
    }

    fn add(&mut self, directory: &Path, name: &str) {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let path = format!("{name}{}", entry.file_name().to_string_lossy());
            if !entry.file_type().unwrap().is_dir() {
                self.files.push(path);
            } else if !["target", ".git", "inbox"].contains(&path.as_str()) {
                self.directories.push(format!("{path}/"));
                self.add(&entry.path(), &format!("{path}/"));
            }
        }
    }

    /// Whether this is the path of something in the repository, as far as one can tell, and is not there.
    pub fn misses(&self, word: &str) -> bool {
        let path = word.strip_prefix("./").unwrap_or(word);
        let path = path.strip_prefix("../").unwrap_or(path).trim_end_matches(':');
        // Up to a placeholder.
        let whole =
            path.find(['<', '*', '{', '…', '$']).map_or(path, |end| &path[..path[..end].rfind('/').map_or(0, |slash| slash + 1)]);
        let (Some(first), false) = (whole.split_inclusive('/').next(), path.contains("://") || path.starts_with(['/', '-', '.']))
        else {
            return false;
        };
        let is_of_us = [".rs", ".sh", ".yml", ".md", ".toml", ".sql"].iter().any(|extension| whole.ends_with(extension))
            || (first.ends_with('/') && first != whole && self.directories.iter().any(|directory| directory == first))
            || (whole.ends_with('/') && !INBOX.contains(&whole));
        let name = whole.rsplit('/').next().unwrap_or_default();
        let is_users = !name.is_empty() && self.ignored.contains(name);
        let is_at = |known: &String| known == whole || known.strip_suffix(whole).is_some_and(|rest| rest.ends_with('/'));
        is_of_us && !is_users && !self.files.iter().chain(&self.directories).any(is_at)
    }
}
