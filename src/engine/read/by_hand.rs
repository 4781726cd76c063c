//! How a person restores without this program.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::num::NonZeroU32;

use crate::model::{Artifact, ArtifactKind, Compression, Encryption, Facts, Manifest, SnapshotId};
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

/// What every script begins with, after it has said what it needs.
const FUNCTIONS: &str = r#"case $snapshot in s3://*) ;; *) snapshot=$(cd "$snapshot" && pwd) ;; esac
DIR=$(mkdir -p "$DIR" && cd "$DIR" && pwd)
object() {
    case $snapshot in
        s3://*) aws s3 cp --only-show-errors "$snapshot/$1" - ;;
        *) cat "$snapshot/$1" ;;
    esac
}
stored() { for key; do object "$key"; done; }
"#;

/// A script for bash that restores a snapshot with ordinary tools, each source to a folder or
/// database of its own. `folder` is where the snapshot lies: a path or an `s3://` address.
///
/// It says in comments and errors what it wants to know: `DIR`, `KEY`, `DATABASE` (of several,
/// `DATABASE_` and the name of the artifact), and `SNAPSHOT` where the snapshot lies elsewhere.
pub fn script(folder: &str, manifest: &Manifest, facts: Option<&Facts>) -> String {
    const DATABASE: &str = "\"$DATABASE\"";
    let lines_of = |artifact: &Artifact| {
        let keys = artifact.objects.iter().map(|object| shell_quoted(&object.key));
        let fetch = format!("stored {}", keys.collect::<Vec<_>>().join(" "));
        by_hand(&manifest.id, artifact, facts, &fetch)
    };
    let restored: Vec<(&Artifact, Vec<String>)> =
        manifest.artifacts.iter().map(|one| (one, lines_of(one))).collect();
    let is_roles = |artifact: &Artifact| artifact.kind == ArtifactKind::PgGlobals;
    let databases: Vec<&Artifact> = restored
        .iter()
        .filter(|(one, lines)| !is_roles(one) && lines.iter().any(|line| line.contains(DATABASE)))
        .map(|(one, _)| *one)
        .collect();
    let variable = |artifact: &Artifact| {
        if databases.len() < 2 || is_roles(artifact) {
            return "DATABASE".to_owned();
        }
        let stem = artifact.name.rsplit_once('.').map_or(&*artifact.name, |(stem, _)| stem);
        format!("DATABASE_{}", stem.to_ascii_uppercase().replace(['-', '.'], "_"))
    };
    let mut text = String::from("(\nset -euo pipefail\n");
    let _ = writeln!(
        text,
        "# Snapshot {} of {}/{}. What is missing is asked for. Every object is read twice:\n\
         # it is held against its digest first.",
        manifest.id, manifest.instance, manifest.strategy
    );
    let mut needs = vec![("DIR", "a folder; each source gets a new one in it")];
    if manifest.is_encrypted() {
        needs.push(("KEY", "the file of the age identity"));
    }
    for (name, what) in needs {
        let _ = writeln!(text, ": \"${{{name}:?{what}}}\"");
    }
    for artifact in &databases {
        let name = variable(artifact);
        let of = restore_artifact(&manifest.id, artifact, facts).of;
        let of = of.filter(|of| of.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)));
        let of = of.map(|of| format!(", for what was {of}")).unwrap_or_default();
        let _ = writeln!(text, ": \"${{{name}:?the address of an empty database{of}}}\"");
    }
    if folder.starts_with("s3://") {
        text.push_str(
            "# The store is the one of AWS_ENDPOINT_URL and AWS_REGION, the keys are those of\n\
             # AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.\n",
        );
    }
    text.push_str("# SNAPSHOT is for a copy that lies elsewhere.\n");
    let folder = shell_quoted(folder.trim_end_matches('/'));
    let _ = writeln!(text, "snapshot=${{SNAPSHOT:-{folder}}}");
    text.push_str(FUNCTIONS);
    if manifest.is_encrypted() {
        text.push_str("KEY=$(realpath \"$KEY\")\n");
    }
    text.push_str("while read -r digest key; do\n");
    text.push_str("    [ \"$(object \"$key\" | sha256sum)\" = \"$digest  -\" ] ||\n");
    text.push_str("        { echo \"$key is not what was written\" >&2; exit 4; }\n");
    text.push_str("done <<'END'\n");
    let needed = restored.iter().filter(|(_, lines)| !lines.is_empty());
    for object in needed.flat_map(|(artifact, _)| &artifact.objects) {
        let _ = writeln!(text, "{} {}", object.digest.hex(), object.key);
    }
    text.push_str("END\n");
    let mut made = BTreeSet::new();
    for (artifact, lines) in restored.iter().filter(|(_, lines)| !lines.is_empty()) {
        let name = variable(artifact);
        let lines = lines.iter().map(|line| line.replace(DATABASE, &format!("\"${name}\"")));
        let lines: Vec<String> = lines.collect();
        let _ = writeln!(text, "# {}", artifact.name);
        if is_roles(artifact) {
            text.push_str(
                "# The roles of the server: with ROLES=1, once somebody has read them.\n",
            );
            let _ = writeln!(text, "if [ \"${{ROLES:-}}\" = 1 ]; then {}; fi", lines.join("; "));
            continue;
        }
        if databases.iter().any(|one| one.name == artifact.name) {
            let mut lines = lines.into_iter();
            text.extend(lines.next().map(|line| format!("{line}\n")));
            for line in lines {
                text.push_str("# Prints the settings of the database, as SQL to be looked at.\n");
                let _ = writeln!(text, "{line}");
            }
            continue;
        }
        let Some(source) = &artifact.source else { continue };
        let folder = match artifact.number() {
            number if artifact.kind.is_files() && number > NonZeroU32::MIN => {
                format!("{source}.{number}")
            }
            _ => source.to_string(),
        };
        if made.insert(folder.clone()) {
            let _ = writeln!(text, "mkdir \"$DIR/{folder}\"");
        }
        for line in lines {
            let _ = writeln!(text, "(DIR=$DIR/{folder}; cd \"$DIR\"; {line})");
        }
    }
    text.push_str(")\n");
    text
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
