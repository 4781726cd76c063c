//! A SeaweedFS alone on a small disk, for a test that fills it. Only root can mount one.

use std::ffi::CString;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use aws_sdk_s3::Client;
use rustix::mount::{MountFlags, mount, mount_remount};
use tempfile::TempDir;

use super::stores::{Identity, Server, client};
use super::{Mounted, S3, repository, s3, temp};

/// Ended when this is dropped.
pub(crate) struct SmallServer {
    pub(crate) endpoint: String,
    running: Child,
    disk: Mounted,
    _folder: TempDir,
}

fn size(mib: u64) -> CString {
    CString::new(format!("size={mib}m")).unwrap()
}

impl SmallServer {
    /// A server whose disk for the bytes of objects has that many MiB.
    pub(crate) fn new(mib: u64) -> Self {
        let folder = temp();
        let volumes = folder.path().join("seaweedfs/volumes");
        std::fs::create_dir_all(&volumes).unwrap();
        mount("none", &volumes, "tmpfs", MountFlags::empty(), Some(size(mib).as_c_str())).unwrap();
        let disk = Mounted(volumes);
        let mut running = Command::new(repository().join("tests/servers"))
            .arg("seaweedfs")
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut endpoint = String::new();
        BufReader::new(running.stdout.take().unwrap()).read_line(&mut endpoint).unwrap();
        assert!(endpoint.starts_with("http://"), "SeaweedFS did not start: {endpoint}");
        Self { endpoint: endpoint.trim().to_owned(), running, disk, _folder: folder }
    }

    /// Gives it a disk of another size with the same files.
    pub(crate) fn resize(&self, mib: u64) {
        mount_remount(&self.disk.0, MountFlags::empty(), size(mib).as_c_str()).unwrap();
    }

    pub(crate) fn client(&self) -> Client {
        client(&self.endpoint, &Server::SeaweedFs.region(), Identity::All)
    }

    /// Its address and keys, for a configuration.
    pub(crate) fn s3(&self) -> S3 {
        S3 { endpoint: self.endpoint.clone(), ..s3("SEAWEEDFS") }
    }
}

impl Drop for SmallServer {
    fn drop(&mut self) {
        // The script ends the server, which would hold the disk.
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.running),
            rustix::process::Signal::TERM,
        );
        let _ = self.running.wait();
    }
}
