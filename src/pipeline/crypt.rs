//! age, X25519.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A public key (`age1…`).
#[derive(Clone)]
pub struct Recipient(pub age::x25519::Recipient);

impl FromStr for Recipient {
    type Err = CryptError;

    /// Reads an X25519 recipient. The text is repeated in errors unless it may be a private key.
    fn from_str(text: &str) -> Result<Self, CryptError> {
        let text = text.trim();
        let wrong = |what: &str| {
            Err(CryptError(format!(
                "{what}; expected an X25519 recipient (`age1…`), as `age-keygen` prints it"
            )))
        };
        if text.to_ascii_uppercase().starts_with("AGE-") {
            return wrong("This is a private key, and only the public one belongs here");
        }
        if text.starts_with("ssh-") || text.starts_with("ecdsa-") {
            return wrong("SSH keys are not taken as recipients");
        }
        match text.parse() {
            Ok(recipient) => Ok(Self(recipient)),
            // Others have a name between the `age1` and the `1` that ends the prefix:
            // `age1yubikey1…`, `age1pq1…`.
            Err(_) if text.starts_with("age1") && text.rfind('1').is_some_and(|last| last > 3) => {
                wrong(&format!("`{text}` is of a plugin or of another kind that is not taken"))
            }
            Err(problem) => wrong(&format!("`{text}` is not a recipient ({problem})")),
        }
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Serialize for Recipient {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Recipient {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A private key (`AGE-SECRET-KEY-1…`).
#[derive(Clone)]
pub struct Identity(pub age::x25519::Identity);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Identity {
    /// Every identity in the text of an identity file (`age-keygen -o`), comments and empty lines
    /// passed over.
    ///
    /// # Errors
    /// A line that is not an identity (never repeated in the error), or no identity at all.
    pub fn parse_file(text: &str) -> Result<Vec<Self>, CryptError> {
        // Editors of Windows begin a file so.
        let text = text.trim_start_matches('\u{feff}');
        let mut identities = Vec::new();
        for (line, number) in text.lines().map(str::trim).zip(1..) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Ok(identity) = line.parse() {
                identities.push(Self(identity));
                continue;
            }
            let what = if line.starts_with("age-encryption.org/")
                || line.starts_with("-----BEGIN AGE ENCRYPTED")
            {
                "begins an encrypted file: decrypt it with `age -d` first"
            } else if line.starts_with("-----BEGIN") {
                "begins an SSH or PEM key, which is not taken: expected `AGE-SECRET-KEY-1…`"
            } else if line.starts_with("AGE-PLUGIN-") || line.starts_with("AGE-SECRET-KEY-PQ-") {
                "is of a plugin or of another kind that is not taken: expected `AGE-SECRET-KEY-1…`"
            } else if line.starts_with("age1") {
                "is a public key: expected the private one, `AGE-SECRET-KEY-1…`"
            } else {
                "is not an X25519 identity: expected `AGE-SECRET-KEY-1…`"
            };
            return Err(CryptError(format!("Line {number} of the identity file {what}")));
        }
        if identities.is_empty() {
            return Err(CryptError(
                "The identity file has no identity in it: expected `AGE-SECRET-KEY-1…`".to_owned(),
            ));
        }
        Ok(identities)
    }
}

/// A key that is not one.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct CryptError(pub String);

#[cfg(test)]
mod tests {
    use age::secrecy::ExposeSecret as _;

    use super::{Identity, Recipient};

    fn key() -> (String, String) {
        let identity = age::x25519::Identity::generate();
        (identity.to_string().expose_secret().to_owned(), identity.to_public().to_string())
    }

    #[test]
    fn an_identity_file_reads_with_its_comments() {
        let ((one, _), (two, _)) = (key(), key());
        let text = format!(
            "\u{feff}# created: 2026-11-21\r\n# public key: age1x\r\n\r\n{one}\r\n  {two}\n"
        );
        assert_eq!(Identity::parse_file(&text).map(|found| found.len()).ok(), Some(2));
        assert!(Identity::parse_file(&format!("\u{feff}{one}")).is_ok());
        for empty in ["", "\u{feff}", "# only a comment\n\n"] {
            assert!(Identity::parse_file(empty).is_err());
        }
    }

    #[test]
    fn a_line_that_is_not_an_identity_is_refused_and_not_repeated() {
        let (private, public) = key();
        let cut = private.get(..40).unwrap_or_default().to_owned();
        for bad in
            [cut, public, "AGE-PLUGIN-YUBIKEY-1QQQ".to_owned(), "age-encryption.org/v1".to_owned()]
        {
            let error = Identity::parse_file(&format!("{private}\n{bad}\n"))
                .err()
                .map(|error| error.to_string());
            let error = error.unwrap_or_default();
            assert!(error.starts_with("Line 2 of the identity file "), "{error}");
            assert!(!error.contains(&bad), "{error}");
        }
    }

    #[test]
    fn only_x25519_recipients_are_taken_and_others_are_refused_in_words() {
        let (private, public) = key();
        assert_eq!(public.parse::<Recipient>().map(|found| found.to_string()).ok(), Some(public));
        for (bad, word) in [
            ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIH", "SSH"),
            ("age1yubikey1qwerty", "plugin"),
            ("age1pq1qqqq", "another kind"),
            ("age1qqqq", "not a recipient"),
            ("", "not a recipient"),
            (private.as_str(), "private key"),
        ] {
            let error =
                bad.parse::<Recipient>().err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(word), "{bad}: {error}");
            assert!(!error.contains(&private), "{error}");
        }
    }
}
