//! Tests of the configuration: layers, errors and their places.

mod fuzz;

use super::*;
use crate::dataset::{ColumnType, StreamMode};

/// A minimal valid dataset. The tests put mistakes before it.
const ORGS: &str = "[datasets.orgs]\nkey = [\"id\"]\n[datasets.orgs.columns]\nid = \"text\"\n";

fn resolve_with(text: &str, flags: Settings, variables: &[(&str, &str)]) -> Result<Config> {
    let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value));
    Config::resolve(ConfigSource::File("my.toml".into()), text.to_owned(), flags, &Environment(&get))
}

fn resolve(text: &str) -> Result<Config> {
    resolve_with(text, Settings::default(), &[])
}

/// Resolves a configuration with a mistake, and checks the place and the parts of its error.
#[track_caller]
fn mistake(text: &str, place: &str, expected: &[&str]) {
    let error = resolve(text).expect_err(text);
    assert_eq!(error.exit_code(), 2);
    let message = error.to_string();
    assert!(message.starts_with(&format!("{place}: ")), "{message}");
    for part in expected {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    let says_what_is_right =
        error.hint_text().is_some() || ["must be", "must hold", "expected"].iter().any(|s| message.contains(s));
    assert!(says_what_is_right, "no remedy: {message}");
}

/// Checks the error of one line in the dataset `ds`; it is line 7 of the file.
#[track_caller]
fn dataset_mistake(line: &str, expected: &[&str]) {
    let columns = "a = { type = \"text\", required = true }\nt = { type = \"timestamp\", required = true }\nx.type = \"date\"\n";
    let text = format!("[datasets.ds.columns]\n{columns}[datasets.ds]\nkey = [\"a\"]\n{line}\n");
    mistake(&text, "my.toml:7", expected);
}

#[test]
fn the_built_in_configuration_is_the_contracts() {
    let env = Environment(&|_| None);
    let config = Config::resolve(ConfigSource::BuiltIn, BUILT_IN.to_owned(), Settings::default(), &env).unwrap();
    assert_eq!(config.source.to_string(), "dataloader.toml (built in)");
    assert_eq!(config.data_dir, Path::new("raw_data"));
    assert_eq!(config.inbox, Path::new("inbox"));
    assert_eq!(config.database.to_string(), "sqlite://dataloader.db");
    assert_eq!(config.amqp_url.expose(), "amqp://guest:guest@127.0.0.1:5672/%2f");
    assert_eq!((config.transport, config.role, config.menu_mode), (Transport::Inproc, Role::All, MenuMode::Batch));
    assert_eq!((config.stage_dir, config.queue_prefix.as_str()), (None, "dataloader"));

    let [events, orgs] = &config.datasets[..] else { panic!("{:?}", config.datasets) };
    assert_eq!((events.name.as_str(), events.dir.as_path()), ("events", Path::new("events")));
    let columns: Vec<_> = events.columns.iter().map(|c| c.name.as_str()).collect();
    let expected = ["id", "event_type", "username", "user_email", "user_type", "organization_name", "plan_name", "received_at"];
    assert_eq!(columns, expected);
    assert_eq!([events.stream, orgs.stream], [StreamMode::Append, StreamMode::Upsert]);
    assert_eq!((&events.key[..], events.day), (&[0, 1, 7][..], Some(7)));
    assert_eq!(events.day_column().map(|c| (c.column_type, c.required)), Some((ColumnType::Timestamp, true)));
    assert_eq!(events.model.dimensions, [5, 4]);
    assert_eq!(events.model.distinct, [("unique_users".to_owned(), 2)]);
    assert_eq!((orgs.name.as_str(), orgs.day, orgs.columns.len()), ("orgs", None, 3));
}

#[test]
fn commented_settings_show_their_defaults() {
    let uncomment = |line: &str| match line.strip_prefix("# ") {
        Some(setting) if setting.starts_with('[') || setting.split(' ').nth(1) == Some("=") => setting.to_owned(),
        _ => line.to_owned(),
    };
    let text: String = BUILT_IN.lines().map(|line| uncomment(line) + "\n").collect();
    assert!(Settings::NAMES.iter().all(|name| text.contains(&format!("\n{name} = "))), "a setting is missing: {text}");
    let given = resolve(&text).unwrap();
    let default = resolve(BUILT_IN).unwrap();
    assert_eq!(given.stage_dir.as_deref(), Some(Path::new("/stage")));
    assert_eq!(StreamSettings { parsers: default.stream.parsers, ..given.stream.clone() }, default.stream);
    let without_parsers = |config: &Config| {
        let stream = StreamSettings { parsers: 1, ..config.stream.clone() };
        format!("{:?}", Config { stage_dir: None, http: None, stream, ..config.clone() })
    };
    assert_eq!(without_parsers(&given), without_parsers(&default));
}

#[test]
fn a_section_is_all_that_a_new_dataset_needs() {
    let text = "[datasets.Visits]\nkey = [\"id\", \"at\"]\nday = \"at\"\n[datasets.Visits.columns]\nid = \"uuid\"\n\
                at = { type = \"timestamptz\", required = true }\nwhat = { type = \"jsonb\" }\n";
    let config = resolve(text).unwrap();
    let visits = &config.datasets[0];
    assert_eq!((visits.name.as_str(), visits.dir.as_path(), visits.day), ("Visits", Path::new("Visits"), Some(1)));
    assert_eq!(visits.model, crate::dataset::Model::default());
    assert!(!visits.columns[2].required);
}

#[test]
fn flags_win_over_environment_over_file_over_default() {
    let text = format!("inbox = \"file\"\ntransport = \"amqp\"\n{ORGS}");
    let flags = |inbox: &str| Settings { inbox: Some(inbox.into()), ..Settings::default() };
    let inbox = |flags, variables: &[(&str, &str)]| resolve_with(&text, flags, variables).unwrap().inbox;
    assert_eq!(inbox(flags("flag"), &[("DATALOADER_INBOX", "env")]), Path::new("flag"));
    assert_eq!(inbox(Settings::default(), &[("DATALOADER_INBOX", "env")]), Path::new("env"));
    assert_eq!(inbox(Settings::default(), &[]), Path::new("file"));
    assert_eq!(resolve(ORGS).unwrap().inbox, Path::new("inbox"));

    let variables = [
        ("DATABASE_URL", "postgres://u:s3cret@h/db"),
        ("AMQP_URL", "amqps://h"),
        ("DATALOADER_TRANSPORT", "amqp"),
        ("DATALOADER_ROLE", "consumer"),
        ("DATALOADER_DATA_DIR", "d"),
        ("DATALOADER_STAGE_DIR", "s"),
        ("DATALOADER_MODE", "stream"),
        ("DATALOADER_QUEUE_PREFIX", "p"),
    ];
    let config = resolve_with(ORGS, Settings::default(), &variables).unwrap();
    assert_eq!(config.database.to_string(), "postgres://u:***@h/db");
    assert_eq!(config.amqp_url.expose(), "amqps://h");
    assert_eq!((config.transport, config.role, config.menu_mode), (Transport::Amqp, Role::Consumer, MenuMode::Stream));
    assert_eq!((config.data_dir.as_path(), config.stage_dir.as_deref()), (Path::new("d"), Some(Path::new("s"))));
    assert_eq!(config.queue_prefix, "p");
    assert!(!format!("{config:?}").contains("s3cret"));
}

#[test]
fn empty_variables_count_as_unset_and_overridden_ones_are_not_read() {
    let unset = resolve_with(ORGS, Settings::default(), &[("DATABASE_URL", ""), ("DATALOADER_ROLE", "")]).unwrap();
    assert_eq!(unset.database.to_string(), "sqlite://dataloader.db");

    let foreign = [("DATABASE_URL", "mysql://h/db")];
    let flags = Settings { database: Some(DatabaseUrl::Sqlite("x.db".into())), ..Settings::default() };
    assert_eq!(resolve_with(ORGS, flags, &foreign).unwrap().database.to_string(), "sqlite://x.db");
    let error = resolve_with(ORGS, Settings::default(), &foreign).unwrap_err();
    assert!(error.to_string().starts_with("DATABASE_URL: `mysql://h/db` is no database"), "{error}");
    let error = resolve_with(ORGS, Settings::default(), &[("DATALOADER_TRANSPORT", "tcp")]).unwrap_err();
    assert_eq!(error.to_string(), "DATALOADER_TRANSPORT: unknown transport `tcp`; give one of: inproc, amqp");
    let error = resolve_with(ORGS, Settings::default(), &[("DATALOADER_ROLE", "producer")]).unwrap_err();
    assert!(error.to_string().contains("--transport amqp"), "{error}");
}

#[test]
fn mistakes_in_settings_name_line_and_remedy() {
    mistake("data_dir = [\n\"x\"\n", "my.toml:2", &["not valid TOML", "unclosed array"]);
    mistake(&format!("\ndatadir = \"x\"\n{ORGS}"), "my.toml:2", &["unknown setting `datadir`", "did you mean `data_dir`?"]);
    mistake(&format!("inbox = 1\n{ORGS}"), "my.toml:1", &["`inbox` must be a string, is an integer"]);
    mistake(&format!("inbox = \"\"\n{ORGS}"), "my.toml:1", &["`inbox` is empty"]);
    mistake(
        &format!("database = \"mysql://u:s3cret@h\"\n{ORGS}"),
        "my.toml:1",
        &["`mysql://u:***@h` is no database", "postgres://"],
    );
    mistake(&format!("transport = \"tcp\"\n{ORGS}"), "my.toml:1", &["unknown transport `tcp`", "inproc, amqp"]);
    mistake(&format!("role = \"boss\"\n{ORGS}"), "my.toml:1", &["all, producer, consumer"]);
    mistake(&format!("mode = \"x\"\n{ORGS}"), "my.toml:1", &["batch, stream"]);
    mistake(&format!("amqp_url = \"http://h\"\n{ORGS}"), "my.toml:1", &["amqps://"]);
    mistake(&format!("queue_prefix = \"amq.x\"\n{ORGS}"), "my.toml:1", &["letters, digits"]);
    mistake(&format!("{ORGS}[stream]\nbatch_row = 5\n"), "my.toml:6", &["`batch_row` in [stream]", "did you mean `batch_rows`?"]);
    mistake(&format!("{ORGS}[stream]\nbatch_rows = 0\n"), "my.toml:6", &["`stream.batch_rows` is 0", "from 1 to 1000000"]);
    mistake(&format!("{ORGS}[stream]\nparsers = -1\n"), "my.toml:6", &["is -1", "from 1 to 256"]);
    mistake(&format!("{ORGS}[stream]\nparsers = \"4\"\n"), "my.toml:6", &["must be an integer, is a string"]);
    mistake(&format!("{ORGS}[stream]\n\nbatch_bytes = 0x7fff_ffff\n"), "my.toml:7", &["out of bounds"]);
    mistake(&format!("{ORGS}[stream]\n\nbatch_bytes = 50_000_000\n"), "my.toml:7", &["more than `in_flight_bytes`", "raise"]);
    mistake(&format!("stream = 1\n{ORGS}"), "my.toml:1", &["`stream` must be a section"]);
}

#[test]
fn syntax_errors_do_not_quote_the_line() {
    let error = resolve("database = \"postgres://u:s3cret@h/db\n").unwrap_err().to_string();
    assert!(error.starts_with("my.toml:1: not valid TOML: ") && !error.contains("s3cret"), "{error}");
}

#[test]
fn mistakes_in_datasets_name_line_and_remedy() {
    mistake("data_dir = \"x\"\n", "my.toml:1", &["no datasets", "[datasets.events]"]);
    mistake("\n[datasets]\n", "my.toml:2", &["no datasets"]);
    mistake("[datasets]\nx = 1\n", "my.toml:2", &["`datasets.x` must be a section"]);
    mistake("[datasets.x]\nkey = [\"a\"]\n", "my.toml:1", &["no columns", "[datasets.x.columns]"]);
    mistake("[datasets.x]\nkey = [\"a\"]\n[datasets.x.columns]\n", "my.toml:3", &["no columns"]);
    mistake("\n[datasets.x.columns]\na = \"text\"\n", "my.toml:2", &["`x` has no `key`", "key = [\"id\"]"]);
    mistake(&format!("{ORGS}{ORGS}"), "my.toml:5", &["`orgs` is defined twice"]);
    mistake(&format!("{ORGS}{}", ORGS.replace("orgs", "Orgs")), "my.toml:5", &["`Orgs`", "`orgs`", "only in case"]);

    dataset_mistake("keys = [\"a\"]", &["unknown setting `keys` in [datasets.ds]", "did you mean `key`?"]);
    dataset_mistake(
        "repeats = \"skipp\"",
        &["unknown value `skipp` of `repeats`", "did you mean `skip`? The values are: load, skip"],
    );
    dataset_mistake("repeats = true", &["`datasets.ds.repeats` must be a string, is a boolean"]);
    dataset_mistake("day = \"received\"", &["`day` names `received`, which is no column", "columns are: a, t, x"]);
    dataset_mistake("day = \"a\"", &["whose type is text", "type = \"timestamp\", required = true"]);
    dataset_mistake("day = \"x\"", &["is not required", "required = true"]);
    dataset_mistake("day = 2020-12-05", &["`datasets.ds.day` must be a string, is a date or time"]);
    dataset_mistake("dir = \"\"", &["`datasets.ds.dir` is empty"]);
    dataset_mistake("model.dimensions = [\"a\"]", &["has a model but no `day`"]);
}

#[test]
fn mistakes_in_keys_name_line_and_remedy() {
    let key = |key: &str| format!("[datasets.ds]\nkey = {key}\n[datasets.ds.columns]\nuser_id = \"text\"\n");
    mistake(&key("[]"), "my.toml:2", &["`key` is empty"]);
    mistake(&key("\"user_id\""), "my.toml:2", &["must be an array of strings, is a string"]);
    mistake(&key("[\"user_id\", 1]"), "my.toml:2", &["must hold strings only, holds an integer"]);
    mistake(&key("[\n\"usr_id\"]"), "my.toml:3", &["`key` names `usr_id`, which is no column", "did you mean `user_id`?"]);
    mistake(&key("[\"user_id\", \"user_id\"]"), "my.toml:2", &["names `user_id` twice"]);
}

#[test]
fn what_a_dropped_record_does_to_older_ones_is_one_of_two_words() {
    assert_eq!(resolve(ORGS).unwrap().datasets[0].stream, StreamMode::Append);
    for mode in StreamMode::ALL {
        let line = format!("key = [\"id\"]\nstream = \"{}\"", mode.name());
        assert_eq!(resolve(&ORGS.replace("key = [\"id\"]", &line)).unwrap().datasets[0].stream, mode);
    }
    dataset_mistake("stream = \"replace\"", &["unknown stream mode `replace`", "append, upsert"]);
    dataset_mistake("stream = \"upserts\"", &["did you mean `upsert`?"]);
    dataset_mistake("stream = true", &["must be a string"]);
}

#[test]
fn mistakes_in_columns_name_line_and_remedy() {
    let column = |line: &str| format!("[datasets.ds]\nkey = [\"id\"]\n[datasets.ds.columns]\nid = \"text\"\n{line}\n");
    let all_types = "text, bigint, double, numeric, boolean, date, timestamp, timestamptz, uuid, jsonb";
    mistake(&column("x = \"integer\""), "my.toml:5", &["unknown column type `integer`", all_types]);
    mistake(&column("x = \"timstamp\""), "my.toml:5", &["did you mean `timestamp`?"]);
    mistake(&column("x = { type = \"text\", require = true }"), "my.toml:5", &["did you mean `required`?"]);
    mistake(&column("x = { required = true }"), "my.toml:5", &["the column `x` has no type"]);
    mistake(&column("x = { type = \"text\", required = 1 }"), "my.toml:5", &["must be true or false, is an integer"]);
    let from = |places: [&str; 2]| {
        column(&format!("a = {{ type = \"text\", from = \"{}\" }}\nb = {{ type = \"text\", from = \"{}\" }}", places[0], places[1]))
    };
    mistake(&from(["x", "id"]), "my.toml:6", &["the columns `id` and `b` take the same value"]);
    mistake(&from(["/u/n", "/u/n"]), "my.toml:6", &["the columns `a` and `b` take the same value"]);
    mistake(&from(["/u/n", "u"]), "my.toml:6", &["`b` takes what the column `a` takes a part of"]);
    mistake(&from(["/u", "/u/0/x"]), "my.toml:6", &["`b` takes a part of what the column `a` takes"]);
    mistake(&from(["x", "/a~b"]), "my.toml:6", &["`/a~b` is no JSON Pointer", "`~0` for `~`"]);
    mistake(&from(["x", &"/a".repeat(129)]), "my.toml:6", &["129 parts"]);
    mistake(&column("x = { type = \"text\", form = \"y\" }"), "my.toml:5", &["did you mean `from`?"]);
    mistake(&column("x = 1"), "my.toml:5", &["must be a string, is an integer"]);
    mistake(&column("id = \"text\""), "my.toml:5", &["`id` is defined twice"]);
    mistake(&column("Id = \"text\""), "my.toml:5", &["differ only in case"]);
    mistake(&column("_extra = \"jsonb\""), "my.toml:5", &["cannot be named `_extra`"]);
    mistake(&column("_Load_Id = \"bigint\""), "my.toml:5", &["cannot be named `_Load_Id`"]);
    mistake(&column("ctid = \"text\""), "my.toml:5", &["PostgreSQL has such a column"]);
    for name in ["\"user name\"", "user-name", "1st", "\"\"", "\"größe\"", "\"a\\nb\"", &"c".repeat(64)] {
        mistake(&column(&format!("{name} = \"text\"")), "my.toml:5", &["cannot be a name", "ASCII letters, digits and `_`"]);
    }
    let many: String = (0..1000).map(|i| format!("c{i} = \"text\"\n")).collect();
    mistake(&column(&many), "my.toml:3", &["1001 columns, and 1000 are possible"]);
}

#[test]
fn names_that_collide_with_generated_ones_are_refused() {
    for name in ["loads", "Batches", "rejects", "events_delta", "fact_x", "FACT_x", "dead", "_x"] {
        mistake(&ORGS.replace("orgs", name), "my.toml:1", &[&format!("cannot be named `{name}`"), "loads, batches, rejects"]);
    }
    let model = |columns: &str, model: &str| {
        format!(
            "[datasets.ds]\nkey = [\"t\"]\nday = \"t\"\n[datasets.ds.columns]\nt = {{ type = \"date\", required = true }}\n\
             {columns} = \"text\"\n[datasets.ds.model]\n{model}\n"
        )
    };
    mistake(&model("date", "dimensions = [\"date\"]"), "my.toml:8", &["`date` is a generated column and a dimension at once"]);
    mistake(&model("Total_ds", "dimensions = [\"Total_ds\"]"), "my.toml:8", &["`total_ds` (a generated column)"]);
    mistake(&model("x", "distinct = { unique_ds = \"x\" }"), "my.toml:8", &["`unique_ds` is a generated column"]);
    mistake(
        &model("x", "dimensions = [\"x\"]\ndistinct = { x = \"x\" }"),
        "my.toml:9",
        &["`x` is a dimension and a count of distinct"],
    );
    mistake(&model("x", "distinct = { n = \"x\", N = \"x\" }"), "my.toml:8", &["differ only in case"]);
    mistake(&model("x", "distinct = { n = \"y\" }"), "my.toml:8", &["`n` names `y`, which is no column"]);
    mistake(&model("x", "distinct = { n-m = \"x\" }"), "my.toml:8", &["cannot be a name"]);
    mistake(&model("x", "dimensions = [\"x\", \"x\"]"), "my.toml:8", &["names `x` twice"]);
    mistake(&model("x", "dimension = [\"x\"]"), "my.toml:8", &["did you mean `dimensions`?"]);

    // Two tables get the same name: dataset `a` by the dimension `x_by_date`, and dataset `a_by_date_x` by date.
    let first = model("x_by_date", "dimensions = [\"x_by_date\"]").replace(".ds", ".a");
    let second = model("x", "").replace(".ds", ".a_by_date_x");
    mistake(&format!("{first}{second}"), "my.toml:9", &["`modelled_a_by_date_x_by_date` is a table of the dataset `a` and"]);
}

#[test]
fn names_that_make_too_long_tables_are_refused() {
    let name = |bytes: usize| "n".repeat(bytes);
    assert!(resolve(&ORGS.replace("orgs", &name(53))).is_ok());
    mistake(&ORGS.replace("orgs", &name(54)), "my.toml:1", &["_delta` of 64 bytes, and 63 are possible", "shorter name"]);
    let dimension = |bytes: usize| {
        format!(
            "[datasets.ds]\nkey = [\"t\"]\nday = \"t\"\nmodel.dimensions = [\"{0}\"]\n[datasets.ds.columns]\n\
             t = {{ type = \"date\", required = true }}\n{0} = \"text\"\n",
            name(bytes)
        )
    };
    assert!(resolve(&dimension(43)).is_ok());
    mistake(&dimension(44), "my.toml:1", &["`modelled_ds_by_date_n", "of 64 bytes"]);
}

#[test]
fn datasets_are_chosen_by_name() {
    let config = resolve(BUILT_IN).unwrap();
    let names = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        config.datasets_named(&names).map(|chosen| chosen.iter().map(|d| d.name.clone()).collect::<Vec<_>>())
    };
    assert_eq!(names(&[]).unwrap(), ["events", "orgs"]);
    assert_eq!(names(&["orgs", "events", "orgs"]).unwrap(), ["orgs", "events"]);
    let error = names(&["event"]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert_eq!(error.to_string(), "no dataset `event` in my.toml; did you mean `events`? The datasets are: events, orgs");
    assert_eq!(config.dataset_named("orgs").unwrap().name, "orgs");
}

#[test]
fn a_named_file_must_be_readable_utf8() {
    let dir = tempfile::tempdir().unwrap();
    let none = Environment(&|_| None);
    let missing = dir.path().join("none.toml");
    let error = read_file(Some(&missing), &none).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("none.toml: No such file or directory; name a readable file"), "{error}");

    let file = dir.path().join("my.toml");
    std::fs::write(&file, b"# fine\n# \xff\n").unwrap();
    let by_variable = |name: &str| (name == "DATALOADER_CONFIG").then(|| file.clone().into_os_string());
    let error = read_file(None, &Environment(&by_variable)).unwrap_err();
    assert!(error.to_string().contains("my.toml:2: not UTF-8"), "{error}");

    std::fs::write(&file, ORGS).unwrap();
    assert_eq!(read_file(Some(&file), &none).unwrap(), (ConfigSource::File(file.clone()), ORGS.to_owned()));
}
