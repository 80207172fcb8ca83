//! The three roles of docs/operations.md: an owner of the schemas, a writer, a reader. Each does its work with no right more.

use crate::support::{Invocation, Page, Sandbox, Signal, Store, many_events, write_samples};

/// Names of the document, which on the shared server are those of one test.
const ROLES: [&str; 3] = ["dataloader_owner", "dataloader_writer", "dataloader_reader"];

/// The roles of one test, dropped with all that they own.
struct Roles<'s> {
    sandbox: &'s Sandbox,
    suffix: String,
}

impl<'s> Roles<'s> {
    /// Runs the first block of statements in the document.
    fn new(sandbox: &'s Sandbox) -> Self {
        let roles = Self { sandbox, suffix: uuid::Uuid::now_v7().simple().to_string() };
        roles.execute_block(0);
        roles
    }

    /// Runs a block of the statements in the document, with the names of this test.
    fn execute_block(&self, number: usize) {
        let page =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).expect("the document is there");
        let section = page.split("### Roles in PostgreSQL").nth(1).expect("the document has the section");
        let block = section.split("```sql\n").nth(number + 1).and_then(|rest| rest.split("```").next()).expect("a block");
        let named = ROLES.iter().fold(block.to_owned(), |sql, role| sql.replace(role, &self.name(role)));
        self.sandbox.execute(&named);
    }

    fn name(&self, role: &str) -> String {
        // At most 63 bytes.
        format!("{}_{}", role.replace("dataloader", "dl"), self.suffix)
    }

    /// The program, run by one of the roles.
    fn run(&self, role: &str, command: &str) -> Invocation {
        let url = self.sandbox.database_url();
        let (_, address) = url.split_once('@').expect("a user in the URL");
        let url = format!("postgres://{}:choose%20one@{address}", self.name(&format!("dataloader_{role}")));
        self.sandbox.command(command.split(' ')).env("DATABASE_URL", &url)
    }
}

impl Drop for Roles<'_> {
    fn drop(&mut self) {
        for role in ROLES {
            let name = self.name(role);
            self.sandbox.execute(&format!("DROP OWNED BY {name} CASCADE; DROP ROLE {name}"));
        }
    }
}

const INDEX: &str = "may not `create index";

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn each_of_the_three_roles_does_its_work() {
    let sandbox = Sandbox::new(Store::Postgres);
    let roles = Roles::new(&sandbox);
    write_samples(&sandbox);
    let refused = roles.run("writer", "load").run().code(1);
    assert!(refused.stderr.contains("`dataloader migrate` as the owner"), "{}", refused.stderr);
    assert!(roles.run("reader", "status").run().ok().stdout.contains("has no tables"));
    roles.run("owner", "doctor").run().ok();

    roles.run("owner", "migrate").run().ok();
    let loaded = roles.run("writer", "load").run().ok();
    assert!(loaded.stderr.contains(INDEX), "{}", loaded.stderr);
    roles.run("owner", "migrate").run().ok();
    // More than a megabyte in the delta, which its owner would truncate.
    sandbox.write("many.jsonl", many_events(12_000, "ada"));
    for _ in 0..2 {
        let loaded = roles.run("writer", "load --dataset events many.jsonl").run().ok();
        assert!(!loaded.stderr.contains(INDEX), "{}", loaded.stderr);
    }
    sandbox.drop_in("events", "x.jsonl", many_events(100, "ben") + "{}");
    sandbox.drop_in("orgs", "x.json", r#"{"organization_key":"a"}"#);
    roles.run("writer", "run --once").run().code(3);
    for command in ["rejects replay", "rejects discard", "unload 1", "model --full", "model --check", "doctor"] {
        roles.run("writer", command).run().ok();
    }
    assert_eq!(sandbox.lines("SELECT count(*) > 12000 FROM {raw.events}"), ["1"]);

    for command in ["report", "status", "verify", "rejects list", "rejects export", "load --dry-run"] {
        roles.run("reader", command).run().ok();
    }
    assert!(roles.run("reader", "load").run().code(1).stderr.contains("cannot be written"));
    let mut page = roles.run("reader", "serve --http 0").spawn();
    assert_eq!(Page::of(&mut page).get("/api/status").status, 200);
    page.signal(Signal::Terminate);
    page.wait().ok();
    sandbox.assert_booked();
}

#[test]
#[ignore = "needs PostgreSQL: ./run.sh test"]
fn what_only_the_owner_may_do_is_said_and_done_by_it() {
    let sandbox = Sandbox::new(Store::Postgres);
    write_samples(&sandbox);
    sandbox.run(["load"]).ok();
    // Tables that are there are handed over, then the roles get their rights on them.
    for schema in ["raw", "modelled", "dataloader"] {
        sandbox.execute(&format!("ALTER SCHEMA {schema} RENAME TO {schema}_there"));
    }
    let roles = Roles::new(&sandbox);
    for schema in ["raw", "modelled", "dataloader"] {
        let owner = roles.name("dataloader_owner");
        sandbox.execute(&format!(
            "DROP SCHEMA {schema}; ALTER SCHEMA {schema}_there RENAME TO {schema}; ALTER SCHEMA {schema} OWNER TO {owner}; \
             DO $$ DECLARE name text; BEGIN FOR name IN SELECT c.oid::regclass FROM pg_class c WHERE relkind IN ('r', 'v') \
             AND relnamespace = '{schema}'::regnamespace LOOP EXECUTE format('ALTER TABLE %s OWNER TO {owner}', name); END LOOP; END $$; \
             GRANT USAGE ON SCHEMA {schema} TO {}, {}",
            roles.name("dataloader_writer"),
            roles.name("dataloader_reader"),
        ));
    }
    roles.execute_block(1);
    roles.run("writer", "load").run().ok();
    sandbox.write(
        "dataloader.toml",
        include_str!("../../dataloader.toml")
            .replace("plan_name         = \"text\"", "plan_name = \"text\"\nplan_price = \"numeric\""),
    );
    let refused = roles.run("writer", "load").run().code(1);
    assert!(refused.stderr.contains("as the owner of the schemas"), "{}", refused.stderr);
    let doctor = roles.run("writer", "doctor").run().ok();
    assert!(doctor.stdout.contains("alter table raw.\"events\" add column"), "{}", doctor.stdout);
    roles.run("owner", "migrate").run().ok();
    roles.run("writer", "load").run().ok();
    sandbox.execute(&format!("REVOKE INSERT ON raw.loads FROM {}", roles.name("dataloader_writer")));
    let doctor = roles.run("writer", "doctor").run().code(1);
    assert!(doctor.stdout.contains("may not write raw.loads, one of 1"), "{}", doctor.stdout);
    let refused = roles.run("writer", "load").run().code(1);
    assert!(refused.stderr.contains("permission denied for table loads"), "{}", refused.stderr);
    assert!(refused.stderr.contains("`dataloader doctor` names them"), "{}", refused.stderr);
}
