//! The table of figures, peers, ratios and targets.

use std::fmt;

pub const HEADER: &str = "\
measurement                        ours         peer                        ratio   target
-------------------------------------------------------------------------------------------------";

/// A figure with its unit.
#[derive(Clone, Copy)]
pub enum Measure {
    Seconds(f64),
    /// Stored in seconds, shown in milliseconds.
    Milliseconds(f64),
    /// Stored in seconds, shown in microseconds.
    Microseconds(f64),
    /// Stored in bytes, shown in millions of bytes.
    Megabytes(u64),
    PerSecond(f64),
}

impl Measure {
    fn value(self) -> f64 {
        match self {
            Self::Seconds(value) | Self::Milliseconds(value) | Self::Microseconds(value) | Self::PerSecond(value) => value,
            #[expect(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
            Self::Megabytes(bytes) => bytes as f64,
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value();
        f.pad(&match self {
            Self::Seconds(_) => format!("{value:.2} s"),
            Self::Milliseconds(_) => format!("{:.1} ms", value * 1e3),
            Self::Microseconds(_) => format!("{:.2} µs", value * 1e6),
            Self::Megabytes(_) => format!("{:.1} MB", value / 1e6),
            Self::PerSecond(_) => format!("{value:.0}/s"),
        })
    }
}

/// The target of a figure.
enum Target {
    /// At most this many times the peer's figure.
    Ratio(f64),
    AtMost(Measure),
    AtLeast(Measure),
}

/// One line of the table.
pub struct Row {
    name: String,
    ours: Measure,
    /// The peer's name and seconds.
    peer: Option<(&'static str, f64)>,
    target: Option<Target>,
}

impl Row {
    /// A duration compared with a peer's. `target` is the largest allowed ratio.
    pub fn ratio(name: impl Into<String>, ours: f64, peer_name: &'static str, peer: f64, target: f64) -> Self {
        let (ours, peer, target) = (Measure::Seconds(ours), Some((peer_name, peer)), Some(Target::Ratio(target)));
        Self { name: name.into(), ours, peer, target }
    }

    /// A figure with an upper limit.
    pub fn at_most(name: impl Into<String>, ours: Measure, target: Measure) -> Self {
        Self { name: name.into(), ours, peer: None, target: Some(Target::AtMost(target)) }
    }

    /// A figure with a lower limit.
    pub fn at_least(name: impl Into<String>, ours: Measure, target: Measure) -> Self {
        Self { name: name.into(), ours, peer: None, target: Some(Target::AtLeast(target)) }
    }

    /// A figure without a target.
    pub fn figure(name: impl Into<String>, ours: Measure) -> Self {
        Self { name: name.into(), ours, peer: None, target: None }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, ours, peer, target } = self;
        let ratio = peer.map(|(_, peer)| ours.value() / peer);
        let peer = peer.map(|(name, seconds)| format!("{} {name}", Measure::Seconds(seconds))).unwrap_or_default();
        let shown_ratio = ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        write!(f, "{name:<34} {ours:<12} {peer:<26} {shown_ratio:>6}")?;
        let (target, met) = match target {
            None => return Ok(()),
            Some(Target::Ratio(most)) => (format!("≤ {most:.1}"), ratio.is_some_and(|ratio| ratio <= *most)),
            Some(Target::AtMost(most)) => (format!("≤ {most}"), ours.value() <= most.value()),
            Some(Target::AtLeast(least)) => (format!("≥ {least}"), ours.value() >= least.value()),
        };
        write!(f, "   {target:<12} {}", if met { "ok" } else { "missed" })
    }
}

/// The median. Of an even number of values, the lower of the two middle ones.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

/// The smallest value that is at least as large as this percentage of the values.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[(values.len() * percent).div_ceil(100).max(1) - 1]
}
