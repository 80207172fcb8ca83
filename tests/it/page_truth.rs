//! What page, metrics and readiness say is true at every moment, whatever happens to the database meanwhile.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{Page, PrivatePostgres, Sandbox, Signal, StopMode, event, events_over_days, wait_until};

/// Read, loaded, rejected, skipped, in flight.
type Sums = [i64; 5];

/// The conservation lines in a text of the page, or in its live parts, by dataset.
fn sums(text: &str) -> Vec<(String, Sums)> {
    let text = text.replace("\\\"", "\"");
    let of_dataset = |part: &str| {
        let (dataset, line) = part.split_once('"')?;
        let number = |value: &str| value.split_once("</b>")?.0.replace(',', "").parse().ok();
        let numbers: Vec<i64> = line.split("<b>").skip(1).take(5).map(|value| number(value).unwrap_or(i64::MIN)).collect();
        Some((dataset.to_owned(), numbers.try_into().ok()?))
    };
    text.split("id=\"sum-").skip(1).filter_map(of_dataset).collect()
}

/// What was seen so far, and the judgement of what is seen next.
#[derive(Default)]
struct Judge {
    last: BTreeMap<String, Sums>,
    looked: usize,
}

impl Judge {
    /// Each line adds up; nothing that was read or loaded is ever less than before, or more than was dropped.
    fn page(&mut self, text: &str, dropped: i64) {
        for (dataset, now) in sums(text) {
            let [read, loaded, rejected, skipped, in_flight] = now;
            assert_eq!(read, loaded + rejected + skipped + in_flight, "{dataset}: {now:?}");
            let before = self.last.insert(dataset, now).unwrap_or_default();
            assert!(before[0] <= read && before[1] <= loaded && before[2] <= rejected, "{before:?}, then {now:?}");
            assert!(now.iter().all(|count| *count >= 0) && read <= dropped, "{now:?} of {dropped}");
            self.looked += 1;
        }
        assert!(!text.contains(" missing: ledger"), "{text}");
    }

    /// The counters neither fall nor exceed what was dropped, the gauges keep to their bounds.
    fn metrics(&mut self, text: &str, dropped: i64) {
        let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).unwrap_or(f64::NAN);
        let sum = |name: &str| -> f64 { text.lines().filter(|line| line.starts_with(name)).map(value).sum() };
        #[expect(clippy::cast_possible_truncation, reason = "a few thousand records")]
        let records = sum("dataloader_records_total{dataset=\"events\"") as i64;
        let before = self.last.insert("the counters".to_owned(), [records; 5]).unwrap_or_default();
        assert!(before[0] <= records && records <= dropped, "{before:?}, then {records} of {dropped}");
        assert!(sum("dataloader_unaccounted_records").abs() < 0.5, "{text}");
        assert!(sum("dataloader_in_flight_bytes") <= sum("dataloader_in_flight_limit_bytes"), "{text}");
    }
}

/// Looks at everything until told to stop. Returns the reasons why it was not ready, and how often it looked.
fn watch(page: Page, is_over: &AtomicBool, dropped: i64) -> (Vec<String>, usize) {
    let (mut judge, mut reasons) = (Judge::default(), Vec::new());
    while !is_over.load(Ordering::Relaxed) {
        judge.page(&page.get("/").body, dropped);
        judge.metrics(&page.get("/metrics").body, dropped);
        let ready = page.get("/readyz");
        match ready.status {
            200 => assert_eq!(ready.body, "ready\n"),
            status => {
                assert!(status == 503 && !ready.body.trim().is_empty(), "{ready:?}");
                reasons.push(ready.body);
            }
        }
        assert_eq!(page.get("/healthz").status, 200);
    }
    (reasons, judge.looked)
}

/// Follows the live parts until told to stop, and returns how many lines they had.
fn follow(page: Page, is_over: &AtomicBool, dropped: i64) -> usize {
    let mut stream = page.connect();
    stream.write_all(b"GET /api/live HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("it is open");
    let (mut judge, mut text, mut part) = (Judge::default(), Vec::new(), [0; 65_536]);
    while !is_over.load(Ordering::Relaxed) {
        // Something comes every second.
        let read = stream.read(&mut part).expect("it goes on");
        assert!(read > 0, "the stream ended");
        text.extend_from_slice(&part[..read]);
        while let Some(end) = text.windows(2).position(|two| two == b"\n\n") {
            let event: Vec<u8> = text.drain(..end + 2).collect();
            judge.page(&String::from_utf8_lossy(&event), dropped);
        }
    }
    judge.looked
}

/// Sets the flag when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn every_moment_is_true_while_a_private_database_is_stopped_and_started() {
    const LARGE: usize = 20_000;
    let server = PrivatePostgres::start();
    let sandbox = Sandbox::on(&server);
    let mut process = sandbox.pipeline(["--http", "0"]).spawn();
    let page = Page::of(&mut process);
    process.wait_for_stderr("watching ");
    let small = |name: &str| {
        let good: String = (0..35).map(|i| event(&format!("{name}{i}"), "ada", "2024-05-01 10:00:00") + "\n").collect();
        sandbox.drop_in("events", format!("{name}.jsonl"), good + "7\n");
    };
    let dropped = 10 * 36 + LARGE;
    let (is_over, total) = (AtomicBool::new(false), i64::try_from(dropped).expect("it fits"));
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(page, &is_over, total));
        let following = scope.spawn(|| follow(page, &is_over, total));
        // Whatever fails, the others end.
        let over = Over(&is_over);
        (0..5).for_each(|i| small(&format!("before{i}")));
        sandbox.wait_until_finished("events", 5);
        server.stop(StopMode::Fast);
        (0..5).for_each(|i| small(&format!("away{i}")));
        sandbox.drop_in("events", "large.jsonl", events_over_days("large", LARGE));
        page.wait_for("/readyz", "database");
        wait_until("it is read as far as memory allows", || page.metric("dataloader_in_flight_bytes") > Some(100_000.0));
        server.restart();
        sandbox.wait_until_finished("events", 11);
        page.wait_for("/", "<b>20,350</b> loaded");
        page.wait_for("/readyz", "ready\n");
        drop(over);
        let (reasons, looked) = watching.join().expect("all of it was true");
        assert!(reasons.iter().any(|reason| reason.contains("database")), "{reasons:?}");
        assert!(looked > 10, "{looked}");
        assert!(following.join().expect("all of it was true") > 0);
    });
    process.signal(Signal::Terminate);
    process.wait().ok();
}
