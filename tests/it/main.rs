//! The integration tests: what the program promises, shown on real servers and processes.
//! `tests/run` runs them all.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "a test says what went wrong by panicking, starts programs and waits for them"
)]

mod agree;
mod ahead;
mod by_hand;
mod clocks;
mod containers;
mod containers_run;
mod copy;
mod damaged_copies;
mod database_settings;
mod diff;
mod directory;
mod docs;
mod drill;
mod drill_checks;
mod drill_damage;
mod drill_power;
mod drill_targets;
mod dump;
mod errors;
mod examples;
mod export;
mod faults;
mod faults_s3;
mod file_systems;
mod format;
mod hooks;
mod hostile;
mod irregular;
mod layers;
mod limits;
mod locks;
mod managed;
mod marks;
mod memory;
mod notify;
mod output;
mod parts;
mod passwords;
mod permissions;
mod postgres;
mod process;
mod progress;
mod prune;
mod prune_doubts;
mod prune_only;
mod prune_s3;
mod replace;
mod resumed;
mod road;
mod road_postgres;
mod road_targets;
mod s3_by_proxy;
mod schedule;
mod secrets;
mod several;
mod shrunk;
mod signals;
mod silent;
mod spared;
mod standby;
mod status;
mod status_page;
mod storage;
mod storage_faults;
mod support;
mod threads;
mod tools_said;
mod vanished;
mod width;
