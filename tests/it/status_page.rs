//! The scheduler's page under a flood, and by names that it does not know.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpSocket;

use crate::support::daemon::Daemon;
use crate::support::site::{SCRIPTED, Site};

/// Nothing here takes so long, but what never comes.
const PATIENCE: Duration = Duration::from_secs(60);
/// More than a page has connections.
const FLOOD: u8 = 200;

fn site(listen: &str, more: &str) -> Site {
    let site =
        Site::new(&format!("listen = \"{listen}\"\n{more}{SCRIPTED}schedule = \"30 1 * * *\"\n"));
    std::fs::write(site.path("dump.sh"), "echo data").unwrap();
    site
}

/// A page on a port that was free a moment ago.
fn page(more: &str) -> (Site, Daemon, SocketAddr) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let site = site(&address.to_string(), more);
    let mut daemon = Daemon::start(&site);
    daemon.next("app/daily");
    (site, daemon, address)
}

/// The answer to a request as it stands, to its end.
fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn code(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

fn get(address: SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
}

/// How many sockets and files a process has open.
fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn liveness_is_answered_beside_idle_connections() {
    let (_site, daemon, address) = page("");
    let before = open_files(daemon.pid());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Idle, half-sent, one byte a time, and one that does not read its answer.
    let kinds =
        ["", "GET /metrics HTTP/1.1\r\nHost: loc", "G", "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"];
    let mut held = Vec::new();
    for many in [false, true] {
        for kind in kinds {
            for number in 1..=FLOOD {
                let from = if many { [127, 0, 0, number] } else { [127, 0, 0, 1] };
                held.push(runtime.block_on(async {
                    let socket = TcpSocket::new_v4().unwrap();
                    socket.bind((from, 0).into()).unwrap();
                    let mut stream = socket.connect(address).await.unwrap();
                    // It may be closed already.
                    let _ = stream.write_all(kind.as_bytes()).await;
                    stream
                }));
                if number % 50 == 0 {
                    for one in held.iter_mut().rev().take(20) {
                        let _ = runtime.block_on(one.write_all(b"E"));
                    }
                }
            }
            assert_eq!(code(&get(address, "/healthz")), "200", "{many} {kind:?}");
            assert_eq!(code(&get(address, "/readyz")), "200", "{many} {kind:?}");
            let open = open_files(daemon.pid()) - before;
            assert!(open < 150, "{open} connections");
        }
    }
    drop(held);
    assert_eq!(code(&get(address, "/healthz")), "200");
    daemon.stop();
}

#[test]
fn a_connection_without_a_request_is_closed() {
    let (_site, daemon, address) = page("");
    for sent in ["", "GET /healthz HTTP/1.1\r\n"] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE / 2)).unwrap();
        stream.write_all(sent.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
    }
    // What was answered is closed too.
    let answer = get(address, "/healthz");
    assert!(answer.ends_with("alive\n"), "{answer}");
    daemon.stop();
}

#[test]
fn a_head_without_end_is_refused() {
    let (_site, daemon, address) = page("");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ").unwrap();
    let mut sent = 0;
    while stream.write_all(&[b'x'; 1 << 10]).is_ok() {
        sent += 1;
        assert!(sent < 32 << 10, "{sent} KiB were taken");
    }
    daemon.stop();
}

#[test]
fn only_names_that_are_listed_may_have_a_dot() {
    let hosts = "listen_hosts = [\"Backup.Example.org\", \"only.example.org:80\"]\n";
    let (_site, daemon, address) = page(hosts);
    let with = |path: &str, head: &str| ask(address, &format!("GET {path} HTTP/1.1\r\n{head}\r\n"));
    for path in ["/healthz", "/readyz", "/metrics", "/api/status", "/nothing"] {
        for (host, expected) in [
            ("127.0.0.1:8484", ""),
            ("[::1]:8484", ""),
            ("localhost", ""),
            ("LOCALHOST.:8484", ""),
            ("backups:8484", ""),
            ("backup.example.org", ""),
            ("BACKUP.example.org.:8484", ""),
            ("only.example.org", ""),
            ("only.example.org:8484", "421"),
            ("evil.example", "421"),
            ("127.0.0.1.evil.example", "421"),
            ("a.backup.example.org", "421"),
            ("localhost.evil.example:8484", "421"),
            ("", "400"),
            ("a b", "400"),
            ("u@backup.example.org", "400"),
            ("[::1", "400"),
            ("backup.example.org:x", "400"),
        ] {
            let answer = with(path, &format!("Host: {host}\r\n"));
            let found = code(&answer);
            let usual = if path == "/nothing" { "404" } else { "200" };
            assert_eq!(found, if expected.is_empty() { usual } else { expected }, "{path} {host}");
            assert_eq!(found == "421", answer.contains("`listen_hosts`"), "{answer}");
        }
        assert_eq!(code(&with(path, "")), "400");
        assert_eq!(code(&with(path, "Host: localhost\r\nHost: localhost\r\n")), "400");
        let whole = format!("http://evil.example{path}");
        assert_eq!(code(&with(&whole, "Host: localhost\r\n")), "421");
    }
    daemon.stop();
}

#[test]
fn a_reload_takes_over_the_names() {
    let (site, mut daemon, address) = page("");
    let request = "GET /healthz HTTP/1.1\r\nHost: backup.example.org\r\n\r\n";
    assert_eq!(code(&ask(address, request)), "421");
    let text = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), format!("listen_hosts = [\"backup.example.org\"]\n{text}"))
        .unwrap();
    site.backup(["reload"]).expect(0);
    daemon.says("the new configuration is taken over");
    assert_eq!(code(&ask(address, request)), "200");
    daemon.stop();
}

#[test]
fn check_warns_of_a_page_for_other_machines() {
    for (listen, more, level) in [
        ("127.0.0.1:8484", "", None),
        ("[::1]:8484", "", None),
        ("[::ffff:127.0.0.1]:8484", "", None),
        ("0.0.0.0:8484", "", Some("warning")),
        ("[::]:8484", "", Some("warning")),
        ("192.0.2.1:8484", "", Some("warning")),
        ("0.0.0.0:8484", "listen_hosts = []\n", Some("ok")),
        ("0.0.0.0:8484", "listen_hosts = [\"backup.example.org\"]\n", Some("ok")),
    ] {
        let checked = site(listen, more).backup(["check", "--json"]).expect(0).json();
        let findings = checked["instances"][0]["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["subject"] == "listen");
        assert_eq!(found.map(|found| found["level"].as_str().unwrap()), level, "{listen} {more}");
    }
    let wrong = site("0.0.0.0:8484", "listen_hosts = [\"*.example.org\"]\n");
    let refused = wrong.backup(["check", "--json"]).expect(2).err();
    let refused: serde_json::Value = serde_json::from_str(&refused).unwrap();
    assert_eq!(refused["error"]["code"], "config_invalid_value");
    assert!(refused["error"]["message"].as_str().unwrap().contains("listen_hosts[0]"));
}
