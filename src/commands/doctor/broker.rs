//! RabbitMQ: reachable, recent enough, its queues and their arguments, dead letters, alarms.

use super::Check;
use crate::config::Config;
use crate::counted::counted;
use crate::transport::amqp::checkup::{Found, QueueState, examine as look_at};
use crate::transport::amqp::connection::Broker;
use crate::transport::amqp::topology::Topology;

/// Dead letters need `at-least-once`, which came with it.
const OLDEST: (u32, u32) = (3, 10);

pub(super) async fn examine(config: &Config) -> Vec<Check> {
    let topology = Topology::new(&config.queue_prefix, &config.datasets).map(|topology| topology.with_queues(config.queues));
    let (broker, topology) = match Broker::new(&config.amqp_url).and_then(|broker| Ok((broker, topology?))) {
        Ok(both) => both,
        Err(error) => return vec![Check::failed("broker", &error)],
    };
    match look_at(&broker, &topology).await {
        Err(error) => vec![Check::failed("broker", &error)],
        Ok(found) => report(&broker, &topology, &found, &config.queue_prefix),
    }
}

fn report(broker: &Broker, topology: &Topology, found: &Found, prefix: &str) -> Vec<Check> {
    let mut checks = vec![answers(broker, found.version.as_deref())];
    if let Some(takes_messages) = found.takes_messages {
        checks.push(if takes_messages {
            Check::ok("broker alarms", "it takes messages")
        } else {
            let why = "it takes no messages: an alarm of memory or disk";
            Check::fail("broker alarms", why, "rabbitmqctl status, then make room on the broker")
        });
    }
    let dead = topology.dead_letters();
    for (queue, state) in &found.queues {
        let check = format!("queue {queue}");
        checks.push(match state {
            QueueState::Missing => Check::ok(check, "it is not there yet; a run declares it"),
            QueueState::Differs(error) => Check::fail(
                check,
                format!("it exists with other arguments: {error}"),
                format!("rabbitmqctl delete_queue {queue} --if-empty, or choose another --queue-prefix than {prefix}"),
            ),
            QueueState::Refused(error) => {
                let mend = format!("rabbitmqctl set_permissions USER '{prefix}.*' '{prefix}.*' '{prefix}.*'");
                Check::fail(check, format!("this user may not declare it: {error}"), mend)
            }
            QueueState::There { messages } => {
                let waiting = |what| counted(u64::from(*messages), what);
                let why = format!("waiting: {}; its arguments fit", waiting("message"));
                if *messages > 0 && queue.as_str() == dead.as_str() {
                    Check::warn(
                        check,
                        format!("waiting: {}", waiting("dead letter")),
                        "dataloader rejects list, then `dataloader rejects replay`",
                    )
                } else {
                    Check::ok(check, why)
                }
            }
        });
    }
    checks
}

fn answers(broker: &Broker, version: Option<&str>) -> Check {
    let Some(version) = version else {
        return Check::ok("broker", format!("{broker} answers; its version is not known"));
    };
    let why = format!("{broker} answers: RabbitMQ {version}");
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < OLDEST {
        Check::fail("broker", why, "upgrade the broker to RabbitMQ 3.10 or later")
    } else {
        Check::ok("broker", why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::Level;
    use crate::config::SecretUrl;

    #[test]
    fn a_broker_without_at_least_once_dead_letters_is_too_old() {
        let broker = Broker::new(&SecretUrl::parse_amqp("amqp://u:p@h").unwrap()).unwrap();
        let status = |version| answers(&broker, Some(version)).status;
        assert_eq!(["3.9.29", "3.10.0", "4.1.2"].map(status), [Level::Fail, Level::Ok, Level::Ok]);
    }
}
