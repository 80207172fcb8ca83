//! Flow: what passes through the stages of a process, how busy they are, and which of them limits the others. It is computed in
//! one place, from two readings of the stages' work; the page, the terminal and the heartbeat show the same numbers.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::vitals::{Trouble, Work};

/// The rates are those of this time. Long enough to be calm, and short enough to follow what happens.
const WINDOW: Duration = Duration::from_secs(5);
/// A stage that is busy for less than this share of the time limits nothing.
const LIMITS_FROM: f64 = 0.6;

/// The stages of the pipeline in the order of the data, and what each of them counts.
const STAGES: [(&str, &str); 8] = [
    ("intake", "files"),
    ("reader", "records"),
    ("publisher", "messages"),
    ("consumer", "messages"),
    ("parser", "records"),
    ("batcher", "records"),
    ("writer", "records"),
    ("modeller", "refreshes"),
];

/// The flow of a process, over the last seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// In the order of the data.
    pub stages: Vec<StageFlow>,
    /// Bytes that are read and not durable yet.
    pub in_flight_bytes: u64,
    pub in_flight_limit_bytes: u64,
    /// The stage that holds the others up, if one does.
    pub limit: Option<String>,
    /// What limits, in a sentence.
    pub says: String,
}

/// The flow through the stages of one name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageFlow {
    pub stage: String,
    /// How many there are: threads or connections.
    pub count: u64,
    pub per_second: f64,
    /// What is counted per second.
    pub unit: String,
    /// The share of the time in which they work, from 0 to 1.
    pub busy: f64,
    /// What one of them waits for, or that it makes no progress.
    pub trouble: Option<String>,
}

impl Flow {
    /// Records per second that are loaded; of a process without a database, those that it reads.
    pub fn records_per_second(&self) -> f64 {
        let of = |name: &str| self.stages.iter().find(|stage| stage.stage == name).map(|stage| stage.per_second);
        of("writer").or_else(|| of("reader")).unwrap_or_default()
    }

    /// Whether anything passes, or any stage works.
    pub fn is_moving(&self) -> bool {
        self.in_flight_bytes > 0 || self.stages.iter().any(|stage| stage.per_second > 0.0 || stage.busy > 0.01)
    }
}

/// Computes the flow from readings that it keeps for a few seconds.
#[derive(Debug, Default)]
pub struct FlowMeter {
    readings: VecDeque<(Instant, Vec<Work>)>,
}

impl FlowMeter {
    /// Takes a reading, and returns the flow since the earliest one that it keeps.
    pub fn read(&mut self, now: Instant, work: Vec<Work>, troubles: &[Trouble], in_flight: (u64, u64)) -> Flow {
        self.readings.push_back((now, work));
        while self.readings.len() > 2 && now.duration_since(self.readings[1].0) >= WINDOW {
            self.readings.pop_front();
        }
        let ((since, before), (_, after)) = (&self.readings[0], &self.readings[self.readings.len() - 1]);
        let seconds = now.duration_since(*since).as_secs_f64();
        let stages: Vec<StageFlow> = STAGES
            .iter()
            .filter_map(|(name, unit)| {
                let work = after.iter().find(|work| work.stage == *name)?;
                let earlier = before.iter().find(|work| work.stage == *name).copied().unwrap_or(Work::none(work.stage));
                let trouble = troubles.iter().find(|trouble| trouble.stage == *name);
                Some(stage_flow(unit, earlier, *work, seconds, trouble))
            })
            .collect();
        let (in_flight_bytes, in_flight_limit_bytes) = in_flight;
        let (limit, says) = limit(&stages);
        Flow { stages, in_flight_bytes, in_flight_limit_bytes, limit, says }
    }
}

fn stage_flow(unit: &str, before: Work, after: Work, seconds: f64, trouble: Option<&Trouble>) -> StageFlow {
    let share = |part: f64| if seconds > 0.0 { part / seconds } else { 0.0 };
    let busy = after.busy.saturating_sub(before.busy).as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
    let (handled, count) = (after.handled.saturating_sub(before.handled) as f64, after.count.max(1) as f64);
    StageFlow {
        stage: after.stage.to_owned(),
        count: after.count,
        per_second: round(share(handled), 10.0),
        unit: unit.to_owned(),
        busy: round((share(busy) / count).min(1.0), 1_000.0),
        trouble: trouble.map(Trouble::to_string),
    }
}

fn round(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

/// The stage that limits, and the sentence that says so. The modeller works beside the others and limits none of them.
fn limit(stages: &[StageFlow]) -> (Option<String>, String) {
    let waits = |stage: &&StageFlow| stage.trouble.is_some();
    if let Some(waiting) = stages.iter().filter(|stage| stage.stage != "modeller").find(waits) {
        let trouble = waiting.trouble.as_deref().unwrap_or_default();
        return (Some(waiting.stage.clone()), format!("Nothing gets past the {}: {trouble}.", waiting.stage));
    }
    if let Some(trouble) = stages.iter().find_map(|stage| stage.trouble.as_deref()) {
        return (None, format!("The modelled tables are behind: {trouble}."));
    }
    let in_line = || stages.iter().filter(|stage| !["modeller", "intake", "consumer"].contains(&stage.stage.as_str()));
    let busiest = in_line().max_by(|a, b| a.busy.total_cmp(&b.busy)).filter(|stage| stage.busy >= LIMITS_FROM);
    if let Some(busiest) = busiest {
        let percent = format!("{:.0} % of the time", busiest.busy * 100.0);
        let says = match busiest.stage.as_str() {
            "writer" => format!("The database is busy {percent}: the writers limit."),
            "publisher" => format!("RabbitMQ is busy {percent} with what is published: the broker limits."),
            "reader" => format!("The reader is busy {percent}: reading the files limits."),
            "parser" => format!("The parsers are busy {percent}: the processor limits."),
            other => format!("The {other} is busy {percent}: it limits."),
        };
        return (Some(busiest.stage.clone()), says);
    }
    let moves = in_line().any(|stage| stage.per_second > 0.0);
    let says = match (moves, stages.iter().any(|stage| stage.stage == "intake")) {
        (true, _) => "No stage limits: the pipeline keeps up with what arrives.",
        (false, true) => "Nothing to do: the pipeline waits for files.",
        (false, false) => "Nothing to do: the pipeline waits for messages.",
    };
    (None, says.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(stage: &'static str, count: u64, busy_ms: u64, handled: u64) -> Work {
        Work { stage, count, busy: Duration::from_millis(busy_ms), handled }
    }

    /// The flow between two readings that are two seconds apart.
    fn flow(before: Vec<Work>, after: Vec<Work>, troubles: &[Trouble]) -> Flow {
        let start = Instant::now();
        let mut meter = FlowMeter::default();
        meter.read(start, before, &[], (0, 100));
        meter.read(start + Duration::from_secs(2), after, troubles, (10, 100))
    }

    #[test]
    fn rates_and_shares_are_those_between_two_readings() {
        let before = vec![work("writer", 2, 1_000, 500), work("reader", 1, 0, 0)];
        let after = vec![work("writer", 2, 4_680, 2_500), work("reader", 1, 200, 2_000), work("attempts", 1, 0, 0)];
        let flow = flow(before, after, &[]);
        let stages: Vec<(&str, f64, f64)> = flow.stages.iter().map(|s| (s.stage.as_str(), s.per_second, s.busy)).collect();
        assert_eq!(stages, [("reader", 1_000.0, 0.1), ("writer", 1_000.0, 0.92)], "in the order of the data");
        assert_eq!(flow.limit.as_deref(), Some("writer"));
        assert_eq!(flow.says, "The database is busy 92 % of the time: the writers limit.");
        assert!(flow.is_moving());
        assert!((flow.records_per_second() - 1_000.0).abs() < 0.1);
    }

    #[test]
    fn what_happened_long_ago_is_forgotten() {
        let start = Instant::now();
        let mut meter = FlowMeter::default();
        let mut last = Flow::default();
        for second in 0..20 {
            // Only the first second has work.
            let handled = if second == 0 { 0 } else { 1_000 };
            last = meter.read(start + Duration::from_secs(second), vec![work("writer", 1, 0, handled)], &[], (0, 100));
        }
        assert!(!last.is_moving(), "{last:?}");
        assert!(meter.readings.len() <= 7, "{}", meter.readings.len());
    }

    #[test]
    fn a_stage_that_waits_limits_whatever_the_others_do() {
        let trouble = Trouble {
            stage: "writer",
            waits_for: Some(crate::vitals::Wait::new(crate::vitals::Target::Database, "x.db: locked")),
            since: Instant::now(),
        };
        let busy = vec![work("reader", 1, 2_000, 9), work("writer", 1, 0, 0)];
        let flow = flow(vec![], busy, &[trouble]);
        assert_eq!(flow.limit.as_deref(), Some("writer"));
        assert_eq!(flow.says, "Nothing gets past the writer: the writer waits for x.db: locked.");
    }

    #[test]
    fn without_a_busy_stage_nothing_limits() {
        let says =
            |handled: u64, stage: &'static str| flow(vec![], vec![work(stage, 1, 0, 0), work("writer", 1, 100, handled)], &[]).says;
        assert_eq!(says(9, "intake"), "No stage limits: the pipeline keeps up with what arrives.");
        assert_eq!(says(0, "intake"), "Nothing to do: the pipeline waits for files.");
        assert_eq!(says(0, "consumer"), "Nothing to do: the pipeline waits for messages.");
    }
}
