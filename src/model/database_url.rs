//! Addresses of databases, which may contain a password.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};
use url::Url;

use super::secret::MASK;

/// Parameters whose values are shown: they are known, and none is a secret.
const SHOWN: [&str; 15] = [
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "gssencmode",
    "host",
    "options",
    "port",
    "ssl",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
    "user",
];

/// The address of a database, which may contain a password. It prints, debugs and serialises with
/// the password, and every parameter that is not known to be harmless, as `***`. A text that cannot
/// be read as such an address is refused without a word of it.
///
/// PostgreSQL's addresses are read as libpq reads them: a user and password end at the first `@`,
/// if that comes before the first `/`, and nothing begins a fragment. What could be a password in
/// another place is refused.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct DatabaseUrl(Url);

impl DatabaseUrl {
    /// The parsed address, password included, each part in the one form that all readers of
    /// addresses agree on.
    pub fn expose(&self) -> &Url {
        &self.0
    }

    /// The address as it may be shown.
    pub fn masked(&self) -> String {
        let mut url = self.0.clone();
        // It fails only for addresses that cannot have a password.
        if url.password().is_some() {
            let _ = url.set_password(Some(MASK));
        }
        if let Some(query) = url.query() {
            let shown: Vec<Cow<'_, str>> = query.split('&').map(masked_pair).collect();
            let shown = shown.join("&");
            url.set_query(Some(&shown));
        }
        url.to_string()
    }

    /// Whether it has a password in it.
    pub fn has_password(&self) -> bool {
        self.0.password().is_some() || self.0.query_pairs().any(|(key, _)| key == "password")
    }

    /// Whether it names a database, rather than only a server.
    pub fn names_database(&self) -> bool {
        let named =
            |(key, value): (Cow<'_, str>, Cow<'_, str>)| key == "dbname" && !value.is_empty();
        !self.0.path().trim_start_matches('/').is_empty() || self.0.query_pairs().any(named)
    }

    /// The same server's database of that name.
    #[must_use]
    pub fn with_database(&self, name: &str) -> Self {
        let mut url = self.0.clone();
        let mut pairs: Vec<String> = url
            .query()
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty() && !pair.starts_with("dbname="))
            .map(str::to_owned)
            .collect();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.chars().all(plain) {
            url.set_path(name);
        } else {
            // In a path `..` and `/` mean something, whatever way they are written.
            url.set_path("");
            pairs.push(format!("dbname={}", escaped(name, "")));
        }
        let query = pairs.join("&");
        url.set_query(Some(query.as_str()).filter(|query| !query.is_empty()));
        Self(url)
    }

    /// The same address with a password in it.
    #[must_use]
    pub fn with_password(&self, password: &str) -> Self {
        let mut url = self.0.clone();
        // As a parameter, since an address without a host cannot have it before the host.
        let pair = format!("password={}", escaped(password, ""));
        let query = url.query().filter(|query| !query.is_empty());
        let query = query.map_or_else(|| pair.clone(), |query| format!("{query}&{pair}"));
        url.set_query(Some(&query));
        Self(url)
    }
}

/// A parameter as it may be shown.
fn masked_pair(pair: &str) -> Cow<'_, str> {
    match pair.split_once('=') {
        // An `@` tells that something else may have got here.
        Some((key, value)) if SHOWN.contains(&key) && !value.contains('@') => Cow::Borrowed(pair),
        Some((key, _)) if key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') => {
            format!("{key}={MASK}").into()
        }
        _ => MASK.into(),
    }
}

/// The text with every byte as `%XX` but letters, digits, `-._~` and those of `kept`.
fn escaped(text: &str, kept: &str) -> String {
    let plain = |byte: u8| {
        byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || kept.as_bytes().contains(&byte)
    };
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// Replaces `%XX`. A `+` means itself, as for libpq. None where a `%` is followed by something
/// else, or the result is not UTF-8.
pub fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        bytes.push(match byte {
            b'%' => ((digit(rest.next())? << 4) | digit(rest.next())?) as u8,
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

/// A `/` before the `@`: the address is another one than it looks like, for libpq too.
const SLASH: &str = "a `/` stands before its `@`. In a user or password, write `/` as `%2F`; in \
                     the name of a database, write `@` as `%40`";
/// An `@` too many.
const AT: &str = "it has a second `@`. Write `@` as `%40` everywhere but before the host, and in a \
                  user or password `/` as `%2F`";

/// The address in the form that all readers agree on, with the same meaning as for libpq.
///
/// # Errors
/// When what follows the host, or is taken for the host, may be a part of a password.
fn canonical(scheme: &str, rest: &str) -> Result<String, &'static str> {
    let (credentials, place) = match rest.split_once('@') {
        Some((before, after)) if !before.contains('/') => (Some(before), after),
        _ => (None, rest),
    };
    let (place, query) = match place.split_once('?') {
        Some((place, query)) => (place, Some(query)),
        None => (place, None),
    };
    let (host, path) = match place.split_once('/') {
        Some((host, path)) => (host, Some(path)),
        None => (place, None),
    };
    let (user, password) = match credentials.map(|text| (text, text.split_once(':'))) {
        Some((_, Some((user, password)))) => (user, Some(password)),
        Some((user, None)) => (user, None),
        None => ("", None),
    };
    // A parameter may have an `@` in it, unless there is more of a password than there seems.
    let name = host.strip_prefix('[').and_then(|name| name.split_once(']'));
    let port = name.map_or(host, |(_, after)| after).split_once(':').map(|(_, port)| port);
    let is_port = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_clear = password.is_none() && port.is_none_or(is_port);
    if place.contains('@') || query.is_some_and(|query| query.contains('@')) && !is_clear {
        return Err(if credentials.is_some() { AT } else { SLASH });
    }
    let credential = |text: &str| escaped(text, "%!$&'()*+,;=");
    let mut text = format!("{scheme}://");
    let mut pairs = Vec::new();
    if host.is_empty() {
        // As parameters: before the `@` they would need a host.
        let given = [("user", Some(user)), ("password", password)];
        for (key, value) in given {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                pairs.push(format!("{key}={}", escaped(value, "%")));
            }
        }
    } else if credentials.is_some() {
        text += &credential(user);
        if let Some(password) = password {
            text += ":";
            text += &credential(password);
        }
        text += "@";
    }
    text += &escaped(host, "%!$&'()*+,;=[]:");
    if let Some(path) = path {
        text += "/";
        text += &escaped(path, "%!$&'()*+,;=:/");
    }
    pairs.extend(query.map(|query| escaped(query, "%!$&'()*+,;=:/?@")));
    if !pairs.is_empty() {
        text += "?";
        text += &pairs.join("&");
    }
    Ok(text)
}

/// An SQLite address, which is a path and nothing else.
fn of_sqlite(text: &str) -> Result<(), &'static str> {
    let authority = text.split_once("://").map(|(_, rest)| rest.split('/').next());
    if text.contains(['?', '#'])
        || authority.flatten().is_some_and(|name| name.contains([':', '@']))
    {
        return Err("that of an SQLite database is a path. Write `?` as `%3F` and `#` as `%23`");
    }
    Ok(())
}

impl TryFrom<String> for DatabaseUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // The text is not repeated in the error: it may contain a password.
        let wrong = |problem: &str| {
            format!(
                "Not a database address ({problem}): expected a form like \
                 `postgresql://user@host/name` or `sqlite:///path`"
            )
        };
        let is_scheme = |text: &str| {
            text.starts_with(|first: char| first.is_ascii_alphabetic())
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        };
        let text = match text.split_once("://") {
            _ if text.starts_with("sqlite:") => of_sqlite(&text).map(|()| text),
            // `user:password@host/name` is an address too, with the user as the scheme, and its
            // password would not be known for one.
            Some((scheme, rest)) if is_scheme(scheme) => canonical(scheme, rest),
            _ => Err("it has no `//`"),
        };
        let text = text.map_err(wrong)?;
        Url::parse(&text).map(Self).map_err(|error| wrong(&error.to_string()))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.masked())
    }
}

impl JsonSchema for DatabaseUrl {
    fn schema_name() -> Cow<'static, str> {
        "DatabaseUrl".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "uri" })
    }
}

#[cfg(test)]
mod tests {
    use super::DatabaseUrl;

    fn read(text: &str) -> Result<DatabaseUrl, String> {
        DatabaseUrl::try_from(text.to_owned())
    }

    #[test]
    fn addresses_are_cut_where_libpq_cuts_them() {
        // As `PQconninfoParse` of libpq 15 and 18 reads them.
        for (text, canonical) in [
            ("postgresql://u:#p?q@h:1/d", "postgresql://u:%23p%3Fq@h:1/d"),
            ("postgresql://u#v:p@h/d", "postgresql://u%23v:p@h/d"),
            ("postgresql://u?:@h", "postgresql://u%3F@h"),
            ("postgresql://u:p:q@[::1]:1/d", "postgresql://u:p%3Aq@[::1]:1/d"),
            ("postgresql://u:p%40q@h", "postgresql://u:p%40q@h"),
            ("postgresql://u:\\\"'`^@h", "postgresql://u:%5C%22'%60%5E@h"),
            ("postgresql://u:p\tq @h", "postgresql://u:p%09q%20@h"),
            ("postgresql://u:p@/d?host=/run", "postgresql:///d?user=u&password=p&host=/run"),
            ("postgresql://@h/d", "postgresql://h/d"),
            ("postgresql://h/d#e", "postgresql://h/d%23e"),
            ("postgresql://h/d?password=a#b", "postgresql://h/d?password=a%23b"),
            (
                "postgresql://h:1/d?user=a@b&password=c@d",
                "postgresql://h:1/d?user=a@b&password=c@d",
            ),
            ("postgresql://u@h/d?password=c@d", "postgresql://u@h/d?password=c@d"),
        ] {
            assert_eq!(read(text).unwrap().expose().as_str(), canonical, "{text}");
        }
    }

    #[test]
    fn what_libpq_refuses_is_refused_with_the_escape_to_write() {
        for (text, escape) in [
            ("postgresql://app:/Hunter2xyz@127.0.0.1:1/shop", "%2F"),
            ("postgresql://app:Hunt/er2@h/shop", "%2F"),
            ("postgresql://app:1/Hunter2@h/shop", "%2F"),
            ("postgresql://app:?Hunt/er2@h", "%2F"),
            ("postgresql://app:#Hunt/er2?x@h", "%2F"),
            ("postgresql://app:Hunt@er2@h/shop", "%40"),
            ("postgresql://app:Hunt@er/2@h/shop", "%40"),
            ("postgresql://app:Hunt@er?2@h/shop", "%40"),
            ("postgresql://app:Hunt@er?password=2@h/shop", "%40"),
            ("postgresql://app@corp:Hunter2@h/shop", "%40"),
            ("postgresql://app@corp:Hunt?er2@h/shop", "%40"),
            ("mysql://app:Hunt/er2@h", "%2F"),
            ("sqlite://app:Hunter2@h", "path"),
            ("sqlite:///Hunter2?key=Hunter2", "%3F"),
            ("app:Hunter2@h/shop", "//"),
            ("app:Hunter2@h/shop?x=a://b", "//"),
            ("postgresql:app:Hunter2@h", "//"),
            ("host=h password=Hunter2", "//"),
            ("postgresql://app:Hunter2", "port"),
            ("postgresql://app:#Hunter2/shop", "port"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(escape), "{text}: {error}");
            assert!(!["Hun", "er2"].iter().any(|piece| error.contains(piece)), "{text}: {error}");
        }
    }

    #[test]
    fn only_harmless_parameters_are_shown() {
        for (text, shown) in [
            ("postgresql://u@h/d?sslmode=require", "postgresql://u@h/d?sslmode=require"),
            ("postgresql://h?sslpassword=x&host=y", "postgresql://h?sslpassword=***&host=y"),
            ("postgresql://h?password&a=b", "postgresql://h?***&a=***"),
            ("postgresql://h?Hunter2=x", "postgresql://h?***"),
            ("postgresql://u:p@h/d?user=x", "postgresql://u:***@h/d?user=x"),
            ("postgresql://h:1/d?application_name=x@y", "postgresql://h:1/d?application_name=***"),
        ] {
            let url = read(text).unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), shown);
            assert_eq!(serde_json::json!(url), shown);
        }
    }

    #[test]
    fn a_database_or_password_added_is_found_again() {
        let url = read("postgresql://u:p@h/d?sslmode=require&dbname=x").unwrap();
        let other = url.with_database("a/b?@");
        assert_eq!(other.to_string(), "postgresql://u:***@h?sslmode=require&dbname=a%2Fb%3F%40");
        let with = read("postgresql://h").unwrap().with_password("#?/@");
        assert_eq!(with.expose().as_str(), "postgresql://h?password=%23%3F%2F%40");
        assert!(with.has_password() && !read("postgresql://u@h").unwrap().has_password());
    }
}
