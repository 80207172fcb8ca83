//! Several queues for each dataset, and a number of them that changes.

use crate::support::{Sandbox, Store, Transport, many_events, wait_until};

const FILES: u32 = 60;
const NAMES: [&str; 4] = ["events", "events.2", "events.3", "events.4"];

fn configure(sandbox: &Sandbox, queues: u16) {
    let defaults = include_str!("../../../dataloader.toml");
    sandbox.write("dataloader.toml", format!("{defaults}\n[amqp]\nqueues = {queues}\n"));
}

fn publish_files(sandbox: &Sandbox, name: &str) {
    for number in 0..FILES {
        sandbox.drop_in("events", format!("{name}-{number}.jsonl"), many_events(10, &format!("{name}-{number}")));
    }
    sandbox.run(["run", "--once", "--role", "producer"]).ok();
}

/// Deletes the queues that a sandbox does not know of.
struct MoreQueues<'s>(&'s Sandbox);

impl Drop for MoreQueues<'_> {
    fn drop(&mut self) {
        for name in ["events", "orgs"].iter().flat_map(|dataset| (2..=4).map(move |number| format!("{dataset}.{number}"))) {
            self.0.queues().delete_queue(&name);
        }
    }
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn amqp_files_are_spread_over_the_queues_of_a_dataset_and_another_number_of_them_loses_nothing() {
    let sandbox = Sandbox::over(Transport::Amqp, Store::Sqlite);
    let _more = MoreQueues(&sandbox);
    configure(&sandbox, 4);
    publish_files(&sandbox, "four");
    // A chunk and an end of each file.
    wait_until("all messages wait", || NAMES.map(|name| sandbox.queues().waiting(name)).iter().sum::<u32>() == 2 * FILES);
    assert!(NAMES.iter().all(|name| sandbox.queues().waiting(name) > 0), "each queue has its share");

    configure(&sandbox, 2);
    publish_files(&sandbox, "two");
    configure(&sandbox, 1);
    sandbox.run(["run", "--once", "--role", "consumer"]).ok();
    assert_eq!(sandbox.count("raw.events"), 2 * 10 * u64::from(FILES));

    publish_files(&sandbox, "one");
    assert_eq!(NAMES.map(|name| sandbox.queues().waiting(name) > 0), [true, false, false, false]);
    configure(&sandbox, 4);
    sandbox.run(["run", "--once", "--role", "consumer"]).ok();
    assert_eq!(sandbox.count("raw.events"), 3 * 10 * u64::from(FILES));
    assert!(sandbox.run(["doctor", "--format", "json"]).stdout.contains("events.4"), "doctor looks at all queues");
    sandbox.assert_settled();
}

#[test]
#[ignore = "needs RabbitMQ: ./run.sh test"]
fn amqp_messages_that_come_again_are_taken_from_every_queue() {
    let sandbox = Sandbox::over(Transport::Amqp, Store::Sqlite);
    let _more = MoreQueues(&sandbox);
    configure(&sandbox, 4);
    publish_files(&sandbox, "again");
    // Taken and returned: every message comes again.
    NAMES.iter().for_each(|name| drop(sandbox.queues().peek(name)));
    sandbox.run(["run", "--once", "--role", "consumer"]).ok();
    assert_eq!(sandbox.count("raw.events"), 10 * u64::from(FILES));
    sandbox.assert_settled();
}
