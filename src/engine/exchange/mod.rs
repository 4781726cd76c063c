//! Snapshots that travel: copied from one storage to another, exported as one ordinary tar file,
//! and imported from it.
//!
//! The members of the file are named as the keys of a storage, so the extracted file is a storage:
//! `<instance>/<strategy>/<id>/<object>`, the manifest last, after a `README.txt` that says how to
//! read it by hand. Headers are plain ustar, and sizes of 8 GiB and more in base 256. The whole may
//! be encrypted with age besides.

mod copy;
mod export;
mod import;
mod staging;

pub use copy::{CopiedSnapshot, CopyReport, CopyRequest, CopyState, copy};
pub use export::{ExportReport, ExportRequest, export, export_fresh};
pub use import::{ImportReport, ImportRequest, import};

use crate::model::{Codec, Compression, Encryption};

/// The text that stands first.
pub(in crate::engine) const README: &str = "README.txt";
/// The name that the manifest has for the storage which the file is.
pub(in crate::engine) const STORAGE: &str = "export";
/// How a file that is encrypted as a whole is encoded.
pub(in crate::engine) const SEALED: Codec =
    Codec { compression: Compression::None, encryption: Encryption::Age };
