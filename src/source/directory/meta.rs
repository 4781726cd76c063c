//! What the system says of one file, folder or link, in plain numbers.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Statx, StatxAttributes, StatxFlags, StatxTimestamp};
use rustix::io::Errno;

use crate::archive::{Kind, Time};

/// What identifies a file while it exists: device (major, minor) and inode.
pub(super) type Identity = (u32, u32, u64);

/// What `statx` says of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    /// None for sockets, and for what no tarball can hold.
    pub(super) kind: Option<Kind>,
    pub(super) identity: Identity,
    pub(super) links: u32,
    /// Permissions with the setuid, setgid and sticky bits, without the kind.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Bytes; of a symbolic link those of its target.
    pub(super) size: u64,
    /// Bytes that its file system keeps for it: fewer than `size` when it has holes (or is
    /// compressed).
    pub(super) allocated: u64,
    /// Major and minor of the device that it stands for.
    pub(super) rdev: (u32, u32),
    pub(super) mtime: Time,
    pub(super) ctime: Time,
    /// Whether something is mounted there, as far as the system tells (Linux 5.8 and newer).
    pub(super) mounted: bool,
}

impl Meta {
    /// Of the open file.
    pub(super) fn of(file: BorrowedFd<'_>) -> Result<Self, Errno> {
        rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
            .map(|stat| Self::from(&stat))
    }

    /// Of what has that name in the folder, itself when it is a link.
    pub(super) fn at(folder: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<Self, Errno> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        rustix::fs::statx(folder, name, flags, StatxFlags::BASIC_STATS)
            .map(|stat| Self::from(&stat))
    }

    pub(super) fn device(&self) -> (u32, u32) {
        (self.identity.0, self.identity.1)
    }
}

/// Whether something is mounted at the open folder. Where the system does not tell, whether its
/// file system is another than that of the folder it lies in.
pub(super) fn is_mount(folder: BorrowedFd<'_>) -> Result<bool, Errno> {
    let stat = rustix::fs::statx(folder, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    if stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    let parent = Meta::at(folder, c"..")?;
    Ok(Meta::from(&stat).device() != parent.device())
}

impl From<&Statx> for Meta {
    fn from(stat: &Statx) -> Self {
        let mode = u32::from(stat.stx_mode);
        let kind = match FileType::from_raw_mode(mode) {
            FileType::RegularFile => Some(Kind::File),
            FileType::Directory => Some(Kind::Directory),
            FileType::Symlink => Some(Kind::Symlink),
            FileType::Fifo => Some(Kind::Fifo),
            FileType::CharacterDevice => Some(Kind::Char),
            FileType::BlockDevice => Some(Kind::Block),
            FileType::Socket | FileType::Unknown => None,
        };
        let time = |time: StatxTimestamp| Time { seconds: time.tv_sec, nanos: time.tv_nsec };
        Self {
            kind,
            identity: (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino),
            links: stat.stx_nlink,
            mode: mode & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size: stat.stx_size,
            allocated: stat.stx_blocks.saturating_mul(512),
            rdev: (stat.stx_rdev_major, stat.stx_rdev_minor),
            mtime: time(stat.stx_mtime),
            ctime: time(stat.stx_ctime),
            mounted: stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        }
    }
}
