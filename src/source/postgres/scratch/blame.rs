//! Failures that say nothing about a dump.

/// What of what `pg_restore` says is not the dump's fault.
const NOT_THE_DUMP: [&str; 30] = [
    "No space left on device",
    "could not extend file",
    "Disk quota exceeded",
    "out of memory",
    "out of shared memory",
    "connection to server",
    "could not connect",
    "server closed the connection",
    "terminating connection",
    "the database system is",
    "SSL SYSCALL",
    "too many clients",
    "too many connections",
    "permission denied",
    "must be owner",
    "must be superuser",
    "extension control file",
    "is not available",
    "could not load library",
    "could not access file",
    "unrecognized configuration parameter",
    "unsupported version (",
    "is not supported in this build",
    "compression method",
    "requires the server to be built",
    "unsupported XML feature",
    "could not create locale",
    "could not open collator",
    // Of a language that is kept from running, and of a foreign table.
    "cache lookup failed for function 0",
    "has no handler",
];

/// Whether what a server says of a statement is not the dump's fault.
pub(super) fn is_not_the_dumps(code: &str, said: &str) -> bool {
    // Privileges, what is not supported, connections, room, an end that was asked for, the system.
    code == "42501"
        || code == "0A000"
        || ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class))
        || is_of_the_server(said)
}

pub(super) fn is_of_the_server(said: &str) -> bool {
    let role_missing = said.contains("role \"") && said.contains("does not exist");
    role_missing || NOT_THE_DUMP.iter().any(|words| said.contains(words))
}
