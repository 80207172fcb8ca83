//! The page over HTTP, without a browser: addresses, tokens, hosts, paths, headers, hostile clients.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use crate::support::{
    Background, Invocation, Page, PrivatePostgres, Sandbox, Signal, StopMode, Store, array, event, on_both_stores,
    on_every_pipeline, wait_until,
};

on_every_pipeline!(the_counters_are_those_of_the_ledger);
on_both_stores!(
    rejects_are_replayed_and_discarded_by_forms_after_a_confirmation,
    what_comes_from_data_is_never_markup,
    the_place_of_a_fault_is_marked_in_the_record,
    loads_are_found_by_what_is_known_of_them,
    the_page_of_a_load_says_what_became_of_it_and_when,
    what_the_api_says_is_what_the_commands_say,
    the_page_of_an_empty_database_says_what_to_do_first,
);

fn serve(sandbox: &Sandbox) -> (Background, Page) {
    let mut process = sandbox.command(["serve", "--http", "0"]).spawn();
    let page = Page::of(&mut process);
    (process, page)
}

fn run_with_page<'a>(sandbox: &Sandbox, args: impl IntoIterator<Item = &'a str>) -> (Background, Page) {
    let mut process = sandbox.pipeline(["--http", "0"].into_iter().chain(args)).spawn();
    let page = Page::of(&mut process);
    process.wait_for_stderr("watching ");
    (process, page)
}

/// Three good records and two that are rejected.
fn some_records(prefix: &str) -> String {
    let good: Vec<String> = (0..3).map(|i| event(&format!("{prefix}{i}"), "ada", "2024-05-01 10:00:00")).collect();
    array(&[good, vec!["{\"id\":\"x\"}".to_owned(), "7".to_owned()]].concat())
}

#[test]
fn every_path_answers_and_every_answer_has_the_headers_that_protect_it() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let (_process, page) = serve(&sandbox);
    let cases = [
        ("/", 200, "text/html"),
        ("/page.css", 200, "text/css"),
        ("/page.js", 200, "text/javascript"),
        ("/metrics", 200, "text/plain"),
        ("/healthz", 200, "text/plain"),
        ("/readyz", 200, "text/plain"),
        ("/api/status", 200, "application/json"),
        ("/api/report", 200, "application/json"),
        ("/nothing", 404, "text/plain"),
        ("/../Cargo.toml", 404, "text/plain"),
        ("/page.css/", 404, "text/plain"),
    ];
    for (path, status, kind) in cases {
        let answer = page.get(path);
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        assert!(answer.header("content-type").is_some_and(|found| found.starts_with(kind)), "{path}: {:?}", answer.headers);
        let policy = answer.header("content-security-policy").unwrap_or_default();
        for rule in ["default-src 'none'", "frame-ancestors 'none'", "form-action 'self'", "base-uri 'none'"] {
            assert!(policy.contains(rule), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
        assert_eq!(page.request("HEAD", path, &[], "").status, status, "HEAD {path}");
        if status == 200 {
            for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
                let answer = page.request(method, path, &[], "");
                assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{method} {path}");
            }
        }
    }
    let page = page.get("/").body;
    assert!(!page.contains("style=\"") && !page.contains("onclick") && !page.contains("<style"), "nothing inline: {page}");
    assert!(!page.contains("http://") && !page.contains("https://"), "nothing of another host: {page}");
}

#[test]
fn without_a_token_only_this_machine_is_answered_under_its_own_name() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let (_process, page) = serve(&sandbox);
    assert!(page.0.ip().is_loopback(), "{page:?}");
    for host in ["localhost", "127.0.0.1:1", "[::1]"] {
        assert_eq!(page.request("GET", "/", &[("host", host)], "").status, 200, "{host}");
    }
    for host in ["rebound.example", "10.0.0.1:8080", ""] {
        for path in ["/", "/metrics", "/api/status", "/nothing"] {
            let answer = page.request("GET", path, &[("host", host)], "");
            assert_eq!(answer.status, 421, "{host} {path}: {}", answer.body);
        }
    }
}

#[test]
fn an_address_of_other_machines_needs_a_token() {
    let sandbox = Sandbox::new(Store::Sqlite);
    for args in [["serve", "--http", "0.0.0.0:0"], ["run", "--http", "0.0.0.0:0"]] {
        let outcome = sandbox.run(args).code(2);
        assert!(outcome.stderr.contains("DATALOADER_HTTP_TOKEN"), "{}", outcome.stderr);
    }
    let outcome = sandbox.run(["serve", "--http", "http://x"]).code(2);
    assert!(outcome.stderr.contains("no address to listen on"), "{}", outcome.stderr);
    let mut process = sandbox.command(["serve", "--http", "0.0.0.0:0"]).env("DATALOADER_HTTP_TOKEN", "s3cret-t0ken").spawn();
    process.wait_for_stderr("the page is at http://");
    assert!(!process.stderr().contains("s3cret"), "{}", process.stderr());
}

#[test]
fn a_token_is_asked_for_everywhere_but_for_health() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let mut process = sandbox.command(["serve", "--http", "0"]).env("DATALOADER_HTTP_TOKEN", "s3cret-t0ken").spawn();
    let page = Page::of(&mut process);
    for path in ["/", "/page.js", "/metrics", "/api/status", "/api/live", "/nothing"] {
        let answer = page.get(path);
        assert_eq!(answer.status, 401, "{path}");
        assert!(answer.header("www-authenticate").is_some_and(|asks| asks.starts_with("Basic ")), "{path}");
        assert_eq!(page.request("GET", path, &[("authorization", "Bearer wrong")], "").status, 401, "{path}");
    }
    // anyone:s3cret-t0ken
    for given in ["Bearer s3cret-t0ken", "Basic YW55b25lOnMzY3JldC10MGtlbg=="] {
        let host = ("host", "page.example");
        assert_eq!(page.request("GET", "/", &[("authorization", given), host], "").status, 200, "{given}");
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(page.get(path).status, 200, "{path}");
    }
    process.signal(Signal::Terminate);
    let ended = process.wait().ok();
    assert!(!ended.stderr.contains("s3cret"), "{}", ended.stderr);
}

#[test]
fn a_port_in_use_is_an_error_that_says_so() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = taken.local_addr().expect("it listens").to_string();
    for args in [["serve", "--http", address.as_str()], ["run", "--http", address.as_str()]] {
        let outcome = sandbox.run(args).code(1);
        assert!(outcome.stderr.contains(&format!("cannot listen on {address}")), "{}", outcome.stderr);
    }
}

#[test]
fn clients_that_say_nothing_or_too_much_do_not_keep_others_waiting() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let (process, page) = run_with_page(&sandbox, []);
    let silent: Vec<_> = (0..1_000).map(|_| page.connect()).collect();
    let mut slow = page.connect();
    slow.write_all(b"GET / HT").expect("it is open");
    let began = Instant::now();
    assert_eq!(page.get("/healthz").status, 200);
    assert_eq!(page.get("/").status, 200);
    sandbox.drop_in("events", "a.json", some_records("a"));
    sandbox.wait_until_finished("events", 1);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    // Each of them is cut off: a read ends.
    for mut connection in silent.into_iter().take(20).chain([slow]) {
        let mut rest = Vec::new();
        let _ = connection.read_to_end(&mut rest);
        assert!(rest.len() < 500, "{}", String::from_utf8_lossy(&rest));
    }
    let long = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(100_000));
    assert!(page.send(long).is_none_or(|answer| answer.status == 431), "headers have a limit");
    assert!(page.send("\0\x01\r\n\r\n").is_none_or(|answer| answer.status == 400));
    assert_eq!(page.get("/healthz").status, 200);
    process.signal(Signal::Terminate);
    process.wait().ok();
}

#[test]
fn a_run_that_ends_ends_its_page() {
    let sandbox = Sandbox::new(Store::Sqlite);
    sandbox.drop_in("events", "a.json", some_records("a"));
    let outcome = sandbox.pipeline(["--once", "--http", "0"]).run().code(3);
    assert!(outcome.stderr.contains("the page is at http://127.0.0.1:"), "{}", outcome.stderr);
    let (process, page) = run_with_page(&sandbox, []);
    let mut live = page.connect();
    live.write_all(b"GET /api/live HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("it is open");
    let mut first = [0; 512];
    assert!(live.read(&mut first).expect("it answers") > 0);
    process.signal(Signal::Terminate);
    process.wait().ok();
    assert!(std::net::TcpStream::connect(page.0).is_err());
}

fn the_counters_are_those_of_the_ledger(sandbox: &Sandbox) {
    let (process, page) = run_with_page(sandbox, []);
    for name in ["a", "b", "c"] {
        sandbox.drop_in("events", format!("{name}.json"), some_records(name));
    }
    sandbox.drop_in("events", "broken.json", "[{\"id\":");
    sandbox.wait_until_finished("events", 4);
    let sum = |column: &str| -> f64 {
        sandbox.lines(&format!("SELECT coalesce(sum({column}), 0) FROM {{raw.loads}}"))[0].parse().expect("a number")
    };
    for (outcome, column) in [("loaded", "rows_loaded"), ("rejected", "rows_rejected"), ("skipped", "records_skipped")] {
        let sample = format!("dataloader_records_total{{dataset=\"events\",outcome=\"{outcome}\"}}");
        wait_until(&sample, || page.metric(&sample) == Some(sum(column)));
    }
    for (outcome, files) in [("loaded", 3.0), ("failed", 1.0), ("repeated", 0.0)] {
        let sample = format!("dataloader_files_total{{dataset=\"events\",outcome=\"{outcome}\"}}");
        wait_until(&sample, || page.metric(&sample) == Some(files));
    }
    wait_until("every file was timed", || page.metric("dataloader_drop_to_commit_seconds_count") == Some(3.0));
    let zero = [
        "dataloader_in_flight_bytes",
        "dataloader_unaccounted_records{dataset=\"events\"}",
        "dataloader_waiting_files{dataset=\"events\"}",
    ];
    for sample in zero {
        wait_until(sample, || page.metric(sample) == Some(0.0));
    }
    // The process asks on a connection of its own, which may take longer than the first commits.
    wait_until("the database is up", || page.metric("dataloader_up{target=\"database\"}") == Some(1.0));
    assert!(page.metric("dataloader_bytes_total{dataset=\"events\"}") > Some(100.0));
    assert!(page.metric("dataloader_commit_duration_seconds_count") >= Some(1.0));
    assert!(page.metric("dataloader_stage_busy_seconds_total{stage=\"writer\"}") > Some(0.0));
    assert!(page.metric("dataloader_last_commit_timestamp_seconds") > Some(1.7e9));
    // Five records of each of three files.
    page.wait_for("/", "<b>15</b> read");
    page.wait_for("/", "✓ all accounted for");
    wait_until("it is ready", || page.get("/readyz").status == 200);
    process.signal(Signal::Terminate);
    process.wait().ok();
}

fn what_the_api_says_is_what_the_commands_say(sandbox: &Sandbox) {
    sandbox.write_events("a.json", some_records("a").as_bytes());
    sandbox.write("raw_data/orgs/o.json", "[]");
    sandbox.run(["load", "--dataset", "events"]).code(3);
    let (_process, page) = serve(sandbox);
    let cases = [
        ("/api/status", vec!["status"]),
        ("/api/report", vec!["report"]),
        ("/api/rejects", vec!["rejects", "list"]),
        ("/api/rejects?reason=missing_required", vec!["rejects", "list", "--reason", "missing_required"]),
    ];
    for (path, command) in cases {
        let said = sandbox.run(command.into_iter().chain(["--format", "json"])).ok().json();
        assert_eq!(page.get(path).json(), said, "{path}");
    }
    let status = page.get("/api/status").json();
    let events = &status["datasets"][0];
    assert_eq!((&events["read"], &events["missing"], &events["records_in_flight"]), (&5.into(), &0.into(), &0.into()));
    // A row of the ledger that somebody has damaged is not passed over.
    sandbox.execute("UPDATE {raw.loads} SET rows_loaded = rows_loaded - 1");
    assert_eq!(page.get("/api/status").json()["datasets"][0]["missing"], 1);
    page.wait_for("/", "1 record is missing");
}

fn the_page_of_an_empty_database_says_what_to_do_first(sandbox: &Sandbox) {
    let (_process, page) = serve(sandbox);
    let body = page.get("/").body;
    assert!(body.contains("has no tables yet") && body.contains("dataloader load"), "{body}");
    sandbox.run(["migrate"]).ok();
    let body = page.wait_for("/", "Nothing is loaded yet").body;
    assert!(body.contains("No file was loaded yet") && body.contains("No record waits to be repaired"), "{body}");
}

/// The token of the forms on the page.
#[track_caller]
fn form_token(page: Page) -> String {
    let body = page.get("/rejects").body;
    let token = body.split("name=\"token\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
    token.expect("the page has forms").to_owned()
}

fn rejects_are_replayed_and_discarded_by_forms_after_a_confirmation(sandbox: &Sandbox) {
    sandbox.write_events("a.json", some_records("a").as_bytes());
    sandbox.run(["load", "--dataset", "events"]).code(3);
    let (_process, page) = serve(sandbox);
    let open = || sandbox.count("raw.rejects");
    let form = format!("token={}&dataset=events&reason=not_an_object", form_token(page));
    let confirmed = format!("{form}&confirm=yes");

    for path in ["/rejects/discard", "/rejects/replay"] {
        assert_eq!((page.get(path).status, page.get(path).header("allow").map(str::to_owned)), (405, Some("POST".to_owned())));
        for (name, value) in [
            ("origin", "http://evil.example"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            assert_eq!(page.request("POST", path, &[(name, value)], &confirmed).status, 403, "{path} {name} {value}");
        }
        for form in ["confirm=yes", "token=&confirm=yes", "token=0000&confirm=yes"] {
            assert_eq!(page.post(path, form).status, 403, "{path} {form}");
        }
        assert_eq!(page.post(path, &"x".repeat(100_000)).status, 400, "{path}");
        assert_eq!(page.post(path, &format!("{confirmed}&dataset=")).status, 200);
    }
    let unknown = format!("token={}&dataset=nothing&confirm=yes", form_token(page));
    assert_eq!(page.post("/rejects/discard", &unknown).status, 400);
    assert_eq!(open(), 1, "the confirmed form has discarded the one with this reason");

    sandbox.write_events("a.json", some_records("a").as_bytes());
    sandbox.run(["load", "--dataset", "events"]).code(3);
    assert_eq!(open(), 2);
    let asks = page.post("/rejects/discard", &form);
    assert!(asks.status == 200 && asks.body.contains("Discard 1 reject?") && asks.body.contains("not_an_object"), "{}", asks.body);
    assert_eq!(open(), 2, "nothing happens before the confirmation");
    let asks = page.post("/rejects/replay", &format!("token={}", form_token(page)));
    assert!(asks.body.contains("Replay 2 rejects?"), "{}", asks.body);
    let own = ("origin", &*format!("http://localhost:{}", page.port()));
    let done = page.request(
        "POST",
        "/rejects/replay",
        &[own, ("sec-fetch-site", "same-origin")],
        &format!("token={}&confirm=yes", form_token(page)),
    );
    assert!(done.body.contains("events: 2 replayed, 0 loaded, 2 still rejected"), "{}", done.body);
    let done = page.post("/rejects/discard", &confirmed);
    assert!(done.body.contains("1 reject is discarded"), "{}", done.body);
    assert_eq!(open(), 1);

    let read = sandbox.lines("SELECT rows_rejected FROM {raw.loads} WHERE source LIKE '%a.json' ORDER BY id DESC");
    assert_eq!(read[0], "2", "the ledger still counts them");
    let discarded = sandbox.run(["rejects", "discard", "--reason", "missing_required", "--format", "json"]).ok().json();
    let expected = serde_json::json!({"datasets": [{"dataset": "events", "discarded": 1}, {"dataset": "orgs", "discarded": 0}]});
    assert_eq!((discarded, open()), (expected, 0));
}

/// Elements, attributes, control characters, and marks that turn the direction of text.
const EVIL: &str = "<script>alert(1)</script>\\\"'><img src=x onerror=alert(2)>\\u001b[31m\u{202e}evil\u{200b}&amp;";

fn what_comes_from_data_is_never_markup(sandbox: &Sandbox) {
    let good = event("1", "ada", "2024-05-01 10:00:00").replace("Acme", EVIL);
    let bad = format!("{{\"id\":\"{EVIL}\",\"received_at\":\"{EVIL}\"}}");
    let (process, page) = run_with_page(sandbox, []);
    sandbox.drop_in("events", "<script>alert(3)\u{202e}.json", array(&[good, bad]));
    sandbox.drop_in("events", "<b>.json", format!("[{{\"{EVIL}\""));
    sandbox.wait_until_finished("events", 2);
    page.wait_for("/", "&lt;script&gt;alert(1)&lt;/script&gt;");
    let load = sandbox.lines("SELECT max(id) FROM {raw.loads}")[0].clone();
    for path in ["/", "/loads", "/rejects", &format!("/loads/{load}"), "/loads?name=%3Cscript%3E&status=%22%3E%3Cimg&dataset=%27"] {
        let body = page.get(path).body;
        assert!(!body.contains("<script>") && !body.contains("<img") && !body.contains("<b>."), "{path}: {body}");
        assert!(!body.contains('\u{202e}') && !body.contains('\u{1b}') && !body.contains('\u{200b}'), "{path}: {body}");
    }
    let api = page.get("/api/rejects?reason=missing_required").json();
    assert_eq!(api["rejects"], serde_json::json!([]));
    assert_eq!(page.get("/api/rejects").json()["rejects"][0]["ordinal"], 2);
    process.signal(Signal::Terminate);
    process.wait().ok();
}

fn the_place_of_a_fault_is_marked_in_the_record(sandbox: &Sandbox) {
    let bad = event("1", "ada", "2024-13-01 10:00:00");
    sandbox.write_events("a.json", format!("{bad}\n{{\"id\":\"2\",}}\n{{\"id\":\"3\"}}\n"));
    sandbox.run(["load", "--dataset", "events"]).code(3);
    let (_process, page) = serve(sandbox);
    let body = page.get("/rejects").body;
    let marked: Vec<&str> = body.split("<mark>").skip(1).filter_map(|rest| rest.split("</mark>").next()).collect();
    assert_eq!(marked, ["&quot;2024-13-01 10:00:00&quot;", "}"], "what is missing has no place: {body}");
}

#[test]
fn the_place_of_a_fault_is_marked_also_where_a_column_takes_its_value_from_elsewhere() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let columns = "id = { type = \"text\", required = true }\nage = { type = \"bigint\", from = \"/actor/years\" }\n";
    sandbox.write(
        "dataloader.toml",
        format!("[datasets.visits]\ndir = \"visits\"\nkey = [\"id\"]\n[datasets.visits.columns]\n{columns}"),
    );
    sandbox.write("raw_data/visits/a.json", r#"{"id":"1","years":1,"actor":{"years":"old","name":"ada"}}{"id":"2"}"#);
    sandbox.run(["load"]).code(3);
    let (_process, page) = serve(&sandbox);
    let body = page.get("/rejects").body;
    assert!(body.contains("{&quot;years&quot;:<mark>&quot;old&quot;</mark>,&quot;name&quot;"), "{body}");
}

#[test]
fn what_the_list_of_rejects_leaves_out_is_named_and_is_on_its_next_page() {
    let sandbox = Sandbox::new(Store::Sqlite);
    sandbox.write_events("a.json", array(&vec!["7".to_owned(); 1_002]));
    sandbox.run(["load", "--dataset", "events"]).code(3);
    let (_process, page) = serve(&sandbox);
    let first = page.get("/api/rejects?dataset=events").json();
    assert_eq!(first["rejects"].as_array().map(Vec::len), Some(1_000));
    let note = first["notes"][0].as_str().expect("it says so");
    let next = note.split("more rejects are at ").nth(1).expect("it says where");
    let rest = page.get(next).json();
    let ordinals: Vec<i64> = rest["rejects"].as_array().expect("a list").iter().filter_map(|r| r["ordinal"].as_i64()).collect();
    assert_eq!((ordinals, &rest["notes"]), (vec![1_001, 1_002], &serde_json::Value::Null));
    assert_eq!(page.get("/api/rejects?dataset=nothing").status, 400);
}

#[test]
fn clients_that_read_a_byte_a_second_do_not_slow_the_others() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let large = format!("\"{}\"", "<".repeat(1_900));
    sandbox.write_events("a.json", array(&vec![large; 50]));
    sandbox.run(["load", "--dataset", "events"]).code(3);
    let (_process, page) = serve(&sandbox);
    let ask = |path: &str| {
        let mut connection = page.connect();
        write!(connection, "GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("it is open");
        connection
    };
    let mut slow: Vec<_> = (0..40).map(|i| ask(if i % 2 == 0 { "/rejects" } else { "/api/live" })).collect();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let reading = std::thread::spawn(move || {
        let mut read = 0;
        while ended.recv_timeout(Duration::from_secs(1)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            read += slow.iter_mut().map(|connection| connection.read(&mut [0]).unwrap_or(0)).sum::<usize>();
        }
        read
    });
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    while began.elapsed() < Duration::from_secs(3) {
        for path in ["/", "/rejects", "/healthz"] {
            let asked = Instant::now();
            assert_eq!(page.get(path).status, 200, "{path}");
            slowest = slowest.max(asked.elapsed());
        }
    }
    drop(end);
    assert!(reading.join().expect("it does not panic") >= 40, "they were read from");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

fn loads_are_found_by_what_is_known_of_them(sandbox: &Sandbox) {
    for name in ["first", "Second"] {
        sandbox.write_events(&format!("{name}.json"), some_records(name).as_bytes());
    }
    sandbox.run(["load", "--dataset", "events"]).code(3);
    let (_process, page) = serve(sandbox);
    let found = |query: &str| -> Vec<String> {
        let loads = page.get(&format!("/api/loads?{query}")).json()["loads"].as_array().cloned().unwrap_or_default();
        let name = |load: &serde_json::Value| {
            load["source"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned()
        };
        let mut names: Vec<String> = loads.iter().map(name).collect();
        names.sort();
        names
    };
    assert_eq!(found(""), ["Second.json", "first.json"]);
    assert_eq!(found("name=SECOND"), ["Second.json"]);
    assert_eq!(found("status=loaded&dataset=events"), ["Second.json", "first.json"]);
    for nothing in ["status=failed", "dataset=orgs", "name=%25", "before=1"] {
        assert_eq!(found(nothing), [""; 0], "{nothing}");
    }
    let listed = page.get("/loads?name=second").body;
    assert!(listed.contains("Second.json") && !listed.contains("first.json"), "{listed}");
    let id = sandbox.lines("SELECT id FROM {raw.loads} WHERE source LIKE '%first.json'")[0].clone();
    let one = page.get(&format!("/loads/{id}")).body;
    assert!(one.contains("2 open rejects of this load") && one.contains(" UTC"), "{one}");
    let rejects = page.get(&format!("/rejects?load={id}")).body;
    assert!(rejects.contains("missing_required") && rejects.contains("2 records could not be loaded"), "{rejects}");
    for path in ["/loads/999999", "/loads/x", "/loads/1/2"] {
        assert_eq!(page.get(path).status, 404, "{path}");
    }
}

fn the_page_of_a_load_says_what_became_of_it_and_when(sandbox: &Sandbox) {
    sandbox.write_events("a.json", some_records("a"));
    sandbox.run(["load", "--dataset", "events"]).code(3);
    sandbox.drop_in("events", "b.json", array(&[event("b", "bob", "2024-05-02 10:00:00")]));
    sandbox.run_once().ok();
    let (_process, page) = serve(sandbox);
    let load = |name: &str| {
        let id = sandbox.lines(&format!("SELECT id FROM {{raw.loads}} WHERE source LIKE '%{name}.json'"))[0].clone();
        page.get(&format!("/loads/{id}")).body
    };
    let modelled = "<dt>modelled</dt><dd>all of its days</dd>";
    let [batch, stream] = [load("a"), load("b")];
    assert!(
        batch.contains("<dt>started</dt>") && batch.contains(" s after the start: ") && batch.contains(" records/s"),
        "{batch}"
    );
    let dropped = ["<dt>claimed</dt>", "<dt>first written</dt>", " s after the claim</span>", " s after the claim: ", " records/s"];
    assert!(dropped.iter().all(|part| stream.contains(part)), "{stream}");
    assert!(batch.contains(modelled) && stream.contains(modelled), "{batch}");
    // A day of one of them is behind.
    let marks = if sandbox.is_sqlite() { "dataloader_changed_days" } else { "dataloader.changed_days" };
    sandbox.execute(&format!("INSERT INTO {marks} (dataset, day) VALUES ('events', '2024-05-02')"));
    let [batch, stream] = [load("a"), load("b")];
    assert!(batch.contains(modelled) && stream.contains("<dt>modelled</dt><dd>not all of its days yet"), "{stream}");
}

/// A file of the repository.
fn repository(path: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of our metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let names = text.split(|c| !is_name(c)).filter(|word| word.starts_with("dataloader_"));
    names.map(|name| name.trim_end_matches("_bucket").to_owned()).collect()
}

#[test]
fn alerts_and_dashboard_use_only_metrics_that_exist_and_the_dashboard_shows_all() {
    let sandbox = Sandbox::new(Store::Sqlite);
    let (process, page) = run_with_page(&sandbox, []);
    sandbox.drop_in("events", "a.json", some_records("a"));
    sandbox.wait_until_finished("events", 1);
    let metrics = page.wait_for("/metrics", "dataloader_unaccounted_records{").body;
    let there: BTreeSet<String> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).map(str::to_owned).collect();
    assert_eq!(there, metrics_in(&repository("ops/grafana/dashboard.json")), "the dashboard");
    let alerts = metrics_in(&repository("ops/prometheus/alerts.yml"));
    assert!(alerts.len() > 4 && alerts.is_subset(&there), "{alerts:?}");
    process.signal(Signal::Terminate);
    process.wait().ok();

    // What Prometheus itself says, where it is installed: ./run.sh test does that.
    let promtool = |args: &[&str], input: &str| {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("ops/prometheus");
        Invocation::new("promtool", &directory).args(args.iter().copied()).stdin(input).run()
    };
    if std::process::Command::new("promtool").arg("--version").output().is_err() {
        eprintln!("SKIPPED: no promtool here (Debian: apt-get install prometheus)");
        return;
    }
    let checked = promtool(&["check", "metrics"], &metrics).ok();
    assert_eq!((checked.stdout.as_str(), checked.stderr.as_str()), ("", ""), "no complaint");
    promtool(&["check", "rules", "alerts.yml"], "").ok();
    promtool(&["test", "rules", "alerts.test.yml"], "").ok();
}

#[test]
fn a_report_is_one_file_that_needs_no_other() {
    let sandbox = Sandbox::new(Store::Sqlite);
    sandbox.write_events("a.json", array(&[event("1", "ada", "2024-05-01 10:00:00").replace("Acme", "<script>alert(1)")]));
    sandbox.run(["load", "--dataset", "events"]).ok();
    sandbox.run(["report", "--html", "out.html"]).ok();
    let html = std::fs::read_to_string(sandbox.file("out.html")).expect("it was written");
    assert!(
        html.contains("2024-05-01: 1 total_events") && html.contains("<svg") && html.contains("&lt;script&gt;alert(1)"),
        "{html}"
    );
    for outside in ["http://", "https://", "src=", "href=", "<script"] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert_eq!(sandbox.run(["report", "--html", "nowhere/out.html"]).code(1).stdout, "");
}

#[test]
fn status_shows_the_pipeline_of_the_directory_and_what_waits() {
    let sandbox = Sandbox::new(Store::Sqlite);
    sandbox.run(["migrate"]).ok();
    sandbox.drop_in("events", "a.json", some_records("a"));
    let before = sandbox.run(["status", "--format", "json"]).ok().json();
    assert_eq!((&before["datasets"][0]["waiting_files"], &before["pipeline"]), (&1.into(), &serde_json::json!([])));
    assert!(before["datasets"][0]["oldest_waiting_seconds"].as_f64() >= Some(0.0));
    assert!(sandbox.run(["status"]).ok().stdout.contains("events: 1 file waits in the inbox, the oldest for "));

    let pipeline = sandbox.start_pipeline();
    sandbox.wait_until_finished("events", 1);
    let mut watching = sandbox.command(["status", "--watch"]).spawn();
    wait_until("it is shown twice", || watching.stdout().matches("the pipeline waits for files").count() >= 2);
    assert!(watching.is_running());
    watching.signal(Signal::Interrupt);
    watching.wait().ok();
    let json = sandbox.run(["status", "--format", "json"]).ok().json();
    let process = &json["pipeline"][0];
    assert_eq!((&process["pid"], &process["problems"]), (&pipeline.id().into(), &serde_json::json!([])));
    let stages: Vec<&str> = process["stages"].as_array().unwrap().iter().filter_map(|stage| stage["stage"].as_str()).collect();
    assert_eq!(stages, ["intake", "reader", "parser", "batcher", "writer", "modeller"]);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn readiness_follows_a_database_that_is_stopped_and_the_page_says_so() {
    let server = PrivatePostgres::start();
    let sandbox = Sandbox::on(&server);
    let (process, page) = run_with_page(&sandbox, []);
    sandbox.drop_in("events", "a.json", some_records("a"));
    sandbox.wait_until_finished("events", 1);
    wait_until("it is ready", || page.get("/readyz").status == 200);
    page.wait_for("/", "<b>5</b> read");
    server.stop(StopMode::Fast);
    sandbox.drop_in("events", "b.json", some_records("b"));
    let unready = page.wait_for("/readyz", "database");
    assert_eq!(unready.status, 503, "{unready:?}");
    let names = [server.url().split('@').nth(1).unwrap_or_default(), "postgres", "127.0.0.1"];
    assert!(names.iter().all(|name| !unready.body.contains(name)), "{}", unready.body);
    assert_eq!(page.get("/healthz").status, 200, "restarting it mends no database");
    let away = page.wait_for("/", "The database does not answer since").body;
    for path in ["/loads", "/loads/1", "/rejects"] {
        let answer = page.get(path);
        assert!(
            answer.status == 503 && answer.body.contains("<nav") && answer.body.contains("not available"),
            "{path}: {answer:?}"
        );
    }
    assert!(away.contains("<b>3</b> loaded") && away.contains("The numbers are those of"), "what it last held, and when: {away}");
    wait_until("the metrics say so", || page.metric("dataloader_up{target=\"database\"}") == Some(0.0));
    server.restart();
    page.wait_for("/", "<b>10</b> read");
    wait_until("it is ready", || page.get("/readyz").status == 200);
    assert!(page.metric("dataloader_retries_total{target=\"database\"}") > Some(0.0));
    process.signal(Signal::Terminate);
    process.wait().ok();
}

#[test]
fn the_first_screen_is_small_whatever_there_is_to_show() {
    let sandbox = Sandbox::new(Store::Sqlite);
    for file in 0..12 {
        let record = |i: usize| {
            let day = format!("2024-{:02}-{:02} 10:00:00", 4 + i / 240, 1 + i / 8 % 28);
            event(&format!("{file}-{i}"), &format!("u{i}"), &day).replace("Acme", &format!("Organisation {} of {file}", i % 8))
        };
        let records: Vec<String> = (0..480).map(record).chain(["7".to_owned()]).collect();
        sandbox.write_events(&format!("{file}.json"), array(&records));
    }
    sandbox.run(["load", "--dataset", "events"]).code(3);
    let (_process, page) = serve(&sandbox);
    page.wait_for("/", "<b>5,772</b> read");
    let bytes: usize = ["/", "/page.css", "/page.js"].iter().map(|path| page.get(path).body.len()).sum();
    assert!(bytes <= 60_000, "{bytes} bytes");
    assert!(page.get("/page.js").body.len() <= 10_000);
}
