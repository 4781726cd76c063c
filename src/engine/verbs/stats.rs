//! What an operator asks of all snapshots: why each is there, and where the space goes.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use crate::config::{Instance, Strategy};
use crate::engine::context::{Engine, OpenStorage};
use crate::engine::snapshots::decisions::decisions;
use crate::engine::snapshots::list::{Listing, Snapshot};
use crate::engine::snapshots::marks::{Drilled, Hold, Marks, read_marks};
use crate::model::{self, Name, SnapshotId};
use crate::retention::{self, Policy, Reason, decide};

/// What is known of one copy of a snapshot beyond what it is.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Standing {
    /// What retention says of it; none where nothing is configured for it.
    pub retention: Option<Retention>,
    /// Whether it is held.
    pub hold: Option<Hold>,
    /// Its last drill that came to a verdict.
    pub drilled: Option<Drilled>,
}

/// What retention says of a copy.
#[derive(Debug, Clone, Serialize)]
pub struct Retention {
    /// Whether it is kept by the next pruning.
    pub keep: bool,
    pub reasons: Vec<Reason>,
}

/// The standing of each snapshot of `listing`, in its order, and what of the marks could not be
/// read.
pub async fn standings(
    engine: &Engine,
    storages: &[OpenStorage],
    listing: &Listing,
    instance: Option<&Instance>,
) -> (Vec<Standing>, Vec<(Name, String)>) {
    let now = engine.clock.now();
    let mut all = vec![Standing::default(); listing.snapshots.len()];
    let mut unread = Vec::new();
    let mut instances: Vec<&Name> =
        listing.snapshots.iter().map(|snapshot| &snapshot.instance).collect();
    instances.dedup();
    for name in instances {
        let marks = read_marks(engine, storages, name).await;
        let configured = instance.filter(|instance| instance.name == *name);
        for (standing, snapshot) in
            all.iter_mut().zip(&listing.snapshots).filter(|(_, one)| one.instance == *name)
        {
            standing.hold = marks.hold(&snapshot.id, now);
            standing.drilled = marks.drilled(&snapshot.strategy, &snapshot.id);
        }
        for strategy in configured.iter().flat_map(|instance| instance.strategies.values()) {
            for open in storages {
                let policy =
                    configured.and_then(|instance| instance.rules(strategy, &open.name).policy);
                if let Some(policy) = policy {
                    retained(strategy, policy, open, listing, &marks, now, &mut all);
                }
            }
        }
        unread.extend(marks.unread());
    }
    (all, unread)
}

/// Puts what the policy says of one place's snapshots into their standings.
fn retained(
    strategy: &Strategy,
    policy: &Policy,
    open: &OpenStorage,
    listing: &Listing,
    marks: &Marks,
    now: DateTime<Utc>,
    all: &mut [Standing],
) {
    let here =
        |snapshot: &Snapshot| snapshot.storage == open.name && snapshot.strategy == strategy.name;
    let positions: Vec<usize> = (0..listing.snapshots.len())
        .filter(|at| listing.snapshots.get(*at).is_some_and(here))
        .collect();
    let snapshots: Vec<Snapshot> =
        positions.iter().filter_map(|at| listing.snapshots.get(*at)).cloned().collect();
    let mut decisions = decisions(strategy, policy, &snapshots, marks, now);
    // They come newest first, and the listing has the oldest first.
    decisions.reverse();
    for (at, decision) in positions.into_iter().zip(decisions) {
        if let Some(standing) = all.get_mut(at) {
            standing.retention = Some(Retention { keep: decision.keep, reasons: decision.reasons });
        }
    }
}

/// Days that are looked ahead.
pub const HORIZONS: [u32; 3] = [30, 90, 365];

/// So many of the newest whole snapshots tell how fast they grow.
const TREND: usize = 60;

/// Where the space of the snapshots goes.
#[derive(Debug, Clone, Serialize)]
pub struct Stats {
    /// Each strategy in each storage that has snapshots of it.
    pub places: Vec<PlaceStats>,
    pub storages: Vec<StorageStats>,
}

/// The snapshots of one strategy in one storage.
#[derive(Debug, Clone, Serialize)]
pub struct PlaceStats {
    pub strategy: Name,
    pub storage: Name,
    /// How many there are.
    pub snapshots: usize,
    /// When the oldest was taken.
    pub oldest: DateTime<Utc>,
    /// When the newest was taken.
    pub newest: DateTime<Utc>,
    /// Bytes that all take.
    pub stored_bytes: u64,
    /// Bytes that the newest takes.
    pub newest_bytes: u64,
    /// By how many bytes a snapshot is larger than that of the day before, on average; negative
    /// when they shrink. None where too few tell.
    pub growth_bytes_per_day: Option<f64>,
    /// What all will take, when the schedule, the retention and the growth stay as they are;
    /// nothing where no time of a next one is known.
    pub forecast: Vec<Forecast>,
}

/// The space at a time to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Forecast {
    /// So many days from now.
    pub days: u32,
    /// Bytes.
    pub stored_bytes: u64,
}

/// One storage, all strategies together.
#[derive(Debug, Clone, Serialize)]
pub struct StorageStats {
    pub storage: Name,
    /// Bytes that the snapshots take.
    pub stored_bytes: u64,
    /// Free bytes, where the storage tells.
    pub free_bytes: Option<u64>,
    /// What the snapshots will take.
    pub forecast: Vec<Forecast>,
    /// In how many days it will be full, at most a year ahead; none where it will not, or free
    /// space is not told.
    pub full_in_days: Option<u32>,
}

/// Where the space goes, and where it is going.
pub async fn stats(
    engine: &Engine,
    storages: &[OpenStorage],
    listing: &Listing,
    instance: Option<&Instance>,
) -> Stats {
    let now = engine.clock.now();
    let mut stats = Stats { places: Vec::new(), storages: Vec::new() };
    for open in storages {
        let of_storage: Vec<&Snapshot> =
            listing.snapshots.iter().filter(|snapshot| snapshot.storage == open.name).collect();
        let mut total: Option<Vec<u64>> = None;
        for snapshots in
            of_storage.chunk_by(|a, b| (&a.instance, &a.strategy) == (&b.instance, &b.strategy))
        {
            let Some((place, days)) = place(snapshots, open, instance, now) else { continue };
            if let Some(days) = days {
                total = Some(match total {
                    None => days,
                    Some(total) => {
                        total.iter().zip(days).map(|(a, b)| a.saturating_add(b)).collect()
                    }
                });
            }
            stats.places.push(place);
        }
        if of_storage.is_empty() {
            continue;
        }
        let stored_bytes = model::total(of_storage.iter().map(|snapshot| snapshot.listed_bytes));
        let free_bytes = open.storage.free_bytes().await.ok().flatten();
        let full = free_bytes.zip(total.as_ref()).and_then(|(free, days)| {
            days.iter().position(|bytes| bytes.saturating_sub(stored_bytes) > free)
        });
        stats.storages.push(StorageStats {
            storage: open.name.clone(),
            stored_bytes,
            free_bytes,
            forecast: total.map(|days| horizons(&days)).unwrap_or_default(),
            full_in_days: full.and_then(|day| u32::try_from(day + 1).ok()),
        });
    }
    stats
}

fn horizons(days: &[u64]) -> Vec<Forecast> {
    let at = |day: u32| {
        days.get(day as usize - 1).map(|bytes| Forecast { days: day, stored_bytes: *bytes })
    };
    HORIZONS.into_iter().filter_map(at).collect()
}

/// The figures of one place, and the bytes at the end of each day of the next year.
fn place(
    snapshots: &[&Snapshot],
    open: &OpenStorage,
    instance: Option<&Instance>,
    now: DateTime<Utc>,
) -> Option<(PlaceStats, Option<Vec<u64>>)> {
    let (first, last) = (snapshots.first()?, snapshots.last()?);
    let whole: Vec<(DateTime<Utc>, u64)> = snapshots
        .iter()
        .filter(|one| one.is_whole())
        .map(|one| (one.id.time(), one.listed_bytes))
        .collect();
    let newest_bytes = whole.last().map_or(last.listed_bytes, |(_, bytes)| *bytes);
    let growth = slope(whole.get(whole.len().saturating_sub(TREND)..).unwrap_or_default());
    let configured = instance.filter(|instance| instance.name == last.instance);
    let strategy = configured.and_then(|instance| instance.strategies.get(&last.strategy));
    let days = strategy.zip(configured).and_then(|(strategy, instance)| {
        let rules = instance.rules(strategy, &open.name);
        let present: Vec<(SnapshotId, u64, bool)> = snapshots
            .iter()
            .map(|one| (one.id.clone(), one.listed_bytes, one.is_whole()))
            .collect();
        ahead(strategy, rules.policy, present, newest_bytes, growth.unwrap_or(0.0), now)
    });
    let place = PlaceStats {
        strategy: last.strategy.clone(),
        storage: open.name.clone(),
        snapshots: snapshots.len(),
        oldest: first.id.time(),
        newest: last.id.time(),
        stored_bytes: model::total(snapshots.iter().map(|snapshot| snapshot.listed_bytes)),
        newest_bytes,
        growth_bytes_per_day: growth,
        forecast: days.as_deref().map(horizons).unwrap_or_default(),
    };
    Some((place, days))
}

/// Bytes a day by which sizes grow: the straight line that fits best. None with fewer than three,
/// or within a day.
fn slope(sizes: &[(DateTime<Utc>, u64)]) -> Option<f64> {
    let (first, last) = (sizes.first()?, sizes.last()?);
    if sizes.len() < 3 || last.0 - first.0 < TimeDelta::days(1) {
        return None;
    }
    let points: Vec<(f64, f64)> = sizes
        .iter()
        .map(|(time, bytes)| ((*time - first.0).num_seconds() as f64 / 86_400.0, *bytes as f64))
        .collect();
    let count = points.len() as f64;
    let (sum_x, sum_y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    let (mean_x, mean_y) = (sum_x / count, sum_y / count);
    let (above, below) = points.iter().fold((0.0, 0.0), |(above, below), (x, y)| {
        (above + (x - mean_x) * (y - mean_y), below + (x - mean_x) * (x - mean_x))
    });
    (below > 0.0).then(|| above / below)
}

/// The bytes that a strategy takes at the end of each day of the next year, when its runs and its
/// pruning go on by themselves. None without a schedule.
fn ahead(
    strategy: &Strategy,
    policy: Option<&Policy>,
    mut present: Vec<(SnapshotId, u64, bool)>,
    newest_bytes: u64,
    growth: f64,
    now: DateTime<Utc>,
) -> Option<Vec<u64>> {
    let schedule = strategy.schedule.as_ref().filter(|_| strategy.active)?;
    let mut next = schedule.next_after(now);
    let longest = HORIZONS.into_iter().max().unwrap_or(0);
    let mut days = Vec::new();
    for day in 1..=longest {
        let end = now + TimeDelta::days(i64::from(day));
        while let Some(fire) = next.filter(|fire| *fire <= end) {
            let age = (fire - now).num_seconds() as f64 / 86_400.0;
            let bytes = (newest_bytes as f64 + growth * age).max(0.0) as u64;
            present.push((SnapshotId::new(fire, [0; 3]), bytes, true));
            next = schedule.next_after(fire);
        }
        if let Some(policy) = policy {
            let known: Vec<retention::Snapshot> = present
                .iter()
                .map(|(id, _, whole)| retention::Snapshot { id: id.clone(), whole: *whole })
                .collect();
            let decisions =
                decide(policy, &known, strategy.timezone, end, &std::collections::BTreeMap::new());
            let kept: std::collections::BTreeSet<SnapshotId> = decisions
                .into_iter()
                .filter(|decision| decision.keep)
                .map(|decision| decision.id)
                .collect();
            present.retain(|(id, ..)| kept.contains(id));
        }
        days.push(model::total(present.iter().map(|(_, bytes, _)| *bytes)));
    }
    Some(days)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(day: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::days(20_000 + day)
    }

    #[test]
    fn growth_is_that_of_the_line_through_the_sizes() {
        let sizes: Vec<_> = (0..10).map(|at| (day(at), 1_000 + 50 * at.unsigned_abs())).collect();
        assert!((slope(&sizes).unwrap() - 50.0).abs() < 1e-6);
        let shrinking: Vec<_> =
            (0..10).map(|at| (day(at), 1_000 - 50 * at.unsigned_abs())).collect();
        assert!((slope(&shrinking).unwrap() + 50.0).abs() < 1e-6);
        assert_eq!(slope(&sizes[..2]), None, "two points tell nothing");
        let within = [day(0), day(0) + TimeDelta::hours(1), day(0) + TimeDelta::hours(2)]
            .map(|time| (time, 5));
        assert_eq!(slope(&within), None);
    }

    fn strategy(schedule: &str, retention: &str) -> Strategy {
        let text = format!(
            "instance = \"app\"\n[sources.files]\ntype = \"directory\"\npath = \"/data\"\n\
             [storages.local]\ntype = \"local\"\npath = \"/store\"\n\
             [strategies.daily]\nsources = [\"files\"]\nstorages = [\"local\"]\n\
             timezone = \"UTC\"\nschedule = \"{schedule}\"\n{retention}\n"
        );
        let path = std::path::Path::new("/a.toml");
        let environment = crate::source::process::Environment(std::collections::BTreeMap::new());
        let instance = crate::config::parse(path, &text, &environment);
        instance.unwrap_or_else(|error| panic!("{error}")).strategies.into_values().next().unwrap()
    }

    #[test]
    fn the_forecast_grows_to_what_the_policy_keeps() {
        let present = vec![(SnapshotId::new(day(0), [1, 2, 3]), 100, true)];
        let look = |strategy: &Strategy, growth| {
            ahead(strategy, strategy.retention.as_ref(), present.clone(), 100, growth, day(0))
                .unwrap()
        };
        let days = look(&strategy("0 3 * * *", "retention = { keep_last = 7 }"), 0.0);
        assert_eq!((days[0], days[5], days[6], days[364]), (200, 700, 700, 700));
        let growing = look(&strategy("0 3 * * *", "retention = { keep_last = 7 }"), 10.0);
        // The seven of the last week, each ten larger than the one before.
        let newest = 100.0 + 10.0 * (364.0 + 3.0 / 24.0);
        assert_eq!(
            growing[364],
            (0..7).map(|back| (newest - 10.0 * f64::from(back)) as u64).sum::<u64>()
        );
        let everything = look(&strategy("0 3 * * *", ""), 0.0);
        assert_eq!(everything[364], 36_600);
        assert_eq!(
            horizons(&everything).iter().map(|one| one.stored_bytes).collect::<Vec<_>>(),
            [3_100, 9_100, 36_600]
        );
    }
}
