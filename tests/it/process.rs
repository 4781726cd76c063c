//! A child is watched, drained and reaped; nothing that it does makes a failed dump look like a
//! good one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast::model::{ArtifactKind, Secret};
use holdfast::source::command::{Command, CommandConfig, CommandRestorer};
use holdfast::source::process::{Call, Environment, MemoryFile, ProcessError};
use holdfast::source::{
    Level, RestoreArtifact, RestoreJob, RestoreOptions, Restorer, Source, SourceError, Target,
};

use crate::support::sources::{Bench, Damaged, Kept};

fn shell(bench: &Bench, text: &str) -> Call {
    Call::new(&bench.cx, "sh", "try")
        .args(["-c", text])
        .working_dir(Some(bench.folder.path().to_owned()))
}

fn run(bench: &Bench, text: &str) -> (Result<u64, SourceError>, Vec<u8>) {
    let mut out = Vec::new();
    let result = shell(bench, text).read_into(&bench.cx, &mut out);
    (result, out)
}

/// The process whose id is in the file has been killed: it is gone, or about to be.
fn assert_gone(bench: &Bench, file: &str) {
    let pid: i32 = std::fs::read_to_string(bench.path(file)).unwrap().trim().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let Ok(process) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return;
    };
    let mut fds = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
    let timeout = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(1), "{file} still runs");
}

#[test]
fn all_output_of_a_successful_child_is_taken() {
    let bench = Bench::new();
    let (result, out) = run(&bench, "head -c 3000000 /dev/zero; echo end");
    assert_eq!(result.unwrap(), 3_000_004);
    assert!(out.ends_with(b"\0end\n"));
}

#[test]
fn an_exit_status_after_a_megabyte_is_a_failure_that_repeats_what_was_said() {
    let bench = Bench::new();
    let (result, out) = run(&bench, "head -c 1000000 /dev/zero; echo 'disk on fire' >&2; exit 7");
    let error = result.unwrap_err();
    assert!(
        matches!(&error, SourceError::Process(ProcessError::Exit { status: 7, .. })),
        "{error}"
    );
    assert!(error.to_string().contains("disk on fire"), "{error}");
    assert!(out.len() <= 1_000_000);
}

#[test]
fn a_signal_is_named() {
    let bench = Bench::new();
    let error = run(&bench, "echo some; kill -9 $$").0.unwrap_err().to_string();
    assert!(error.contains("SIGKILL") && error.contains("out of memory?"), "{error}");
}

#[test]
fn a_flood_of_errors_blocks_nothing_and_only_its_end_is_kept() {
    let bench = Bench::new();
    let error = run(&bench, "head -c 100000000 /dev/zero | tr '\\0' x >&2; echo last >&2; exit 1")
        .0
        .unwrap_err();
    let SourceError::Process(ProcessError::Exit { said, .. }) = error else { panic!("{error}") };
    assert!(said.stderr().len() <= 16 * 1024 && said.stderr().ends_with("xlast\n"));
    assert_eq!(run(&bench, "head -c 9000000 /dev/zero >&2; echo fine").1, b"fine\n");
}

#[test]
fn a_silent_child_is_killed_with_all_that_it_started() {
    let mut bench = Bench::new();
    bench.cx.no_progress_timeout = Duration::from_millis(1_500);
    let error = run(&bench, "echo some; sleep 1000 & echo $! > sleeper; echo $$ > shell; wait")
        .0
        .unwrap_err();
    assert!(matches!(&error, SourceError::Process(ProcessError::Hung { .. })), "{error}");
    assert_gone(&bench, "sleeper");
    assert_gone(&bench, "shell");
    // One that closes its output and goes on is as silent.
    let error = run(&bench, "exec >&-; sleep 1000").0.unwrap_err();
    assert!(matches!(&error, SourceError::Process(ProcessError::Hung { .. })), "{error}");
}

#[test]
fn a_child_that_refuses_to_end_is_killed_after_a_grace() {
    let mut bench = Bench::new();
    bench.cx.no_progress_timeout = Duration::from_millis(1_500);
    let error =
        run(&bench, "trap '' TERM; echo $$ > shell; while :; do sleep 1000; done").0.unwrap_err();
    assert!(matches!(&error, SourceError::Process(ProcessError::Hung { .. })), "{error}");
    assert_gone(&bench, "shell");
}

#[test]
fn a_child_that_reports_what_it_does_is_not_silent() {
    let mut bench = Bench::new();
    bench.cx.no_progress_timeout = Duration::from_secs(2);
    let (result, out) =
        run(&bench, "for i in 1 2 3 4 5 6 7 8; do echo working >&2; sleep 0.4; done; echo done");
    result.unwrap();
    assert_eq!(out, b"done\n");
}

#[test]
fn output_that_is_held_open_after_the_end_is_not_known_to_be_complete() {
    let bench = Bench::new();
    // Even if what was left behind goes on to speak.
    for body in ["exec sleep 1000", "while :; do echo here >&2; sleep 0.5; done"] {
        let error =
            run(&bench, &format!("sh -c '{body}' & echo $! > left; echo some")).0.unwrap_err();
        assert!(matches!(&error, SourceError::Process(ProcessError::HeldOpen { .. })), "{error}");
        assert_gone(&bench, "left");
    }
}

#[test]
fn what_a_child_leaves_running_elsewhere_does_not_hold_us() {
    let bench = Bench::new();
    let began = Instant::now();
    let (result, out) = run(&bench, "sleep 30 > /dev/null & echo some");
    result.unwrap();
    assert_eq!(out, b"some\n");
    let (result, _) = run(&bench, "sleep 30 & exit 3");
    assert!(result.is_err());
    // Its own session, out of our reach, with our pipes in its hands.
    let (result, _) = run(&bench, "setsid sleep 30 2>&1 & exit 3");
    assert!(result.is_err());
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_slow_storage_is_not_the_fault_of_the_child() {
    struct Slow;
    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            std::thread::sleep(Duration::from_millis(2_000));
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut bench = Bench::new();
    bench.cx.no_progress_timeout = Duration::from_millis(1_500);
    let bytes = shell(&bench, "head -c 200000 /dev/zero").read_into(&bench.cx, &mut Slow).unwrap();
    assert_eq!(bytes, 200_000);
}

#[test]
fn a_stop_ends_the_child_at_once() {
    let bench = Bench::new();
    let cancel = bench.cx.cancel.clone();
    let outputs = Kept { at_write: Some(Arc::new(move |_| cancel.cancel())), ..Kept::default() };
    let began = Instant::now();
    let text =
        format!("cd {}; echo $$ > shell; echo ready; sleep 1000", bench.folder.path().display());
    let error = source(&["sh", "-c", &text]).dump(&bench.cx, &outputs).err().unwrap();
    assert!(matches!(error, SourceError::Cancelled), "{error}");
    assert_gone(&bench, "shell");
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_storage_that_fails_ends_the_child() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let bench = Bench::new();
    let error =
        shell(&bench, "echo $$ > shell; exec yes").read_into(&bench.cx, &mut Full).unwrap_err();
    assert!(matches!(error, SourceError::Stream(_)), "{error}");
    assert_gone(&bench, "shell");
}

#[test]
fn a_child_reads_all_that_it_is_fed() {
    let bench = Bench::new();
    let data: Vec<u8> = (0..5_000_000_u32).map(|number| number as u8).collect();
    let fed = shell(&bench, "echo noise; cat > copy; touch ended")
        .feed(&bench.cx, &mut data.as_slice())
        .unwrap();
    assert_eq!((fed.bytes, fed.stopped_early), (5_000_000, false));
    assert_eq!(std::fs::read(bench.path("copy")).unwrap(), data);
}

#[test]
fn a_child_never_sees_the_end_of_a_damaged_stream() {
    let bench = Bench::new();
    let data = vec![1; 300_000];
    for body in ["cat > copy; touch ended", "trap '' TERM; cat > copy; touch ended"] {
        let error = shell(&bench, body).feed(&bench.cx, &mut Damaged(&data)).unwrap_err();
        assert!(matches!(error, SourceError::Stream(_)), "{error}");
        assert!(!bench.path("ended").exists());
    }
}

#[test]
fn a_child_that_stops_reading_is_judged_by_its_status() {
    let bench = Bench::new();
    let data = vec![1; 10_000_000];
    let error = shell(&bench, "head -c 10 >/dev/null; echo no such table >&2; exit 3")
        .feed(&bench.cx, &mut data.as_slice())
        .unwrap_err();
    assert!(
        matches!(&error, SourceError::Process(ProcessError::Exit { status: 3, .. })),
        "{error}"
    );
    assert!(error.to_string().contains("no such table"), "{error}");
    let fed =
        shell(&bench, "head -c 10 > /dev/null").feed(&bench.cx, &mut data.as_slice()).unwrap();
    assert!(fed.stopped_early);
    // Damage in what it did not read is damage all the same.
    let error =
        shell(&bench, "head -c 10 > /dev/null").feed(&bench.cx, &mut Damaged(&data)).unwrap_err();
    assert!(matches!(error, SourceError::Stream(_)), "{error}");
}

#[test]
fn a_child_that_takes_nothing_is_killed() {
    let mut bench = Bench::new();
    bench.cx.no_progress_timeout = Duration::from_millis(300);
    let error = shell(&bench, "sleep 1000")
        .feed(&bench.cx, &mut vec![1; 10_000_000].as_slice())
        .unwrap_err();
    assert!(matches!(&error, SourceError::Process(ProcessError::Hung { .. })), "{error}");
}

#[test]
fn a_missing_program_is_named_with_what_to_do() {
    let bench = Bench::new();
    let call = Call::new(&bench.cx, "no-such-tool", "dump").when_missing("Install `such-tools`");
    let error = call.capture(&bench.cx, 10).unwrap_err().to_string();
    assert_eq!(
        error,
        "Could not dump: the program `no-such-tool` was not found. Install `such-tools`"
    );
    std::fs::write(bench.path("plain"), "").unwrap();
    let error = Call::new(&bench.cx, bench.path("plain"), "dump")
        .capture(&bench.cx, 10)
        .unwrap_err()
        .to_string();
    assert!(error.contains("not executable"), "{error}");
    let error = shell(&bench, "yes").capture(&bench.cx, 1_000).unwrap_err();
    assert!(matches!(error, SourceError::Process(ProcessError::TooMuch { .. })), "{error}");
}

#[test]
fn a_child_has_nothing_of_our_environment_but_what_it_may() {
    let mut bench = Bench::new();
    bench.cx.environment = Environment(
        [
            ("PATH", "/usr/bin:/bin"),
            ("AWS_SECRET_ACCESS_KEY", "k"),
            ("PGPASSWORD", "p"),
            ("PASSED", "x"),
            ("LANG", "C"),
        ]
        .map(|(name, value)| (OsString::from(name), OsString::from(value)))
        .into(),
    );
    let outputs = Kept::default();
    let config = CommandConfig {
        env_pass: vec!["PASSED".to_owned(), "UNSET".to_owned()],
        ..config(&["env"])
    };
    let dumped = Command::new(config).dump(&bench.cx, &outputs).unwrap();
    let text = String::from_utf8(outputs.bytes("out")).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["LANG=C", "PASSED=x", "PATH=/usr/bin:/bin"]);
    assert_eq!(dumped.facts["program"], "env");
}

#[test]
fn a_secret_that_a_command_was_given_is_not_in_its_error_nor_in_its_printed_configuration() {
    let bench = Bench::new();
    let env = BTreeMap::from([("KEY".to_owned(), Secret::new("hunter2"))]);
    let config = CommandConfig { env, ..config(&["sh", "-c", "echo key is $KEY >&2; exit 1"]) };
    let printed = format!("{}{config:?}", serde_json::to_string(&config).unwrap());
    let error = Command::new(config).dump(&bench.cx, &Kept::default()).err().unwrap().to_string();
    assert!(error.contains("key is ***") && !error.contains("hunter2"), "{error}");
    assert!(!printed.contains("hunter2"), "{printed}");
}

#[test]
fn a_memory_file_is_private_and_goes_with_its_owner() {
    let bench = Bench::new();
    let file = MemoryFile::new("pgpass", b"secret").unwrap();
    let metadata = std::fs::metadata(file.path()).unwrap();
    assert!(metadata.is_file());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let path = file.path().display().to_string();
    assert_eq!(
        run(&bench, &format!("cat {path}; ls -l /proc/self/fd | grep -c pgpass || true")).1,
        b"secret0\n"
    );
    drop(file);
    assert!(!Path::new(&path).exists());
}

fn config(command: &[&str]) -> CommandConfig {
    CommandConfig {
        command: command.iter().map(|&word| word.to_owned()).collect(),
        restore_command: None,
        env: BTreeMap::new(),
        env_pass: Vec::new(),
        working_dir: None,
    }
}

fn to_command(command: &[&str]) -> Target {
    let command = Some(command.iter().map(|&word| word.to_owned()).collect());
    Target::Command(Box::new(CommandConfig { restore_command: command, ..config(&["true"]) }))
}

fn source(command: &[&str]) -> Command {
    Command::new(config(command))
}

#[test]
fn the_output_of_a_command_goes_out_and_back() {
    let bench = Bench::new();
    let outputs = Kept::default();
    let dumped = source(&["printf", "a\\nb"]).dump(&bench.cx, &outputs).unwrap();
    assert_eq!((dumped.artifacts.len(), dumped.consistency), (1, "command"));
    assert_eq!(dumped.facts["bytes"], 3);
    let artifact = RestoreArtifact {
        snapshot: "20261121T013000Z-7f3a9c".to_owned(),
        name: "src.out".to_owned(),
        kind: ArtifactKind::Stream,
        plain_bytes: Some(3),
        of: None,
        partial: false,
        facts: dumped.facts.clone(),
    };
    let options = RestoreOptions::default();
    let stream = outputs.bytes("out");
    let folder = Target::Folder(bench.path("to/src"));
    CommandRestorer
        .restore(
            RestoreJob { cx: &bench.cx, artifact: &artifact, target: &folder, options: &options },
            &mut stream.as_slice(),
        )
        .unwrap();
    assert_eq!(std::fs::read(bench.path("to/src/src.out")).unwrap(), b"a\nb");
    let again = CommandRestorer.restore(
        RestoreJob { cx: &bench.cx, artifact: &artifact, target: &folder, options: &options },
        &mut stream.as_slice(),
    );
    assert!(matches!(again, Err(SourceError::NotEmpty(_))));

    let copy = bench.path("copy").display().to_string();
    let command = to_command(&["tee", &copy]);
    CommandRestorer
        .restore(
            RestoreJob { cx: &bench.cx, artifact: &artifact, target: &command, options: &options },
            &mut stream.as_slice(),
        )
        .unwrap();
    assert_eq!(std::fs::read(copy).unwrap(), b"a\nb");
    let missing = to_command(&["no-such-tool"]);
    assert!(
        CommandRestorer
            .prepare(RestoreJob {
                cx: &bench.cx,
                artifact: &artifact,
                target: &missing,
                options: &options
            })
            .is_err()
    );
}

#[test]
fn a_command_is_checked_before_it_is_needed() {
    let bench = Bench::new();
    let worst = |command: &[&str]| {
        source(command).check(&bench.cx).iter().map(|finding| finding.level).max()
    };
    assert_eq!(worst(&["sh", "-c", "exit 1"]), Some(Level::Ok));
    assert_eq!(worst(&["no-such-tool"]), Some(Level::Error));
}
