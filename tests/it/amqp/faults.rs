//! A broker that stops, blocks, forgets or refuses.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Instant;

use dataloader::retry::{GIVE_UP_AFTER, RetryPolicy};
use dataloader::transport::amqp::consumer::Phase;
use lapin::types::{AMQPValue, FieldTable};

use super::commit;
use super::rig::{IN_FLIGHT, Rig, RunningPublisher, Seen, broker, lines};
use crate::support::{PrivateRabbit, wait_until};

/// Publishes so many files while `disturb` is called after every tenth; returns what they consist of.
fn publish_while(publisher: &RunningPublisher, rig: &Rig, files: usize, mut disturb: impl FnMut(usize)) -> BTreeSet<Seen> {
    let text = lines(2_000);
    let (mut keys, mut parts) = (Vec::new(), BTreeSet::new());
    for file in 1..=files {
        let (key, more) = publisher.publish(&rig.dataset("events"), &text);
        keys.push(key);
        parts.extend(more);
        if file % 10 == 0 {
            disturb(file);
        }
    }
    keys.into_iter().for_each(|key| publisher.wait_finished(key));
    assert_eq!(publisher.budget.available_permits(), IN_FLIGHT, "what is confirmed is not held");
    parts
}

/// Disturbs a publisher and a consumer at work; nothing may be lost, and both go on by themselves.
fn nothing_is_lost(rig: &Rig, files: usize, disturb: impl FnMut(usize)) {
    let consumer = rig.consumer(RetryPolicy::Forever, commit);
    let publisher = rig.publisher(RetryPolicy::Forever);
    let parts = publish_while(&publisher, rig, files, disturb);
    consumer.wait_for(&parts);
    publisher.end(rig).expect("all was confirmed");
    // Acknowledgements survive as well: nothing comes a second time for good.
    consumer.end(rig, Phase::UntilEmpty).expect("all was settled");
    assert_eq!((rig.queues.waiting("events"), rig.queues.waiting("dead")), (0, 0));
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn a_broker_that_is_stopped_killed_and_started_under_load_loses_nothing() {
    let node = PrivateRabbit::start();
    let rig = Rig::on(node.url());
    nothing_is_lost(&rig, 30, |file| {
        match file {
            10 => node.stop(),
            20 => node.kill(),
            _ => return,
        }
        node.restart();
    });
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn connections_that_are_closed_under_load_lose_nothing() {
    let node = PrivateRabbit::start();
    let rig = Rig::on(node.url());
    nothing_is_lost(&rig, 40, |_| drop(node.ctl(&["close_all_connections", "for the test"])));
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn a_disk_alarm_holds_the_publisher_and_not_the_consumer() {
    let node = PrivateRabbit::start();
    let rig = Rig::on(node.url());
    let publisher = rig.publisher(RetryPolicy::Forever);
    let (first, parts) = publisher.publish(&rig.dataset("events"), &lines(20_000));
    publisher.wait_finished(first);
    node.ctl(&["set_disk_free_limit", "100000GB"]);
    wait_until("the alarm is up", || node.ctl(&["list_connections", "state"]).contains("block"));
    let (second, more) = publisher.publish(&rig.dataset("events"), &lines(2_000));
    // What is in the queues can be loaded all the same, and what cannot waits for its turn.
    let consumer = rig.consumer(RetryPolicy::Forever, commit);
    consumer.wait_for(&parts);
    wait_until("it is acknowledged", || rig.queues.waiting("events") == 0);
    assert!(publisher.finished.lock().iter().all(|published| published.load.key != second));
    assert!(!publisher.has_ended() && !consumer.has_ended());
    node.ctl(&["set_disk_free_limit", "50MB"]);
    publisher.wait_finished(second);
    consumer.wait_for(&more);
    publisher.end(&rig).expect("all was confirmed");
    consumer.end(&rig, Phase::UntilEmpty).expect("all was settled");
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn a_queue_that_is_deleted_under_the_publisher_is_declared_again() {
    let rig = Rig::new();
    let publisher = rig.publisher(RetryPolicy::Forever);
    publish_while(&publisher, &rig, 10, |_| {});
    rig.queues.delete_queue("events");
    let parts = publish_while(&publisher, &rig, 10, |_| {});
    let consumer = rig.consumer(RetryPolicy::Limited, commit);
    consumer.wait_for(&parts);
    publisher.end(&rig).expect("all was confirmed");
    consumer.end(&rig, Phase::Drain).expect("all was settled");
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn a_queue_that_is_deleted_under_the_consumer_is_consumed_again() {
    let rig = Rig::new();
    let consumer = rig.consumer(RetryPolicy::Forever, commit);
    let publisher = rig.publisher(RetryPolicy::Forever);
    consumer.wait_for(&publish_while(&publisher, &rig, 10, |_| {}));
    rig.queues.delete_queue("events");
    consumer.wait_for(&publish_while(&publisher, &rig, 10, |_| {}));
    publisher.end(&rig).expect("all was confirmed");
    consumer.end(&rig, Phase::Drain).expect("all was settled");
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn what_is_not_confirmed_is_published_again_under_the_same_names() {
    let node = PrivateRabbit::start();
    let rig = Rig::on(node.url());
    let publisher = rig.publisher(RetryPolicy::Forever);
    let events = rig.dataset("events");
    let text = lines(5_000);
    let (key, parts) = publisher.publish(&events, &text);
    publisher.wait_finished(key);
    // A process that was killed before it heard of the confirmation reads the file again.
    assert_eq!(publisher.publish_as(key, &events, &text), parts);
    wait_until("it is confirmed again", || publisher.finished.lock().len() == 2);
    let consumer = rig.consumer(RetryPolicy::Forever, commit);
    wait_until("each part comes twice", || consumer.seen.lock().len() == 2 * parts.len());
    assert_eq!(consumer.seen.lock().iter().copied().collect::<BTreeSet<_>>(), parts);
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn wrong_credentials_and_vhosts_are_refused_at_once_and_shown_without_the_password() {
    let rig = Rig::new();
    let (front, host) = rig.queues.url().split_once('@').expect("the URL of a private server has a user");
    let scheme = front.split_once("://").expect("a URL").0;
    let host_only = host.split('/').next().expect("a host");
    let cases = [
        (format!("{scheme}://guest:wr0ngpass@{host}"), "Login was refused"),
        (format!("{front}@{host_only}/nowhere"), "vhost nowhere not found"),
    ];
    for (url, expected) in cases {
        let wrong = Rig::on(&url);
        let publisher = wrong.publisher(RetryPolicy::Forever).end_by_itself(&wrong).expect_err("refused");
        let consumer = wrong.consumer(RetryPolicy::Forever, commit).end(&wrong, Phase::Run).expect_err("refused");
        let list = wrong.dead_letters_of(&broker(&url)).expect_err("refused");
        for error in [publisher, consumer, list] {
            assert_eq!(error.exit_code(), 4);
            assert!(error.message().contains(expected), "{error}");
            assert!(!error.to_string().contains("wr0ngpass"), "{error}");
        }
    }
}

#[test]
fn a_broker_that_is_not_there_is_given_up_after_ten_seconds() {
    // A privileged port: no server of another test can come to sit there.
    let rig = Rig::on("amqp://guest:guest@127.0.0.1:1");
    let started = Instant::now();
    let consumer = rig.consumer(RetryPolicy::Limited, commit);
    let publisher = rig.publisher(RetryPolicy::Limited);
    publisher.publish(&rig.dataset("events"), b"{}");
    for error in [publisher.end(&rig).expect_err("away"), consumer.end(&rig, Phase::UntilEmpty).expect_err("away")] {
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("Connection refused"), "{error}");
    }
    assert!(started.elapsed() >= GIVE_UP_AFTER, "{:?}", started.elapsed());
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn a_broker_that_is_not_there_yet_is_waited_for() {
    let node = PrivateRabbit::start();
    let rig = Rig::on(node.url());
    node.stop();
    let consumer = rig.consumer(RetryPolicy::Forever, commit);
    let publisher = rig.publisher(RetryPolicy::Forever);
    let (key, parts) = publisher.publish(&rig.dataset("events"), &lines(100));
    node.restart();
    publisher.wait_finished(key);
    consumer.wait_for(&parts);
    // Without a broker there is nothing to drain for.
    node.stop();
    publisher.end(&rig).expect("all was confirmed");
    consumer.end(&rig, Phase::Drain).expect("all was settled");
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn a_queue_with_other_arguments_is_an_error_that_says_which() {
    let rig = Rig::new();
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(20));
    rig.queues.declare("dead", arguments).expect("somebody else's queue");
    let publisher = rig.publisher(RetryPolicy::Forever).end_by_itself(&rig);
    let consumer = rig.consumer(RetryPolicy::Forever, commit).end(&rig, Phase::Run);
    for error in [publisher.expect_err("it differs"), consumer.expect_err("it differs")] {
        assert_eq!(error.exit_code(), 1);
        let text = error.to_string();
        for part in [&rig.queues.name("dead"), "x-delivery-limit", "'1000000'", "'20'", "--queue-prefix"] {
            assert!(text.contains(part), "{text}");
        }
    }
}

/// The broker of a process that trusts its certificate: this test's own binary, started once more.
const TLS_URL: &str = "DATALOADER_TEST_TLS_URL";

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn tls_is_spoken_with_a_broker_whose_certificate_is_trusted() {
    if let Ok(url) = std::env::var(TLS_URL) {
        let rig = Rig::on(&url);
        let consumer = rig.consumer(RetryPolicy::Limited, commit);
        let publisher = rig.publisher(RetryPolicy::Limited);
        let (key, parts) = publisher.publish(&rig.dataset("events"), &lines(5_000));
        publisher.wait_finished(key);
        consumer.wait_for(&parts);
        publisher.end(&rig).expect("all was confirmed");
        consumer.end(&rig, Phase::UntilEmpty).expect("all was settled");
        return;
    }
    let node = PrivateRabbit::start();
    let file = |name: &str| node.path().join(name).to_str().expect("a plain path").to_owned();
    let (key, certificate) = (file("key.pem"), file("certificate.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", &key, "-out", &certificate])
        .output()
        .expect("openssl can be run");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::set_permissions(&key, Permissions::from_mode(0o644)).expect("the key is ours");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    node.ctl(&[
        "eval",
        &format!(
            "rabbit_networking:start_ssl_listener({{\"127.0.0.1\", {port}, inet}}, \
             [{{certfile, \"{certificate}\"}}, {{keyfile, \"{key}\"}}], 1)."
        ),
    ]);
    let url = format!("amqps://guest:guest@localhost:{port}");
    let rig = Rig::on(&url);
    let error = rig.dead_letters().expect_err("nobody vouches for it");
    assert!(error.to_string().contains("certificate"), "{error}");
    let trusting = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "--ignored", "amqp::faults::tls_is_spoken_with_a_broker_whose_certificate_is_trusted"])
        .env("SSL_CERT_FILE", &certificate)
        .env(TLS_URL, &url)
        .output()
        .expect("this binary runs");
    let text = String::from_utf8_lossy(&trusting.stdout);
    assert!(trusting.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&trusting.stderr));
}
