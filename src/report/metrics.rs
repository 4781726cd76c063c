//! The status as metrics, in the text format of OpenMetrics 1.0
//! (<https://prometheus.io/docs/specs/om/open_metrics_spec/>), which Prometheus reads.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::status::{State, Status, StrategyStatus};
use crate::model::{Outcome, Proof, Verdict, VerificationOutcome};

/// The media type of [`metrics`].
pub const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;

/// `status` as metrics. They are made anew each time: what they count is recorded elsewhere, and
/// survives a restart.
pub fn metrics(status: &Status) -> String {
    let mut registry = Registry::with_prefix("holdfast");
    let mut gauge = |name: &str, help: &str| {
        let family = Gauges::default();
        registry.register(name, help, family.clone());
        family
    };
    let build = gauge("build_info", "Always 1; the version is a label");
    build.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION").to_owned())]).set(1.0);
    let ready = gauge("ready", "1 when every strategy has what its schedule promises");
    ready.get_or_create(&Vec::new()).set(flag(status.ready));
    let strategy_ready =
        gauge("strategy_ready", "1 when the strategy has what its schedule promises");
    let running = gauge("strategy_running", "1 while a run of the strategy is under way");
    let next = gauge("next_run_timestamp_seconds", "When the strategy runs next");
    let last_run = gauge("last_run_timestamp_seconds", "When the last run began");
    let last_ok = gauge("last_run_success", "1 when the last run committed a snapshot");
    let notes =
        gauge("last_run_notes", "Notes of the last run: nothing is missing because of them");
    let warnings = gauge(
        "last_run_warnings",
        "Warnings of the last run: content is missing or doubtful, or was not pruned",
    );
    let errors = gauge(
        "last_run_errors",
        "Errors of the last run: its own, and storages that did not get its snapshot",
    );
    let committed = gauge(
        "last_committed_run_timestamp_seconds",
        "When the last run began that committed a snapshot",
    );
    let duration = gauge("last_committed_run_duration_seconds", "How long that run took");
    let read = gauge("last_committed_run_read_bytes", "Bytes that it read from the sources");
    let stored = gauge("last_committed_run_stored_bytes", "Bytes that it stored in each storage");
    let in_a_row =
        gauge("failed_runs_in_a_row", "Runs that failed since the last that committed a snapshot");
    let newest = gauge(
        "newest_snapshot_timestamp_seconds",
        "When the newest whole snapshot in the storage was begun",
    );
    let fresh = gauge(
        "storage_fresh",
        "1 when the storage has a whole snapshot as young as the schedule promises",
    );
    let snapshots = gauge("snapshots", "Snapshots of the strategy in the storage");
    let bytes =
        gauge("snapshots_bytes", "Bytes that the snapshots of the strategy take in the storage");
    let verified = gauge(
        "last_verification_timestamp_seconds",
        "When the last verification on schedule began",
    );
    let sound = gauge("last_verification_success", "1 when it found nothing wrong");
    let verified_bytes = gauge("last_verification_read_bytes", "Stored bytes that it read");
    let passed = gauge(
        "last_passed_drill_timestamp_seconds",
        "When the last restore drill ended that passed",
    );
    let judged = gauge(
        "last_drill_timestamp_seconds",
        "When the last restore drill ended that came to a verdict",
    );
    let drilled_well = gauge("last_drill_success", "1 when it passed");
    let recovery = gauge(
        "last_drill_recovery_seconds",
        "How long the last restore drill of this machine took to get everything back",
    );
    let recovery_point =
        gauge("last_drill_recovery_point_seconds", "How old the data was that it got back");
    let content = gauge(
        "last_drill_content",
        "1 when that drill looked at the content of the source, 0 when only at its bytes",
    );
    let runs = Family::<Labels, Counter>::default();
    registry.register("runs", "Runs so far, by how they ended", runs.clone());
    for strategy in &status.strategies {
        let of = labels(strategy);
        let set = |family: &Gauges, value: f64| {
            family.get_or_create(&of).set(value);
        };
        set(&strategy_ready, flag(strategy.state.is_well()));
        set(&running, flag(strategy.running));
        set(&in_a_row, strategy.failures_in_a_row as f64);
        if let Some(at) = strategy.next.filter(|_| strategy.state != State::Inactive) {
            set(&next, seconds(at));
        }
        if let Some(run) = &strategy.last_run {
            set(&last_run, seconds(run.started));
            set(&last_ok, flag(run.outcome.is_committed()));
            if let Some(tally) = run.tally {
                set(&notes, tally.notes as f64);
                set(&warnings, tally.warnings as f64);
                set(&errors, tally.errors as f64);
            }
        }
        if let Some(run) = &strategy.last_committed {
            set(&committed, seconds(run.started));
            set(&duration, run.seconds);
            set(&read, run.plain_bytes as f64);
            set(&stored, run.stored_bytes as f64);
        }
        if let Some(verification) = &strategy.verified {
            set(&verified, seconds(verification.started));
            set(&sound, flag(verification.outcome == VerificationOutcome::Sound));
            set(&verified_bytes, verification.read_bytes as f64);
        }
        if let Some(drills) = &strategy.drills {
            if let Some(at) = drills.last_passed {
                set(&passed, seconds(at));
            }
            if let (Some(at), Some(verdict)) = (drills.last_judged, drills.verdict) {
                set(&judged, seconds(at));
                set(&drilled_well, flag(verdict == Verdict::Passed));
            }
            let last = drills.last.as_ref().filter(|last| last.verdict != Verdict::Inconclusive);
            for (family, value) in [
                (&recovery, last.and_then(|last| last.recovery_seconds)),
                (&recovery_point, last.and_then(|last| last.recovery_point_seconds)),
            ] {
                if let Some(value) = value {
                    set(family, value);
                }
            }
            for (source, proof) in last.into_iter().flat_map(|last| &last.proof) {
                let mut of = of.clone();
                of.push(("source", source.to_string()));
                content.get_or_create(&of).set(flag(*proof == Proof::Content));
            }
        }
        // Each outcome from the start, so that the first failure is seen as an increase.
        for outcome in Outcome::ALL {
            let mut of = of.clone();
            of.push(("outcome", outcome.to_string()));
            runs.get_or_create(&of).inc_by(strategy.runs.get(&outcome).copied().unwrap_or(0));
        }
        for storage in &strategy.storages {
            let mut of = of.clone();
            of.push(("storage", storage.storage.to_string()));
            if let Some(at) = storage.newest_whole {
                newest.get_or_create(&of).set(seconds(at));
            }
            fresh.get_or_create(&of).set(flag(storage.fresh));
            snapshots.get_or_create(&of).set(storage.snapshots as f64);
            bytes.get_or_create(&of).set(storage.stored_bytes as f64);
        }
    }
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = encode(&mut text, &registry);
    text
}

fn labels(strategy: &StrategyStatus) -> Labels {
    vec![("instance", strategy.instance.to_string()), ("strategy", strategy.strategy.to_string())]
}

fn flag(yes: bool) -> f64 {
    if yes { 1.0 } else { 0.0 }
}

fn seconds(at: chrono::DateTime<chrono::Utc>) -> f64 {
    at.timestamp() as f64
}
