//! Names under which the scheduler's page may be asked for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::Deserialize;

/// The port of a `Host` that names none.
const HTTP: u16 = 80;

/// A host, with a port or without, as it stands in a request and in `listen_hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Host {
    /// In lower case, without a dot at its end.
    name: Named,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Named {
    Address(IpAddr),
    Name(String),
}

impl Host {
    /// Whether whoever owns a domain could let it mean this machine: a name with a dot. An address
    /// cannot be made to mean another one, and a single label is of no domain.
    pub fn is_of_a_domain(&self) -> bool {
        matches!(&self.name, Named::Name(name) if name.contains('.'))
    }

    /// Whether one that is listed means `asked`: any port of it, unless a port is listed too.
    pub fn means(&self, asked: &Self) -> bool {
        let port = asked.port.unwrap_or(HTTP);
        self.name == asked.name && self.port.is_none_or(|listed| listed == port)
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{}` is not a host, such as `backup.example.org`", text.escape_debug());
        let (name, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']').ok_or_else(wrong)?;
                let address: Ipv6Addr = address.parse().map_err(|_| wrong())?;
                (Named::Address(address.into()), port)
            }
            None => {
                let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
                let named = match name.parse::<Ipv4Addr>() {
                    Ok(address) => Named::Address(address.into()),
                    Err(_) => Named::Name(domain(name).ok_or_else(wrong)?),
                };
                (named, port)
            }
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            None => return Err(wrong()),
            // The standard has a colon without a port for the usual one.
            Some("") => None,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().map_err(|_| wrong())?)
            }
            Some(_) => return Err(wrong()),
        };
        Ok(Self { name, port })
    }
}

impl TryFrom<String> for Host {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// The name in one spelling; none where it is no name.
fn domain(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(plain)
    };
    (name.len() <= 253 && name.split('.').all(is_label)).then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::Host;

    #[test]
    fn only_a_name_with_a_dot_is_of_a_domain() {
        for (text, of_a_domain) in [
            ("127.0.0.1", false),
            ("127.0.0.1:8484", false),
            ("[::1]", false),
            ("[::1]:8484", false),
            ("localhost", false),
            ("LOCALHOST.:8484", false),
            ("backups:8484", false),
            ("my_service", false),
            ("backup.example.org", true),
            ("backup.example.org.:8484", true),
            ("127.0.0.1.", true),
            ("1.2.3", true),
            ("127.0.0.1.evil.example", true),
            ("x.localhost:", true),
        ] {
            let host: Host = text.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(host.is_of_a_domain(), of_a_domain, "{text}");
        }
        for text in [
            "",
            ":80",
            ".",
            "a..b",
            "a b",
            "a:b",
            "a:1:2",
            "::1",
            "[::1",
            "[::1]x",
            "[a]",
            "u@h",
            "a/b",
            "a:99999",
            "a:+1",
            "ä.org",
            "a\u{0}b",
            "*.example.org",
            "http://a",
        ] {
            assert!(text.parse::<Host>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_listed_name_has_any_port_unless_it_names_one() {
        let host = |text: &str| text.parse::<Host>().unwrap();
        let any = host("Backup.Example.org.");
        for asked in ["backup.example.org", "BACKUP.example.ORG.:8484", "backup.example.org:1"] {
            assert!(any.means(&host(asked)), "{asked}");
        }
        assert!(!any.means(&host("a.backup.example.org")));
        let one = host("backup.example.org:80");
        assert!(one.means(&host("backup.example.org")) && one.means(&host("backup.example.org:")));
        assert!(!one.means(&host("backup.example.org:8484")));
    }
}
