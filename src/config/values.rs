//! What a configuration takes from outside: environment variables and the files of secrets.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::Path;

use crate::model::read_input;
use crate::source::process::Environment;

/// The environment of this process.
#[expect(clippy::disallowed_methods, reason = "this is the door to the environment")]
pub fn environment() -> Environment {
    Environment(std::env::vars_os().collect())
}

/// A variable that is set to something, as text.
pub(super) fn variable<'a>(environment: &'a Environment, name: &str) -> Option<&'a OsStr> {
    environment
        .0
        .get(OsStr::new(name))
        .map(AsRef::as_ref)
        .filter(|value: &&OsStr| !value.is_empty())
}

/// The text with every `${NAME}` replaced, in one pass, and `$${` by `${`. None when there is
/// nothing to replace.
///
/// # Errors
/// One for each variable that is missing or empty, and for what is not a variable.
pub(super) fn expand(text: &str, environment: &Environment) -> Result<Option<String>, Vec<String>> {
    if !text.contains("${") {
        return Ok(None);
    }
    let mut expanded = String::with_capacity(text.len());
    let mut errors = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(before) = before.strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = after;
            continue;
        }
        expanded.push_str(before);
        let Some((name, after)) = after.split_once('}') else {
            errors.push("`${` is not closed by `}`".to_owned());
            rest = "";
            break;
        };
        rest = after;
        if !is_variable(name) {
            // What stands there may be a piece of a password.
            errors
                .push("What stands between `${` and `}` is not the name of a variable".to_owned());
            continue;
        }
        match environment.0.get(OsStr::new(name)).map(|value| value.to_str()) {
            None => errors.push(format!("The environment variable `{name}` is not set")),
            Some(None) => errors.push(format!("The environment variable `{name}` is not UTF-8")),
            Some(Some("")) => errors.push(format!("The environment variable `{name}` is empty")),
            Some(Some(value)) => expanded.push_str(value),
        }
    }
    expanded.push_str(rest);
    if errors.is_empty() { Ok(Some(expanded)) } else { Err(errors) }
}

fn is_variable(name: &str) -> bool {
    name.bytes().next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Files of secrets are small; a larger one is a mistake.
const SECRET_BYTES: u64 = 64 << 10;

/// The secret in a file, without one newline at its end.
///
/// # Errors
/// When it cannot be read, is empty, or is not what a secret is kept in. Nothing of its content is
/// repeated.
pub(super) fn read_secret(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let text = read_input(path, SECRET_BYTES).map_err(|error| match error.kind() {
        ErrorKind::FileTooLarge => {
            format!("`{shown}` is larger than 64 KiB: it is not the file of a secret")
        }
        _ => format!("Could not read `{shown}`: {error}"),
    })?;
    let mut text = String::from_utf8(text).map_err(|_| format!("`{shown}` is not UTF-8"))?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    if text.is_empty() { Err(format!("`{shown}` is empty")) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::{expand, read_secret};
    use crate::source::process::Environment;

    #[test]
    fn variables_are_put_in_once() {
        let environment = Environment(
            [("A", "1"), ("B_2", "${A}"), ("EMPTY", "")]
                .map(|(key, value)| (key.into(), value.into()))
                .into(),
        );
        for (text, expanded) in [
            ("${A}", "1"),
            ("x${A}y${A}", "x1y1"),
            ("${B_2}", "${A}"),
            ("$${A}", "${A}"),
            ("$$${A}", "$${A}"),
            ("a$${b", "a${b"),
            ("$${A}${A}", "${A}1"),
        ] {
            assert_eq!(expand(text, &environment), Ok(Some(expanded.to_owned())), "{text}");
        }
        for plain in ["", "$A", "{A}", "$$", "a$"] {
            assert_eq!(expand(plain, &environment), Ok(None), "{plain}");
        }
        for (text, errors) in
            [("${EMPTY}${MISSING}", 2), ("${A", 1), ("${}", 1), ("${a b}", 1), ("${1}", 1)]
        {
            assert_eq!(expand(text, &environment).unwrap_err().len(), errors, "{text}");
        }
    }

    #[test]
    fn one_newline_is_cut_off_a_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        for (content, secret) in
            [("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" a ", " a ")]
        {
            std::fs::write(&path, content).unwrap();
            assert_eq!(read_secret(&path).as_deref(), Ok(secret));
        }
        for content in ["", "\n", "\r\n"] {
            std::fs::write(&path, content).unwrap();
            assert!(read_secret(&path).unwrap_err().ends_with("is empty"));
        }
        assert!(read_secret(folder.path()).is_err());
    }
}
