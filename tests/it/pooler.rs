//! PostgreSQL behind PgBouncer: session pooling works, and transaction pooling is recognised.

use crate::support::{Pooler, Sandbox, Signal, Store, many_events, write_samples};

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_private_pgbouncer_with_session_pooling_serves_all_commands() {
    let sandbox = Sandbox::new(Store::Postgres);
    let Some(pooler) = Pooler::before(&sandbox.database_url(), "session") else { return };
    write_samples(&sandbox);
    let command = |command: &str| sandbox.command(command.split(' ')).env("DATABASE_URL", pooler.url());
    for line in ["migrate", "load", "load --new", "report", "status", "doctor"] {
        command(line).run().ok();
    }
    let mut pipeline = command("run").spawn();
    pipeline.wait_for_stderr("watching ");
    sandbox.drop_in("events", "x.jsonl", many_events(10_000, "ada") + "{}");
    sandbox.wait_until_finished("events", 1);
    pipeline.signal(Signal::Terminate);
    pipeline.wait().ok();
    for line in ["rejects replay", "unload 1", "model --check", "verify"] {
        command(line).run().ok();
    }
    sandbox.assert_booked();
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn a_private_pgbouncer_that_pools_transactions_is_recognised() {
    let sandbox = Sandbox::new(Store::Postgres);
    for mode in ["transaction", "statement"] {
        let Some(pooler) = Pooler::before(&sandbox.database_url(), mode) else { return };
        write_samples(&sandbox);
        for command in ["load", "run", "status"] {
            let outcome = sandbox.command([command]).env("DATABASE_URL", pooler.url()).run().code(4);
            assert!(outcome.stderr.contains("gives each transaction another session"), "{}", outcome.stderr);
            assert!(outcome.stderr.contains("`pool_mode = session`"), "{}", outcome.stderr);
        }
    }
    let tables = "SELECT count(*) FROM pg_namespace WHERE nspname IN ('raw', 'modelled', 'dataloader')";
    assert_eq!(sandbox.lines(tables), ["0"]);
}
