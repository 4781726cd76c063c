//! What a rehearsal works with, and what it restored: both the rehearsal and the checks know it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::config::Strategy;
use crate::engine::context::{Engine, OpenStorage};
use crate::model::{Facts, Manifest, Name, SnapshotId};
use crate::pipeline::{Identity, Stopwatch};
use crate::source::scratch::{Scratch, ScratchPlace};

/// The settings and tools of one rehearsal.
pub(in crate::engine) struct Rehearsal {
    pub(super) engine: Engine,
    pub(super) strategy: Strategy,
    pub(super) manifest: Manifest,
    pub(super) storage: OpenStorage,
    /// None when they are damaged.
    pub(super) facts: Option<Arc<Facts>>,
    pub(super) identities: Vec<Identity>,
    pub(super) place: ScratchPlace,
    pub(super) watch: Stopwatch,
    pub(super) keep: bool,
    pub(super) drill: SnapshotId,
    pub(super) runtime: Handle,
}

/// The restored sources, by name.
pub(in crate::engine) type Targets = BTreeMap<Name, Restored>;

/// One restored source.
pub(in crate::engine) struct Restored {
    pub(super) scratch: Box<dyn Scratch>,
    /// Whether all that it should have was restored to it.
    pub(super) is_whole: bool,
    /// The folder that its files are in, when it is one.
    pub(super) folder: Option<PathBuf>,
    /// Whether a check that passed read the output of a command that it is.
    pub(super) looked_at: bool,
}
