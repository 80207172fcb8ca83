//! A working directory and a database that no other test sees.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::database::{Cell, Database, Store};
use super::lock::WriteLock;
use super::process::{Background, Invocation, Outcome};
use super::queues::{Queues, Transport};
use super::servers::{PrivatePostgres, PrivateRabbit};
use super::wait_until;

/// A temporary working directory, an empty database and perhaps queues; all are gone when it is dropped.
#[derive(Debug)]
pub struct Sandbox {
    /// With them everything runs over RabbitMQ, without them in one process.
    queues: Option<Queues>,
    database: Database, // dropped before the directory that may hold it
    directory: TempDir,
}

impl Sandbox {
    /// On SQLite, or on the PostgreSQL server of `DATABASE_URL`.
    #[track_caller]
    pub fn new(store: Store) -> Self {
        let directory = working_directory();
        let database = match store {
            // The place where the program looks without being told.
            Store::Sqlite => Database::Sqlite { file: directory.path().join("dataloader.db") },
            Store::Postgres => {
                let server = std::env::var("DATABASE_URL").expect("DATABASE_URL is not set: start the tests with ./run.sh test");
                Database::create_postgres(&server, true)
            }
        };
        Self { queues: None, database, directory }
    }

    /// The same, with a pipeline over RabbitMQ or in one process.
    #[track_caller]
    pub fn over(transport: Transport, store: Store) -> Self {
        let mut sandbox = Self::new(store);
        if transport == Transport::Amqp {
            sandbox.queues = Some(Queues::new());
        }
        sandbox
    }

    /// On a server of the test's own.
    pub fn on(server: &PrivatePostgres) -> Self {
        Self { queues: None, database: Database::create_postgres(server.url(), false), directory: working_directory() }
    }

    /// Its database is asked for on that server from now on.
    pub fn move_to(&mut self, server: &PrivatePostgres) {
        self.database = self.database.on_server(server.url());
    }

    /// Over a RabbitMQ node of the test's own.
    #[track_caller]
    pub fn over_node(node: &PrivateRabbit, store: Store) -> Self {
        let mut sandbox = Self::new(store);
        sandbox.queues = Some(Queues::on(node.url()));
        sandbox
    }

    pub fn store(&self) -> Store {
        self.database.store()
    }

    /// Do records travel through RabbitMQ?
    pub fn is_over_amqp(&self) -> bool {
        self.queues.is_some()
    }

    /// The queues of a sandbox [over](Self::over) RabbitMQ.
    #[track_caller]
    pub fn queues(&self) -> &Queues {
        self.queues.as_ref().expect("this sandbox has queues")
    }

    /// Has directories of the inbox that may be symbolic links.
    pub fn follow_links(&self) {
        self.write("dataloader.toml", ["follow_links = true\n", include_str!("../../../dataloader.toml")].concat());
    }

    /// The names of the datasets that are configured.
    pub fn datasets(&self) -> Vec<String> {
        let own = fs::read_to_string(self.file("dataloader.toml"));
        let config = own.unwrap_or_else(|_| include_str!("../../../dataloader.toml").to_owned());
        let sections = config.lines().filter_map(|line| line.trim().strip_prefix("[datasets.")?.strip_suffix(']'));
        sections.filter(|name| !name.contains('.')).map(str::to_owned).collect()
    }

    /// The working directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The path of a file below the working directory.
    pub fn file(&self, relative: &str) -> PathBuf {
        self.path().join(relative)
    }

    /// Writes a file below the working directory, making its directories.
    pub fn write(&self, relative: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.file(relative);
        fs::create_dir_all(path.parent().expect("a file below the sandbox has a parent")).expect("the sandbox is writable");
        fs::write(&path, contents).expect("the sandbox is writable");
        path
    }

    /// Writes `raw_data/events/<name>`.
    pub fn write_events(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        self.write(&format!("raw_data/events/{name}"), contents)
    }

    /// Writes `raw_data/orgs/<name>`.
    pub fn write_orgs(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        self.write(&format!("raw_data/orgs/{name}"), contents)
    }

    /// The database as the program is told of it; SQLite's is the default, which it finds by itself.
    pub fn database_url(&self) -> String {
        match &self.database {
            Database::Sqlite { file } => format!("sqlite://{}", file.display()),
            Database::Postgres { url, .. } => url.clone(),
        }
    }

    /// The program with this sandbox's directory, database and queues.
    pub fn command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Invocation {
        let mut invocation = Invocation::dataloader(self.path()).args(args);
        if self.store() == Store::Postgres {
            invocation = invocation.env("DATABASE_URL", &self.database_url());
        }
        if let Some(queues) = &self.queues {
            invocation = invocation
                .env("DATALOADER_TRANSPORT", "amqp")
                .env("AMQP_URL", queues.url())
                .env("DATALOADER_QUEUE_PREFIX", queues.prefix());
        }
        invocation
    }

    /// The program as a user who may not do everything: root may write everywhere.
    #[track_caller]
    pub fn unprivileged(&self, args: &str) -> Invocation {
        // The directory that it is built in may be root's alone.
        let program = self.file("program/dataloader");
        if !program.exists() {
            let directory = program.parent().expect("it has one");
            fs::create_dir(directory).expect("the sandbox is writable");
            fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).expect("the directory is ours");
            fs::copy(env!("CARGO_BIN_EXE_dataloader"), &program).expect("cargo builds the binary before the tests");
        }
        let script = format!(
            "if [ \"$(id -u)\" = 0 ]; then setpriv --reuid 65534 --regid 65534 --clear-groups \"$0\" {args}; else \"$0\" {args}; fi"
        );
        Invocation::new("sh", self.path()).args(["-c", &script, program.to_str().expect("a plain name")])
    }

    /// Runs the program to its end.
    #[track_caller]
    pub fn run<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Outcome {
        self.command(args).run()
    }

    /// Starts the program in the background.
    #[track_caller]
    pub fn spawn<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Background {
        self.command(args).spawn()
    }

    /// `raw.events` as the store names it, quoted: `"raw"."events"` or `"raw_events"`.
    pub fn table(&self, name: &str) -> String {
        self.database.table(name)
    }

    /// All rows that `sql` returns. In it, `{raw.events}` stands for `self.table("raw.events")`.
    #[track_caller]
    pub fn query(&self, sql: &str) -> Vec<Vec<Cell>> {
        self.try_query(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The same when the table or the database may not be there yet.
    pub fn try_query(&self, sql: &str) -> Result<Vec<Vec<Cell>>, sqlx::Error> {
        self.database.query(sql)
    }

    /// The rows as lines, `|` between values and `NULL` for null: short to compare with.
    #[track_caller]
    pub fn lines(&self, sql: &str) -> Vec<String> {
        let line = |row: Vec<Cell>| row.iter().map(|cell| cell.as_deref().unwrap_or("NULL")).collect::<Vec<_>>().join("|");
        self.query(sql).into_iter().map(line).collect()
    }

    /// The number of rows in `schema.table`.
    #[track_caller]
    pub fn count(&self, table: &str) -> u64 {
        let count = self.lines(&format!("SELECT count(*) FROM {}", self.table(table)));
        count[0].parse().expect("count(*) is a number")
    }

    /// The rows of every table are those loaded less those removed, the model is right, and all else agrees.
    #[track_caller]
    pub fn assert_booked(&self) {
        for dataset in self.datasets() {
            let sum =
                format!("SELECT coalesce(sum(rows_loaded) - sum(rows_removed), 0) FROM {{raw.loads}} WHERE dataset = '{dataset}'");
            assert_eq!(self.lines(&sum), [self.count(&format!("raw.{dataset}")).to_string()], "{dataset}");
        }
        self.run(["model", "--check"]).ok();
        self.run(["verify"]).ok();
    }

    /// Waits until PostgreSQL has ended the sessions of processes that were killed. A server finishes the statement that it has begun:
    /// a commit may still come.
    #[track_caller]
    pub fn wait_until_the_kill_is_noticed(&self) {
        if self.store() == Store::Postgres {
            let others = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'dataloader'";
            wait_until("the server has noticed", || self.lines(others).is_empty());
        }
    }

    /// Lets nobody load anything until the lock is dropped.
    #[track_caller]
    pub fn hold_writers(&self) -> WriteLock {
        WriteLock::take(&self.database).expect("the tables are there")
    }

    /// On PostgreSQL: keeps other processes from changing tables and indexes.
    pub fn hold_schema(&self) -> WriteLock {
        WriteLock::take_schema(&self.database_url()).expect("the server answers")
    }

    /// Runs statements, as another program or a user would; makes the SQLite file when it is missing.
    #[track_caller]
    pub fn execute(&self, sql: &str) {
        self.database.execute(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Some(queues) = &self.queues {
            queues.delete(&self.datasets());
        }
    }
}

/// Open to all users: the PostgreSQL server reads staged files as a user of its own.
fn working_directory() -> TempDir {
    let directory = tempfile::Builder::new().prefix("dataloader-test-").tempdir().expect("a temporary directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("the directory is ours");
    directory
}
