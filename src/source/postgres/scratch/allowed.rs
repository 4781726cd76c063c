//! The statements of a dump that a superuser may run for it, beside what users of the source made.
//!
//! None of these evaluates an expression, a default, a type's input or any other code of a user:
//! each only notes in the catalogs that something exists.

use crate::source::postgres::statements::{Statement, Token};

/// How a superuser may run a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Allowed {
    AsItStands,
    /// A function of the server itself, which any user may call already, under another name.
    Internal(String),
    /// A language: its functions may be made then, and do not run.
    Language,
    /// A wrapper of that name, as it stands in the statement, without the code that makes it one.
    Wrapper(String),
}

/// Whether, and how, a superuser may run it.
pub(super) fn allowed(statement: &Statement<'_>) -> Option<Allowed> {
    let mut cursor = Cursor { statement, at: 0 };
    let as_it_stands = |holds: bool| holds.then_some(Allowed::AsItStands);
    if cursor.words(&["comment", "on"]) {
        return as_it_stands(is_comment(statement));
    }
    if cursor.words(&["alter", "operator", "family"]) {
        return as_it_stands(is_operator_class(statement));
    }
    if cursor.words(&["alter", "publication"]) {
        let adds = cursor.name() && cursor.words(&["add", "tables", "in", "schema"]);
        return as_it_stands(adds && cursor.only_names());
    }
    if !cursor.words(&["create"]) {
        return None;
    }
    let replaces = cursor.words(&["or", "replace"]);
    let trusted = cursor.words(&["trusted"]);
    if cursor.words(&["procedural", "language"]) || cursor.words(&["language"]) {
        return is_language(&mut cursor).then_some(Allowed::Language);
    }
    if trusted {
        return None;
    }
    if cursor.words(&["function"]) || cursor.words(&["procedure"]) {
        return function(cursor);
    }
    if replaces {
        return None;
    }
    if cursor.words(&["foreign", "data", "wrapper"]) {
        let name = statement.raw(cursor.at);
        return cursor.name().then(|| Allowed::Wrapper(name.to_owned()));
    }
    as_it_stands(if cursor.words(&["type"]) {
        let named = cursor.qualified();
        // A shell; a range; or a base type.
        let _ = cursor.words(&["as", "range"]);
        named
            && (cursor.ended() || (!cursor.is_word("as") && cursor.definition() && cursor.ended()))
    } else if cursor.words(&["aggregate"]) {
        cursor.qualified()
            && cursor.types()
            && cursor.definition()
            && cursor.ended()
            && !has_word(statement, &["initcond", "minitcond"])
    } else if cursor.words(&["operator", "class"]) || cursor.words(&["operator", "family"]) {
        is_operator_class(statement)
    } else if cursor.words(&["operator"]) {
        // Its name is made of symbols.
        while !cursor.is_symbol('(') && !cursor.ended() {
            cursor.at += 1;
        }
        cursor.definition() && cursor.ended()
    } else if cursor.words(&["cast"]) {
        is_flat(statement)
    } else if cursor.words(&["transform", "for"]) {
        !has_text(statement) && depth(statement) <= 2
    } else if cursor.words(&["access", "method"]) {
        cursor.name()
            && cursor.words(&["type"])
            && cursor.name()
            && cursor.words(&["handler"])
            && cursor.qualified()
            && cursor.ended()
    } else if cursor.words(&["text", "search", "parser"])
        || cursor.words(&["text", "search", "template"])
    {
        cursor.qualified() && cursor.definition() && cursor.ended()
    } else if cursor.words(&["publication"]) {
        cursor.name()
            && cursor.words(&["for", "all", "tables"])
            && (cursor.ended() || cursor.words(&["with"]))
            && depth(statement) <= 1
    } else {
        false
    })
}

/// A function in C of the server's own libraries, or one of the server itself.
fn function(mut cursor: Cursor<'_, '_>) -> Option<Allowed> {
    let statement = cursor.statement;
    if !(cursor.qualified() && cursor.types()) {
        return None;
    }
    let at =
        |word: &str| (cursor.at..statement.tokens.len()).find(|at| statement.is_word(*at, word));
    let language = statement.name(at("language")? + 1)?;
    let body = at("as")?;
    // Between the arguments and the body nothing has a value, and no type a modifier.
    let between = cursor.at..body;
    let plain = between.clone().all(|at| match statement.tokens.get(at) {
        Some(Token::Word(word)) => !matches!(word.as_str(), "set" | "default"),
        Some(Token::Name(_)) => true,
        Some(Token::Symbol('(')) => statement.is_word(at.wrapping_sub(1), "table"),
        Some(Token::Symbol(symbol)) => matches!(symbol, '.' | ',' | ')' | '[' | ']'),
        _ => false,
    });
    let mut end = Cursor { statement, at: body + 1 };
    let source = statement.raw(end.at);
    let inner = |mark: &str| source.strip_prefix(mark)?.strip_suffix(mark);
    let source = inner("$$").or_else(|| inner("'"))?;
    let strange = source.contains(['\'', '\\']) || source.contains("..");
    let texts = end.text() && (end.ended() || (end.symbol(',') && end.text() && end.ended()));
    if !plain || !texts || strange {
        return None;
    }
    match language {
        "internal" => Some(Allowed::Internal(source.to_owned())),
        "c" => source.starts_with("$libdir/").then_some(Allowed::AsItStands),
        _ => None,
    }
}

fn is_language(cursor: &mut Cursor<'_, '_>) -> bool {
    if !cursor.name() {
        return false;
    }
    for part in ["handler", "inline", "validator"] {
        if cursor.words(&[part]) && !cursor.qualified() {
            return false;
        }
    }
    cursor.ended()
}

/// `COMMENT ON ... IS 'text'`, of anything.
fn is_comment(statement: &Statement<'_>) -> bool {
    let last = statement.tokens.len().saturating_sub(1);
    let texts = statement.tokens.iter().filter(|token| **token == Token::Text).count();
    let value = statement.tokens.get(last);
    (value == Some(&Token::Text) && texts == 1 || statement.is_word(last, "null") && texts == 0)
        && statement.is_word(last.saturating_sub(1), "is")
        && depth(statement) <= 1
}

/// `CREATE OPERATOR CLASS`, `CREATE` or `ALTER OPERATOR FAMILY`: no type in it has a modifier, for
/// which code of that type would run.
fn is_operator_class(statement: &Statement<'_>) -> bool {
    let mut of_type = false;
    for token in &statement.tokens {
        match token {
            Token::Word(word) if matches!(word.as_str(), "type" | "storage") => of_type = true,
            Token::Word(word) if word == "using" => of_type = false,
            Token::Symbol(',') => of_type = false,
            Token::Symbol('(') if of_type => return false,
            _ => {}
        }
    }
    is_flat(statement)
}

fn is_flat(statement: &Statement<'_>) -> bool {
    !has_text(statement) && depth(statement) <= 1
}

fn has_text(statement: &Statement<'_>) -> bool {
    statement.tokens.contains(&Token::Text)
}

fn has_word(statement: &Statement<'_>, words: &[&str]) -> bool {
    let is = |token: &Token| {
        matches!(token, Token::Word(word) | Token::Name(word)
            if words.iter().any(|one| word.eq_ignore_ascii_case(one)))
    };
    statement.tokens.iter().any(is)
}

/// How deep its parentheses are.
fn depth(statement: &Statement<'_>) -> usize {
    let (mut now, mut most) = (0_usize, 0);
    for token in &statement.tokens {
        match token {
            Token::Symbol('(') => now += 1,
            Token::Symbol(')') => now = now.saturating_sub(1),
            _ => {}
        }
        most = most.max(now);
    }
    most
}

/// A place in a statement.
#[derive(Clone, Copy)]
struct Cursor<'a, 'b> {
    statement: &'a Statement<'b>,
    at: usize,
}

impl Cursor<'_, '_> {
    fn token(&self) -> Option<&Token> {
        self.statement.tokens.get(self.at)
    }

    fn ended(&self) -> bool {
        self.token().is_none()
    }

    fn is_word(&self, word: &str) -> bool {
        self.statement.is_word(self.at, word)
    }

    fn is_symbol(&self, symbol: char) -> bool {
        self.token() == Some(&Token::Symbol(symbol))
    }

    /// These words, one after the other.
    fn words(&mut self, words: &[&str]) -> bool {
        let all = words
            .iter()
            .enumerate()
            .all(|(index, word)| self.statement.is_word(self.at + index, word));
        if all {
            self.at += words.len();
        }
        all
    }

    fn symbol(&mut self, symbol: char) -> bool {
        let is = self.is_symbol(symbol);
        self.at += usize::from(is);
        is
    }

    fn text(&mut self) -> bool {
        let is = self.token() == Some(&Token::Text);
        self.at += usize::from(is);
        is
    }

    fn name(&mut self) -> bool {
        let is = matches!(self.token(), Some(Token::Word(_) | Token::Name(_)));
        self.at += usize::from(is);
        is
    }

    fn qualified(&mut self) -> bool {
        let mut named = self.name();
        while named && self.symbol('.') {
            named = self.name();
        }
        named
    }

    fn only_names(&mut self) -> bool {
        while self.qualified() {
            if self.ended() {
                return true;
            }
            if !self.symbol(',') {
                return false;
            }
        }
        false
    }

    /// Names and types in parentheses, without defaults and modifiers.
    fn types(&mut self) -> bool {
        if !self.symbol('(') {
            return false;
        }
        loop {
            match self.token() {
                Some(Token::Symbol(')')) => {
                    self.at += 1;
                    return true;
                }
                Some(Token::Word(word)) if word == "default" => return false,
                Some(
                    Token::Word(_) | Token::Name(_) | Token::Symbol('.' | ',' | '[' | ']' | '*'),
                ) => {
                    self.at += 1;
                }
                _ => return false,
            }
        }
    }

    /// `(NAME = value, ...)`, where no value is a type with a modifier. A string is one letter or
    /// the text of a default that is not read now.
    fn definition(&mut self) -> bool {
        if !self.symbol('(') {
            return false;
        }
        let mut before_operator = false;
        let mut inner = 0_usize;
        while let Some(token) = self.token().cloned() {
            self.at += 1;
            match &token {
                Token::Symbol('(') if before_operator && inner == 0 => inner = 1,
                Token::Symbol('(') => return false,
                Token::Symbol(')') if inner == 0 => return true,
                Token::Symbol(')') => inner = 0,
                _ => {}
            }
            before_operator = matches!(&token, Token::Word(word) if word == "operator");
        }
        false
    }
}

/// The definition of a function without what only a superuser may set: the promise to leak nothing,
/// a function for the planner, settings. None where it has none of it.
pub(super) fn without_privileges(statement: &Statement<'_>) -> Option<String> {
    let mut cursor = Cursor { statement, at: 0 };
    if !cursor.words(&["create"]) {
        return None;
    }
    let _ = cursor.words(&["or", "replace"]);
    if !(cursor.words(&["function"]) || cursor.words(&["procedure"])) {
        return None;
    }
    let mut cut = Vec::new();
    let mut parentheses = 0_usize;
    while let Some(token) = cursor.token().cloned() {
        let from = cursor.at;
        match token {
            Token::Symbol('(') => parentheses += 1,
            Token::Symbol(')') => parentheses = parentheses.saturating_sub(1),
            Token::Word(word) if parentheses == 0 => match word.as_str() {
                "as" | "begin" | "return" => break,
                "leakproof" => cut.push((from, from + 1)),
                "support" => {
                    cursor.at += 1;
                    if cursor.qualified() {
                        cut.push((from, cursor.at));
                        continue;
                    }
                }
                "set" => {
                    cursor.at += 1;
                    if !(cursor.qualified() && (cursor.words(&["to"]) || cursor.symbol('='))) {
                        return None;
                    }
                    loop {
                        let _ = cursor.symbol('-');
                        if !(cursor.text() || cursor.name()) {
                            return None;
                        }
                        if !cursor.symbol(',') {
                            break;
                        }
                    }
                    cut.push((from, cursor.at));
                    continue;
                }
                _ => {}
            },
            _ => {}
        }
        cursor.at += 1;
    }
    let mut text = String::new();
    let mut kept = 0;
    for (from, to) in &cut {
        let start = statement.places.get(*from)?.start;
        text.push_str(statement.text.get(kept..start)?);
        kept = statement.places.get(to.checked_sub(1)?)?.end;
    }
    text.push_str(statement.text.get(kept..)?);
    (!cut.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::statements::Statements;

    fn judged(sql: &str) -> Option<Allowed> {
        let script = format!("{sql};");
        let statement = Statements::of(&script).next().unwrap().unwrap();
        allowed(&statement)
    }

    #[test]
    fn a_superuser_makes_what_only_one_can() {
        for sql in [
            "CREATE TYPE app.point",
            "CREATE TYPE app.point (INTERNALLENGTH = 16, INPUT = app.pin, OUTPUT = app.pout, \
             ALIGNMENT = double, DELIMITER = ',')",
            "CREATE TYPE app.span AS RANGE (subtype = app.point, canonical = app.c)",
            "CREATE FUNCTION app.pin(cstring) RETURNS app.point LANGUAGE c IMMUTABLE STRICT \
             LEAKPROOF SUPPORT app.s COST 2 AS '$libdir/point', 'point_in'",
            "CREATE FUNCTION public.f(a integer, b double precision[]) RETURNS TABLE(x integer, y \
             text) LANGUAGE \"c\" AS '$libdir/x'",
            "CREATE AGGREGATE public.agg(integer) (SFUNC = public.s, STYPE = internal, FINALFUNC \
             = public.f, SORTOP = OPERATOR(pg_catalog.<))",
            "CREATE OPERATOR CLASS public.o DEFAULT FOR TYPE public.point USING btree FAMILY \
             public.o AS OPERATOR 1 public.<(public.point,public.point), FUNCTION 1 \
             (public.point, public.point) public.cmp(public.point,public.point)",
            "CREATE OPERATOR FAMILY public.o USING btree",
            "CREATE OPERATOR public.=== (FUNCTION = public.f, LEFTARG = integer, RIGHTARG = \
             integer, COMMUTATOR = OPERATOR(public.===), RESTRICT = eqsel)",
            "ALTER OPERATOR FAMILY public.o USING btree ADD OPERATOR 1 public.<(integer,bigint)",
            "CREATE CAST (public.a AS text) WITHOUT FUNCTION AS IMPLICIT",
            "CREATE TRANSFORM FOR public.a LANGUAGE plpgsql (FROM SQL WITH FUNCTION \
             public.f(internal))",
            "CREATE ACCESS METHOD heap2 TYPE TABLE HANDLER heap_tableam_handler",
            "CREATE TEXT SEARCH TEMPLATE public.t (INIT = dsimple_init, LEXIZE = dsimple_lexize)",
            "COMMENT ON EXTENSION hstore IS 'it''s'",
            "COMMENT ON CAST (text AS public.a) IS 'x'",
            "CREATE PUBLICATION p FOR ALL TABLES WITH (publish = 'insert, update')",
            "ALTER PUBLICATION p ADD TABLES IN SCHEMA app, \"B\"",
        ] {
            assert_eq!(judged(sql), Some(Allowed::AsItStands), "{sql}");
        }
        assert_eq!(
            judged("CREATE OR REPLACE PROCEDURAL LANGUAGE x HANDLER public.h VALIDATOR public.v"),
            Some(Allowed::Language)
        );
        assert_eq!(
            judged("CREATE FOREIGN DATA WRAPPER \"W\" HANDLER h VALIDATOR v OPTIONS (a 'b')"),
            Some(Allowed::Wrapper("\"W\"".to_owned()))
        );
        assert_eq!(
            judged("CREATE FUNCTION f(text) RETURNS text LANGUAGE internal AS $$upper$$"),
            Some(Allowed::Internal("upper".to_owned()))
        );
    }

    #[test]
    fn a_superuser_evaluates_nothing_of_a_user() {
        for sql in [
            "SELECT app.evil()",
            "CREATE VIEW v AS SELECT app.evil()",
            "CREATE INDEX i ON t (app.evil(a))",
            "REFRESH MATERIALIZED VIEW m",
            "CREATE TRIGGER t BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION evil()",
            "CREATE FUNCTION f(a app.d DEFAULT '(1)') RETURNS int LANGUAGE c AS '$libdir/x'",
            "CREATE FUNCTION f(a app.d = '(1)') RETURNS int LANGUAGE c AS '$libdir/x'",
            "CREATE FUNCTION f(a app.d(1)) RETURNS int LANGUAGE c AS '$libdir/x'",
            "CREATE FUNCTION f() RETURNS app.d(1) LANGUAGE c AS '$libdir/x'",
            "CREATE FUNCTION f() RETURNS int LANGUAGE c SET x TO 'y' AS '$libdir/x'",
            "CREATE FUNCTION f() RETURNS int LANGUAGE c AS '/tmp/x'",
            "CREATE FUNCTION f() RETURNS int LANGUAGE c AS '$libdir/../../tmp/x'",
            "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql LEAKPROOF AS 'x'",
            "CREATE AGGREGATE a(int) (SFUNC = f, STYPE = app.d, INITCOND = 'x')",
            "CREATE AGGREGATE a(int) (SFUNC = f, STYPE = app.d(1))",
            "CREATE AGGREGATE a(int) (SFUNC = f, STYPE = app.d, \"initcond\" = 'x')",
            "CREATE OPERATOR CLASS o FOR TYPE app.d(1) USING btree AS STORAGE int",
            "CREATE OPERATOR CLASS o FOR TYPE app.d USING gist AS STORAGE app.d(x)",
            "CREATE CAST (app.d(1) AS text) WITHOUT FUNCTION",
            "CREATE TYPE t AS (a app.d)",
            "CREATE DOMAIN d AS int CHECK (evil())",
            "CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION evil()",
            "GRANT pg_execute_server_program TO app",
            "ALTER ROLE app SUPERUSER",
            "COMMENT ON TABLE t IS 'a' || evil('b')",
            "ALTER PUBLICATION p ADD TABLE ONLY t WHERE (evil())",
            "CREATE PUBLICATION p FOR TABLE t WHERE (evil())",
            "DO $$ BEGIN END $$",
            "CREATE EXTENSION x",
        ] {
            assert_eq!(judged(sql), None, "{sql}");
        }
    }

    #[test]
    fn a_function_loses_what_only_a_superuser_may_set() {
        for (sql, expected) in [
            (
                "CREATE FUNCTION f(a int DEFAULT 1) RETURNS int LANGUAGE sql LEAKPROOF SUPPORT \
                 public.s SET session_replication_role TO 'replica' SET search_path TO 'a', 'b' AS \
                 $$ SET x $$;",
                Some(
                    "CREATE FUNCTION f(a int DEFAULT 1) RETURNS int LANGUAGE sql     AS $$ SET x \
                     $$",
                ),
            ),
            ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SET LEAKPROOF';", None),
            ("CREATE VIEW v AS SELECT 1;", None),
        ] {
            let statement = Statements::of(sql).next().unwrap().unwrap();
            assert_eq!(without_privileges(&statement).as_deref(), expected, "{sql}");
        }
    }
}
