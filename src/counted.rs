//! Numbers of things, as people read them.

use indicatif::HumanCount;

/// A number of things: `1 record`, `1,000 records`.
pub fn counted(count: u64, thing: &str) -> String {
    format!("{} {thing}{}", HumanCount(count), if count == 1 { "" } else { "s" })
}
