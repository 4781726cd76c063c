//! The mistakes found in a document, each with its place.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::document::{self, Places, child};
use super::error::{ConfigError, ConfigErrors, MOST_TOLD, Wrong, suggest};
use crate::model::{ErrorCode, Name};
use crate::source::process::Environment;

/// The mistakes of a file, and facts that are learned while it is read.
pub(super) struct Check<'a> {
    pub file: &'a Path,
    pub text: &'a str,
    /// The folder that files of secrets are relative to.
    pub base: &'a Path,
    /// The schema, for its definitions.
    pub schema: &'a Json,
    pub environment: &'a Environment,
    pub places: Places,
    problems: Vec<ConfigError>,
    /// How many mistakes there are beyond those.
    more: usize,
    /// Values that must not be repeated in a message: all that came from the environment, and
    /// secrets.
    pub secrets: Vec<String>,
    /// By JSON pointer, every string that something was put into, as it was written.
    pub expanded: BTreeMap<String, String>,
    /// Those of them in which secrets could be.
    pub written: BTreeMap<String, String>,
    /// The dotted keys of secrets that are written in the file itself.
    pub bare_secrets: Vec<String>,
    /// Sentences about settings that work, with a drawback.
    pub notes: Vec<String>,
    /// By their table, the names that are defined in it, wrong ones too.
    names: BTreeMap<&'static str, Vec<String>>,
}

impl<'a> Check<'a> {
    /// Reads the text and holds it against the schema. Values that are wrong are null in the tree,
    /// or replaced where they must be there.
    ///
    /// # Errors
    /// When it is not TOML.
    pub(super) fn new(
        file: &'a Path,
        text: &'a str,
        base: &'a Path,
        schema: &'a Json,
        environment: &'a Environment,
    ) -> Result<(Self, Json), ConfigErrors> {
        let (mut tree, places) = document::parse(file, text)?;
        let names = ["sources", "storages", "strategies"].into_iter().map(|table| {
            let names = tree.get(table).and_then(Json::as_object).into_iter().flatten();
            (table, names.map(|(name, _)| name.clone()).collect())
        });
        let mut check = Self {
            file,
            text,
            base,
            schema,
            environment,
            places,
            names: names.collect(),
            problems: Vec::new(),
            more: 0,
            secrets: Vec::new(),
            expanded: BTreeMap::new(),
            written: BTreeMap::new(),
            bare_secrets: Vec::new(),
            notes: Vec::new(),
        };
        check.expand(&mut tree, "");
        check.value(&mut tree, schema, "");
        check.prune(&mut tree, "");
        Ok((check, tree))
    }

    /// Reports a mistake at a value, or at the table that it is missing in.
    pub(super) fn report(&mut self, pointer: &str, wrong: Wrong) {
        let at = self.places.nearest(pointer).at();
        self.report_at(pointer, at, wrong);
    }

    /// Reports a mistake at the key of a value.
    pub(super) fn report_key(&mut self, pointer: &str, wrong: Wrong) {
        let at = self.places.nearest(pointer).key;
        self.report_at(pointer, at, wrong);
    }

    /// Whether a mistake found now would only be counted.
    pub(super) fn is_full(&self) -> bool {
        self.problems.len() >= MOST_TOLD
    }

    pub(super) fn report_at(&mut self, pointer: &str, at: Option<usize>, wrong: Wrong) {
        if self.is_full() {
            self.more += 1;
            return;
        }
        let message = self.without_secrets(wrong.message);
        let mut error = ConfigError::of_file(self.file, wrong.code, message, None);
        error.hint = wrong.hint.map(|hint| self.without_secrets(hint));
        error.key = self.places.nearest(pointer).dotted;
        error.locate(self.text, at);
        self.problems.push(error);
    }

    /// How many mistakes there are.
    pub(super) fn count(&self) -> usize {
        self.problems.len() + self.more
    }

    /// Whether something is wrong with a value or in it.
    pub(super) fn is_wrong(&self, pointer: &str) -> bool {
        let Some(place) = self.places.get(pointer) else { return false };
        let inside = |key: &str| {
            key.strip_prefix(&place.dotted)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.problems.iter().any(|problem| inside(&problem.key))
    }

    /// The result, unless there are mistakes.
    ///
    /// # Errors
    /// Every mistake.
    pub(super) fn finish<T>(
        mut self,
        result: Result<T, serde_json::Error>,
    ) -> Result<T, ConfigErrors> {
        match result {
            Ok(result) if self.problems.is_empty() => return Ok(result),
            Err(error) if self.problems.is_empty() => {
                self.report("", Wrong::value(error.to_string()));
            }
            _ => {}
        }
        Err(ConfigErrors::bounded(self.file, self.problems, self.more))
    }

    /// Short values are masked only where they are quoted: a message is not to be shredded by every
    /// `a` of it.
    fn without_secrets(&self, mut message: String) -> String {
        for secret in &self.secrets {
            if secret.chars().count() >= 4 {
                message = message.replace(secret.as_str(), "***");
            } else {
                for quote in ['`', '"'] {
                    message = message
                        .replace(&format!("{quote}{secret}{quote}"), &format!("{quote}***{quote}"));
                }
            }
        }
        message
    }

    /// Removes values that were wrong, which are null, so that the rest can be read.
    pub(super) fn prune(&mut self, value: &mut Json, pointer: &str) {
        match value {
            Json::Object(entries) => {
                entries.retain(|_, value| !value.is_null());
                for (key, value) in entries {
                    self.prune(value, &child(pointer, key));
                }
            }
            Json::Array(items) => {
                let mut kept = 0;
                for (index, item) in items.iter_mut().enumerate() {
                    if item.is_null() {
                        continue;
                    }
                    let place = format!("{pointer}/{kept}");
                    if kept < index {
                        self.places.rename(&format!("{pointer}/{index}"), &place);
                    }
                    self.prune(item, &place);
                    kept += 1;
                }
                items.retain(|item| !item.is_null());
            }
            _ => {}
        }
    }

    /// Reads a part that belongs to another room, so that mistakes its type finds are reported with
    /// the place of the part, and for all parts at once. A part that cannot be read becomes null.
    /// One that does not fit the schema is not validated.
    pub(super) fn part<T: DeserializeOwned>(
        &mut self,
        tree: &mut Json,
        pointer: &str,
        validate: impl Fn(&T) -> Vec<(&'static str, Wrong)>,
    ) {
        let Some(value) = tree.pointer_mut(pointer) else { return };
        let read = serde_json::from_value::<T>(value.clone());
        if read.is_err() {
            *value = Json::Null;
        }
        if self.is_wrong(pointer) {
            return;
        }
        let wrong = match read {
            Ok(read) => validate(&read),
            Err(error) => vec![("", Wrong::value(error.to_string()))],
        };
        for (key, wrong) in wrong {
            let inner = child(pointer, key);
            match self.places.get(&inner).map(|place| place.value) {
                Some(at) => self.report_at(&inner, at, wrong),
                None => self.report(pointer, wrong),
            }
        }
    }

    /// Reports the names of a list that are not defined in `table`.
    pub(super) fn refer<'n>(
        &mut self,
        list: &str,
        names: impl IntoIterator<Item = &'n Name>,
        table: &'static str,
    ) {
        for (index, name) in names.into_iter().enumerate() {
            self.refer_one(&format!("{list}/{index}"), name, table);
        }
    }

    pub(super) fn refer_one(&mut self, pointer: &str, name: &Name, table: &'static str) {
        let known = self.names.get(table).map(Vec::as_slice).unwrap_or_default();
        if known.iter().any(|known| known == name.as_str()) {
            return;
        }
        if self.is_full() {
            self.more += 1;
            return;
        }
        let what = match table {
            "strategies" => "strategy",
            other => other.trim_end_matches('s'),
        };
        let hint = suggest(name.as_str(), known.iter().map(String::as_str));
        let message = format!("There is no {what} `{name}`");
        self.report(pointer, Wrong::new(ErrorCode::ConfigUnknownName, message).hint(hint));
    }

    /// Notes that every user of this machine can read the secrets in the configuration file itself.
    pub(super) fn note_bare_secrets(&mut self, file: &Path) {
        if !self.bare_secrets.is_empty() && is_open(file) {
            self.notes.push(format!(
                "Every user of this machine can read `{}`, which holds a secret (`{}`): `chmod \
                 o-r` takes that away, and `*_file` keeps the secret elsewhere",
                file.display(),
                self.bare_secrets.join("`, `"),
            ));
        }
    }

    /// Notes a file of a secret that every user of this machine can read. Under `/run` the
    /// machine's own tools put them, for one container.
    pub(super) fn note_permissions(&mut self, path: &Path) {
        if is_open(path) && !path.starts_with("/run") && !path.starts_with("/var/run") {
            self.notes.push(format!(
                "Every user of this machine can read `{}`: `chmod o-r` takes that away",
                path.display()
            ));
        }
    }
}

/// Whether everyone may read the file.
fn is_open(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}
