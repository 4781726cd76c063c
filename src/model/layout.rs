//! Names of what is stored, as `docs/format.md` has them.

/// The document that commits a snapshot, in the snapshot's folder.
pub const MANIFEST_KEY: &str = "manifest.json";
/// The heartbeat of a run, in the folder that it writes to.
pub const RUN_KEY: &str = "run.json";
/// The folder of the marks, beside those of the strategies.
pub const MARKS_FOLDER: &str = "marks";
