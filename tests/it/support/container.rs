//! A service of a compose file, run without a container engine: its user, its capabilities, its
//! read-only root and its mounts, by the kernel alone.
//!
//! What an engine does besides (images, networks, health checks, restarts) is not here. Needs root.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{repository, sh, temp, variable};

/// The documents of a YAML file.
pub fn yaml(file: &Path) -> Vec<Value> {
    let script = r#""$1" -c 'import json, sys, yaml; json.dump(list(yaml.safe_load_all(open(sys.argv[1]))), sys.stdout)' "$2""#;
    let json =
        sh(Path::new("/"), script, &[variable("HOLDFAST_TEST_PYTHON").as_ref(), file.as_os_str()]);
    serde_json::from_str(&json).unwrap()
}

/// The texts of a list; none where there is no list.
pub fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().map(|item| item.as_str().unwrap()).collect()
}

/// Something mounted into a container.
#[derive(Debug, Clone)]
pub struct Mount {
    /// The name of a volume, or the path of a file or folder beside the compose file.
    pub source: String,
    pub target: String,
    pub read_only: bool,
}

/// What a service of a compose file has mounted, secrets included.
pub fn mounts(compose: &Value, service: &Value) -> Vec<Mount> {
    let volumes = service["volumes"].as_array().into_iter().flatten().map(|volume| match volume {
        Value::String(short) => {
            let parts: Vec<&str> = short.split(':').collect();
            let read_only =
                parts.get(2).is_some_and(|options| options.split(',').any(|option| option == "ro"));
            Mount { source: parts[0].to_owned(), target: parts[1].to_owned(), read_only }
        }
        long => Mount {
            source: long["source"].as_str().unwrap().to_owned(),
            target: long["target"].as_str().unwrap().to_owned(),
            read_only: long["read_only"] == true,
        },
    });
    let secrets = texts(&service["secrets"]).into_iter().map(|name| Mount {
        source: compose["secrets"][name]["file"].as_str().unwrap().to_owned(),
        target: format!("/run/secrets/{name}"),
        read_only: true,
    });
    volumes.chain(secrets).collect()
}

/// A project: the folder of a compose file, copied, with its volumes.
pub struct Project {
    pub dir: tempfile::TempDir,
    pub compose: Value,
}

impl Project {
    /// The example of that name.
    pub fn example(name: &str) -> Self {
        let dir = temp();
        let example = repository().join("examples/compose").join(name);
        sh(dir.path(), r#"cp -r "$1/." . && mkdir .volumes"#, &[example.as_os_str()]);
        let compose = yaml(&dir.path().join("compose.yaml")).remove(0);
        for volume in compose["volumes"].as_object().into_iter().flatten().map(|(name, _)| name) {
            let path = dir.path().join(".volumes").join(volume);
            std::fs::create_dir(&path).unwrap();
            // A new volume has owner and mode of the folder in the image, which has no other of
            // these than the one for the state.
            let mode = if volume == "state" { 0o1777 } else { 0o755 };
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        Self { dir, compose }
    }

    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(relative)
    }

    /// The folder on this machine behind a volume, or behind a path beside the compose file.
    pub fn source(&self, source: &str) -> PathBuf {
        match source.strip_prefix("./") {
            Some(relative) => self.path(relative),
            None => self.path(".volumes").join(source),
        }
    }

    /// Runs `command` as in the container of that service, with the variables that a `.env` would
    /// give. `add` and `drop` are differences to its `cap_add`.
    pub fn command(
        &self,
        service: &str,
        command: &[&str],
        variables: &[(&str, String)],
        drop: &[&str],
    ) -> std::process::Output {
        let service = &self.compose["services"][service];
        let mut script = format!("root='{}'\n{BEFORE}", self.path(".root").display());
        for mount in texts(&service["tmpfs"]) {
            let (target, options) = mount.split_once(':').unwrap();
            writeln!(
                script,
                "mkdir -p $root{target}; mount -t tmpfs -o {options} tmpfs $root{target}"
            )
            .unwrap();
        }
        for Mount { source, target, read_only } in mounts(&self.compose, service) {
            let source = self.source(&source);
            writeln!(
                script,
                "attach '{}' '{target}' {}",
                source.display(),
                if read_only { "ro" } else { "rw" }
            )
            .unwrap();
        }
        if service["read_only"] == true {
            script.push_str("mount -o remount,ro,bind $root\n");
        }
        script.push_str(
            "exec chroot $root /usr/bin/env -i PATH=/program:/usr/local/bin:/usr/bin:/bin \
             XDG_STATE_HOME=/var/lib ",
        );
        for (name, value) in service["environment"].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap();
            let wanted =
                value.strip_prefix("${").map(|rest| rest.split([':', '}']).next().unwrap());
            let given =
                wanted.map(|wanted| &variables.iter().find(|(name, _)| *name == wanted).unwrap().1);
            write!(script, "{name}='{}' ", given.map_or(value, String::as_str)).unwrap();
        }
        let (uid, gid) = user(service);
        let kept: Vec<String> = texts(&service["cap_add"])
            .into_iter()
            .filter(|capability| !drop.contains(capability))
            .map(|capability| format!(",+{}", capability.to_lowercase()))
            .collect();
        assert_eq!(texts(&service["cap_drop"]), ["ALL"]);
        writeln!(
            script,
            "setpriv --reuid {uid} --regid {gid} --clear-groups --no-new-privs --inh-caps=-all \
             --bounding-set=-all{} \"$@\"",
            kept.concat()
        )
        .unwrap();
        Command::new("unshare")
            .args(["--mount", "bash", "-euc"])
            .arg(script)
            .arg(env!("CARGO_BIN_EXE_backup"))
            .args(command)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// As [`Project::command`], which must end with that code; gives what it printed.
    pub fn expect(
        &self,
        code: i32,
        service: &str,
        command: &[&str],
        variables: &[(&str, String)],
    ) -> String {
        let output = self.command(service, command, variables, &[]);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            output.status.code(),
            Some(code),
            "{service}: {command:?}\n--- stdout\n{out}\n--- stderr\n{err}"
        );
        out
    }

    /// `docker compose run --rm SERVICE ARGS...`
    pub fn run(
        &self,
        code: i32,
        service: &str,
        args: &[&str],
        variables: &[(&str, String)],
    ) -> String {
        let entrypoint = &self.compose["services"][service]["entrypoint"];
        // In a compose file `$$` is a `$`.
        let entrypoint: Vec<String> =
            texts(entrypoint).into_iter().map(|word| word.replace("$$", "$")).collect();
        let mut command: Vec<&str> = entrypoint.iter().map(String::as_str).collect();
        if command.is_empty() {
            command.push("backup");
        }
        command.extend(args);
        self.expect(code, service, &command, variables)
    }
}

/// The user and group that a service runs as.
pub fn user(service: &Value) -> (u32, u32) {
    let user = service["user"].as_str().unwrap();
    let (uid, gid) = user.split_once(':').unwrap_or((user, "0"));
    (uid.parse().unwrap(), gid.parse().unwrap())
}

/// Every entry of a folder with kind, owner, mode, size, time and target, by `find`.
pub fn listing(dir: &Path) -> String {
    sh(
        dir,
        r"find . -printf '%P %y %U:%G %m %s %T@ %l\n' | sed 's/^\(\S* d \S* \S*\) \S*/\1/' | sort",
        &[] as &[&OsStr],
    )
}

/// The root: the programs of this machine, read-only, and nothing else of it. All in a mount
/// namespace of its own.
const BEFORE: &str = r#"
mkdir -p $root
mount -t tmpfs -o mode=0755 tmpfs $root
for top in usr bin sbin lib lib64 dev proc; do
    if [ -L /$top ]; then cp -P /$top $root/$top
    elif [ -d /$top ]; then mkdir $root/$top; mount --rbind /$top $root/$top; fi
done
mount -o remount,ro,bind $root/usr
mkdir -p $root/etc $root/tmp $root/run/secrets $root/var/lib $root/program
cp -r /etc/ld.so.cache /etc/ssl $root/etc/ # and no users: an image does not know those of a machine
touch $root/program/backup
mount --bind "$0" $root/program/backup
attach() {
    [ -e "$1" ]
    if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$(dirname "$root$2")"; touch "$root$2"; fi
    mount --bind "$1" "$root$2"
    [ "$3" = rw ] || mount -o remount,ro,bind "$root$2"
}
"#;
