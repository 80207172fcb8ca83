//! `dataloader serve`: the page of a database, without a pipeline in this process.

use crate::config::{Config, HttpAddress};
use crate::error::Result;
use crate::web::{Server, Site};

use super::DONE;

/// Serves the page until a signal comes.
///
/// # Errors
/// If the address cannot be used, or may not be used without a token.
pub fn run(config: &Config) -> Result<u8> {
    let address = config.http.clone().unwrap_or_else(HttpAddress::of_serve);
    let config = Config { http: Some(address.clone()), ..config.clone() };
    let server = Server::bind(&address, Site::of_database(&config)?)?;
    crate::signals::until_signal(server.serve())?;
    Ok(DONE)
}
