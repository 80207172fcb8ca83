//! Tests of the command line.

use super::*;
use crate::batch::MaxRejects;
use crate::config::{Role, Transport};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::parse(std::iter::once("dataloader").chain(line.split_whitespace()))
}

fn settings(line: &str) -> Settings {
    parse(line).expect(line).settings().expect(line)
}

#[test]
fn run_is_the_default_command() {
    for line in ["", "run", "-v", "--transport inproc", "--once --inbox x", "run --once", "--format json run", "--once run"] {
        assert!(matches!(parse(line).expect(line).command, Command::Run(_)), "{line}");
    }
    for line in ["--transport amqp --role consumer", "run --transport amqp --role consumer", "--transport amqp run --role consumer"]
    {
        let settings = settings(line);
        assert_eq!((settings.transport, settings.role), (Some(Transport::Amqp), Some(Role::Consumer)), "{line}");
    }
    let line = "--once run --inbox x --queue-prefix p";
    assert!(matches!(parse(line).unwrap().command, Command::Run(RunArgs { once: true, .. })));
    let settings = settings(line);
    assert!(settings.inbox == Some("x".into()) && settings.queue_prefix == Some("p".to_owned()));
}

#[test]
fn global_flags_stand_before_or_after_the_command() {
    let flags = "--database sqlite://x.db --config c --data-dir d --format json --log-format json -v";
    for line in
        [format!("{flags} report"), format!("report {flags}"), format!("{flags} rejects list"), format!("rejects list {flags}")]
    {
        let cli = parse(&line).expect(&line);
        assert_eq!((cli.global.format, cli.global.log_format), (Format::Json, LogFormat::Json), "{line}");
        assert_eq!(cli.global.verbosity(), Some(Verbosity::Debug), "{line}");
        assert_eq!(cli.config_file(), Some(Path::new("c")), "{line}");
        let settings = cli.settings().unwrap();
        assert_eq!(settings.database, Some(DatabaseUrl::Sqlite("x.db".into())), "{line}");
        assert_eq!(settings.data_dir, Some("d".into()), "{line}");
    }
    assert_eq!(parse("load -vv").unwrap().global.verbosity(), Some(Verbosity::Trace));
    assert_eq!(parse("-q load").unwrap().global.verbosity(), Some(Verbosity::Quiet));
    assert_eq!(parse("load").unwrap().global.verbosity(), None);
}

#[test]
fn each_command_sets_what_it_takes() {
    assert_eq!(settings("load --stage-dir s").stage_dir, Some("s".into()));
    assert_eq!(settings("drop --inbox i").inbox, Some("i".into()));
    assert_eq!(settings("menu --mode stream").menu_mode, Some(MenuMode::Stream));
    let Command::Drop(drop) = parse("drop x.json --dataset orgs --times 3").unwrap().command else { panic!() };
    assert_eq!((drop.file, drop.dataset.as_deref(), drop.times), (Some("x.json".into()), Some("orgs"), 3));
    let Command::Rejects(rejects) = parse("rejects --dataset orgs export").unwrap().command else { panic!() };
    assert_eq!((rejects.action, rejects.dataset.as_deref()), (RejectsAction::Export, Some("orgs")));
    let Command::Generate(generate) = parse("generate --events 10").unwrap().command else { panic!() };
    assert_eq!((generate.events, generate.seed), (10, 1));
}

#[test]
fn load_takes_days_files_and_datasets() {
    let load = |line: &str| match parse(line).expect(line).command {
        Command::Load(load) => load,
        other => panic!("{other:?}"),
    };
    let day = |text| parse_day(text).unwrap();
    assert_eq!(load("load").days(), None);
    assert_eq!(load("load --date 2020-12-05").days(), Some(day("2020-12-05")..=day("2020-12-05")));
    let range = load("load --from 2020-12-05 --to 2020-12-06");
    assert_eq!(range.days(), Some(day("2020-12-05")..=day("2020-12-06")));
    assert_eq!(load("load --dataset events --dataset orgs").datasets, ["events", "orgs"]);
    assert_eq!(load("load --dataset events a.json - b.json").files, [Path::new("a.json"), Path::new("-"), Path::new("b.json")]);
    assert!(load("load --dry-run").dry_run);
    assert!(load("load --new --dataset events a.json").new);
    assert_eq!(load("load --max-rejects 10").max_rejects, Some(MaxRejects::Count(10)));
    assert_eq!(load("load --max-rejects 0.5%").max_rejects, Some(MaxRejects::Percent(0.5)));
}

#[test]
fn wrong_usage_exits_2_and_says_why() {
    for (line, expected) in [
        ("lod", "load"),
        ("load --transport inproc", "unexpected argument '--transport'"),
        ("--transport inproc load", "--transport before the command is for `run`"),
        ("--once report", "--once before the command is for `run`"),
        ("--transport tcp", "[possible values: inproc, amqp]"),
        ("--queue-prefix amq.x", "not beginning with `amq.`"),
        ("load --date yesterday", "YYYY-MM-DD, for example 2020-12-05"),
        ("load --date 2020-02-30", "no such day"),
        ("load --date 0000-01-01", "no such day"),
        ("load --date 2020-1-5", "YYYY-MM-DD"),
        ("load --date 20201205", "YYYY-MM-DD"),
        ("load --from 2020-12-05", "--to"),
        ("load --to 2020-12-05", "--from"),
        ("load --date 2020-12-05 --from 2020-12-05 --to 2020-12-06", "cannot be used with"),
        ("load --from 2020-12-06 --to 2020-12-05", "--from 2020-12-06 is after --to 2020-12-05"),
        ("load x.json", "need one --dataset"),
        ("load --dataset a --dataset b x.json", "need one --dataset"),
        ("load --dataset a - -", "can be loaded once"),
        ("load --max-rejects -1", ""),
        ("load --max-rejects 101%", "percentage from 0% to 100%"),
        ("load --max-rejects NaN%", "percentage from 0% to 100%"),
        ("load --max-rejects few", "a number of records"),
        ("drop --times 0", "1.."),
        ("generate", "--events"),
        ("rejects", "list"),
        ("menu --mode x", "[possible values: batch, stream]"),
        ("-v -q", "cannot be used with"),
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(expected), "{line}: {error}");
    }
    let error = parse("--database mysql://u:s3cret@h").unwrap().settings().unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().starts_with("--database: `mysql://u:***@h` is no database"), "{error}");
}

#[test]
fn a_program_gets_usage_errors_in_one_line() {
    let error = in_one_line(&parse("load --date yesterday --format json").unwrap_err().to_string());
    let expected = "invalid value 'yesterday' for '--date <DATE>': a day is written YYYY-MM-DD, for example 2020-12-05";
    assert_eq!((error.message(), error.hint_text()), (expected, Some("see `dataloader --help`")));
    let error = in_one_line(&parse("load --from 2020-12-06 --to 2020-12-05").unwrap_err().to_string());
    assert_eq!(error.message(), "--from 2020-12-06 is after --to 2020-12-05");
    let error = in_one_line(&hide_arguments(&parse("postgres://u:s3cret@h").unwrap_err().to_string(), &[]));
    assert!(error.message().contains("'postgres://u:***@h'"), "{error}");

    let args = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
    assert!(asks_for_json(&args("lod --format json")) && asks_for_json(&args("--format=json lod")));
    assert!(!asks_for_json(&args("lod --format text --log-format json")));
}

#[test]
fn max_rejects_is_exceeded_by_more_not_by_as_many() {
    assert!(!MaxRejects::Count(2).exceeded_by(2, 10));
    assert!(MaxRejects::Count(2).exceeded_by(3, 10));
    assert!(!MaxRejects::Percent(10.0).exceeded_by(1, 10));
    assert!(MaxRejects::Percent(10.0).exceeded_by(2, 10));
    assert!(!MaxRejects::Percent(0.0).exceeded_by(0, 0));
}

#[test]
fn the_definitions_are_consistent() {
    Arguments::command().debug_assert();
}
