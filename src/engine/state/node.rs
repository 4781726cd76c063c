//! The random name of a state folder.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::engine::error::EngineError;
use crate::engine::state::private::{make_private_file, make_private_folder};
use crate::model::open_own;

/// A name has 32 bytes; of a file with more it is enough to know that.
const NODE_BYTES: u64 = 1_024;

/// What tells the runs of this state folder from those of others: a random text, made once and kept
/// there.
pub(in crate::engine) fn node(state_dir: &Path) -> Result<String, EngineError> {
    make_private_folder(state_dir)?;
    let path = state_dir.join("node");
    let failed = |attempt: &'static str| {
        let path: PathBuf = path.clone();
        move |error| EngineError::State { attempt, path, error }
    };
    let mut text = String::new();
    let read = open_own(&path, OpenOptions::new().read(true))
        .and_then(|file| file.take(NODE_BYTES).read_to_string(&mut text));
    match read {
        Ok(_) if text.trim().len() == 32 => return Ok(text.trim().to_owned()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed("read")(error));
        }
        // Missing, or cut short by a crash: made anew.
        _ => {}
    }
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| EngineError::Internal(format!("No random bytes: {error}")))?;
    let node = hex::encode(bytes);
    let temporary = state_dir.join(format!("node.{node}"));
    let write = || {
        make_private_file(&temporary)?;
        let mut file = open_own(&temporary, OpenOptions::new().write(true))?;
        file.write_all(node.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)
    };
    write().map_err(failed("write"))?;
    Ok(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_folder_keeps_its_node_and_mends_a_cut_one() {
        let folder = tempfile::tempdir().unwrap();
        let first = node(folder.path()).unwrap();
        assert_eq!(node(folder.path()).unwrap(), first);
        std::fs::write(folder.path().join("node"), b"cut").unwrap();
        let mended = node(folder.path()).unwrap();
        assert_eq!(mended.len(), 32);
        assert_eq!(node(folder.path()).unwrap(), mended);
    }
}
