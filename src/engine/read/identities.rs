//! Private keys from a file.

use std::path::Path;

use crate::engine::error::EngineError;
use crate::engine::state::private::read_small;
use crate::pipeline::Identity;

/// The keys in a file.
///
/// # Errors
/// When it cannot be read, or has none.
pub(in crate::engine) fn read_identities(path: &Path) -> Result<Vec<Identity>, EngineError> {
    let failed = |error| EngineError::File {
        attempt: "use the identity file",
        path: path.to_owned(),
        error,
    };
    let text = std::fs::File::open(path).and_then(read_small).map_err(failed)?;
    Identity::parse_file(&text).map_err(|error| failed(std::io::Error::other(error.to_string())))
}
