//! Modeller: refreshes the modelled tables of changed days shortly after the commits. It runs beside the writer, on a
//! connection of its own. The database stores which days have to be refreshed, so nothing is lost when the process ends early.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, ResponseActFuture, WrapFuture};

use super::drain::{Drain, Draining};
use super::faults::{Faults, StageWatch};
use super::link::Link;
use super::protocol::ModelChanged;
use crate::dataset::Dataset;
use crate::error::Result;
use crate::store::model::{self, Days, Noting, Refreshed};

/// A dataset with changed days.
#[derive(Debug)]
struct Pending {
    dataset: Arc<Dataset>,
    first: Instant,
    last: Instant,
    /// How many rows the commits have added since the last refresh.
    rows: u64,
    size: Size,
}

/// Whether all changes since the last refresh are small, so that it can apply them. The times of these refreshes and of the
/// others have little in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Size {
    Small,
    Large,
}

/// Decides when a dataset is refreshed. Pure: it gets the time from outside. A single commit is followed by a refresh after a
/// short delay. Under a stream of commits refreshes are rarer, so that they take only a small share of the time: a refresh after
/// large commits reads all rows of the changed days again.
#[derive(Debug)]
struct Debounce {
    delay: Duration,
    pending: HashMap<String, Pending>,
    /// How long the last refresh of each dataset took, after small changes and after others.
    took: HashMap<(String, Size), Duration>,
}

/// Under a stream of commits refreshes may take one part in this many of the time.
const SHARE: u32 = 20;
/// The same under small commits, whose refreshes take as long however much is there.
const SHARE_OF_SMALL: u32 = 3;
/// Estimated time that one new row adds to the next refresh. The estimate prevents a refresh in the middle of a large file.
const PER_ROW: Duration = Duration::from_micros(4);
/// The longest time that this estimate may delay a refresh.
const PUT_OFF: Duration = Duration::from_secs(30);

impl Debounce {
    fn new(delay: Duration) -> Self {
        Self { delay, pending: HashMap::new(), took: HashMap::new() }
    }

    fn changed(&mut self, dataset: Arc<Dataset>, rows: u64, size: Size, now: Instant) {
        let pending = self.pending.entry(dataset.name.clone()).or_insert(Pending { dataset, first: now, last: now, rows: 0, size });
        pending.last = now;
        pending.rows += rows;
        pending.size = pending.size.max(size);
    }

    /// When the dataset is due: after a pause in the commits that is as long as a refresh, and at the latest when the share of
    /// the time allows a refresh.
    fn due(&self, pending: &Pending) -> Instant {
        let took = self.took.get(&(pending.dataset.name.clone(), pending.size)).copied().unwrap_or_default();
        let more = PER_ROW * u32::try_from(pending.rows).unwrap_or(u32::MAX);
        let share = match pending.size {
            Size::Small => SHARE_OF_SMALL,
            Size::Large => SHARE,
        };
        let quiet = pending.last + self.delay.max(took);
        let put_off = ((took + more) * share).min(PUT_OFF);
        let latest = pending.first + self.delay.max(took * share).max(put_off);
        quiet.min(latest)
    }

    fn next_due(&self) -> Option<Instant> {
        self.pending.values().map(|pending| self.due(pending)).min()
    }

    /// Takes a dataset that is due.
    fn take(&mut self, now: Instant) -> Option<Pending> {
        let name = self.pending.values().find(|pending| self.due(pending) <= now)?.dataset.name.clone();
        self.pending.remove(&name)
    }

    /// Takes any dataset, due or not.
    fn take_any(&mut self) -> Option<Pending> {
        let name = self.pending.keys().next()?.clone();
        self.pending.remove(&name)
    }
}

/// The actor.
pub struct Modeller {
    debounce: Debounce,
    /// `None` while a refresh runs.
    link: Option<Link>,
    draining: Draining,
    timer: Option<actix::SpawnHandle>,
    faults: Faults,
    _watch: StageWatch,
}

impl Modeller {
    /// A modeller that uses `link`. `datasets` may have days that an earlier run marked: they are refreshed first.
    pub fn new(link: Link, delay: Duration, datasets: &[Arc<Dataset>], faults: &Faults) -> Self {
        let mut debounce = Debounce::new(delay);
        for dataset in datasets.iter().filter(|dataset| dataset.day.is_some()) {
            debounce.changed(Arc::clone(dataset), 0, Size::Small, Instant::now());
        }
        Self {
            debounce,
            link: Some(link),
            draining: Draining::default(),
            timer: None,
            faults: faults.clone(),
            _watch: faults.watch("modeller"),
        }
    }

    /// Starts a refresh if one is due and none is running. Otherwise sets a timer for the next check, if one is needed.
    fn advance(&mut self, ctx: &mut Context<Self>) {
        if self.link.is_none() {
            return;
        }
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        let now = Instant::now();
        let due = if self.draining.is_asked() { self.debounce.take_any() } else { self.debounce.take(now) };
        if let Some(Pending { dataset, size, .. }) = due {
            self.refresh(dataset, size, ctx);
        } else if let Some(at) = self.debounce.next_due() {
            self.timer = Some(ctx.run_later(at.saturating_duration_since(now), |modeller, ctx| modeller.advance(ctx)));
        } else {
            self.draining.done();
        }
    }

    fn refresh(&mut self, dataset: Arc<Dataset>, size: Size, ctx: &mut Context<Self>) {
        let mut link = self.link.take().expect("checked by the caller");
        let work = async move {
            let started = Instant::now();
            let refreshed = refresh(&mut link, &dataset).await;
            (link, dataset, started.elapsed(), refreshed)
        };
        ctx.spawn(work.into_actor(self).map(move |(link, dataset, took, refreshed), modeller, ctx| {
            modeller.link = Some(link);
            let next = match refreshed {
                Ok(Refreshed { days, prepares }) => {
                    if days != Some(0)
                        && let Some(link) = &modeller.link
                    {
                        link.stage().handled(1);
                    }
                    tracing::debug!(dataset = %dataset.name, ?days, ?took, "modelled");
                    if prepares && size == Size::Small { Duration::ZERO } else { took }
                }
                Err(error) => return modeller.faults.report(error),
            };
            modeller.debounce.took.insert((dataset.name.clone(), size), next);
            modeller.advance(ctx);
        }));
    }
}

async fn refresh(link: &mut Link, dataset: &Dataset) -> Result<Refreshed> {
    link.repeat(async |connection| {
        // Checked without a transaction: on SQLite a transaction would take the write lock even if there is nothing to do.
        if !model::is_pending(connection, dataset).await? {
            return Ok(Refreshed { days: Some(0), prepares: false });
        }
        model::refresh(connection, dataset, Days::none()).await
    })
    .await
}

impl Actor for Modeller {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.advance(ctx);
    }
}

impl Handler<ModelChanged> for Modeller {
    type Result = ();

    fn handle(&mut self, ModelChanged { dataset, rows, noting }: ModelChanged, ctx: &mut Self::Context) {
        let size = if noting == Noting::Rows { Size::Small } else { Size::Large };
        self.debounce.changed(dataset, rows, size, Instant::now());
        self.advance(ctx);
    }
}

impl Handler<Drain> for Modeller {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        let drained = self.draining.begin();
        self.advance(ctx);
        drained
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{Column, ColumnType, Model, Place, Repeats, StreamMode};

    fn events() -> Arc<Dataset> {
        let at = Column { name: "at".to_owned(), column_type: ColumnType::Date, required: true, from: Place::key("at") };
        Arc::new(Dataset {
            name: "events".to_owned(),
            dir: "events".into(),
            columns: vec![at],
            key: vec![0],
            day: Some(0),
            model: Model::default(),
            stream: StreamMode::default(),
            menu: false,
            repeats: Repeats::Load,
        })
    }

    /// The time in milliseconds from the first of these commits until the refresh. There is one commit every 10 ms, each of
    /// `rows` rows. The previous refresh took 10 ms.
    fn refreshed_after(commits: u32, rows: u64) -> u128 {
        refreshed_after_sized(commits, rows, Size::Large)
    }

    fn refreshed_after_sized(commits: u32, rows: u64, size: Size) -> u128 {
        let events = events();
        let mut debounce = Debounce::new(Duration::from_millis(100));
        debounce.took.insert((events.name.clone(), size), Duration::from_millis(10));
        let start = Instant::now();
        for commit in 0..commits {
            let now = start + Duration::from_millis(10) * commit;
            if debounce.take(now).is_some() {
                return (now - start).as_millis();
            }
            debounce.changed(Arc::clone(&events), rows, size, now);
        }
        (debounce.next_due().expect("it changed") - start).as_millis()
    }

    #[test]
    fn a_lone_commit_is_modelled_after_the_delay() {
        assert_eq!(refreshed_after(1, 36), 100);
    }

    #[test]
    fn small_commits_without_end_wait_for_the_share_of_a_refresh() {
        let refreshed = refreshed_after(10_000, 36);
        assert!((200..400).contains(&refreshed), "{refreshed}");
    }

    #[test]
    fn small_commits_that_are_applied_wait_for_less() {
        let refreshed = refreshed_after_sized(10_000, 36, Size::Small);
        assert!((100..200).contains(&refreshed), "{refreshed}");
    }

    #[test]
    fn a_large_file_is_modelled_when_it_is_loaded_and_an_endless_one_at_last() {
        // 250,000 rows per second, for 4 seconds and for 100 seconds.
        assert_eq!(refreshed_after(400, 2_500), 3_990 + 100);
        assert_eq!(refreshed_after(10_000, 2_500), 30_000);
    }
}
