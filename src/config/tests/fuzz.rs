//! Any text is a configuration, or an error that says where and what would be right.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::fuzz::Target;

const CONFIGURATIONS: Target = Target {
    corpus: "configurations",
    tokens: &[
        b"[",
        b"]",
        b"[[",
        b"]]",
        b"{",
        b"}",
        b"=",
        b" = ",
        b"\n",
        b"\r\n",
        b",",
        b".",
        b"\"",
        b"'",
        b"\"\"\"",
        b"#",
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b"\0",
        b"\x7f",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xc3\x9f",
        b"true",
        b"false",
        b"1",
        b"-1",
        b"0x10",
        b"1e5",
        b"nan",
        b"inf",
        b"1979-05-27",
        b"99999999999999999999",
        b"\"text\"",
        b"\"timestamp\"",
        b"\"numeric\"",
        b"[datasets.a]\n",
        b"[datasets.A.columns]\n",
        b"[datasets.a.model]\n",
        b"[stream]\n",
        b"key = [\"id\"]\n",
        b"day = \"at\"\n",
        b"id = \"text\"\n",
        b"at = { type = \"timestamp\", required = true }\n",
        b"from = \"/a/b\"",
        b"from = \"~\"",
        b"distinct = { n = \"id\" }\n",
        b"dimensions = [\"id\"]\n",
        b"fact_view = { id = \"x\" }\n",
        b"repeats = \"skip\"\n",
        b"stream = \"upsert\"\n",
        b"transport = \"amqp\"\n",
        b"role = \"producer\"\n",
        b"database = \"postgres://u:p@h/d\"\n",
        b"amqp_url = \"amqp://h\"\n",
        b"http = \"0\"\n",
        b"batch_bytes = 1\n",
        b"in_flight_bytes = 20000000\n",
        b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
        b"{a={a={a={a={a={a={a={a={a={a={a=",
        b"a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.",
    ],
};

/// Datasets whose parts mostly fit, and settings.
fn configurations() -> BoxedStrategy<Vec<u8>> {
    let names = || {
        select(vec![
            "a", "A", "id", "at", "loads", "x_delta", "fact_x", "_extra", "ctid", "date", "total_a", "\"ä\"", "\"\"", "dead",
        ])
    };
    let types = select(vec![
        "\"text\"",
        "\"bigint\"",
        "\"timestamp\"",
        "\"date\"",
        "\"txt\"",
        "{ type = \"text\", from = \"/a/b\" }",
        "{ type = \"date\", required = true }",
        "{ type = \"timestamptz\", required = true, from = \"at\" }",
        "{ required = true }",
        "{ type = \"text\", from = \"\" }",
        "1",
    ]);
    let columns = vec((names(), types), 0..5)
        .prop_map(|columns| columns.iter().map(|(name, column)| format!("{name} = {column}\n")).collect::<String>());
    let rest = select(vec![
        "",
        "day = \"at\"\n",
        "day = \"id\"\n",
        "dir = \"\"\n",
        "menu = true\n",
        "menu = 1\n",
        "repeats = \"skip\"\n",
        "stream = \"upsert\"\n",
        "stream = \"x\"\n",
        "day = \"at\"\nmodel = { dimensions = [\"id\"], distinct = { n = \"id\" }, fact_view = { id = \"x\" } }\n",
        "model = {}\n",
        "columns = 1\n",
    ]);
    let settings = select(vec![
        "",
        "role = \"producer\"\n",
        "transport = \"amqp\"\n",
        "transport = \"x\"\n",
        "[stream]\nbatch_bytes = 90000000\n",
        "[stream]\nparsers = 0\n",
        "zstd_window_mib = 3\n",
        "queue_prefix = \"amq.x\"\n",
        "http = \"x\"\n",
        "database = \"mysql://u:p@h/d\"\n",
        "amqp_url = \"amqp://u:p@h:x/\"\n",
        "inbox = \"\"\n",
        "datasets = 1\n",
        "mode = \"stream\"\n",
        "follow_links = 1\n",
        "stream = 1\n",
    ]);
    let dataset = (names(), names(), rest, columns).prop_map(|(name, key, rest, columns)| {
        format!("[datasets.{name}]\nkey = [\"{}\"]\n{rest}[datasets.{name}.columns]\n{columns}", key.trim_matches('"'))
    });
    (settings, vec(dataset, 0..3))
        .prop_map(|(settings, datasets)| [settings.to_owned(), datasets.concat()].concat().into_bytes())
        .boxed()
}

#[test]
fn any_text_is_a_configuration_or_an_error_that_says_where() {
    CONFIGURATIONS.hold(configurations(), |text| {
        // Whatever is no UTF-8 is refused before.
        let Ok(text) = std::str::from_utf8(text) else { return Ok(()) };
        let Err(error) = resolve(text) else { return Ok(()) };
        prop_assert_eq!(error.exit_code(), 2);
        let message = error.message();
        let line =
            message.strip_prefix("my.toml:").and_then(|rest| rest.split(':').next()).and_then(|line| line.parse::<usize>().ok());
        prop_assert!(line.is_some_and(|line| (1..=text.split('\n').count()).contains(&line)), "no place: {}", message);
        let says_what_is_right = error.hint_text().is_some()
            || ["must be", "must hold", "not valid TOML", "U+0000"].iter().any(|part| message.contains(part));
        prop_assert!(says_what_is_right, "no remedy: {}", message);
        Ok(())
    });
}
