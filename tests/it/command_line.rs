//! Wrong usage and configuration, as a caller of the program sees them.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The program in `dir`, without the settings of whoever runs the tests.
fn dataloader(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dataloader"));
    let ours = |name: &str| name.starts_with("DATALOADER_") || matches!(name, "DATABASE_URL" | "AMQP_URL" | "RUST_LOG");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)) {
        command.env_remove(name);
    }
    command.current_dir(dir).args(args);
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[track_caller]
fn assert_usage_error(output: &Output, expected: &str) {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(text(&output.stdout), "");
    assert!(text(&output.stderr).contains(expected), "{output:?}");
}

#[test]
fn a_mistake_in_the_configuration_exits_2_and_names_the_line() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("dataloader.toml"), "data_dir = \"x\"\n[dataset.events]\nkey = []\n").unwrap();
    let output = dataloader(dir.path(), &["status"]).output().unwrap();
    let expected = "error: dataloader.toml:2: unknown setting `dataset`\nhint: did you mean `datasets`?";
    assert_usage_error(&output, expected);

    let output = dataloader(dir.path(), &["status", "--format", "json"]).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(2), ""));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["error"]["message"], "dataloader.toml:2: unknown setting `dataset`");
    assert!(json["error"]["hint"].as_str().unwrap().starts_with("did you mean `datasets`?"));
}

#[test]
fn a_missing_configuration_file_exits_2() {
    let dir = tempfile::tempdir().unwrap();
    let output = dataloader(dir.path(), &["status", "--config", "none.toml"]).output().unwrap();
    assert_usage_error(&output, "cannot read the configuration none.toml: No such file or directory");
    let output = dataloader(dir.path(), &["status"]).env("DATALOADER_CONFIG", "none.toml").output().unwrap();
    assert_usage_error(&output, "none.toml");
}

#[test]
fn wrong_usage_exits_2_as_text_and_as_json() {
    let dir = tempfile::tempdir().unwrap();
    assert_usage_error(&dataloader(dir.path(), &["load", "--date", "yesterday"]).output().unwrap(), "YYYY-MM-DD");
    let output = dataloader(dir.path(), &["load", "--date", "yesterday", "--format", "json"]).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(2), ""));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["error"]["message"].as_str().unwrap().contains("'yesterday'"));
}

#[test]
fn no_usage_error_shows_a_password() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["postgres://u:s3cret@h/db"][..],
        &["--database", "mysql://u:s3cret@h/db", "status"],
        &["report", "postgres://u:s3cret@h/db"],
        &["report", "postgres://u:s3cret@h/db", "--format=json"],
    ] {
        let output = dataloader(dir.path(), args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let all = [text(&output.stdout), text(&output.stderr)].concat();
        assert!(all.contains("u:***@h/db") && !all.contains("s3cret"), "{args:?}: {all}");
    }
}

#[test]
fn help_and_version_survive_a_reader_that_leaves() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["--help"][..], &["--version"], &["lod", "--format", "json"]] {
        let mut child = dataloader(dir.path(), args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(!text(&output.stderr).contains("panicked"), "{args:?}: {output:?}");
    }
    let output = dataloader(dir.path(), &["--version"]).output().unwrap();
    assert_eq!(text(&output.stdout), concat!("dataloader ", env!("CARGO_PKG_VERSION"), "\n"));
}
