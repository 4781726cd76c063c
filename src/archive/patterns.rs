//! Which entries of a folder are taken.

use std::borrow::Cow;
use std::fmt;

use globset::{Candidate, Glob, GlobBuilder, GlobMatcher, GlobSet};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A pattern of paths, in the manner of `.gitignore`:
/// - A pattern without a slash, but for one at its end, matches a name at any depth: `*.tmp`,
///   `node_modules`.
/// - A pattern with a slash is counted from the source's root: `cache/*.db`, `/top`.
/// - A slash at its end lets it match folders only: `build/`.
/// - `*` and `?` do not match a slash; `**` stands for any number of folders; `[a-z]`, `[!a-z]`,
///   `{one,two}` and `\` before a sign that shall mean itself are understood. A name that begins
///   with a dot is nothing special.
///
/// What matches covers all that lies beneath. `tmp/**` covers what is in `tmp`, and not `tmp`
/// itself. Only an [`Exclusion`] may be turned round with `!`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// # Errors
    /// When it is empty or no pattern.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let pattern = Self(text.to_owned());
        let wrong =
            |problem: String| PatternError { pattern: text.chars().take(200).collect(), problem };
        if text.starts_with('!') {
            return Err(wrong(
                "`!` takes back what an earlier pattern left out, so it may begin a pattern of \
                 `exclude` only, once; write `\\!` for the sign"
                    .to_owned(),
            ));
        }
        let body = pattern.body();
        if body.is_empty() {
            return Err(wrong("it matches nothing".to_owned()));
        }
        if body.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(wrong("a part of it is empty, `.` or `..`".to_owned()));
        }
        pattern.glob().map_err(|error| wrong(error.kind().to_string()))?;
        Ok(pattern)
    }

    /// Whether it matches the file at `path`, relative to the source, or a folder that this lies
    /// in.
    pub fn covers(&self, path: &[u8]) -> bool {
        let Ok(glob) = self.glob() else { return false };
        let matcher = glob.compile_matcher();
        let matches = |path: &[u8]| matcher.is_match_candidate(&Candidate::from_bytes(path));
        let mut folders = path
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/')
            .filter_map(|(at, _)| path.get(..at));
        folders.any(matches) || (!self.folders_only() && matches(path))
    }

    fn folders_only(&self) -> bool {
        self.0.ends_with('/')
    }

    fn anchored(&self) -> bool {
        self.0.strip_suffix('/').unwrap_or(&self.0).contains('/')
    }

    /// Without the slashes that say how it is meant.
    fn body(&self) -> &str {
        let text = self.0.strip_suffix('/').unwrap_or(&self.0);
        text.strip_prefix('/').unwrap_or(text)
    }

    fn glob(&self) -> Result<Glob, globset::Error> {
        let body = self.body();
        glob(&if self.anchored() { Cow::Borrowed(body) } else { Cow::Owned(format!("**/{body}")) })
    }

    /// Patterns of the folders in which something may lie that this matches.
    fn ancestors(&self) -> Vec<String> {
        let body = self.body();
        // A slash within brackets or braces is not told apart from one between folders: then any
        // folder may be.
        if !self.anchored() || body.contains(['{', '[', '\\']) {
            return vec!["**".to_owned()];
        }
        let mut ancestors = Vec::new();
        let mut path = String::new();
        let mut parts = body.split('/').peekable();
        while let Some(part) = parts.next() {
            if part == "**" {
                ancestors.push(format!("{path}**"));
                break;
            }
            if parts.peek().is_some() {
                path.push_str(part);
                ancestors.push(path.clone());
                path.push('/');
            }
        }
        ancestors
    }
}

/// A pattern of what is left out; or, with `!` before it, of what an earlier one left out and shall
/// be taken all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exclusion {
    pattern: Pattern,
    takes_back: bool,
}

impl Exclusion {
    /// # Errors
    /// When it is empty or no pattern.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let turned = text.strip_prefix('!');
        Ok(Self { pattern: Pattern::new(turned.unwrap_or(text))?, takes_back: turned.is_some() })
    }
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.takes_back { "!" } else { "" }, self.pattern)
    }
}

impl Serialize for Exclusion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Exclusion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Exclusion {
    fn schema_name() -> Cow<'static, str> {
        "Exclusion".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let description = "A pattern of paths, as in `.gitignore`; one that begins with `!` takes \
            back what an earlier one left out";
        json_schema!({ "type": "string", "minLength": 1, "description": description })
    }
}

/// A text that is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{pattern}` is not a pattern of paths: {problem}")]
pub struct PatternError {
    pattern: String,
    problem: String,
}

impl PatternError {
    /// A pattern that is good by itself and too large to be used.
    pub(crate) fn unusable(pattern: &Pattern, error: &globset::Error) -> Self {
        Self { pattern: pattern.to_string(), problem: format!("it cannot be used: {error}") }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Pattern {
    fn schema_name() -> Cow<'static, str> {
        "Pattern".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1, "description": "A pattern of paths, as in \
            `.gitignore`" })
    }
}

fn glob(text: &str) -> Result<Glob, globset::Error> {
    GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build()
}

/// Patterns of which one must match.
struct Set {
    any: GlobSet,
    folders: GlobSet,
}

impl Set {
    fn new(patterns: &[Pattern]) -> Result<Self, globset::Error> {
        let globs = |folders_only: bool| {
            let chosen = patterns.iter().filter(|pattern| pattern.folders_only() == folders_only);
            GlobSet::new(chosen.map(Pattern::glob).collect::<Result<Vec<_>, _>>()?)
        };
        Ok(Self { any: globs(false)?, folders: globs(true)? })
    }

    fn matches(&self, path: &Candidate<'_>, folder: bool) -> bool {
        self.any.is_match_candidate(path) || folder && self.folders.is_match_candidate(path)
    }
}

/// Patterns of which the last one that matches decides.
struct Exclusions {
    globs: GlobSet,
    rules: Vec<Exclusion>,
}

impl Exclusions {
    fn new(rules: &[Exclusion]) -> Result<Self, globset::Error> {
        let globs = rules.iter().map(|rule| rule.pattern.glob()).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { globs: GlobSet::new(globs)?, rules: rules.to_vec() })
    }

    fn leaves_out(&self, path: &Candidate<'_>, folder: bool) -> bool {
        let mut matching = Vec::new();
        self.globs.matches_candidate_into(path, &mut matching);
        let mut rules = matching.iter().rev().filter_map(|number| self.rules.get(*number));
        rules
            .find(|rule| folder || !rule.pattern.folders_only())
            .is_some_and(|rule| !rule.takes_back)
    }
}

/// Patterns of a source that have matched nothing so far.
#[derive(Default)]
pub(crate) struct Unmatched {
    include: Vec<(GlobMatcher, Pattern)>,
    exclude: Vec<(GlobMatcher, Exclusion)>,
}

impl Unmatched {
    pub(crate) fn new(include: &[Pattern], exclude: &[Exclusion]) -> Result<Self, globset::Error> {
        let include = include
            .iter()
            .map(|pattern| Ok((pattern.glob()?.compile_matcher(), pattern.clone())))
            .collect::<Result<_, _>>()?;
        let exclude = exclude
            .iter()
            .map(|rule| Ok((rule.pattern.glob()?.compile_matcher(), rule.clone())))
            .collect::<Result<_, _>>()?;
        Ok(Self { include, exclude })
    }

    /// Takes out what matches the entry at `path`; of what is included, where it is taken.
    pub(crate) fn see(&mut self, path: &[u8], folder: bool, choice: Choice) {
        if self.is_empty() {
            return;
        }
        let path = Candidate::from_bytes(path);
        let misses = |matcher: &GlobMatcher, pattern: &Pattern| {
            !(matcher.is_match_candidate(&path) && (folder || !pattern.folders_only()))
        };
        if choice == Choice::Take {
            self.include.retain(|(matcher, pattern)| misses(matcher, pattern));
        }
        self.exclude.retain(|(matcher, rule)| misses(matcher, &rule.pattern));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    pub(crate) fn include(&self) -> impl Iterator<Item = &Pattern> {
        self.include.iter().map(|(_, pattern)| pattern)
    }

    pub(crate) fn exclude(&self) -> impl Iterator<Item = &Exclusion> {
        self.exclude.iter().map(|(_, rule)| rule)
    }
}

/// What becomes of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Taken. What is beneath it is taken too, unless excluded.
    Take,
    /// A folder that is not chosen itself; it is taken if something beneath it is.
    Look,
    /// Left out, with all that is beneath it.
    Leave,
}

/// The patterns of a source, compiled.
pub(crate) struct Filter {
    exclude: Exclusions,
    /// Without any, everything is included.
    include: Option<(Set, GlobSet)>,
}

impl Filter {
    pub(crate) fn new(include: &[Pattern], exclude: &[Exclusion]) -> Result<Self, globset::Error> {
        let included = if include.is_empty() {
            None
        } else {
            let ancestors =
                include.iter().flat_map(Pattern::ancestors).map(|ancestor| glob(&ancestor));
            Some((Set::new(include)?, GlobSet::new(ancestors.collect::<Result<Vec<_>, _>>()?)?))
        };
        Ok(Self { exclude: Exclusions::new(exclude)?, include: included })
    }

    /// What becomes of the entry at `path`, which lies in a folder that is not left out. `within`
    /// says that the folder is taken.
    pub(crate) fn choose(&self, path: &[u8], folder: bool, within: bool) -> Choice {
        let path = Candidate::from_bytes(path);
        if self.exclude.leaves_out(&path, folder) {
            return Choice::Leave;
        }
        match &self.include {
            _ if within => Choice::Take,
            None => Choice::Take,
            Some((set, _)) if set.matches(&path, folder) => Choice::Take,
            Some((_, ancestors)) if folder && ancestors.is_match_candidate(&path) => Choice::Look,
            Some(_) => Choice::Leave,
        }
    }

    /// What becomes of the entry at `path`, whatever folders it lies in.
    pub(crate) fn choose_at(&self, path: &[u8], folder: bool) -> Choice {
        let mut within = self.takes_all();
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
        for ancestor in ends.filter_map(|end| path.get(..end)) {
            match self.choose(ancestor, true, within) {
                Choice::Leave => return Choice::Leave,
                Choice::Take => within = true,
                Choice::Look => {}
            }
        }
        self.choose(path, folder, within)
    }

    /// Whether everything that is not excluded is taken.
    pub(crate) fn takes_all(&self) -> bool {
        self.include.is_none()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_pattern_covers_what_lies_beneath() {
        for (pattern, path, covers) in [
            ("tmp", "a/tmp/b/c", true),
            ("tmp/**", "tmp/b", true),
            ("*.pdf", "a/b.pdf", true),
            ("/a", "a/b", true),
            ("/a", "b/a", false),
            ("b/", "a/b", false),
            ("b/", "a/b/c", true),
            ("*.pdf", "a.png", false),
        ] {
            assert_eq!(
                Pattern::new(pattern).unwrap().covers(path.as_bytes()),
                covers,
                "{pattern} {path}"
            );
        }
    }

    use super::{Choice, Exclusion, Filter, Pattern};

    fn filter(include: &[&str], exclude: &[&str]) -> Filter {
        let include: Vec<_> = include.iter().map(|text| Pattern::new(text).unwrap()).collect();
        let exclude: Vec<_> = exclude.iter().map(|text| Exclusion::new(text).unwrap()).collect();
        Filter::new(&include, &exclude).unwrap()
    }

    fn excluded(pattern: &str, path: &str, folder: bool) -> bool {
        filter(&[], &[pattern]).choose(path.as_bytes(), folder, true) == Choice::Leave
    }

    #[test]
    fn patterns_match_as_they_are_documented() {
        for (pattern, path, folder, expected) in [
            ("*.tmp", "a.tmp", false, true),
            ("*.tmp", "deep/er/a.tmp", false, true),
            ("*.tmp", ".tmp", false, true),
            ("tmp/**", "tmp", true, false),
            ("tmp/**", "tmp/x", false, true),
            ("tmp/**", "tmp/x/y", false, true),
            ("tmp/**", "other/tmp/x", false, false),
            ("**/tmp", "other/tmp", true, true),
            ("**/tmp", "tmp", true, true),
            ("/top", "top", false, true),
            ("/top", "a/top", false, false),
            ("build/", "build", true, true),
            ("build/", "a/build", true, true),
            ("build/", "build", false, false),
            ("a/*", "a/b", false, true),
            ("a/*", "a/b/c", false, false),
            ("a/**/z", "a/z", false, true),
            ("a/**/z", "a/b/c/z", false, true),
            ("?", "x", false, true),
            ("[!a]x", "bx", false, true),
            ("{one,two}.log", "two.log", false, true),
            ("\\*", "*", false, true),
            ("\\*", "x", false, false),
            ("Tmp", "tmp", true, false),
        ] {
            assert_eq!(excluded(pattern, path, folder), expected, "{pattern} on {path}");
        }
        assert_eq!(
            filter(&[], &["*.x"]).choose(b"\xff.x", false, true),
            Choice::Leave,
            "names that are not UTF-8"
        );
    }

    #[test]
    fn only_what_is_included_is_taken_and_only_folders_that_may_hold_it_are_looked_into() {
        let filter = filter(&["attachments/**", "conf/*.yml", "*.key"], &["tmp"]);
        let choose = |path: &str, folder| filter.choose(path.as_bytes(), folder, false);
        assert_eq!(choose("attachments", true), Choice::Look);
        assert_eq!(choose("attachments/ab", true), Choice::Take);
        assert_eq!(choose("conf/a.yml", false), Choice::Take);
        assert_eq!(choose("x/a.key", false), Choice::Take);
        assert_eq!(choose("x/a.txt", false), Choice::Leave);
        assert_eq!(filter.choose(b"attachments/ab/x", false, true), Choice::Take);
        assert_eq!(
            filter.choose(b"attachments/tmp", true, true),
            Choice::Leave,
            "exclude is stronger"
        );
    }

    #[test]
    fn folders_that_cannot_hold_what_is_included_are_left_out() {
        let filter = filter(&["attachments/*/x", "conf"], &[]);
        assert_eq!(
            filter.choose(b"analyses", true, false),
            Choice::Look,
            "`conf` may be at any depth"
        );
        let filter = self::filter(&["attachments/*/x", "/conf"], &[]);
        assert_eq!(filter.choose(b"analyses", true, false), Choice::Leave);
        assert_eq!(filter.choose(b"attachments", true, false), Choice::Look);
        assert_eq!(filter.choose(b"attachments/1", true, false), Choice::Look);
        assert_eq!(filter.choose(b"attachments/1/y", true, false), Choice::Leave);
        assert_eq!(filter.choose(b"conf", false, false), Choice::Take);
    }

    #[test]
    fn the_last_pattern_that_matches_decides_and_one_with_an_exclamation_mark_takes_back() {
        let choose = |filter: &Filter, path: &str, folder| {
            filter.choose(path.as_bytes(), folder, true) == Choice::Take
        };
        let some = filter(&[], &["*.log", "!keep.log", "/tmp/**", "!/tmp/*.db", "!old/"]);
        assert!(!choose(&some, "a.log", false) && choose(&some, "deep/keep.log", false));
        assert!(
            choose(&some, "tmp", true)
                && !choose(&some, "tmp/x", false)
                && choose(&some, "tmp/x.db", false)
        );
        let turned = filter(&[], &["!keep.log", "*.log"]);
        assert!(!choose(&turned, "keep.log", false), "a later pattern leaves it out again");
        let folders = filter(&[], &["build*", "!build-kept/"]);
        assert!(
            choose(&folders, "build-kept", true) && !choose(&folders, "build-kept", false),
            "folders only"
        );
        assert!(!choose(&filter(&[], &["\\!x"]), "!x", false), "the sign itself");
        let included = filter(&["/a/**"], &["*.log", "!keep.log"]);
        assert_eq!(
            included.choose(b"keep.log", false, false),
            Choice::Leave,
            "what is not included is not taken back"
        );
        assert_eq!(Exclusion::new("!a/b").unwrap().to_string(), "!a/b");
    }

    #[test]
    fn what_is_no_pattern_is_refused_in_words() {
        for wrong in ["", "/", "!keep", "a//b", "../x", "./x", "[a", "{a"] {
            let error = Pattern::new(wrong).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{wrong}` is not a pattern")), "{error}");
        }
        for wrong in ["", "!", "!/", "!!keep", "![a"] {
            assert!(Exclusion::new(wrong).is_err(), "{wrong}");
        }
    }
}
