//! The user that a throwaway cluster runs as, and what it cannot reach: code of the source's users
//! runs in it.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::source::process::Call;
use crate::source::{Context, SourceError};

/// Who it runs as unless `run_as` says otherwise. Not `postgres`, whose files and sockets may be
/// those of a server in use.
const USER: &str = "nobody";
/// What the folders of a drill are called. A process that works in one is a drill's own.
const SCRATCH: &str = "holdfast_drill_";

/// A user and its group, by number.
pub(super) type User = (u32, u32);

/// The user that a cluster runs as; none where we are no root and it runs as we do.
pub(super) fn user(run_as: Option<&str>) -> Result<Option<User>, SourceError> {
    if rustix::process::geteuid().is_root() {
        named(run_as.unwrap_or(USER)).map(Some)
    } else {
        Ok(None)
    }
}

/// The number of a user that is not root, and that of its group.
fn named(name: &str) -> Result<User, SourceError> {
    let file = File::open("/etc/passwd").map_err(|error| SourceError::Io {
        attempt: "read",
        path: "/etc/passwd".to_owned(),
        error,
    })?;
    // name:password:uid:gid:...
    let found = BufReader::new(file.take(4 << 20)).lines().map_while(Result::ok).find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let mut fields = fields.skip(1);
        let (uid, gid): User = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (uid != 0).then_some((uid, gid))
    });
    found.ok_or_else(|| {
        SourceError::Unsuitable(format!(
            "PostgreSQL does not run as root, and there is no user `{name}` here to run the \
             drill's cluster as: name one with `run_as`, or a server with `url`"
        ))
    })
}

/// A process of the user that is no drill's: code in a cluster that runs as the user could reach
/// it.
pub(super) fn other_process((uid, _): User) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let is_theirs = |folder: &Path| {
        folder.metadata().is_ok_and(|found| found.uid() == uid)
            && match std::fs::read_link(folder.join("cwd")) {
                Ok(cwd) => !cwd.to_string_lossy().contains(SCRATCH),
                // One that has ended works nowhere.
                Err(error) => error.kind() != std::io::ErrorKind::NotFound,
            }
    };
    processes
        .filter(|entry| is_theirs(&entry.path()))
        .find_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A call of `program` as the user, and without a network where the system lets us: with
/// `unshare` and `setpriv` of util-linux, and the right to use them.
pub(super) fn confined(cx: &Context, user: Option<User>, program: &Path, attempt: &str) -> Call {
    let plain = || Call::new(cx, program, attempt).as_user(user);
    let call = |program: &Path| match user {
        Some((uid, gid)) => Call::new(cx, "unshare", attempt)
            .args(["--net", "--", "setpriv"])
            .args([format!("--reuid={uid}"), format!("--regid={gid}")])
            .args(["--clear-groups", "--no-new-privs", "--"])
            .args([program]),
        None => Call::new(cx, "unshare", attempt)
            .args(["--user", "--map-current-user", "--net", "--"])
            .args([program]),
    };
    match call(Path::new("true")).capture(cx, 1 << 10) {
        Ok(_) => call(program),
        Err(_) => plain(),
    }
}

#[cfg(test)]
mod tests {
    use super::named;

    #[test]
    fn a_cluster_does_not_run_as_root() {
        assert!(named("root").is_err_and(|error| error.to_string().contains("`root`")));
        assert!(named("nobody").is_ok_and(|(uid, _)| uid != 0));
    }
}
