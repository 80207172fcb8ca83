//! The table of figures, peers, ratios and targets.

use std::fmt;

pub const HEADER: &str = "\
measurement                      ours       peer                        ratio     target
-----------------------------------------------------------------------------------------";

/// A figure with its unit.
#[derive(Clone, Copy)]
pub enum Measure {
    /// Shown in milliseconds; held in seconds.
    Milliseconds(f64),
    /// Shown in millions of bytes; held in bytes.
    Megabytes(u64),
}

impl Measure {
    fn value(self) -> f64 {
        match self {
            Self::Milliseconds(seconds) => seconds,
            #[expect(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
            Self::Megabytes(bytes) => bytes as f64,
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self {
            Self::Milliseconds(seconds) => format!("{:.1} ms", seconds * 1e3),
            Self::Megabytes(bytes) => format!("{:.1} MB", Self::Megabytes(*bytes).value() / 1e6),
        })
    }
}

/// One line of the table.
pub enum Row {
    /// Seconds beside a peer's; the target is the largest ratio.
    Ratio { name: &'static str, ours: f64, peer_name: &'static str, peer: f64, target: f64 },
    /// A figure with an upper limit.
    Limit { name: &'static str, ours: Measure, target: Measure },
}

impl Row {
    pub fn ratio(name: &'static str, ours: f64, peer_name: &'static str, peer: f64, target: f64) -> Self {
        Self::Ratio { name, ours, peer_name, peer, target }
    }

    pub fn limit(name: &'static str, ours: Measure, target: Measure) -> Self {
        Self::Limit { name, ours, target }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = |met: bool| if met { "ok" } else { "missed" };
        match self {
            Self::Ratio { name, ours, peer_name, peer, target } => {
                let ratio = ours / peer;
                let (ours, peer) = (format!("{ours:.2} s"), format!("{peer:.2} s {peer_name}"));
                write!(f, "{name:<32} {ours:<10} {peer:<26} {ratio:>6.2}   ≤ {target:<8.1} {}", verdict(ratio <= *target))
            }
            Self::Limit { name, ours, target } => {
                let met = verdict(ours.value() <= target.value());
                write!(f, "{name:<32} {ours:<10} {:<26} {:>6}   ≤ {target:<8} {met}", "", "")
            }
        }
    }
}
