//! How a person restores without this program.

use crate::model::{Artifact, Compression, Encryption, Facts, SnapshotId};
use crate::source::{RestoreArtifact, restorer};

/// What restoring needs to know of an artifact.
pub(in crate::engine) fn restore_artifact(
    id: &SnapshotId,
    artifact: &Artifact,
    facts: Option<&Facts>,
) -> RestoreArtifact {
    let known = facts.and_then(|facts| facts.artifact(&artifact.name));
    let source = facts.and_then(|facts| {
        facts
            .sources
            .iter()
            .find(|source| artifact.source.as_ref().is_some_and(|name| *name == source.name))
    });
    let partial = facts.zip(artifact.source.as_ref()).is_none_or(|(facts, source)| {
        let warnings = &facts.remarks.warnings;
        let missing: Vec<_> = warnings.kept().iter().filter(|warning| warning.missing).collect();
        warnings.missing() > missing.len() as u64
            || missing.iter().any(|warning| {
                warning.note.source.as_ref().is_none_or(|name| name == source.as_str())
            })
    });
    RestoreArtifact {
        snapshot: id.to_string(),
        name: artifact.name.clone(),
        kind: artifact.kind,
        plain_bytes: known.map(|known| known.plain_bytes),
        of: known.and_then(|known| known.of.clone()),
        partial,
        facts: known
            .and_then(|known| known.facts.as_ref())
            .or(source.map(|source| &source.facts))
            .cloned()
            .unwrap_or_default(),
    }
}

/// The ordinary commands that restore `artifact` from what `fetch` writes, a line each; none for
/// what is not restored by itself. `$KEY`, `$DATABASE` and `$DIR` stand for what only the operator
/// knows.
pub fn by_hand(
    id: &SnapshotId,
    artifact: &Artifact,
    facts: Option<&Facts>,
    fetch: &str,
) -> Vec<String> {
    let Some(restorer) = restorer(artifact.kind) else { return Vec::new() };
    let decrypt = (artifact.codec.encryption == Encryption::Age).then_some(r#"age -d -i "$KEY""#);
    let decompress = match artifact.codec.compression {
        Compression::Zstd => Some("zstd -d"),
        Compression::Gzip => Some("gzip -d"),
        Compression::None => None,
    };
    let steps = [Some(fetch), decrypt, decompress];
    let stream = steps.into_iter().flatten().collect::<Vec<_>>().join(" | ");
    let last = restorer.by_hand(&restore_artifact(id, artifact, facts));
    let lines = last.iter().map(|last| format!("{stream} | {last}").replace(" | cat > ", " > "));
    lines.collect()
}

/// A text as one word of a POSIX shell.
pub fn shell_quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=+@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::shell_quoted;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the shell is the judge")]
    fn a_quoted_text_is_one_word_of_a_shell() {
        for text in ["plain/path.zst", "two words", "it's", "$(reboot)", ""] {
            let output = std::process::Command::new("sh")
                .arg("-c")
                .arg(format!("printf %s {}", shell_quoted(text)))
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
        }
    }
}
