//! What every test starts from: a [`Sandbox`] with a working directory and a database of its own, in which the real
//! binary runs; and servers of its own ([`PrivatePostgres`], [`PrivateRabbit`]) for a test that breaks them.
#![allow(dead_code)] // A toolbox: not every tool is in use at every time.

mod database; // a sandbox's database, read as text alike on both stores
mod fifo; // input that does not end
mod process; // the binary: run to its end, or in the background
mod records; // what it loads
mod sandbox;
mod servers; // servers that a test may stop, kill and restart
mod stream; // a pipeline, its inbox, and what must be true afterwards

use std::time::{Duration, Instant};

pub use database::{Cell, Store};
pub use fifo::Fifo;
pub use process::{Background, Invocation, Outcome, Signal};
pub use records::{array, event, many_events, write_samples};
pub use sandbox::Sandbox;
pub use servers::{PrivatePostgres, PrivateRabbit, StopMode};
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
        mod sqlite {
            use $crate::support::{Sandbox, Store};
            $(
                #[test]
                fn $test() {
                    super::$test(&Sandbox::new(Store::Sqlite));
                }
            )+
        }
        mod postgres {
            use $crate::support::{Sandbox, Store};
            $(
                #[test]
                #[ignore = "needs PostgreSQL: ./run.sh test"]
                fn $test() {
                    super::$test(&Sandbox::new(Store::Postgres));
                }
            )+
        }
    };
}
pub(crate) use on_both_stores;
