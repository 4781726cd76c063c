//! A store behind the proxy that the environment names.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use crate::support::site::{Site, s3_storage, small_tree};
use crate::support::stores::{Server, fresh};
use crate::support::{Backup, S3, s3};

/// Relays connections to the address, as a proxy for plain HTTP that knows one host.
fn relay(to: String) -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut first = [0; 1];
            // The end of the test.
            match client.read(&mut first) {
                Ok(1) if first == *b"!" => return,
                Ok(1) => {}
                // A connection that is not used.
                _ => continue,
            }
            let mut store = TcpStream::connect(&to).unwrap();
            store.write_all(&first).unwrap();
            let (mut from, mut back) = (client.try_clone().unwrap(), store.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut store));
            std::thread::spawn(move || std::io::copy(&mut back, &mut client));
        }
    });
    (address, serving)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_reached_through_a_proxy_which_errors_name() {
    let bucket = fresh("proxied");
    Server::SeaweedFs.client().create_bucket().bucket(&bucket).send().await.unwrap();
    let store = s3("SEAWEEDFS");
    let (proxy, serving) = relay(store.endpoint.trim_start_matches("http://").to_owned());
    // A name that only the proxy knows.
    let hidden = S3 { endpoint: "http://store.invalid:8333".to_owned(), ..store };
    let table = s3_storage("far", &hidden, &bucket) + "attempts = 1\n";
    let site = Site::new(&format!(
        "[sources.files]\ntype = \"directory\"\npath = \"@/data\"\n{table}[strategies.daily]\n\
         sources = [\"files\"]\nstorages = [\"far\"]\n"
    ));
    small_tree(&site.path("data"));
    let through = |backup: Backup| backup.env("HTTP_PROXY", format!("http://me:Tq9xw@{proxy}"));
    through(site.backup(["--strategy", "daily"])).expect(0);
    through(site.backup(["verify", "--read-data"])).expect(0);
    let direct = site.backup(["list"]).expect(1);
    assert!(direct.err().contains("store.invalid"), "{direct}");
    assert!(!direct.err().contains("proxy"), "{direct}");
    let around = through(site.backup(["list"])).env("NO_PROXY", "store.invalid").expect(1);
    assert!(!around.err().contains(&proxy), "{around}");
    TcpStream::connect(&proxy).unwrap().write_all(b"!").unwrap();
    serving.join().unwrap();
    let gone = through(site.backup(["list"])).expect(1);
    assert!(gone.err().contains(&proxy) && gone.err().contains("store.invalid"), "{gone}");
    assert!(!gone.err().contains("Tq9xw"), "{gone}");
}
