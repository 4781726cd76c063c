//! Documents and answers that are far larger than honest ones: each is refused as too large, not
//! called damaged, and costs no more memory than any other.

use std::fs::File;
use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::process::Command;

use crate::format::edit_manifest;
use crate::memory::BOUND;
use crate::support::s3_proxy::{Fault, Op, S3Proxy};
use crate::support::site::{SCRIPTED, Site, s3_storage};
use crate::support::stores::{Server, fresh};
use crate::support::{S3, s3, sh};

/// Starts what its arguments say, passes what it prints to stderr, and prints its exit code and the
/// highest resident memory of it in KiB.
const JUDGE: &str = "
import resource, subprocess, sys
ended = subprocess.run(sys.argv[1:], stdout=sys.stderr)
print(ended.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
";

/// What values cost that are read as a tree, of as many as facts may have.
const TREE: u64 = 96 << 20;

/// The exit code of `backup` with these arguments, its peak in bytes and what it printed.
fn judged(site: &Site, args: &[&str]) -> (i32, u64, String) {
    judged_with(site, args, &[])
}

/// The same with more variables in the environment.
fn judged_with(site: &Site, args: &[&str], variables: &[(&str, String)]) -> (i32, u64, String) {
    let output = Command::new("python3")
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .args(["-c", JUDGE, env!("CARGO_BIN_EXE_backup"), "--config"])
        .arg(site.config())
        .args(args)
        .output()
        .unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let (code, peak) = told.trim().split_once(' ').unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{args:?}: exit {code}, {peak} KiB");
    (code.parse().unwrap(), peak.parse::<u64>().unwrap() << 10, said)
}

/// A site with one snapshot of a few bytes.
fn site() -> Site {
    let site = Site::new(&format!(
        "compression = {{ algorithm = \"gzip\" }}\n{SCRIPTED}retention = {{ keep_last = 1 }}\n"
    ));
    std::fs::write(site.path("dump.sh"), "echo good").unwrap();
    site.run(0);
    site
}

#[test]
fn manifests_that_are_too_large_cost_little_memory() {
    let site = site();
    let folder = site.newest();
    let kept = std::fs::read(folder.join("manifest.json")).unwrap();
    let sparse = |folder: &Path| {
        File::create(folder.join("manifest.json")).unwrap().set_len(3 << 30).unwrap();
    };
    let zeros = |key: &'static str| {
        move |folder: &Path| {
            edit_manifest(folder, |manifest, _| manifest[key] = "ZEROS".into());
            let text = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
            let body = text.lines().skip(1).collect::<Vec<_>>().join("\n");
            let body = body
                .strip_suffix('}')
                .unwrap()
                .replace("\"ZEROS\"", &format!("[{}0]", "0,".repeat(7 << 20)));
            std::fs::write(folder.join("body"), body).unwrap();
            sh(
                folder,
                r#"{ printf '{"digest": "sha256:%s", "manifest":\n' "$(sha256sum <body | cut -d' ' -f1)"; cat body; echo '}'; } >manifest.json; rm body"#,
                &[],
            );
        }
    };
    let (later, requires) = (zeros("later"), zeros("requires"));
    let out = site.path("out");
    let usb = site.path("usb");
    let file = site.path("file.tar");
    for (what, make) in
        [("sparse", &sparse as &dyn Fn(&Path)), ("later", &later), ("requires", &requires)]
    {
        make(&folder);
        for args in [
            &["list", "--json"][..],
            &["verify", "--json"],
            &["prune", "--json"],
            &["restore", "--strategy", "daily", "--to", out.to_str().unwrap(), "--json"],
            &["drill", "--strategy", "daily", "--json"],
            &["copy", "--from", "local", "--to", usb.to_str().unwrap(), "--json"],
            &[
                "export",
                "--strategy",
                "daily",
                "--snapshot",
                "latest",
                "--output",
                file.to_str().unwrap(),
                "--json",
            ],
        ] {
            let (code, peak, said) = judged(&site, args);
            assert_ne!(code, 0, "{what} {args:?}: {said}");
            assert!(peak <= BOUND, "{what} {args:?}: {peak}");
            assert!(said.contains("larger than this version reads"), "{what} {args:?}: {said}");
            assert!(!said.contains("snapshot_damaged"), "{what} {args:?}: {said}");
        }
        std::fs::write(folder.join("manifest.json"), &kept).unwrap();
    }
    site.backup(["verify"]).expect(0);
}

/// Puts facts in the place of those of the snapshot.
fn plant_facts(folder: &Path, write: impl FnOnce(&mut dyn std::io::Write)) {
    let object = folder.join("facts.json.gz");
    let mut out =
        flate2::write::GzEncoder::new(File::create(&object).unwrap(), flate2::Compression::fast());
    write(&mut out);
    out.finish().unwrap();
    edit_manifest(folder, |manifest, _| {
        let facts = manifest["artifacts"].as_array_mut().unwrap().last_mut().unwrap();
        let digest = sh(folder, "sha256sum <facts.json.gz | cut -d' ' -f1", &[]);
        let size = std::fs::metadata(&object).unwrap().len();
        facts["compressed_bytes"] = size.into();
        facts["objects"][0]["size"] = size.into();
        facts["objects"][0]["digest"] = format!("sha256:{}", digest.trim()).into();
    });
}

#[test]
fn facts_that_are_too_large_cost_little_memory() {
    let site = site();
    let folder = site.newest();
    let head = format!(
        "{{\"format\": 1, \"instance\": \"app\", \"strategy\": \"daily\", \"id\": \"{}\", ",
        folder.file_name().unwrap().to_str().unwrap()
    );
    let out = site.path("out");
    for (what, before, part) in [
        ("numbers", "\"configuration\": [0", ",0"),
        ("objects", "\"configuration\": [{}", ",{\"a\":{}}"),
        ("unknown", "\"later\": [0", ",0"),
        ("text", "\"configuration\": \"", "xxxxxxxxxxxxxxxx"),
    ] {
        plant_facts(&folder, |out| {
            out.write_all(format!("{head}{before}").as_bytes()).unwrap();
            let part = part.repeat(1 << 16);
            for _ in 0..(1 << 30) / part.len() {
                out.write_all(part.as_bytes()).unwrap();
            }
        });
        for args in [
            &["restore", "--strategy", "daily", "--to", out.to_str().unwrap(), "--json"][..],
            &["drill", "--strategy", "daily", "--json"],
            &["show", "latest", "--strategy", "daily", "--json"],
        ] {
            let (code, peak, said) = judged(&site, args);
            assert!(peak <= BOUND + TREE, "{what} {args:?}: {peak}");
            assert!(!said.contains("snapshot_damaged"), "{what} {args:?}: {said}");
            if args[0] == "restore" {
                assert_eq!(code, 1, "{what}: {said}");
                assert!(said.contains("document_too_large"), "{what}: {said}");
            }
        }
    }
    assert!(!out.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_a_store_without_end_are_cut() {
    let name = fresh("hostile");
    let server = Server::S3s;
    server.client().create_bucket().bucket(&name).send().await.unwrap();
    let proxy = S3Proxy::before(&server.endpoint()).await;
    let behind = S3 { endpoint: proxy.endpoint.clone(), ..s3("S3S") };
    let storage = s3_storage("local", &behind, &name).replace("type", "attempts = 2\ntype");
    let site = Site::new(&format!(
        "{}{storage}[strategies.daily]\nsources = [\"dump\"]\nstorages = [\"local\"]\n",
        SCRIPTED.split("[storages.local]").next().unwrap()
    ));
    std::fs::write(site.path("dump.sh"), "echo good").unwrap();
    tokio::task::block_in_place(|| {
        site.run(0);
        for (op, status) in [(Op::List, 200), (Op::List, 403), (Op::Get, 403), (Op::Put, 400)] {
            for args in [&["list", "--json"][..], &["verify", "--json"], &["--strategy", "daily"]] {
                proxy.inject(op, Fault::Flood(status, 3 << 30), 1_000);
                let (code, peak, said) = judged(&site, args);
                proxy.heal();
                assert!(peak <= BOUND, "{op:?} {status} {args:?}: {peak}: {said}");
                assert!(!said.contains("snapshot_damaged"), "{op:?} {status} {args:?}: {said}");
                assert!(code != 0 || op != Op::List, "{op:?} {status} {args:?}: {said}");
            }
        }
        site.backup(["verify"]).expect(0);
    });
}

#[test]
fn local_files_without_end_are_refused() {
    let site = site();
    let endless = |file: &Path| File::create(file).unwrap().set_len(3 << 30).unwrap();
    let keys = site.path("keys.txt");
    endless(&keys);
    let keys = ["restore", "--strategy", "daily", "--to", "/nowhere", "--identity-file"]
        .into_iter()
        .chain([keys.to_str().unwrap(), "--json"])
        .collect::<Vec<_>>();
    let (code, peak, said) = judged(&site, &keys);
    assert!(code != 0 && peak <= BOUND, "{peak}: {said}");
    let node = site.path("state/node");
    let kept = std::fs::read(&node).unwrap();
    endless(&node);
    let (code, peak, said) = judged(&site, &["--strategy", "daily", "--json"]);
    assert!(code == 0 && peak <= BOUND, "{peak}: {said}");
    assert_eq!(std::fs::read(&node).unwrap().len(), kept.len(), "it is made anew");
    endless(&site.config());
    let (code, peak, said) = judged(&site, &["list", "--json"]);
    assert!(code != 0 && peak <= BOUND && said.contains("config_unreadable"), "{peak}: {said}");
}

/// A server on this machine that answers every request without end.
fn flood() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut asked = std::io::BufReader::new(stream.try_clone().unwrap()).lines();
                while asked.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"Code\": \"";
                let _ = stream.write_all(head.as_bytes());
                let chunk = vec![b'x'; 1 << 20];
                while stream.write_all(&chunk).is_ok() {}
            });
        }
    });
    port
}

#[test]
fn answers_of_an_identity_service_are_cut() {
    let name = fresh("hostile");
    let storage = s3_storage("local", &s3("S3S"), &name);
    let without_keys: String = storage
        .lines()
        .filter(|line| !line.contains("access_key"))
        .map(|line| format!("{line}\n"))
        .collect();
    let site = Site::new(&format!(
        "{}{without_keys}[strategies.daily]\nsources = [\"dump\"]\nstorages = [\"local\"]\n",
        SCRIPTED.split("[storages.local]").next().unwrap()
    ));
    let service = format!("http://127.0.0.1:{}/credentials", flood());
    let variables = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", service)];
    let (code, peak, said) = judged_with(&site, &["list", "--json"], &variables);
    assert!(code != 0 && peak <= BOUND && said.contains("more than"), "{peak}: {said}");
}
