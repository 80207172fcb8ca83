//! What every test starts from: a [`Sandbox`] with a working directory and a database of its own, in which the real
//! binary runs; and servers of its own ([`PrivatePostgres`], [`PrivateRabbit`]) for a test that breaks them, or a network of
//! its own ([`Proxy`]) in front of the shared ones.
#![allow(dead_code)] // A toolbox: not every tool is in use at every time.

mod browser; // Chromium
mod database; // a sandbox's database, read as text alike on both stores
mod disk; // a disk that fails, or takes its time
mod http; // the page, asked without a browser
mod fifo; // input that does not end
mod lock; // writers that wait
mod pooler; // PgBouncer
mod process; // the binary: run to its end, or in the background
mod proxy; // a network that a test may hold
mod queues; // a test's queues, seen from the outside
mod records; // what it loads
mod sandbox;
mod servers; // servers that a test may stop, kill and restart
mod stopped; // server processes that hang
mod stream; // a pipeline, its inbox, and what must be true afterwards

use std::time::{Duration, Instant};

pub use browser::Browser;
pub use database::{Cell, Store};
pub use disk::FaultyDisk;
pub use fifo::Fifo;
pub use http::Page;
pub use lock::WriteLock;
pub use pooler::Pooler;
pub use process::{Background, Invocation, Outcome, Signal};
pub use proxy::{Proxy, host_of, several_hosts};
pub use queues::{Message, Queues, Transport};
pub use records::{array, event, gzip, host_name, many_events, sha256, write_samples};
pub use sandbox::Sandbox;
pub use servers::{PrivatePostgres, PrivateRabbit, StopMode};
pub use stopped::Stopped;
pub use stream::{Choices, events_over_days, only_file};

/// How long anything may take before a test gives up on it: far more than needed, so that a loaded machine fails nothing.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Returns as soon as `condition` holds; panics with `what` when it does not within [`PATIENCE`]. The one place where
/// tests pause: other programs offer nothing to wait on.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Makes each of these functions, `fn(&Sandbox)`, a test on SQLite and one on PostgreSQL: `sqlite::name`, `postgres::name`.
/// Once per module. The functions stay ordinary code, and one that is not listed is reported as unused.
macro_rules! on_both_stores {
    ($($test:ident),+ $(,)?) => {
        $crate::support::tests_in!(sqlite, Inproc, Sqlite, [$($test)+]);
        $crate::support::tests_in!(postgres, Inproc, Postgres, needs "needs PostgreSQL: ./run.sh test", [$($test)+]);
    };
}
pub(crate) use on_both_stores;

/// The same for the pipeline, which runs in one process or over RabbitMQ: four tests of each function, `inproc_sqlite::name`,
/// `inproc_postgres::name`, `amqp_sqlite::name` and `amqp_postgres::name`.
macro_rules! on_every_pipeline {
    ($($test:ident),+ $(,)?) => {
        $crate::support::tests_in!(inproc_sqlite, Inproc, Sqlite, [$($test)+]);
        $crate::support::tests_in!(inproc_postgres, Inproc, Postgres, needs "needs PostgreSQL: ./run.sh test", [$($test)+]);
        $crate::support::over_amqp!($($test),+);
    };
}
pub(crate) use on_every_pipeline;

/// Two tests of each function, those over RabbitMQ.
macro_rules! over_amqp {
    ($($test:ident),+ $(,)?) => {
        $crate::support::tests_in!(amqp_sqlite, Amqp, Sqlite, needs "needs RabbitMQ: ./run.sh test", [$($test)+]);
        $crate::support::tests_in!(
            amqp_postgres, Amqp, Postgres, needs "needs PostgreSQL and RabbitMQ: ./run.sh test", [$($test)+]
        );
    };
}
pub(crate) use over_amqp;

/// A module with a test of each function in a sandbox of its own; ignored where it needs a server.
macro_rules! tests_in {
    ($module:ident, $transport:ident, $store:ident, [$($test:ident)+]) => {
        mod $module {
            use $crate::support::{Sandbox, Store, Transport};
            $(
                #[test]
                fn $test() {
                    super::$test(&Sandbox::over(Transport::$transport, Store::$store));
                }
            )+
        }
    };
    ($module:ident, $transport:ident, $store:ident, needs $what:literal, [$($test:ident)+]) => {
        mod $module {
            use $crate::support::{Sandbox, Store, Transport};
            $(
                #[test]
                #[ignore = $what]
                fn $test() {
                    super::$test(&Sandbox::over(Transport::$transport, Store::$store));
                }
            )+
        }
    };
}
pub(crate) use tests_in;
