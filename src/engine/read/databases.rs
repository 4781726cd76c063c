//! Which databases of a snapshot are meant, where a source has several.

use crate::engine::error::EngineError;
use crate::model::Facts;

/// The databases that were asked for.
pub(in crate::engine) struct Chosen<'a> {
    /// Each with its new name; none: all of them.
    names: Vec<(&'a str, Option<&'a str>)>,
}

impl<'a> Chosen<'a> {
    /// Those that `wanted` names, each as `NAME` or `NAME=NEW`; all when it is empty.
    ///
    /// # Errors
    /// [`EngineError::Request`] when the snapshot has no such database, as far as `facts` tell.
    pub(in crate::engine) fn new(
        facts: Option<&Facts>,
        wanted: &'a [String],
    ) -> Result<Self, EngineError> {
        let Some(first) = wanted.first() else { return Ok(Self { names: Vec::new() }) };
        let refused = |problem: String| Err(EngineError::Request(problem));
        let Some(facts) = facts else {
            return refused(format!(
                "The names of the databases are encrypted, so `{first}` cannot be found: name the \
                 file of a key that opens them with `--identity-file`"
            ));
        };
        let mut known: Vec<&str> = Vec::new();
        for of in facts.artifacts.iter().filter_map(|artifact| artifact.of.as_deref()) {
            if !known.contains(&of) {
                known.push(of);
            }
        }
        if known.is_empty() {
            return refused(
                "No source of the snapshot has several databases: choose with `--source`"
                    .to_owned(),
            );
        }
        let mut names: Vec<(&str, Option<&str>)> = Vec::new();
        for wanted in wanted {
            let Some((name, new)) = split(wanted, &known) else {
                let known: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
                return refused(format!(
                    "The snapshot has no database `{wanted}`; it has {}",
                    known.join(", ")
                ));
            };
            if new.is_some_and(str::is_empty) {
                return refused(format!("`--database {wanted}` has no new name after the `=`"));
            }
            if names.iter().any(|(other, _)| *other == name) {
                return refused(format!("`--database` names `{name}` twice"));
            }
            names.push((name, new));
        }
        Ok(Self { names })
    }

    /// The first database that is given a new name.
    pub(in crate::engine) fn renamed(&self) -> Option<&'a str> {
        self.names.iter().find(|(_, new)| new.is_some()).map(|(name, _)| *name)
    }

    /// Whether an artifact was asked for that has the database `of` in it.
    pub(in crate::engine) fn has(&self, of: Option<&str>) -> bool {
        self.names.is_empty() || self.names.iter().any(|(name, _)| Some(*name) == of)
    }

    /// The name that the database `of` is to have.
    pub(in crate::engine) fn new_name<'b>(&'b self, of: &'b str) -> &'b str {
        let found = self.names.iter().find(|(name, _)| *name == of);
        found.and_then(|(_, new)| *new).unwrap_or(of)
    }
}

/// `NAME` or `NAME=NEW`, taken apart. A name may have a `=` in it, so those that the snapshot has
/// decide.
fn split<'a>(wanted: &'a str, known: &[&str]) -> Option<(&'a str, Option<&'a str>)> {
    if known.contains(&wanted) {
        return Some((wanted, None));
    }
    let mut splits = wanted.match_indices('=').filter_map(|(at, equals)| {
        let (name, rest) = wanted.split_at_checked(at)?;
        Some((name, rest.strip_prefix(equals)))
    });
    splits.find(|(name, _)| known.contains(name))
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn names_in_the_snapshot_decide_what_equals_means() {
        let known = ["shop", "a=b", "a"];
        for (wanted, found) in [
            ("shop", Some(("shop", None))),
            ("shop=new", Some(("shop", Some("new")))),
            ("shop=x=y", Some(("shop", Some("x=y")))),
            ("shop=", Some(("shop", Some("")))),
            ("a=b", Some(("a=b", None))),
            ("a=b=c", Some(("a", Some("b=c")))),
            ("a=c", Some(("a", Some("c")))),
            ("other", None),
            ("=shop", None),
        ] {
            assert_eq!(split(wanted, &known), found, "{wanted}");
        }
    }
}
