//! The name of this machine, by which the ledger says where a file was read.

use std::sync::OnceLock;

/// The host name. Bytes of it that are no UTF-8, which no network allows, are replaced.
pub fn name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}
