//! A matrix of damage: every object of a snapshot, each damaged in every way. A drill finds each,
//! names it, and never passes.

use serde_json::Value;

use crate::support::shop::{Kind, Shop, assert_passed, outcomes};

/// What happens to an object; `other` is the same one of another snapshot.
type Damage = fn(whole: &[u8], other: &[u8]) -> Option<Vec<u8>>;

fn deleted(_: &[u8], _: &[u8]) -> Option<Vec<u8>> {
    None
}

fn truncated(whole: &[u8], _: &[u8]) -> Option<Vec<u8>> {
    Some(whole[..whole.len() - whole.len() / 3 - 1].to_vec())
}

fn flipped(whole: &[u8], _: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = whole.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Some(bytes)
}

/// In the header: an encrypted object cannot even be opened then.
fn flipped_at_its_beginning(whole: &[u8], _: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = whole.to_vec();
    let early = bytes.len().min(40) - 1;
    bytes[early] ^= 1;
    Some(bytes)
}

fn swapped(_: &[u8], other: &[u8]) -> Option<Vec<u8>> {
    Some(other.to_vec())
}

fn emptied(_: &[u8], _: &[u8]) -> Option<Vec<u8>> {
    Some(Vec::new())
}

/// Damages each object of a snapshot so, one after the other.
fn each_is_found(encrypted: bool, s3: bool, damage: Damage) {
    let shop = Shop::of(Kind { major: 15, encrypted, s3 });
    shop.configure("postgres = { url = \"${SCRATCH_15}\", on_source_server = true }\n");
    let other = shop.run();
    shop.database.run("INSERT INTO item (name, price) VALUES ('one more', 5)");
    std::fs::write(shop.site.path("files/more"), "more").unwrap();
    shop.attach("another one");
    let id = shop.run();
    let end = if encrypted { ".zst.age" } else { ".zst" };
    let artifacts = [
        "db.pgdump",
        "settings.sqlite",
        "keys.out",
        "files.tar",
        "files.index",
        "files.blocks",
        "facts.json",
    ];
    let objects =
        artifacts.iter().map(|name| format!("{name}{end}")).chain(["manifest.json".to_owned()]);
    for object in objects {
        let whole = shop.object(&id, &object).unwrap_or_else(|| panic!("no `{object}`"));
        let damaged = damage(&whole, &shop.object(&other, &object).unwrap());
        if damaged.as_deref() == Some(&whole) {
            // The key and the settings are the same in both, and not encrypted they are stored the
            // same.
            continue;
        }
        shop.put_object(&id, &object, damaged.as_deref());
        let report = shop.drill(4, &["--snapshot", &id]).json();
        assert_found(&report, &object);
        // Nobody is told of an older one that it is the newest.
        if object != "manifest.json" || damaged.is_some() {
            let latest = shop.drill(4, &[]).json();
            assert_eq!(latest["snapshot"]["id"], id.as_str(), "{object}");
        }
        shop.put_object(&id, &object, Some(&whole));
    }
    assert_passed(&shop.drill(0, &["--snapshot", &id]).json());
    assert_eq!(shop.leftovers(&[shop.server()]), [""; 0]);
}

fn assert_found(report: &Value, object: &str) {
    assert_eq!(report["verdict"], "failed", "{object}: {report:#}");
    let name = object.split(".zst").next().unwrap();
    let failed = outcomes(report, "failed");
    let kind = if name == "manifest.json" { "manifest" } else { "digest" };
    let named = |check: &&String| check.starts_with(kind) && check.contains(name);
    assert!(failed.iter().any(|check| named(&check)), "{object} is not named: {failed:#?}");
    let problem = report["problem"].as_str().unwrap();
    assert!(problem.contains(name), "{object}: {problem}");
}

macro_rules! matrix {
    ($($damage:ident),*) => {
        mod plain {
            $(#[test] fn $damage() { super::each_is_found(false, false, super::$damage); })*
        }
        mod encrypted_off_site {
            $(#[test] fn $damage() { super::each_is_found(true, true, super::$damage); })*
        }
    };
}

matrix!(deleted, truncated, flipped, flipped_at_its_beginning, swapped, emptied);
