//! Where a database is, by the rules of libpq: one reading of it for our own connection and for the
//! server's tools.

use std::io::ErrorKind;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection};
use url::Url;

use super::client::Client;
use crate::model::{DatabaseUrl, Secret, percent_decoded};
use crate::source::process::{Call, MemoryFile};
use crate::source::{Context, SourceError};

/// The port of a server that is not told another.
const DEFAULT_PORT: u16 = 5432;
/// Where the socket of a local server is, by distribution.
const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];
/// How long to try to connect when the address does not say.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a server may take for questions about its catalogs.
const QUERY_TIMEOUT: Duration = Duration::from_secs(180);
/// Not a file: a tool must not find a password that our own connection does not have.
const NO_FILE: &str = "/nonexistent/pgpass";
/// What may follow the `?` of an address, with the variable that hands it to the tools.
const PARAMETERS: [(&str, &str); 10] = [
    ("application_name", "PGAPPNAME"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("gssencmode", "PGGSSENCMODE"),
    ("options", "PGOPTIONS"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
];

/// A database to connect to.
#[derive(Clone)]
pub(super) struct Address {
    /// The address as it may be printed.
    pub(super) masked: String,
    host: String,
    port: u16,
    /// None: the user that we run as.
    user: Option<String>,
    /// None: the one named as the user.
    database: Option<String>,
    password: Option<Secret>,
    /// Of [`PARAMETERS`].
    parameters: Vec<(&'static str, String)>,
    connect_timeout: Duration,
}

impl Address {
    /// Reads an address (`postgresql://user@host:port/database?parameter=value`). The password is
    /// in it or beside it, not both.
    ///
    /// # Errors
    /// When it is no such address, or means something that is not supported here.
    pub(super) fn new(url: &DatabaseUrl, password: Option<&Secret>) -> Result<Self, SourceError> {
        let masked = url.masked();
        Self::read(url.expose(), password, masked.clone()).map_err(|problem| {
            SourceError::Unsuitable(format!("The address `{masked}` cannot be used: {problem}"))
        })
    }

    fn read(url: &Url, password: Option<&Secret>, masked: String) -> Result<Self, String> {
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err("it does not begin with `postgresql://`".to_owned());
        }
        let filled = |text: String| Some(text).filter(|text| !text.is_empty());
        let mut host = match url.host() {
            Some(url::Host::Ipv6(address)) => Some(address.to_string()),
            Some(other) => filled(decode(&other.to_string())?),
            None => None,
        };
        let mut port = url.port();
        let mut user = filled(decode(url.username())?);
        let mut database = filled(decode(url.path().strip_prefix('/').unwrap_or_default())?);
        let mut passwords: Vec<Secret> = password.cloned().into_iter().collect();
        if let Some(password) = url.password() {
            passwords.push(Secret::new(decode(password)?));
        }
        let mut parameters = Vec::new();
        let mut connect_timeout = CONNECT_TIMEOUT;
        for pair in url.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or("a parameter has no value")?;
            let (key, value) = (decode(key)?, decode(value)?);
            // It is repeated only where it can be nothing but a word.
            let word = |text: &str| {
                let plain = |byte: u8| byte.is_ascii_lowercase() || byte == b'-' || byte == b'_';
                if text.bytes().all(plain) { format!(" `{text}`") } else { String::new() }
            };
            match key.as_str() {
                "host" => host = filled(value),
                "port" => {
                    port = Some(value.parse().map_err(|_| "its `port` is not a port")?);
                }
                "user" => user = filled(value),
                "dbname" => database = filled(value),
                "password" => passwords.push(Secret::new(value)),
                "ssl" if value == "true" => parameters.push(("sslmode", "require".to_owned())),
                _ => {
                    let Some((name, _)) = PARAMETERS.iter().find(|(name, _)| *name == key) else {
                        let known: Vec<&str> = PARAMETERS.iter().map(|(name, _)| *name).collect();
                        return Err(format!(
                            "the parameter{} is not supported here. These are: host, port, user, \
                             dbname, password, {}",
                            word(&key),
                            known.join(", ")
                        ));
                    };
                    if *name == "sslmode" {
                        PgSslMode::from_str(&value)
                            .map_err(|_| format!("there is no `sslmode`{}", word(&value)))?;
                    }
                    if *name == "connect_timeout" {
                        let seconds = value
                            .parse()
                            .map_err(|_| "its `connect_timeout` is not a number of seconds")?;
                        connect_timeout = if seconds == 0 {
                            CONNECT_TIMEOUT
                        } else {
                            Duration::from_secs(seconds)
                        };
                    }
                    parameters.push((*name, value));
                }
            }
        }
        if passwords.len() > 1 {
            return Err(
                "the password is given twice: keep the one in the address or `password`, not both"
                    .to_owned(),
            );
        }
        let password = passwords.pop().filter(|password| !password.expose().is_empty());
        if password.as_ref().is_some_and(|password| password.expose().contains(['\n', '\r', '\0']))
        {
            return Err("its password contains a line break, which the server's tools cannot take"
                .to_owned());
        }
        if host.as_ref().is_some_and(|host| host.contains(',')) {
            return Err("it names several hosts: name the one to back up".to_owned());
        }
        let port = port.unwrap_or(DEFAULT_PORT);
        let host = host.unwrap_or_else(|| default_host(port));
        Ok(Self { masked, host, port, user, database, password, parameters, connect_timeout })
    }

    pub(super) fn names_database(&self) -> bool {
        self.database.is_some()
    }

    /// Whether both name the same database of the same server, by the same words.
    pub(super) fn is_same_database(&self, other: &Self) -> bool {
        let database = |address: &Self| address.database.clone().or_else(|| address.user());
        (&self.host, self.port, database(self)) == (&other.host, other.port, database(other))
    }

    /// The same, with a name that the server has for our sessions.
    pub(super) fn known_as(mut self, name: &str) -> Self {
        self.parameters.retain(|(parameter, _)| *parameter != "application_name");
        self.parameters.push(("application_name", name.to_owned()));
        self
    }

    /// The same, whose sessions write where the database says that they only read.
    pub(super) fn for_writing(mut self) -> Self {
        const WRITING: &str = "-c default_transaction_read_only=off";
        match self.parameters.iter_mut().find(|(parameter, _)| *parameter == "options") {
            Some((_, options)) => *options = format!("{options} {WRITING}"),
            None => self.parameters.push(("options", WRITING.to_owned())),
        }
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub(super) async fn connect(&self) -> Result<PgConnection, SourceError> {
        let options = self.options().map_err(|error| self.failed("open a session", &error))?;
        match tokio::time::timeout(self.connect_timeout, PgConnection::connect_with(&options)).await
        {
            Ok(connected) => connected.map_err(|error| self.failed("open a session", &error)),
            Err(_) => Err(SourceError::Database {
                attempt: "open a session".to_owned(),
                target: self.masked.clone(),
                problem: format!("No answer within {} seconds", self.connect_timeout.as_secs()),
                transient: true,
            }),
        }
    }

    /// Bounds the time of what asks the catalogs only: a server that vanished says nothing, for
    /// ever.
    pub(super) async fn within<T>(
        &self,
        attempt: &str,
        work: impl Future<Output = Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        tokio::time::timeout(QUERY_TIMEOUT, work).await.unwrap_or_else(|_| {
            Err(SourceError::Database {
                attempt: attempt.to_owned(),
                target: self.masked.clone(),
                problem: format!("No answer within {} seconds", QUERY_TIMEOUT.as_secs()),
                transient: true,
            })
        })
    }

    fn options(&self) -> Result<PgConnectOptions, sqlx::Error> {
        let parameter = |name: &str| {
            self.parameters.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
        };
        let mut options = match parameter("options") {
            // They are taken as they are from an address only.
            Some(value) => {
                let mut url = Url::parse("postgresql://localhost").map_err(sqlx::Error::config)?;
                url.query_pairs_mut().append_pair("options", value);
                PgConnectOptions::from_url(&url)?
            }
            None => PgConnectOptions::new_without_pgpass(),
        };
        // Always set, so that nothing of the operator's own environment decides where this goes.
        options = options.host(&self.host).port(self.port);
        options = options.password(self.password.as_ref().map_or("", Secret::expose));
        options = options
            .ssl_mode(parameter("sslmode").map_or(Ok(PgSslMode::Prefer), |mode| mode.parse())?);
        let user = self.user().ok_or_else(|| {
            let problem = "the address names no user, and the user that this runs as has no name \
                on this machine: write `postgresql://USER@host/database`";
            sqlx::Error::Configuration(problem.into())
        })?;
        options = options.database(self.database.as_deref().unwrap_or(&user)).username(&user);
        if let Some(file) = parameter("sslrootcert").filter(|file| *file != "system") {
            options = options.ssl_root_cert(file);
        }
        if let Some(file) = parameter("sslcert") {
            options = options.ssl_client_cert(file);
        }
        if let Some(file) = parameter("sslkey") {
            options = options.ssl_client_key(file);
        }
        options = options
            .application_name(parameter("application_name").map_or("holdfast", String::as_str));
        // Poolers refuse parameters that they do not know at the start of a connection.
        Ok(options.extra_float_digits(None).statement_cache_capacity(0).disable_statement_logging())
    }

    /// Who connects: as the address says, else who we run as. (What the library would take is a
    /// variable of the operator's, or nobody.)
    pub(super) fn user(&self) -> Option<String> {
        self.user.clone().or_else(|| whoami::username().ok())
    }

    /// A call of one of the server's tools that connects here. What is returned beside it must live
    /// until the tool has ended.
    ///
    /// The password is in a file in memory that the tool opens: not in its arguments, nor in its
    /// environment.
    ///
    /// # Errors
    /// When the system has no memory files.
    pub(super) fn call(
        &self,
        cx: &Context,
        client: &Client,
        attempt: String,
    ) -> Result<(Call, Option<MemoryFile>), SourceError> {
        let mut call = Call::new(cx, client.file(), attempt)
            .variable("PGHOST", &self.host)
            .variable("PGPORT", self.port.to_string())
            .when_missing("Install the PostgreSQL client of the server's major version, all of it")
            // Hints and warnings are found by the English words.
            .variable("LC_ALL", "C")
            .of_postgres(&[]);
        for (variable, value) in [("PGUSER", self.user()), ("PGDATABASE", self.database.clone())] {
            if let Some(value) = value {
                call = call.variable(variable, value);
            }
        }
        for (name, value) in &self.parameters {
            if let Some((_, variable)) = PARAMETERS.iter().find(|(known, _)| known == name) {
                call = call.variable(*variable, value);
            }
        }
        let Some(password) = &self.password else {
            return Ok((call.variable("PGPASSFILE", NO_FILE), None));
        };
        let escaped = password.expose().replace('\\', "\\\\").replace(':', "\\:");
        let file = MemoryFile::new("pgpass", format!("*:*:*:*:{escaped}\n").as_bytes())?;
        Ok((call.variable("PGPASSFILE", file.path()).redact(password), Some(file)))
    }

    /// What the server or our client of it said.
    pub(super) fn failed(&self, attempt: impl Into<String>, error: &sqlx::Error) -> SourceError {
        let (problem, transient) = match error {
            sqlx::Error::Database(said) => {
                let code = said.code().unwrap_or_default();
                let hint = match &*code {
                    "3D000" => ". Correct its name, or create it with `createdb`",
                    "28P01" | "28000" => {
                        ". Correct the user and password, or the server's `pg_hba.conf`"
                    }
                    "42501" => {
                        ". Grant the user what it needs: `GRANT pg_read_all_data TO ...` \
                         (PostgreSQL 14 and newer)"
                    }
                    "55P03" => ". Something holds a lock: see `pg_locks`, or raise `lock_timeout`",
                    "53300" => ". Raise `max_connections`, or close what is not needed",
                    _ => "",
                };
                // Too many connections, shutting down, starting up, connection lost.
                let transient = matches!(&*code, "53300" | "57P01" | "57P02" | "57P03")
                    || code.starts_with("08");
                (format!("{} ({code}){hint}", said.message()), transient)
            }
            // What is said of a certificate.
            sqlx::Error::Io(error) if error.kind() == ErrorKind::InvalidData => (
                format!("{error}. Look at the server's certificate, `sslrootcert` and `sslmode`"),
                false,
            ),
            sqlx::Error::Io(error) => {
                (format!("{error}. Look whether the server runs and is reached from here"), true)
            }
            other => (other.to_string(), false),
        };
        SourceError::Database {
            attempt: attempt.into(),
            target: self.masked.clone(),
            problem,
            transient,
        }
    }
}

/// `--dbname` of a tool: as a connection string, since a bare name with a `=` in it would be read
/// as one.
pub(super) fn dbname_argument(database: &str) -> String {
    format!("--dbname=dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Where a server is when no host is named: at a local socket, if there is one.
fn default_host(port: u16) -> String {
    let socket = |folder: &&str| Path::new(folder).join(format!(".s.PGSQL.{port}"));
    let found = SOCKET_FOLDERS.iter().find(|folder| socket(folder).exists());
    found.map_or_else(|| "localhost".to_owned(), |folder| (*folder).to_owned())
}

fn decode(text: &str) -> Result<String, String> {
    percent_decoded(text).ok_or_else(|| {
        "a `%` in it is not followed by two hexadecimal digits of UTF-8 text. Write `%` itself as \
         `%25`"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::{Address, dbname_argument};
    use crate::model::{DatabaseUrl, Secret};

    fn read(text: &str, password: Option<&str>) -> Result<Address, String> {
        let url = DatabaseUrl::try_from(text.to_owned()).unwrap();
        Address::new(&url, password.map(Secret::new).as_ref()).map_err(|error| error.to_string())
    }

    #[test]
    fn addresses_are_read_by_the_rules_of_libpq() {
        let cases = [
            ("postgresql://u@h/db", "h", 5432, Some("u"), Some("db")),
            ("postgres://u%40x:p@[::1]:99/we%20ird", "::1", 99, Some("u@x"), Some("we ird")),
            ("postgresql:///db?host=/run/pg&port=7", "/run/pg", 7, None, Some("db")),
            (
                "postgresql://%2Frun%2Fpg/db?user=a%2Bb+c",
                "/run/pg",
                5432,
                Some("a+b+c"),
                Some("db"),
            ),
            ("postgresql://h", "h", 5432, None, None),
            ("postgresql://h/a?dbname=b", "h", 5432, None, Some("b")),
        ];
        for (text, host, port, user, database) in cases {
            let address = read(text, None).unwrap();
            assert_eq!((address.host.as_str(), address.port), (host, port), "{text}");
            assert_eq!(
                (address.user.as_deref(), address.database.as_deref()),
                (user, database),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_in_words_without_the_password() {
        let cases = [
            ("mysql://u:hunter2@h/db", None, "postgresql://"),
            ("postgresql://u:hunter2@h/db?sslmod=require", None, "`sslmod`"),
            ("postgresql://u:hunter2@h/db?sslmode=maybe", None, "`maybe`"),
            ("postgresql://u:hunter2@a,b/db", None, "several hosts"),
            ("postgresql://u:hunter2@h/db", Some("hunter2"), "twice"),
            ("postgresql://u:hunter2@h/db?password=hunter2", None, "twice"),
            ("postgresql://u:hunter2@h/%zz", None, "hexadecimal"),
            ("postgresql://h/db", Some("hun\nter2"), "line break"),
        ];
        for (text, password, part) in cases {
            let error = read(text, password).err().unwrap();
            assert!(error.contains(part) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_database_name_is_never_read_as_a_connection_string() {
        assert_eq!(dbname_argument(r"host=x o'b\c"), r"--dbname=dbname='host=x o\'b\\c'");
    }
}
