//! Memory is bounded by the settings and not by the data: the highest resident memory of the
//! program, as a process.

use std::process::Command;

use super::support::s3;
use super::support::site::{Site, s3_storage};
use super::support::stores::{Server, fresh};

/// What a run of two threads may hold at its peak. A release build stays within 64 MiB. The tests
/// run a debug build, of which more code is resident (50 MB of 200, as the system counts pages of
/// files), so that the bound here is wider by that.
pub(crate) const BOUND: u64 = (64 + DEBUG_CODE_MIB) << 20;
#[cfg(debug_assertions)]
const DEBUG_CODE_MIB: u64 = 28;
#[cfg(not(debug_assertions))]
const DEBUG_CODE_MIB: u64 = 0;

/// What may differ between two runs that should need the same.
const NOISE: u64 = 4 << 20;

/// Starts what its arguments say and prints the highest resident memory of it, or of a child of it,
/// in KiB.
const JUDGE: &str = "
import resource, subprocess, sys
ended = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(ended.returncode)
";

/// The peak of `backup` with these arguments, in bytes.
fn peak(site: &Site, args: &[&str]) -> u64 {
    let output = Command::new("python3")
        .args(["-c", JUDGE, env!("CARGO_BIN_EXE_backup"), "--config"])
        .arg(site.config())
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().parse::<u64>().unwrap() << 10
}

/// A site with a source of `mebibytes` that do not compress, the worst case: packed blocks are as
/// large as plain ones.
fn configuration(mebibytes: u64, storages: &str, names: &str, more: &str) -> String {
    let bytes = mebibytes << 20;
    format!(
        "threads = 2\n{more}\n\
         [sources.noise]\ntype = \"command\"\n\
         command = [\"head\", \"-c\", \"{bytes}\", \"/dev/urandom\"]\n\
         max_shrink_percent = 100\n\
         {storages}\n\
         [strategies.daily]\nschedule = \"30 1 * * *\"\nsources = [\"noise\"]\n\
         storages = [{names}]\n\
         retention = {{ keep_last = 1 }}\n"
    )
}

/// Runs 64 MiB and 256 MiB through the same settings. Returns the site of the last of the larger.
///
/// The storages take less than the source gives, so that all that may be between the two soon is:
/// how much a run holds that waits for nothing is chance, and the longer one meets the higher peak.
/// What else the machine does can only add to a peak, so that the least of two is compared.
fn the_same_for_more(storages: &str, names: &str, more: &str) -> Site {
    let more = format!("upload_rate = \"80MiB/s\"\n{more}");
    let run = |mebibytes| {
        let site = Site::new(&configuration(mebibytes, storages, names, &more));
        let peak = peak(&site, &["--strategy", "daily"]);
        assert!(peak <= BOUND, "{names}, {mebibytes} MiB: {peak} > {BOUND}");
        (peak, site)
    };
    let twice = |mebibytes| {
        let ((one, _), (other, site)) = (run(mebibytes), run(mebibytes));
        (one.min(other), site)
    };
    let (small, _) = twice(64);
    let (large, site) = twice(256);
    println!("{names}: {} KiB, then {} KiB", small >> 10, large >> 10);
    assert!(large <= small + NOISE, "{names}: it grew with the data, from {small} to {large}");
    site
}

const LOCAL: &str = "[storages.local]\ntype = \"local\"\npath = \"@/store\"\n";

#[test]
fn a_run_to_a_folder_stays_within_its_bound_and_so_does_what_reads_it() {
    let site = the_same_for_more(LOCAL, "\"local\"", "");
    let (usb, file) = (site.path("usb"), site.path("noise.tar"));
    let (usb, file) = (usb.to_str().unwrap(), file.to_str().unwrap());
    for args in [
        &["verify", "--read-data"][..],
        &["copy", "--from", "local", "--to", usb],
        &["export", "--strategy", "daily", "--snapshot", "latest", "--output", file],
        &["import", file, "--storage", "local"],
        &["restore", "--strategy", "daily", "--to", site.path("out").to_str().unwrap()],
    ] {
        let peak = peak(&site, args);
        println!("{args:?}: {} KiB", peak >> 10);
        assert!(peak <= BOUND, "{args:?}: {peak}");
    }
}

#[tokio::test]
async fn a_run_to_a_folder_and_two_buckets_stays_within_its_bound() {
    let mut storages = LOCAL.to_owned();
    for name in ["one", "two"] {
        let bucket = fresh("memory");
        Server::S3s.client().create_bucket().bucket(&bucket).send().await.unwrap();
        storages += &s3_storage(name, &s3("S3S"), &bucket);
    }
    let recipient = age::x25519::Identity::generate().to_public();
    let encryption = format!("[encryption]\nrecipients = [\"{recipient}\"]");
    for more in ["", &encryption] {
        the_same_for_more(&storages, "\"local\", \"one\", \"two\"", more);
    }
}
