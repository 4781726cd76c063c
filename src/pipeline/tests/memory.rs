//! Memory is bounded by the settings and not by the data.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use super::super::{Algorithm, Encoder, Recipient, WORKER_BYTES};
use super::{Call, key, sample, settings};

/// `VmHWM`, the highest resident memory of this process so far, or `VmRSS`, that of now, in bytes.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Pushes `total` bytes through an encoder, with a sink that keeps the newest chunk, as a channel
/// to a storage does.
fn push(algorithm: Algorithm, recipients: Vec<Recipient>, total: usize, piece: &[u8]) -> Duration {
    let mut last = None;
    let sink = Call(move |chunk| {
        last.replace(chunk);
        Ok(())
    });
    let begin = std::time::Instant::now();
    let mut encoder =
        Encoder::new(settings(algorithm, recipients, 2, 1 << 20), Box::new(sink)).unwrap();
    for _ in 0..total / piece.len() {
        for part in piece.chunks(256 << 10) {
            encoder.write_all(part).unwrap();
        }
    }
    let (encoded, _) = encoder.finish().unwrap();
    assert_eq!(encoded.plain_bytes, total as u64);
    begin.elapsed()
}

/// What [`memory_does_not_grow_with_the_data`] starts as a process of its own.
#[test]
#[ignore = "started by `memory_does_not_grow_with_the_data`, alone in its process"]
fn child() {
    let text = sample(8 << 20, 19);
    let mut state = 1_u64;
    let mut noise = Vec::with_capacity(8 << 20);
    while noise.len() < 8 << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    let base = memory("VmRSS");
    let mut peaks = Vec::new();
    let recipients = vec![key().1];
    for total in [64 << 20, 1 << 30] {
        for algorithm in [Algorithm::Zstd, Algorithm::None, Algorithm::Gzip] {
            if algorithm != Algorithm::Zstd && total > 64 << 20 {
                continue;
            }
            for (kind, piece) in [("noise", &noise), ("text", &text)] {
                let took = push(algorithm, recipients.clone(), total, piece);
                let rate = total as f64 / 1e6 / took.as_secs_f64();
                let (peak, now) = (memory("VmHWM") >> 10, memory("VmRSS") >> 10);
                println!(
                    "{algorithm:?} {} MiB of {kind}: {rate:.0} MB/s, peak {peak} KiB, left {now} \
                     KiB",
                    total >> 20
                );
            }
        }
        // Many short streams, one after another, as a run has.
        for _ in 0..20 {
            push(Algorithm::Zstd, Vec::new(), 8 << 20, &noise);
        }
        peaks.push(memory("VmHWM"));
    }
    println!("base {} KiB, peaks {peaks:?}, left {} KiB", base >> 10, memory("VmRSS") >> 10);
    // Beyond the workers: a block being filled and one being stored, one that the sink holds, and
    // code that is touched for the first time.
    let allowed = base + 2 * WORKER_BYTES + (16 << 20);
    assert!(peaks.iter().all(|peak| *peak <= allowed), "{peaks:?} > {allowed}");
    // The allocator may keep a compressor's state of a thread that ended, once for each thread
    // there was at a time.
    assert!(peaks[1] <= peaks[0] + (4 << 20), "it grew with the data: {peaks:?}");
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the peak of a process is that of all tests that ran in it, so this takes its own"
)]
fn memory_does_not_grow_with_the_data() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "pipeline::tests::memory::child",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
