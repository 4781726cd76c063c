//! The verbs: run, list, status, hold, prune, copy, export, import, files, diff, dump, verify,
//! restore, drill, check; and the locks.
//!
//! Sources write through the pipeline into the storages, and a manifest commits what they wrote.
//! The engine does not parse the command line, does not print, and reads no configuration file; it
//! is handed validated settings.
//!
//! | Level | Room | Knows |
//! |---|---|---|
//! | 0 | `error` | why a verb failed |
//! | 1 | `state` | the state folder and its locks |
//! | 2 | `context` | the engine and opened storages, which every verb is handed |
//! | 3 | `snapshots` | listings, marks, decisions |
//! | 4 | `read` | artifacts as streams |
//! | 4 | `write` | outputs, heartbeats, leftovers |
//! | 5 | `prune` | what is deleted, and deleting it |
//! | 6 | `run` | one execution of a strategy |
//! | 7 | `exchange` | copy, export, import |
//! | 7 | `verbs` | restore, dump, diff, verify, check, status, stats, hold |
//! | 8 | `drill` | rehearsed restores |
//!
//! A room imports lower levels; files in `verbs` do not import each other. To add a verb: a file
//! in `verbs` that takes an [`Engine`] and returns a value that a command shows.

mod context;
mod drill;
mod error;
mod exchange;
mod prune;
mod read;
mod run;
mod snapshots;
mod state;
mod verbs;
mod write;

pub use context::{Engine, OpenStorage, on_thread};
pub use drill::{DrillRequest, drill};
pub use error::{EngineError, chain};
pub use exchange::{
    CopiedSnapshot, CopyReport, CopyRequest, CopyState, ExportReport, ExportRequest, ImportReport,
    ImportRequest, copy, export, export_fresh, import,
};
pub use prune::{
    PlacePlan, PlannedSnapshot, PrunePlan, PruneReport, PruneScope, Refusal, forget, plan_prune,
    prune,
};
pub use read::by_hand::{by_hand, script, shell_quoted};
pub use read::copies::PassedOver;
pub use read::fetch::{read_facts, read_plain};
pub use read::files::{Side, files};
pub use read::identities::read_identities;
pub use read::missing::{Missing, MissingLine};
pub use run::{RunPlan, has_failed, last_began, plan, run};
pub use snapshots::drills::{LastDrills, drill_reports, last_drilled, last_drills, to_report};
pub use snapshots::find::{find, parse_at};
pub use snapshots::list::{Listing, Selection, Snapshot, list};
pub use snapshots::marks::{Drilled, Hold, Marks, Released, read_marks};
pub use state::scheduler::{Scheduler, SchedulerLock, scheduler};
pub use verbs::check::{CheckReport, StorageCheck, StrategyCheck, check, check_listen};
pub use verbs::diff::{
    Aspect, Change, DiffSummary, Difference, FileDifference, FileState, Tally, diff,
};
pub use verbs::dump::{DumpReport, DumpRequest, dump};
pub use verbs::hold::{MarkReport, hold, release};
pub use verbs::restore::{
    Destination, PlannedArtifact, RestorePlan, RestoreReport, RestoreRequest, RestoredArtifact,
    plan_restore, restore,
};
pub use verbs::stats::{
    Forecast, HORIZONS, PlaceStats, Retention, Standing, Stats, StorageStats, standings, stats,
};
pub use verbs::status::{
    fill_status, list_strategy, newest_everywhere, note_stale, stale_alert_sent, status, watch,
};
pub use verbs::verify::{
    ReadData, SnapshotVerdict, VerifyReport, last_verified, record_verification, verify,
    verify_strategy,
};
