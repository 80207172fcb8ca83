//! `dataloader menu`: every choice, as typed into a pipe.

use std::fs;
use std::path::Path;

use crate::support::{Background, Invocation, Outcome, Sandbox, Signal, Store, on_both_stores, wait_until};

on_both_stores!(
    the_first_choice_loads_everything_and_shows_the_totals,
    the_second_choice_asks_for_a_date_until_it_is_one,
    a_load_that_fails_is_shown_and_the_menu_goes_on,
);

const BATCH_MENU: &str = "(1) load all events\n(2) load specific date from events\n(3) exit\nYour choice: ";
const STREAM_MENU: &str = "(1) drop file in raw data dir\n(2) drop custom file in raw data dir\n(3) exit\nYour choice: ";

fn event(id: u32, day: &str) -> String {
    format!(r#"{{"id": "{id}", "event_type": "User Created", "username": "u{id}", "received_at": "{day} 10:00:00"}}"#)
}

/// Three events on two days and two organisations.
fn write_data(sandbox: &Sandbox) {
    let events = [event(1, "2020-12-05"), event(2, "2020-12-06"), event(3, "2020-12-06")];
    sandbox.write_events("events.json", format!("[{}]", events.join(",")));
    sandbox.write_orgs("orgs.json", r#"[{"organization_key": "a"}, {"organization_key": "b"}]"#);
}

fn menu(sandbox: &Sandbox, mode: &str, typed: &str) -> Outcome {
    sandbox.command(["menu", "--mode", mode]).stdin(typed).run().ok()
}

fn the_first_choice_loads_everything_and_shows_the_totals(sandbox: &Sandbox) {
    write_data(sandbox);
    let shown = menu(sandbox, "batch", "1\n3\n").stdout;
    assert_eq!((sandbox.count("raw.events"), sandbox.count("raw.orgs")), (3, 2));
    let (before, after) = shown.split_once(BATCH_MENU).expect("the menu is shown first");
    assert!(before.contains("dataloader") && before.contains("batch"), "a banner: {before}");
    assert!(after.contains("modelled.events_by_date\n"), "{after}");
    let totals: Vec<&str> = after.lines().filter(|line| line.contains("2020-12-0")).map(str::trim).collect();
    let totals: Vec<Vec<&str>> = totals.iter().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(totals, [["2020-12-05", "1", "1", "1"], ["2020-12-06", "2", "2", "2"]]);
    assert!(after.lines().any(|line| line.split_whitespace().take(4).eq(["orgs", "1", "2", "2"])), "{after}");
    assert!(after.ends_with(BATCH_MENU), "the menu is shown again: {after}");
}

#[test]
fn the_menu_and_drop_are_about_the_dataset_that_says_so() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let dataset =
        |name: &str, more: &str| format!("[datasets.{name}]\nkey = [\"id\"]\n{more}[datasets.{name}.columns]\nid = \"text\"\n");
    sandbox.write("dataloader.toml", dataset("events", "") + &dataset("clicks", "menu = true\n"));
    sandbox.write("raw_data/clicks/clicks_sample.json", r#"{"id": "1"}"#);
    assert!(menu(&sandbox, "batch", "3\n").stdout.contains("(1) load all clicks\n(2) load specific date from clicks\n"));
    menu(&sandbox, "stream", "1\n3\n");
    sandbox.run(["drop"]).ok();
    assert_eq!(sandbox.names_in("clicks").len(), 2);
}

#[test]
fn another_dataset_is_loaded_alone_by_a_choice_after_the_others() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let clicks = "[datasets.clicks]\nkey = [\"id\"]\n[datasets.clicks.columns]\nid = \"text\"\n";
    sandbox.write("dataloader.toml", include_str!("../../dataloader.toml").to_owned() + clicks);
    write_data(&sandbox);
    sandbox.write("raw_data/clicks/a.json", r#"[{"id": "1"}, {"id": "2"}]"#);
    let shown = menu(&sandbox, "batch", "4\norgs\nclicks\n3\n").stdout;
    assert!(shown.contains("(3) exit\n(4) load another dataset\nYour choice: "), "{shown}");
    assert_eq!(shown.matches("Which dataset (clicks): ").count(), 2, "{shown}");
    assert_eq!(sandbox.count("raw.clicks"), 2);
    assert_eq!(sandbox.lines("SELECT DISTINCT dataset FROM {raw.loads}"), ["clicks"]);
}

fn the_second_choice_asks_for_a_date_until_it_is_one(sandbox: &Sandbox) {
    write_data(sandbox);
    let shown = menu(sandbox, "batch", "2\nyesterday\n2020-02-30\n\n 2020-12-06 \n3\n").stdout;
    assert_eq!(shown.matches("Which date (YYYY-MM-DD): ").count(), 4, "{shown}");
    assert!(shown.contains(r#""yesterday" is not a date: a day is written YYYY-MM-DD"#), "{shown}");
    assert!(shown.contains(r#""2020-02-30" is not a date: there is no such day"#), "{shown}");
    assert_eq!(sandbox.lines("SELECT id FROM {raw.events} ORDER BY id"), ["2", "3"]);
    assert_eq!(sandbox.count("raw.orgs"), 2, "organisations are loaded in full either way");
    assert!(shown.ends_with(BATCH_MENU), "{shown}");
}

fn a_load_that_fails_is_shown_and_the_menu_goes_on(sandbox: &Sandbox) {
    write_data(sandbox);
    sandbox.write_events("broken.json", "[{}");
    let mut running = Running::start(sandbox, "batch");
    running.type_line("1");
    running.wait_for("hint: nothing of this run was loaded");
    assert!(running.stdout().contains("error: raw_data/events/broken.json: "), "{}", running.stdout());
    fs::remove_file(sandbox.file("raw_data/events/broken.json")).expect("it was just written");
    running.type_line("1");
    running.wait_for("modelled.events_by_date");
    running.type_line("3");
    running.background.wait().ok();
    assert_eq!(sandbox.count("raw.events"), 3);
}

#[test]
fn a_wrong_choice_says_so_and_asks_again() {
    let sandbox = Sandbox::new(Store::Sqlite);
    for (mode, choices) in [("batch", BATCH_MENU), ("stream", STREAM_MENU)] {
        let shown = menu(&sandbox, mode, "4\n\none\n-1\n01\n3\n1\n").stdout;
        let (_, after) = shown.split_once(choices).expect("the menu is shown");
        for wrong in ["4", "", "one", "-1", "01"] {
            assert!(after.contains(&format!("{wrong:?} is not a choice: type a number from 1 to 3\nYour choice: ")), "{after}");
        }
        assert_eq!(after.matches("Your choice: ").count(), 5, "nothing is asked after the exit: {after}");
    }
    assert!(!sandbox.file("dataloader.db").exists() && !sandbox.file("inbox").exists(), "no choice, no deed");
}

#[test]
fn what_is_typed_may_be_anything() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let typed = [&b"\xff\xfe\x00\x1b[2J\n"[..], "x".repeat(100_000).as_bytes(), b"\r\n3\r\n"].concat();
    let shown = sandbox.command(["menu"]).stdin(typed).run().ok().stdout;
    assert_eq!(shown.matches("is not a choice").count(), 2);
    assert!(!shown.contains('\x1b'), "control characters are not echoed");
}

#[test]
fn the_end_of_input_ends_the_menu() {
    let sandbox = Sandbox::new(Store::Sqlite);
    for (mode, typed) in [("batch", ""), ("batch", "2\n"), ("batch", "2\nx"), ("stream", ""), ("stream", "7")] {
        let outcome = menu(&sandbox, mode, typed);
        assert!(outcome.stdout.ends_with('\n'), "the shell's prompt begins on a line of its own: {}", outcome.stdout);
        assert_eq!(outcome.stderr, "");
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error_unless_its_reader_has_left() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let run = |script: &str| Invocation::new("bash", sandbox.path()).args(["-c", script, env!("CARGO_BIN_EXE_dataloader")]).run();
    let full = run("\"$0\" menu >/dev/full").code(1);
    assert_eq!(full.stderr, "error: cannot write to standard output: No space left on device\n");
    // The reader opens the pipe and leaves before the menu begins.
    let left = run("mkfifo pipe; { :; } <pipe & exec 3>pipe; wait; exec \"$0\" menu >&3");
    assert_eq!(left.ok().stderr, "");
}

#[test]
fn batch_is_the_mode_unless_told_otherwise() {
    let sandbox = Sandbox::new(Store::Sqlite);
    assert!(sandbox.run(["menu"]).ok().stdout.contains(BATCH_MENU));
    assert!(sandbox.command(["menu"]).env("DATALOADER_MODE", "stream").run().ok().stdout.contains(STREAM_MENU));
}

#[test]
fn a_stage_directory_that_cannot_be_used_is_an_error_of_the_load() {
    let sandbox = Sandbox::new(Store::Sqlite);
    write_data(&sandbox);
    let shown = sandbox.command(["menu"]).env("DATALOADER_STAGE_DIR", "stage").stdin("1\n").run().ok().stdout;
    assert!(shown.contains("error: --stage-dir is for PostgreSQL"), "{shown}");
}

#[test]
fn the_menu_speaks_to_people_only() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let error = sandbox.run(["menu", "--format", "json"]).code(2).json();
    assert!(error["error"]["message"].as_str().is_some_and(|message| message.contains("--format json")), "{error}");
}

#[test]
fn the_stream_menu_drops_the_sample_under_a_fresh_name_each_time() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let sample = format!("[{}]", event(1, "2020-12-05"));
    sandbox.write_events("events_sample.json", &sample);
    let shown = menu(&sandbox, "stream", "1\n1\n1\n3\n").stdout;
    let dropped = files(&sandbox.file("inbox/events"));
    assert_eq!(dropped.len(), 3);
    for (name, contents) in dropped {
        assert!(name.starts_with("events_sample-") && contents == sample, "{name}: {contents}");
        assert!(shown.contains(&format!("dropped inbox/events/{name}")), "{name}: {shown}");
    }
}

#[test]
fn the_stream_menu_says_where_the_custom_file_has_to_be_and_drops_it_from_there() {
    let sandbox = Sandbox::new(Store::Sqlite);
    sandbox.write_events("events_sample.json", "[]");
    let place = sandbox.path().canonicalize().expect("the sandbox exists").join("raw_data/events/custom_sample.json");
    let shown = menu(&sandbox, "stream", "2\n3\n").stdout;
    assert!(shown.contains(&format!("no custom file yet: save yours as {}", place.display())), "{shown}");
    assert!(!sandbox.file("inbox").exists());

    fs::write(place, "[{}]").expect("the sandbox is writable");
    let shown = menu(&sandbox, "stream", "2\n3\n").stdout;
    let dropped = files(&sandbox.file("inbox/events"));
    assert!(dropped.len() == 1 && dropped[0].0.starts_with("custom_sample-") && dropped[0].1 == "[{}]", "{dropped:?}");
    assert!(shown.contains(&format!("dropped inbox/events/{}", dropped[0].0)), "{shown}");
}

#[test]
fn the_stream_menu_goes_on_after_an_error() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let shown = menu(&sandbox, "stream", "1\n3\n").stdout;
    assert!(shown.contains("error: cannot open raw_data/events/events_sample.json: "), "{shown}");
    assert!(shown.ends_with(STREAM_MENU), "{shown}");

    sandbox.write("dataloader.toml", "[datasets.visits]\ndir = \"visits\"\nkey = [\"id\"]\ncolumns = { id = \"text\" }\n");
    let shown = menu(&sandbox, "stream", "1\n2\n3\n").stdout;
    assert_eq!(shown.matches("error: no dataset `events` in dataloader.toml").count(), 2, "{shown}");
}

#[test]
fn a_signal_at_the_prompt_ends_the_menu() {
    let sandbox = Sandbox::new(Store::Sqlite);
    write_data(&sandbox);
    for (signal, loads_before) in [(Signal::Interrupt, 0), (Signal::Terminate, 0), (Signal::Interrupt, 1)] {
        let mut running = Running::start(&sandbox, "batch");
        for _ in 0..loads_before {
            running.type_line("1");
            running.wait_for("modelled.events_by_date");
        }
        wait_until("the menu asks", || running.stdout().ends_with(BATCH_MENU));
        running.background.signal(signal);
        let outcome = running.background.wait().code(130);
        assert!(outcome.stdout.ends_with("Your choice: \n"), "{}", outcome.stdout);
        assert_eq!(outcome.stderr, "error: interrupted\n");
    }
}

#[test]
fn a_signal_during_a_load_rolls_it_back() {
    let sandbox = Sandbox::new(Store::Sqlite);
    write_data(&sandbox);
    menu(&sandbox, "batch", "1\n");
    let many = sandbox.run(["generate", "--events", "100000"]).ok().stdout;
    sandbox.write_events("many.json", many);
    let mut running = Running::start(&sandbox, "batch");
    running.type_line("1");
    // The journal grows as rows are written; the one file that was loaded before is far smaller.
    let journal = sandbox.file("dataloader.db-wal");
    wait_until("the load writes rows", || fs::metadata(&journal).is_ok_and(|journal| journal.len() > 1 << 20));
    running.background.signal(Signal::Interrupt);
    running.background.wait().code(130);
    assert_eq!((sandbox.count("raw.events"), sandbox.count("raw.loads")), (3, 2));
}

/// A menu that waits for what is typed next, as on a terminal.
struct Running {
    background: Background,
    keyboard: fs::File,
    /// How much of the output was already waited for.
    seen: usize,
}

impl Running {
    fn start(sandbox: &Sandbox, mode: &str) -> Self {
        let script =
            format!("[ -p keyboard ] || mkfifo keyboard; exec {} menu --mode {mode} <>keyboard", env!("CARGO_BIN_EXE_dataloader"));
        let mut invocation = Invocation::new("sh", sandbox.path()).args(["-c", &script]);
        if sandbox.store() == Store::Postgres {
            invocation = invocation.env("DATABASE_URL", &sandbox.database_url());
        }
        let background = invocation.spawn();
        wait_until("the menu asks", || background.stdout().ends_with("Your choice: "));
        let keyboard = fs::OpenOptions::new().write(true).open(sandbox.file("keyboard")).expect("the menu has it open");
        Self { background, keyboard, seen: 0 }
    }

    fn stdout(&self) -> String {
        self.background.stdout()
    }

    fn type_line(&mut self, line: &str) {
        use std::io::Write;
        self.seen = self.stdout().len();
        writeln!(self.keyboard, "{line}").expect("the menu reads");
    }

    /// Waits until the output since the last line typed contains `text` and ends with the menu.
    fn wait_for(&mut self, text: &str) {
        wait_until(&format!("the menu says {text:?}"), || {
            let shown = self.stdout();
            shown[self.seen..].contains(text) && shown.ends_with("Your choice: ")
        });
    }
}

/// Name and contents of the files in a directory.
fn files(directory: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(directory).expect("the directory was made");
    entries
        .map(|entry| {
            let entry = entry.expect("the directory is readable");
            let contents = fs::read_to_string(entry.path()).expect("the file is readable");
            (entry.file_name().into_string().expect("a plain name"), contents)
        })
        .collect()
}
