//! A PgBouncer of the test's own in front of a PostgreSQL server.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::proxy::split_at_authority;
use super::wait_until;

/// Ends when it is dropped.
#[derive(Debug)]
pub struct Pooler {
    url: String,
    process: Child,
    _directory: TempDir,
}

impl Pooler {
    /// In front of the database of a URL; `None`, with a message, where PgBouncer is not installed.
    #[track_caller]
    pub fn before(url: &str, pool_mode: &str) -> Option<Self> {
        let program = ["pgbouncer", "/usr/sbin/pgbouncer"];
        let Some(program) = program.into_iter().find(|program| Command::new(program).arg("--version").output().is_ok()) else {
            eprintln!("SKIPPED: no pgbouncer here (Debian: apt-get install pgbouncer)");
            return None;
        };
        let directory = tempfile::Builder::new().prefix("dataloader-pgbouncer-").tempdir().expect("a temporary directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).expect("the directory is ours");
        let (before, server, after) = split_at_authority(url);
        let (host, server_port) = server.rsplit_once(':').unwrap_or((server, "5432"));
        let login = before.split_once("://").map_or("", |(_, login)| login).trim_end_matches('@');
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let config = format!(
            "[databases]\n* = host={host} port={server_port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {0}/users.txt\npool_mode = {pool_mode}\nlogfile = {0}/log\n",
            directory.path().display()
        );
        let file = directory.path().join("pgbouncer.ini");
        fs::write(&file, config).expect("the directory is ours");
        fs::write(directory.path().join("users.txt"), format!("\"{user}\" \"{password}\"\n")).expect("the directory is ours");
        let mut command = Command::new(program);
        // It refuses to run as root.
        if rustix::process::geteuid().is_root() {
            command.args(["--user", "nobody"]);
        }
        let process = command.arg("--quiet").arg(&file).stdin(Stdio::null()).spawn().expect("it is installed");
        let pooler = Self { url: format!("{before}127.0.0.1:{port}{after}"), process, _directory: directory };
        wait_until("pgbouncer listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(pooler)
    }

    /// The same database, through this.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        // A failure here would hide the test's own.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
