//! Credentials in what others print: programs that were started, stores, the command line.

use std::sync::LazyLock;

use regex_lite::Regex;

use super::database_url::percent_decoded;
use super::secret::{MASK, Secret};

/// Pieces of a multi-line secret, and passwords in an address, that are shorter are not looked for:
/// they may be a part of any word.
const SHORTEST_PIECE: usize = 4;

/// Values by their names, with what comes before the value as the first group. A name is one by its
/// last word, so that `passed=12` has none.
static NAMED: LazyLock<Result<[Regex; 3], regex_lite::Error>> = LazyLock::new(|| {
    const NAME: &str = r"[\w.-]*(?:pass|password|passwd|passphrase|pwd|secret|token|credentials?|signature|(?:api|access|secret)[_-]?key)(?:[_.-][\w.-]*)?";
    let quoted = r#"(?:'(?:[^'\\]|\\.|'')*'?|"(?:[^"\\]|\\.)*"?)"#;
    Ok([
        // `password=value`, `?token=value`, `PGPASSWORD='value'`
        Regex::new(&format!(r#"(?i)({NAME}["']?\s*=\s*)(?:{quoted}\S*|\S+)"#))?,
        // `"password": "value"`, `ALTER ROLE ... PASSWORD 'value'`
        Regex::new(&format!(r#"(?i)({NAME}(?:["']?\s*:\s*|\s+))(?:{quoted})"#))?,
        // A request as a program shows it that was asked to show more.
        Regex::new(r#"(?i)(authorization["']?\s*[:=]\s*["']?(?:basic|bearer|token)\s+)\S+"#)?,
    ])
});

/// The text with the user and password of every address in it as `***`, and the values of what is
/// named as a password, secret or token. An address whose password has unusual characters in it is
/// masked up to the last `@` that may be meant: rather too much than too little.
pub fn without_credentials(text: &str) -> String {
    let Ok(named) = &*NAMED else { return MASK.to_owned() };
    let line = |line: &str| {
        let line = without_users(line);
        named.iter().fold(line, |line, name| name.replace_all(&line, "${1}***").into_owned())
    };
    text.split_inclusive('\n').map(line).collect()
}

/// Whether an address in the text has a user or password.
pub fn has_credentials(text: &str) -> bool {
    without_users(text) != text
}

/// The line without what stands before the hosts of its addresses.
fn without_users(line: &str) -> String {
    let mut shown = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        rest = after;
        if let Some(user) = user(after).filter(|user| !user.is_empty()) {
            shown.push_str(MASK);
            rest = after.strip_prefix(user).unwrap_or_default();
        }
    }
    shown + rest
}

/// The user and password at the beginning of what follows `://`, up to the `@`.
fn user<'a>(after: &'a str) -> Option<&'a str> {
    let after = after.trim_end_matches(['\n', '\r']);
    let word = after.split(char::is_whitespace).next()?;
    let host = word.split(['/', '?', '#']).next()?;
    let before_last_at = |text: &'a str| text.rsplit_once('@').map(|(user, _)| user);
    if host.contains('@') {
        return before_last_at(word);
    }
    // In brackets stand the colons of an address of IPv6.
    let name = host.strip_prefix('[').and_then(|name| name.split_once(']'));
    let (_, port) = name.map_or(host, |(_, after)| after).split_once(':')?;
    if let Some(user) = before_last_at(word) {
        return Some(user);
    }
    if port.starts_with(|first: char| first.is_ascii_digit()) || host.is_empty() {
        return None;
    }
    // No port: the password has a blank in it.
    Some(before_last_at(after).unwrap_or(word))
}

impl Secret {
    /// What it may be recognised by where somebody repeats it: itself, its lines, and the password
    /// of the address that it is, the longest first.
    pub fn forms(&self) -> Vec<Secret> {
        let text = self.expose();
        let password = text
            .split_once("://")
            .and_then(|(_, after)| user(after))
            .and_then(|user| user.split_once(':'))
            .map(|(_, password)| password);
        let decoded = password.and_then(percent_decoded);
        let lines = text.lines().filter(|line| line.len() < text.len());
        let mut forms: Vec<&str> = lines
            .chain(password)
            .chain(decoded.as_deref())
            .filter(|piece| piece.trim().len() >= SHORTEST_PIECE)
            .chain([text].into_iter().filter(|text| !text.is_empty()))
            .collect();
        forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
        forms.into_iter().map(Secret::new).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::without_credentials;
    use crate::model::Secret;

    #[test]
    fn credentials_in_the_text_of_others_are_masked() {
        for (text, shown) in [
            ("no route to mongodb://u:hunter2@h:1/db", "no route to mongodb://***@h:1/db"),
            ("amqp://hunter2@h", "amqp://***@h"),
            ("redis://:hun@ter#2/x?y@h/0 failed", "redis://***@h/0 failed"),
            ("postgresql://u:#hunter2@h", "postgresql://***@h"),
            ("s3://KEY:hun/ter2@bucket/x", "s3://***@bucket/x"),
            ("mongodb://u:hunter 2@h/db: refused", "mongodb://***@h/db: refused"),
            ("mongodb://u:hunter2", "mongodb://***"),
            ("a://b:hunter2@c, d://e:hunter2@f", "a://***@c, d://***@f"),
            ("\"mongodb://u:hunter2@h/db\":\nx\n", "\"mongodb://***@h/db\":\nx\n"),
            ("https://h/?password=hunter2&x=y", "https://h/?password=***"),
            ("host=h password='hun ter2' user=u", "host=h password=*** user=u"),
            ("host=h password = hunter2 user=u", "host=h password = *** user=u"),
            ("Server=h;Pwd=hunter2;", "Server=h;Pwd=***"),
            ("PGPASSWORD=hunter2\nHOME=/", "PGPASSWORD=***\nHOME=/"),
            ("{\"api_key\": \"hunter2\", \"a\": 1}", "{\"api_key\": ***, \"a\": 1}"),
            ("ALTER ROLE a PASSWORD 'hunter2' LOGIN;", "ALTER ROLE a PASSWORD *** LOGIN;"),
            ("> Authorization: Basic aHVudGVyMg==", "> Authorization: Basic ***"),
        ] {
            assert_eq!(without_credentials(text), shown);
        }
    }

    #[test]
    fn what_is_no_credential_is_left_alone() {
        for text in [
            "GET http://127.0.0.1/a@b?c=d failed for admin@example.org",
            "connect to \"http://127.0.0.1:9000\": refused",
            "https://[::1]:80/x, https://[::1]/y@z, postgresql:///db?host=/run",
            "FATAL:  password authentication failed for user \"app\"",
            "12 tests, passed=12, tokens=5, unexpected token: }",
            "scp user@host:file, 12:30, ://, http://:80/x",
        ] {
            assert_eq!(without_credentials(text), text);
        }
    }

    #[test]
    fn a_secret_is_known_by_its_lines_and_its_password() {
        let forms = |text: &str| -> Vec<String> {
            Secret::new(text).forms().iter().map(|form| form.expose().to_owned()).collect()
        };
        assert_eq!(forms("hunter2"), ["hunter2"]);
        assert_eq!(forms("x"), ["x"]);
        assert_eq!(forms(""), [""; 0]);
        assert_eq!(forms("first line\nsecond"), ["first line\nsecond", "first line", "second"]);
        assert_eq!(
            forms("mongodb://u:hunter%402@h/db"),
            ["mongodb://u:hunter%402@h/db", "hunter%402", "hunter@2"]
        );
    }
}
