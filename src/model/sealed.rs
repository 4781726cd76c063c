//! Documents that carry their own digest, so that a changed or missing byte in them is noticed.
//!
//! A first line `{"digest": "sha256:...", "KIND":`, the document, a last line `}`: the whole is
//! JSON, and the digest is of the lines between, so `sed '1d;$d' FILE | sha256sum` computes it.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::Digest;
use super::total::{MOST_VALUES, values_in};

/// Why a document is not the sealed one that it should be.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// It is not laid out as one or lacks a field.
    #[error("{0}")]
    Malformed(String),
    /// Its digest does not match.
    #[error("It is damaged: its digest is {found}, and it says {stated}")]
    Damaged {
        found: Digest,
        /// As stated in it.
        stated: Digest,
    },
    /// It has more values than this version reads.
    #[error("It is larger than this version reads: it has more than {MOST_VALUES} values")]
    TooLarge,
    /// A later version wrote it.
    #[error(
        "It has format {found}, and this version reads up to {known}: use a newer version of the \
         program"
    )]
    Newer {
        /// The format it has.
        found: u64,
        /// The newest that this version reads.
        known: u32,
    },
}

const HEAD: &str = "{\"digest\": \"";

/// What stands between the digest and the document.
fn middle(kind: &str) -> String {
    format!("\", \"{kind}\":")
}

/// `document` as stored, under the name `kind`.
pub(super) fn seal(kind: &str, document: &impl Serialize) -> Vec<u8> {
    let mut body = serde_json::to_string_pretty(document).unwrap_or_default();
    body.push('\n');
    let mut text = String::with_capacity(body.len().saturating_add(128));
    // Writing to a String cannot fail.
    let _ = write!(text, "{HEAD}{}{}\n{body}}}\n", Digest::of(body.as_bytes()), middle(kind));
    text.into_bytes()
}

/// What is read of a document before anything else. (A tree of the whole would take several times
/// longer, for a thousand of them in a listing.)
#[derive(Deserialize)]
pub(super) struct Head {
    format: Option<u64>,
    /// What a reader must understand, where the document says it.
    #[serde(default)]
    pub(super) requires: Option<Vec<String>>,
}

/// The head and the text of the document of a `kind` in `bytes`, which is JSON, whose digest
/// matches and whose `format` is from 1 to `newest`. One whose digest does not match is not looked
/// into any further.
pub(super) fn unseal<'a>(
    kind: &str,
    bytes: &'a [u8],
    newest: u32,
) -> Result<(Head, &'a str), SealError> {
    let malformed = |what: &str| SealError::Malformed(format!("It is not a {kind}: {what}"));
    let text = std::str::from_utf8(bytes).map_err(|_| malformed("it is not UTF-8"))?;
    let (first, rest) = text.split_once('\n').ok_or_else(|| malformed("it has a single line"))?;
    let stated = first
        .strip_prefix(HEAD)
        .and_then(|first| first.strip_suffix(middle(kind).as_str()))
        .ok_or_else(|| malformed("its first line does not state a digest"))?;
    let stated: Digest = stated.parse().map_err(|error| malformed(&format!("{error}")))?;
    let body = rest
        .strip_suffix("}\n")
        .ok_or_else(|| malformed("its last line is missing: it was cut"))?;
    let found = Digest::of(body.as_bytes());
    if found != stated {
        return Err(SealError::Damaged { found, stated });
    }
    if values_in(body.as_bytes()) > MOST_VALUES {
        return Err(SealError::TooLarge);
    }
    let head: Head = serde_json::from_str(body).map_err(|error| malformed(&error.to_string()))?;
    match head.format {
        None => Err(malformed("it states no format")),
        Some(found) if found > u64::from(newest) || found == 0 => {
            Err(SealError::Newer { found, known: newest })
        }
        Some(_) => Ok((head, body)),
    }
}
