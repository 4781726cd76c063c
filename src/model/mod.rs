//! The facts that every room speaks of: names and ids, the manifest, digests, secrets, time,
//! cancellation.
//!
//! This room knows the shape of what is stored and nothing of how it gets there: no I/O beyond the
//! wall clock and the opening of files, no database, no storage, no terminal. It imports no other
//! room. Add a type here only when two rooms need the same word for the same thing.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod artifact_name;
mod cancel;
mod check;
mod clock;
mod database_url;
mod digest;
mod error_code;
mod facts;
mod files;
mod id;
mod layout;
mod manifest;
mod mark;
mod outcome;
mod paths;
mod redact;
mod sealed;
mod secret;
mod snapshot_ref;
mod total;
mod units;
mod warning;

pub use artifact_name::{artifact_name, parse_artifact_name};
pub use cancel::{Cancel, CancelGuard};
pub use check::{Check, CheckOutcome, Proof, TOLD_DIFFERENCES, verdict};
pub use clock::Clock;
pub use database_url::{DatabaseUrl, percent_decoded};
pub use digest::{Digest, DigestError, Digester};
pub use error_code::ErrorCode;
pub use facts::{ArtifactFacts, FACTS_FORMAT, Facts, FactsError, SourceFacts, rows};
pub use files::{Input, Irregular, expect_file, open_own, read_input};
pub use id::{IdError, Name, NameError, SnapshotId};
pub use layout::{MANIFEST_KEY, MARKS_FOLDER, RUN_KEY};
pub use manifest::{
    Artifact, ArtifactKind, Codec, Completeness, Compression, Encryption, FEATURES, FORMAT,
    Manifest, ManifestError, Program, RemoteCheck, StorageNote, StoredObject,
};
pub use mark::{Evidence, MARK_FORMAT, Mark, MarkError, MarkRef, Says, Suspector, Verdict};
pub use outcome::{Outcome, VerificationOutcome};
pub use paths::counted_from;
pub use redact::{has_credentials, without_credentials};
pub use sealed::SealError;
pub use secret::{CommandLine, Secret};
pub use snapshot_ref::SnapshotRef;
pub use total::{LARGEST_TOTAL, checked_total, total, utc};
pub use units::{ByteSize, Rate, Span, UnitError};
pub use warning::{Note, Notes, Remarks, Warning, Warnings};
