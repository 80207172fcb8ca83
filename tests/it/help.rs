//! The help texts, as recorded in `tests/it/help/`. After a wanted change: `UPDATE_HELP=1 cargo test help`, and read the diff.

use std::path::Path;
use std::process::Command;

#[test]
fn help_texts_are_as_recorded() {
    let update = std::env::var_os("UPDATE_HELP").is_some();
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/help");
    let commands = [
        "",
        "load",
        "run",
        "report",
        "status",
        "rejects",
        "unload",
        "model",
        "verify",
        "serve",
        "menu",
        "drop",
        "infer",
        "generate",
        "migrate",
        "health",
        "doctor",
        "drill",
        "explain",
        "schema",
        "completions",
        "man",
    ];
    let differing: Vec<_> = commands.into_iter().filter(|command| !is_as_recorded(command, &recorded, update)).collect();
    assert!(differing.is_empty(), "the help of these differs from tests/it/help: {differing:?}; UPDATE_HELP=1 records it");
}

fn is_as_recorded(command: &str, recorded: &Path, update: bool) -> bool {
    let mut program = Command::new(env!("CARGO_BIN_EXE_dataloader"));
    let output = program.args(command.split_whitespace()).arg("--help").env_remove("COLUMNS").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{command} --help");
    assert!(output.stdout.starts_with(b"Loads") || !command.is_empty(), "the first line says what the program is for");
    let file = recorded.join(if command.is_empty() { "dataloader.txt".to_owned() } else { format!("{command}.txt") });
    if update {
        std::fs::create_dir_all(recorded).unwrap();
        std::fs::write(&file, &output.stdout).unwrap();
    }
    std::fs::read(&file).is_ok_and(|text| text == output.stdout)
}
