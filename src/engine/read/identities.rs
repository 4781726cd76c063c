//! Private keys from a file.

use std::io::Error;
use std::path::Path;

use crate::engine::error::EngineError;
use crate::model::read_input;
use crate::pipeline::Identity;

/// A key has 74 bytes.
const IDENTITY_BYTES: u64 = 1 << 20;

/// The keys in a file, or in a pipe.
///
/// # Errors
/// When it cannot be read, or has none.
pub fn read_identities(path: &Path) -> Result<Vec<Identity>, EngineError> {
    let failed = |error| EngineError::File {
        attempt: "use the identity file",
        path: path.to_owned(),
        error,
    };
    let parse = |text: Vec<u8>| {
        let text = String::from_utf8(text).map_err(|_| Error::other("it is not UTF-8"))?;
        Identity::parse_file(&text).map_err(|error| Error::other(error.to_string()))
    };
    read_input(path, IDENTITY_BYTES).and_then(parse).map_err(failed)
}
