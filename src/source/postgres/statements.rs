//! SQL text as statements of tokens, by the rules of PostgreSQL: quotes, dollar quotes, nested
//! comments. The statements of a rehearsal go to the server one by one, and which of them a
//! superuser may run is decided by their tokens.

use std::ops::Range;

/// A part of a statement. Comments are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A keyword, a name without quotes, or a number: in lower case.
    Word(String),
    /// A name in quotes, without them.
    Name(String),
    /// A string of any form.
    Text,
    Symbol(char),
}

/// One statement, without its semicolon.
#[derive(Debug, Clone, Default)]
pub(super) struct Statement<'a> {
    pub(super) text: &'a str,
    pub(super) tokens: Vec<Token>,
    /// Where each token stands in `text`.
    pub(super) places: Vec<Range<usize>>,
}

impl<'a> Statement<'a> {
    pub(super) fn is_word(&self, index: usize, word: &str) -> bool {
        matches!(self.tokens.get(index), Some(Token::Word(found)) if found == word)
    }

    /// Whether it begins with these words.
    pub(super) fn begins(&self, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(index, word)| self.is_word(index, word))
    }

    /// The token as it is written.
    pub(super) fn raw(&self, index: usize) -> &'a str {
        self.places.get(index).and_then(|place| self.text.get(place.clone())).unwrap_or_default()
    }

    /// The token as a name.
    pub(super) fn name(&self, index: usize) -> Option<&str> {
        match self.tokens.get(index)? {
            Token::Word(name) | Token::Name(name) => Some(name),
            _ => None,
        }
    }

    /// What it does to what, without values.
    pub(super) fn title(&self) -> String {
        let mut title = String::new();
        for token in self.tokens.iter().take(12) {
            match token {
                Token::Word(word) => {
                    if !title.is_empty() && !title.ends_with('.') {
                        title.push(' ');
                    }
                    // Keywords and names: the server folds both.
                    title.push_str(word);
                }
                Token::Name(name) => {
                    if !title.is_empty() && !title.ends_with('.') {
                        title.push(' ');
                    }
                    title.push_str(&format!("\"{name}\""));
                }
                Token::Symbol('.') => title.push('.'),
                _ => break,
            }
        }
        title
    }
}

/// The statements of a script.
pub(super) struct Statements<'a> {
    rest: &'a str,
    /// Whether a backslash means something in a plain string.
    backslashes: bool,
}

impl<'a> Statements<'a> {
    pub(super) fn of(script: &'a str) -> Self {
        Self { rest: script, backslashes: false }
    }

    fn next_statement(&mut self) -> Result<Option<Statement<'a>>, String> {
        let script = self.rest;
        let mut statement = Statement::default();
        let (mut at, mut start) = (0, 0);
        let (mut parentheses, mut bodies) = (0_usize, 0_usize);
        loop {
            let rest = script.get(at..).unwrap_or_default();
            at += blank(rest)?;
            let rest = script.get(at..).unwrap_or_default();
            if statement.tokens.is_empty() {
                start = at;
                // A command of `psql`, which is for it alone.
                if rest.starts_with('\\') {
                    at += rest.find('\n').unwrap_or(rest.len());
                    continue;
                }
            }
            let Some((token, length)) = token(rest, self.backslashes)? else {
                if !statement.tokens.is_empty() {
                    return Err("it ends inside a statement".to_owned());
                }
                self.rest = "";
                return Ok(None);
            };
            match &token {
                Token::Symbol('(') => parentheses += 1,
                Token::Symbol(')') => parentheses = parentheses.saturating_sub(1),
                Token::Symbol(';') if parentheses == 0 && bodies == 0 => {
                    self.rest = script.get(at + length..).unwrap_or_default();
                    if statement.tokens.is_empty() {
                        return Ok(Some(statement));
                    }
                    statement.text = script.get(start..at).unwrap_or_default().trim_end();
                    if statement.begins(&["set", "standard_conforming_strings"]) {
                        self.backslashes = statement.is_word(3, "off");
                    }
                    return Ok(Some(statement));
                }
                // The body of a function in SQL has semicolons, and `CASE` has an `END` too.
                Token::Word(word) if parentheses == 0 && makes_function(&statement) => {
                    match word.as_str() {
                        "begin" => bodies += 1,
                        "case" if bodies > 0 => bodies += 1,
                        "end" => bodies = bodies.saturating_sub(1),
                        _ => {}
                    }
                }
                _ => {}
            }
            statement.tokens.push(token);
            statement.places.push(at - start..at - start + length);
            at += length;
        }
    }
}

impl<'a> Iterator for Statements<'a> {
    type Item = Result<Statement<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.next_statement() {
                Ok(None) => return None,
                Ok(Some(statement)) if statement.tokens.is_empty() => {}
                Ok(Some(statement)) => return Some(Ok(statement)),
                Err(problem) => {
                    self.rest = "";
                    return Some(Err(problem));
                }
            }
        }
    }
}

/// Whether it defines a function or procedure, as far as it was read.
fn makes_function(statement: &Statement<'_>) -> bool {
    let kind = if statement.is_word(1, "or") { 3 } else { 1 };
    statement.is_word(0, "create")
        && (statement.is_word(kind, "function") || statement.is_word(kind, "procedure"))
}

/// The bytes of space and comments at the beginning.
fn blank(text: &str) -> Result<usize, String> {
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        if rest.starts_with("--") {
            rest = rest.find('\n').and_then(|end| rest.get(end..)).unwrap_or_default();
        } else if rest.starts_with("/*") {
            let mut depth = 0_usize;
            loop {
                let is = |mark: &str| rest.starts_with(mark);
                let step = if is("/*") {
                    depth += 1;
                    2
                } else if is("*/") {
                    depth = depth.saturating_sub(1);
                    2
                } else {
                    rest.chars().next().map(char::len_utf8).ok_or("it ends inside a comment")?
                };
                rest = rest.get(step..).unwrap_or_default();
                if depth == 0 {
                    break;
                }
            }
        } else {
            return Ok(text.len() - rest.len());
        }
    }
}

/// The token at the beginning, with its length in bytes.
fn token(text: &str, backslashes: bool) -> Result<Option<(Token, usize)>, String> {
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return Ok(None) };
    let second = chars.next();
    let begins_word = |c: char| c.is_ascii_alphabetic() || c == '_' || !c.is_ascii();
    let in_word = |c: char| begins_word(c) || c.is_ascii_digit() || c == '$';
    Ok(Some(match (first, second) {
        ('\'', _) => (Token::Text, string(text, 1, backslashes)?),
        ('e' | 'E', Some('\'')) => (Token::Text, string(text, 2, true)?),
        ('b' | 'B' | 'x' | 'X' | 'n' | 'N', Some('\'')) => {
            (Token::Text, string(text, 2, backslashes)?)
        }
        ('u' | 'U', Some('&')) if text.get(2..3).is_some_and(|c| c == "'" || c == "\"") => {
            return Err("it has a string or name of the form U&".to_owned());
        }
        ('"', _) => {
            let length = quoted(text, 1, '"', false).ok_or("it ends inside a name")?;
            let inner = text.get(1..length - 1).unwrap_or_default();
            (Token::Name(inner.replace("\"\"", "\"")), length)
        }
        ('$', Some(next)) if next == '$' || begins_word(next) => {
            let after = text.get(1..).unwrap_or_default();
            let tag = after.find(|c: char| !in_word(c) || c == '$').unwrap_or(after.len());
            if !after.get(tag..).is_some_and(|rest| rest.starts_with('$')) {
                return Ok(Some((Token::Symbol('$'), 1)));
            }
            let mark = text.get(..tag + 2).unwrap_or_default();
            let body = text.get(mark.len()..).unwrap_or_default();
            let end = body.find(mark).ok_or("it ends inside a string")?;
            (Token::Text, end + 2 * mark.len())
        }
        (c, _) if begins_word(c) => {
            let length = text.find(|c: char| !in_word(c)).unwrap_or(text.len());
            let word = text.get(..length).unwrap_or_default();
            (Token::Word(word.to_ascii_lowercase()), length)
        }
        (c, _) if c.is_ascii_digit() => {
            let length = text.find(|c: char| !in_word(c) && c != '.').unwrap_or(text.len());
            (Token::Word(text.get(..length).unwrap_or_default().to_owned()), length)
        }
        (c, _) => (Token::Symbol(c), c.len_utf8()),
    }))
}

fn string(text: &str, from: usize, backslashes: bool) -> Result<usize, String> {
    quoted(text, from, '\'', backslashes).ok_or_else(|| "it ends inside a string".to_owned())
}

/// The length of something in quotes, whose content begins at `from`.
fn quoted(text: &str, from: usize, quote: char, backslashes: bool) -> Option<usize> {
    let mut chars = text.get(from..)?.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c == '\\' && backslashes {
            chars.next();
        } else if c == quote {
            if chars.peek().is_some_and(|(_, next)| *next == quote) {
                chars.next();
            } else {
                return Some(from + at + 1);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(script: &str) -> Vec<&str> {
        Statements::of(script).map(|one| one.unwrap().text).collect()
    }

    #[test]
    fn statements_end_where_the_server_ends_them() {
        for (script, expected) in [
            ("SELECT 1; SELECT 2;\n", vec!["SELECT 1", "SELECT 2"]),
            (
                "SELECT ';''--;'; -- ; no\n/* ; /* ; */ */ SELECT E'\\';';",
                vec!["SELECT ';''--;'", "SELECT E'\\';'"],
            ),
            ("SELECT $a$ ; $$ ; $a$; SELECT 1;", vec!["SELECT $a$ ; $$ ; $a$", "SELECT 1"]),
            ("SELECT \"a;\"\"b;\" FROM a$b$; S;", vec!["SELECT \"a;\"\"b;\" FROM a$b$", "S"]),
            (
                "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC\n SELECT CASE WHEN true THEN 1 END; \
                 SELECT 2;\nEND; SELECT 1;",
                vec![
                    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC\n SELECT CASE WHEN true THEN 1 \
                     END; SELECT 2;\nEND",
                    "SELECT 1",
                ],
            ),
            (
                "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2);",
                vec!["CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)"],
            ),
            ("\\restrict a'b\nSELECT 1;\n\\unrestrict a'b\n", vec!["SELECT 1"]),
            ("CREATE ROLE \"a\n\\! touch x\nb\";", vec!["CREATE ROLE \"a\n\\! touch x\nb\""]),
            (
                "SET standard_conforming_strings = off; SELECT 'a\\';'; SELECT 1;",
                vec!["SET standard_conforming_strings = off", "SELECT 'a\\';'", "SELECT 1"],
            ),
        ] {
            assert_eq!(texts(script), expected, "{script}");
        }
    }

    #[test]
    fn a_script_that_was_cut_is_an_error() {
        for script in ["SELECT 1", "SELECT 'a;", "SELECT $$;", "/* ;", "CREATE ROLE \"a;", "S (;"] {
            assert!(Statements::of(script).any(|one| one.is_err()), "{script}");
        }
    }

    #[test]
    fn titles_have_no_values() {
        let script = "CREATE USER MAPPING FOR app SERVER x OPTIONS (password 'secret');";
        let statement = Statements::of(script).next().unwrap().unwrap();
        assert_eq!(statement.title(), "create user mapping for app server x options");
    }
}
