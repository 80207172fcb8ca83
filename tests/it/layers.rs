//! The order of the modules in `src/lib.rs` is the order of the layers: a module uses those below it and none above it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn source(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(relative)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The modules of the library, the top layer first.
fn layers() -> Vec<String> {
    let names = |line: &str| line.strip_prefix("pub mod ")?.split(';').next().map(str::to_owned);
    read(&source("lib.rs")).lines().filter_map(names).collect()
}

/// All Rust files of a module.
fn files_of(module: &str) -> Vec<PathBuf> {
    let (file, directory) = (source(&format!("{module}.rs")), source(module));
    let mut files = Vec::from_iter(file.is_file().then_some(file));
    let mut directories = Vec::from_iter(directory.is_dir().then_some(directory));
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("the directory was just found") {
            let path = entry.expect("it can be listed").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// The modules of the library that a source text names: `crate::NAME` anywhere but in a comment.
fn used_by(text: &str) -> BTreeSet<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let names = code.flat_map(|line| line.split("crate::").skip(1));
    names.map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()).collect()
}

#[test]
fn modules_use_only_those_below_them() {
    let layers = layers();
    assert!(layers.len() > 10, "src/lib.rs lists the modules: {layers:?}");
    let mut upward = Vec::new();
    for (height, module) in layers.iter().enumerate() {
        let files = files_of(module);
        assert!(!files.is_empty(), "no file for the module {module}");
        for file in files {
            for used in used_by(&read(&file)) {
                match layers.iter().position(|layer| *layer == used) {
                    Some(at) if at < height => upward.push(format!("{} uses {used}", file.display())),
                    _ => {}
                }
            }
        }
    }
    assert!(upward.is_empty(), "a layer uses one above it:\n{}", upward.join("\n"));
}

#[test]
fn uses_are_found_in_code_and_not_in_comments() {
    let text = "use crate::store::Rows;\n// crate::batch is not used\nlet x = crate::retry::short_pauses();";
    assert_eq!(used_by(text), BTreeSet::from(["store".to_owned(), "retry".to_owned()]));
}
