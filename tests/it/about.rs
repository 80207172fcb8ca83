//! What the program says about itself: codes, the schema of its configuration, completions, man pages.

use std::process::{Command, Stdio};

use crate::support::{Sandbox, Store};

#[test]
fn every_code_is_explained_alone_and_in_the_list() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let list = sandbox.run(["explain", "--format", "json"]).ok().json();
    let codes = list["codes"].as_array().expect("a list");
    assert_eq!(codes.len(), 17, "eleven reasons and six exit codes");
    let text = sandbox.run(["explain"]).ok().stdout;
    for explanation in codes {
        let code = explanation["code"].as_str().expect("a code");
        assert_eq!(sandbox.run(["explain", code, "--format", "json"]).ok().json(), *explanation);
        let alone = sandbox.run(["explain", code]).ok().stdout;
        assert!(text.contains(&alone), "{alone}");
        for part in ["means", "do"] {
            let part = explanation[part].as_str().filter(|part| !part.is_empty()).expect("it says more than the code");
            assert!(alone.contains(part), "{alone}");
        }
    }
}

#[test]
fn an_unknown_code_exits_2_with_the_list() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let refused = sandbox.run(["explain", "mismatch"]).code(2);
    for part in ["unknown code `mismatch`", "type_mismatch", "130"] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
}

#[test]
fn what_is_said_about_the_program_needs_no_valid_configuration() {
    let sandbox = Sandbox::new(Store::Sqlite);
    sandbox.write("dataloader.toml", "broken = ");
    for command in ["explain", "explain 3", "schema", "completions bash", "man", "man pages"] {
        sandbox.run(command.split(' ')).ok();
    }
}

#[test]
fn the_schema_is_json_for_editors() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let schema = sandbox.run(["schema"]).ok().json();
    assert_eq!(schema["properties"]["zstd_window_mib"]["default"], 64);
    assert_eq!(schema["required"], serde_json::json!(["datasets"]));
}

#[test]
fn every_shell_gets_completions_and_every_command_a_page() {
    let sandbox = Sandbox::new(Store::Sqlite);
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = sandbox.run(["completions", shell]).ok().stdout;
        assert!(script.contains("max-rejects") && script.contains("dataloader"), "{shell}: {script}");
    }
    sandbox.run(["completions", "tcsh"]).code(2);

    let page = sandbox.run(["man"]).ok().stdout;
    assert!(page.contains(".TH dataloader 1") && page.contains("dataloader\\-load(1)"), "{page}");
    sandbox.run(["man", "share/man1"]).ok();
    for name in ["dataloader", "dataloader-load", "dataloader-rejects-replay", "dataloader-man"] {
        assert!(sandbox.file(&format!("share/man1/{name}.1")).is_file(), "{name}.1");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let sandbox = Sandbox::new(Store::Sqlite);
    for args in [&["schema"][..], &["completions", "zsh"], &["man"], &["explain"]] {
        let mut program = Command::new(env!("CARGO_BIN_EXE_dataloader"));
        program.current_dir(sandbox.path()).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = program.spawn().expect("cargo builds the binary");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]), "{args:?}");
    }
}
