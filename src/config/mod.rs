//! The configuration, resolved and validated once at the start. Flags override the environment, then `dataloader.toml`, then
//! the defaults.

mod datasets; // reads [datasets.*]
pub mod names; // identifiers from keys
pub mod suggest; // lines for columns
mod schema; // the JSON Schema of the file
mod http; // where the page is served
mod document; // TOML whose values know their line
mod secret_url; // URLs of database and broker; hides passwords
mod settings; // all other settings: types, bounds, defaults

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use document::{Document, suggestion};
use settings::choice;

pub use datasets::{MAX_COLUMNS, MAX_NAME_BYTES};
pub use http::{HttpAddress, HttpToken};
pub use schema::schema;
pub use secret_url::{DatabaseUrl, SecretUrl, hide_arguments, hide_passwords};
pub use settings::{MAX_QUEUES, MenuMode, Role, Settings, StreamSettings, Transport, queue_prefix};

use crate::dataset::Dataset;
use crate::error::{Error, Result, io_text};

/// The built-in configuration, so that the binary works without a file.
const BUILT_IN: &str = include_str!("../../dataloader.toml");
/// The default file in the working directory; `--config` and the environment can name another one.
const FILE_NAME: &str = "dataloader.toml";

/// The default of `zstd_window_mib`.
pub const ZSTD_WINDOW_MIB: u32 = 64;

/// The datasets that the text of a configuration defines. `name` stands for its file in errors.
///
/// # Errors
/// If the program would not start with that text.
pub fn datasets_of(name: &str, text: String) -> Result<Vec<Arc<Dataset>>> {
    let document = Document { name: name.to_owned(), text };
    datasets::read(&document.root(&document.parse()?))
}

/// All settings, resolved. Each value is valid, and all values are consistent with each other. The commands check whether
/// files, database and broker exist. Relative paths are relative to the working directory.
#[derive(Debug, Clone)]
pub struct Config {
    pub source: ConfigSource,
    /// Contains the datasets' directories.
    pub data_dir: PathBuf,
    /// The stream watches `<inbox>/<dataset>/`.
    pub inbox: PathBuf,
    pub database: DatabaseUrl,
    pub amqp_url: SecretUrl,
    pub transport: Transport,
    /// [`Role::All`] unless the transport is AMQP.
    pub role: Role,
    /// A directory that the PostgreSQL server can read too. Loads pass their rows through files in it instead of through the
    /// connection.
    pub stage_dir: Option<PathBuf>,
    pub menu_mode: MenuMode,
    /// Where the page is served; none without one.
    pub http: Option<HttpAddress>,
    pub http_token: Option<HttpToken>,
    /// The name of the exchange, and the prefix of the queue names.
    pub queue_prefix: String,
    /// How many queues each dataset has.
    pub queues: u16,
    /// The largest accepted window of a zstd file in MiB, a power of two. Reading a file takes as much memory as its window is
    /// large.
    pub zstd_window_mib: u32,
    /// Whether directories of the inbox may be symbolic links.
    pub follow_links: bool,
    pub stream: StreamSettings,
    /// In file order; never empty.
    pub datasets: Vec<Arc<Dataset>>,
}

/// Where the datasets are defined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigSource {
    File(PathBuf),
    BuiltIn,
}

impl fmt::Display for ConfigSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::BuiltIn => write!(f, "{FILE_NAME} (built in)"),
        }
    }
}

impl Config {
    /// Resolves all settings of this process. `file` is the value of `--config`; `flags` are the values of the other flags.
    pub fn load(file: Option<&Path>, flags: Settings) -> Result<Self> {
        let env = Environment(&|name| std::env::var_os(name));
        let (source, text) = read_file(file, &env)?;
        Self::resolve(source, text, flags, &env)
    }

    /// The built-in configuration with these flags. Of the environment it takes only where the broker is.
    ///
    /// # Errors
    /// If the broker's URL is wrong.
    pub fn built_in(flags: Settings) -> Result<Self> {
        let env = Environment(&|name| std::env::var_os(name).filter(|_| name == "AMQP_URL"));
        Self::resolve(ConfigSource::BuiltIn, BUILT_IN.to_owned(), flags, &env)
    }

    /// The only function that decides which layer wins.
    fn resolve(source: ConfigSource, text: String, flags: Settings, env: &Environment<'_>) -> Result<Self> {
        let document = Document { name: source.to_string(), text };
        let toml = document.parse()?;
        let root = document.root(&toml);
        let known = [&Settings::NAMES[..], &["stream", "amqp", "datasets"]].concat();
        root.allow_only(&known)?;
        let file = Settings::read(&root)?;
        let stream = match root.get("stream") {
            Some(section) => StreamSettings::read(&section.section()?)?,
            None => StreamSettings::default(),
        };
        let queues = match root.get("amqp") {
            Some(section) => settings::queues(&section.section()?)?,
            None => 1,
        };
        let datasets = datasets::read(&root)?;

        let database = env.pick(flags.database, "DATABASE_URL", DatabaseUrl::parse, file.database)?;
        let amqp_url = env.pick(flags.amqp_url, "AMQP_URL", SecretUrl::parse_amqp, file.amqp_url)?;
        let transport = env.pick(flags.transport, "DATALOADER_TRANSPORT", |t| choice("transport", t), file.transport)?;
        let role = env.pick(flags.role, "DATALOADER_ROLE", |t| choice("role", t), file.role)?;
        let menu_mode = env.pick(flags.menu_mode, "DATALOADER_MODE", |t| choice("mode", t), file.menu_mode)?;
        let queue_prefix = env.pick(flags.queue_prefix, "DATALOADER_QUEUE_PREFIX", queue_prefix, file.queue_prefix)?;
        let http = env.pick(flags.http, "DATALOADER_HTTP", HttpAddress::parse, file.http)?;
        let http_token = env.pick(None, "DATALOADER_HTTP_TOKEN", HttpToken::parse, None)?;
        let data_dir = env.pick_path(flags.data_dir, "DATALOADER_DATA_DIR", file.data_dir);
        let inbox = env.pick_path(flags.inbox, "DATALOADER_INBOX", file.inbox);
        let stage_dir = env.pick_path(flags.stage_dir, "DATALOADER_STAGE_DIR", file.stage_dir);

        let config = Self {
            source,
            data_dir: data_dir.unwrap_or_else(|| PathBuf::from("raw_data")),
            inbox: inbox.unwrap_or_else(|| PathBuf::from("inbox")),
            database: database.map_or_else(|| DatabaseUrl::parse("sqlite://dataloader.db"), Ok)?,
            amqp_url: amqp_url.map_or_else(|| SecretUrl::parse_amqp("amqp://guest:guest@127.0.0.1:5672/%2f"), Ok)?,
            transport: transport.unwrap_or(Transport::Inproc),
            role: role.unwrap_or(Role::All),
            stage_dir,
            menu_mode: menu_mode.unwrap_or(MenuMode::Batch),
            http,
            http_token,
            queue_prefix: queue_prefix.unwrap_or_else(|| "dataloader".to_owned()),
            queues,
            zstd_window_mib: file.zstd_window_mib.unwrap_or(ZSTD_WINDOW_MIB),
            follow_links: file.follow_links.unwrap_or(false),
            stream,
            datasets,
        };
        if config.transport == Transport::Inproc && config.role != Role::All {
            let error = Error::usage("the role `producer` or `consumer` needs a transport between processes")
                .hint("add --transport amqp, or leave the role at `all`");
            let is_of_file = flags.role.is_none() && env.get("DATALOADER_ROLE").is_none();
            return Err(match root.get("role").filter(|_| is_of_file) {
                Some(value) => value.locate(error),
                None => error,
            });
        }
        Ok(config)
    }

    /// The datasets with these names, without repetitions, in the given order. Empty `names` means all datasets.
    pub fn datasets_named(&self, names: &[String]) -> Result<Vec<Arc<Dataset>>> {
        if names.is_empty() {
            return Ok(self.datasets.clone());
        }
        let mut chosen: Vec<Arc<Dataset>> = Vec::with_capacity(names.len());
        for name in names {
            let known = self.datasets.iter().map(|d| d.name.as_str());
            let dataset = self.datasets.iter().find(|d| d.name == *name).ok_or_else(|| {
                Error::usage(format!("no dataset `{name}` in {}", self.source)).hint(suggestion(name, known, "datasets"))
            })?;
            if !chosen.iter().any(|d| d.name == *name) {
                chosen.push(Arc::clone(dataset));
            }
        }
        Ok(chosen)
    }

    /// The dataset with this name.
    pub fn dataset_named(&self, name: &str) -> Result<Arc<Dataset>> {
        self.datasets_named(&[name.to_owned()]).map(|mut chosen| chosen.remove(0))
    }

    /// The dataset that the menu and `drop` use: the one with `menu = true`, otherwise the one called `events`.
    ///
    /// # Errors
    /// If there is no such dataset.
    pub fn menu_dataset(&self) -> Result<Arc<Dataset>> {
        match self.datasets.iter().find(|dataset| dataset.menu) {
            Some(dataset) => Ok(Arc::clone(dataset)),
            None => self.dataset_named("events"),
        }
    }
}

/// Reads the named file, which must exist. Otherwise it reads the default file if that exists, otherwise the built-in one.
fn read_file(flag: Option<&Path>, env: &Environment<'_>) -> Result<(ConfigSource, String)> {
    let named = env.pick_path(flag.map(Path::to_owned), "DATALOADER_CONFIG", None);
    let path = named.as_deref().unwrap_or(Path::new(FILE_NAME));
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
            return Ok((ConfigSource::BuiltIn, BUILT_IN.to_owned()));
        }
        Err(e) => {
            let error = Error::usage(format!("cannot read the configuration {}: {}", path.display(), io_text(&e)));
            return Err(
                error.hint("name a readable file with --config or DATALOADER_CONFIG, or none for the built-in configuration")
            );
        }
    };
    let text = String::from_utf8(bytes).map_err(|e| {
        let valid = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|&&b| b == b'\n').count();
        Error::usage(format!("{}:{line}: not UTF-8", path.display())).hint("save the file as UTF-8")
    })?;
    Ok((ConfigSource::File(path.to_owned()), text))
}

/// The environment variables. Tests pass their own function, so they need not change the process's environment.
struct Environment<'a>(&'a dyn Fn(&str) -> Option<OsString>);

impl Environment<'_> {
    /// An empty value counts as unset, for instance `DATALOADER_INBOX= dataloader`.
    fn get(&self, name: &str) -> Option<OsString> {
        self.0(name).filter(|value| !value.is_empty())
    }

    /// Picks the flag, otherwise the variable, otherwise the file's value. A variable that a flag overrides is not parsed:
    /// `DATABASE_URL` may belong to another program.
    fn pick<T>(&self, flag: Option<T>, name: &str, parse: impl Fn(&str) -> Result<T>, file: Option<T>) -> Result<Option<T>> {
        match (flag, self.get(name)) {
            (Some(value), _) => Ok(Some(value)),
            (None, None) => Ok(file),
            (None, Some(text)) => match text.to_str() {
                Some(text) => parse(text).map(Some).map_err(|e| e.context(name)),
                None => Err(Error::usage(format!("{name}: not UTF-8"))),
            },
        }
    }

    fn pick_path(&self, flag: Option<PathBuf>, name: &str, file: Option<PathBuf>) -> Option<PathBuf> {
        flag.or_else(|| self.get(name).map(PathBuf::from)).or(file)
    }
}

#[cfg(test)]
mod tests;
