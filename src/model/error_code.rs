//! The names that errors have for programs. `docs/errors.md` has the cause and remedy of each.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($name:ident = $text:literal,)*) => {
        /// The kind of an error, by what the operator does about it. The texts never change.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum ErrorCode {
            $(#[serde(rename = $text)] $name,)*
        }

        impl ErrorCode {
            /// Every code, in the order of `docs/errors.md`.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The stable text.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

codes! {
    InvalidRequest = "invalid_request",
    Cancelled = "cancelled",
    TimedOut = "timed_out",
    NoThreads = "no_threads",
    Internal = "internal",

    ConfigNotFound = "config_not_found",
    ConfigUnreadable = "config_unreadable",
    ConfigSyntax = "config_syntax",
    ConfigUnknownKey = "config_unknown_key",
    ConfigMissingKey = "config_missing_key",
    ConfigInvalidValue = "config_invalid_value",
    ConfigUnresolvedVariable = "config_unresolved_variable",
    ConfigUnknownName = "config_unknown_name",
    ConfigConflict = "config_conflict",
    ConfigSecretUnreadable = "config_secret_unreadable",
    ConfigAmbiguousStrategy = "config_ambiguous_strategy",
    ConfigPruneOnly = "config_prune_only",

    SnapshotNotFound = "snapshot_not_found",
    SnapshotDamaged = "snapshot_damaged",
    SnapshotNewer = "snapshot_newer",
    DocumentTooLarge = "document_too_large",
    ExportDamaged = "export_damaged",
    RunLocked = "run_locked",
    RestoreIncomplete = "restore_incomplete",
    NotDrilled = "not_drilled",
    NoStorageLeft = "no_storage_left",
    HookFailed = "hook_failed",

    SourceUnreachable = "source_unreachable",
    SourceFailed = "source_failed",
    SourceChanged = "source_changed",
    SourceUnsuitable = "source_unsuitable",
    TargetNotEmpty = "target_not_empty",
    DeleteUnsafe = "delete_unsafe",
    ToolMissing = "tool_missing",
    ToolFailed = "tool_failed",
    ToolTimedOut = "tool_timed_out",

    ObjectNotAFile = "object_not_a_file",
    ObjectExists = "object_exists",
    ObjectLocked = "object_locked",
    ObjectMismatch = "object_mismatch",
    StorageDenied = "storage_denied",
    StorageFull = "storage_full",
    StorageUnavailable = "storage_unavailable",
    StorageFailed = "storage_failed",
    StorageUnsuitable = "storage_unsuitable",

    FileDenied = "file_denied",
    FileFailed = "file_failed",
    OutputFailed = "output_failed",
    StateFailed = "state_failed",
    CatalogFailed = "catalog_failed",
    CatalogNewer = "catalog_newer",

    SchedulerRunning = "scheduler_running",
    SchedulerNotRunning = "scheduler_not_running",
    SchedulerElsewhere = "scheduler_elsewhere",
    SchedulerFailed = "scheduler_failed",
    NothingScheduled = "nothing_scheduled",
    ListenFailed = "listen_failed",

    NotifyUnavailable = "notify_unavailable",
    NotifyFailed = "notify_failed",
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl PartialEq<&str> for ErrorCode {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}
