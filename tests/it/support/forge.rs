//! Snapshots that are stored without a flaw and are wrong all the same: made of the artifacts of
//! one and the facts of another.

use std::path::Path;

use holdfast::model::{Digest, Facts, Manifest, SnapshotId};

use super::sh;
use super::shop::Shop;

/// Puts another plain stream in the place of an artifact of a snapshot in the local storage, and
/// seals it as a run would have: every size and digest fits, and what was counted is left as it
/// was.
pub fn replace(shop: &Shop, id: &str, name: &str, plain: &Path) {
    let folder = shop.snapshot(id);
    let id: SnapshotId = id.parse().unwrap();
    let (instance, strategy) = ("app".parse().unwrap(), "daily".parse().unwrap());
    let file = folder.join("manifest.json");
    let mut manifest =
        Manifest::from_bytes(&std::fs::read(&file).unwrap(), &instance, &strategy, &id).unwrap();
    let facts = sh(&folder, "zstd -dc facts.json.zst", &[]);
    let mut facts: Facts = serde_json::from_str(&facts).unwrap();
    let bytes = std::fs::read(plain).unwrap();
    let known = facts.artifacts.iter_mut().find(|known| known.name == name).unwrap();
    known.plain_bytes = bytes.len() as u64;
    known.plain_digest = Digest::of(&bytes);
    store(&folder, &mut manifest, name, &bytes);
    store(&folder, &mut manifest, "facts.json", &serde_json::to_vec(&facts).unwrap());
    std::fs::write(&file, manifest.to_bytes()).unwrap();
}

fn store(folder: &Path, manifest: &mut Manifest, name: &str, plain: &[u8]) {
    let spool = folder.join("plain");
    std::fs::write(&spool, plain).unwrap();
    sh(folder, r#"zstd -qf --rm plain -o "$1".zst"#, &[name.as_ref()]);
    let stored = std::fs::read(folder.join(format!("{name}.zst"))).unwrap();
    let artifact = manifest.artifacts.iter_mut().find(|artifact| artifact.name == name).unwrap();
    artifact.compressed_bytes = stored.len() as u64;
    artifact.objects.truncate(1);
    artifact.objects[0].size = stored.len() as u64;
    artifact.objects[0].digest = Digest::of(&stored);
}
