//! Sinks that fail, block or hoard, and runs that are cancelled: every thread ends, and nothing
//! hangs.

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;

use super::super::{Algorithm, Encoder, Throttle};
use super::{Call, Memory, key, sample, settings};
use crate::model::{Cancel, Digest};

/// Long enough for a loaded machine, and an end for what hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `work` on a thread, and fails when it does not end.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let value = work();
        let _ = sender.send(());
        value
    });
    assert_ne!(receiver.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Timeout), "it hangs");
    thread.join().unwrap()
}

/// Tells when the last of the threads that hold it has ended.
struct Alive(mpsc::Sender<()>);

impl Drop for Alive {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// Writes until an error comes, which it must.
fn write_until_error(mut encoder: Encoder) -> String {
    let block = sample(10_000, 11);
    for _ in 0..100_000 {
        if let Err(error) = encoder.write_all(&block) {
            let again = encoder.write(&block).err().map(|error| error.to_string());
            assert_eq!(again.as_deref(), Some(error.to_string().as_str()), "it stays an error");
            let last = encoder.finish().err().map(|error| error.to_string());
            assert_eq!(
                last.as_deref(),
                Some(error.to_string().as_str()),
                "it does not finish either"
            );
            return error.to_string();
        }
    }
    panic!("no error came");
}

#[test]
fn a_failing_sink_fails_the_stream_with_its_own_error() {
    for algorithm in [Algorithm::Zstd, Algorithm::None] {
        for recipients in [vec![], vec![key().1]] {
            for kind in [io::ErrorKind::StorageFull, io::ErrorKind::Interrupted] {
                let settings = settings(algorithm, recipients.clone(), 2, 20_000);
                let message = in_time(move || {
                    let mut left = 50_000_usize;
                    let sink = Call(move |chunk: Bytes| {
                        left = left
                            .checked_sub(chunk.len())
                            .ok_or_else(|| io::Error::new(kind, "The disk is full"))?;
                        Ok(())
                    });
                    write_until_error(Encoder::new(settings, Box::new(sink)).unwrap())
                });
                assert_eq!(message, "The disk is full");
            }
        }
    }
}

#[test]
fn a_sink_that_fails_at_the_very_end_fails_finish() {
    let error = in_time(|| {
        let sink = Call(|_| Err(io::Error::other("Lost")));
        let mut encoder =
            Encoder::new(settings(Algorithm::Zstd, vec![key().1], 2, 1 << 20), Box::new(sink))
                .unwrap();
        encoder.write_all(b"little").unwrap();
        encoder.finish().err().map(|error| error.to_string())
    });
    assert_eq!(error.as_deref(), Some("Lost"));
}

#[test]
fn a_sink_that_panics_fails_the_stream() {
    let message = in_time(|| {
        let sink = Call(|_| panic!("a sink that panics"));
        write_until_error(
            Encoder::new(settings(Algorithm::Zstd, Vec::new(), 2, 20_000), Box::new(sink)).unwrap(),
        )
    });
    assert!(message.contains("panicked"), "{message}");
}

#[test]
fn a_sink_that_holds_on_to_every_chunk_does_not_hang_the_stream() {
    for algorithm in [Algorithm::Zstd, Algorithm::None] {
        for recipients in [vec![], vec![key().1]] {
            let settings = settings(algorithm, recipients, 2, 5_000);
            let (held, encoded) = in_time(move || {
                let held = Arc::new(Mutex::new(Vec::new()));
                let sink = Call({
                    let held = Arc::clone(&held);
                    move |chunk| {
                        held.lock().unwrap().push(chunk);
                        Ok(())
                    }
                });
                let mut encoder = Encoder::new(settings, Box::new(sink)).unwrap();
                encoder.write_all(&sample(200_000, 13)).unwrap();
                let (encoded, _) = encoder.finish().unwrap();
                let held: Vec<u8> = held.lock().unwrap().concat();
                (held, encoded)
            });
            assert_eq!(
                Digest::of(&held),
                encoded.objects[0].digest,
                "a chunk that is held is not written over"
            );
        }
    }
}

/// Blocks every call until it is opened.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn pass(&self) {
        let open = self.0.0.lock().unwrap();
        let _open = self.0.1.wait_while(open, |open| !*open).unwrap();
    }
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

#[test]
fn a_blocked_sink_stops_the_intake_and_a_cancel_frees_it() {
    for finishing in [false, true] {
        let mut settings = settings(Algorithm::None, Vec::new(), 2, 1_000);
        settings.cancel = Cancel::new();
        let cancel = settings.cancel.clone();
        let (gate, taken) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
        let (ended, all_ended) = mpsc::channel();
        let (entered, sink_entered) = mpsc::channel();
        let (wrote, all_written) = mpsc::channel();
        let sink = Call({
            let (gate, alive) = (gate.clone(), Alive(ended));
            move |_| {
                let _ = (&alive, entered.send(()));
                gate.pass();
                Ok(())
            }
        });
        let mut encoder = Encoder::new(settings, Box::new(sink)).unwrap();
        let writer = std::thread::spawn({
            let taken = Arc::clone(&taken);
            move || {
                if finishing {
                    encoder.write_all(&[0; 1_500]).unwrap();
                    let _ = wrote.send(());
                    return encoder.finish().err().map(|error| error.to_string());
                }
                loop {
                    match encoder.write(&[0; 500]) {
                        Ok(count) => taken.fetch_add(count, Ordering::SeqCst),
                        Err(error) => return Some(error.to_string()),
                    };
                }
            }
        });
        sink_entered.recv_timeout(PATIENCE).unwrap();
        if finishing {
            // The sink may be reached before all is written, and what is cancelled then is the
            // writing.
            all_written.recv_timeout(PATIENCE).unwrap();
        }
        cancel.cancel();
        assert_eq!(in_time(move || writer.join().unwrap()).as_deref(), Some("Cancelled"));
        // One block with the sink, two in flight for each worker, one being filled.
        assert!(taken.load(Ordering::SeqCst) <= 6_000);
        gate.open();
        assert!(
            all_ended.recv_timeout(PATIENCE).is_ok(),
            "the sink is dropped, so its thread ended"
        );
    }
}

#[test]
fn a_dropped_encoder_ends_its_threads_and_drops_its_sink() {
    for bytes in [0, 10, 100_000] {
        let (ended, all_ended) = mpsc::channel();
        let alive = Alive(ended);
        let sink = Call(move |_| {
            let _ = &alive;
            Ok(())
        });
        let mut encoder =
            Encoder::new(settings(Algorithm::Gzip, vec![key().1], 3, 1_000), Box::new(sink))
                .unwrap();
        encoder.write_all(&sample(bytes, 17)).unwrap();
        drop(encoder);
        assert!(all_ended.recv_timeout(PATIENCE).is_ok());
    }
}

#[test]
fn a_run_that_is_cancelled_already_takes_nothing() {
    let settings = settings(Algorithm::Zstd, Vec::new(), 2, 1_000);
    settings.cancel.cancel();
    let memory = Memory::default();
    let encoder = Encoder::new(settings, Box::new(memory.clone())).unwrap();
    assert!(in_time(move || encoder.finish()).is_err());
    assert!(memory.objects().is_empty());
}

#[test]
fn the_read_rate_is_kept_and_a_cancel_ends_the_wait() {
    let mut settings = settings(Algorithm::Zstd, Vec::new(), 2, 1 << 20);
    settings.read_rate = Some(Throttle::new("1MiB/s".parse().unwrap()));
    let cancel = settings.cancel.clone();
    let mut encoder = Encoder::new(settings, Box::new(Memory::default())).unwrap();
    let begin = std::time::Instant::now();
    encoder.write_all(&vec![0; 512 << 10]).unwrap();
    assert!(
        begin.elapsed() >= Duration::from_millis(240),
        "the second quarter waits for the first"
    );
    let writer = std::thread::spawn(move || {
        encoder.write_all(&vec![0; 1 << 30]).map_err(|error| error.to_string())
    });
    cancel.cancel();
    assert_eq!(in_time(move || writer.join().unwrap()), Err("Cancelled".to_owned()));
}
