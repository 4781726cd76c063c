//! What an entry gets when its content is there: owner, permissions, attributes, time.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat, chownat, fchmod, fchown,
    futimens, utimensat,
};
use rustix::io::Errno;

use super::owner_rule::OwnerRules;
use crate::archive::access_list;
use crate::archive::error::Problem;
use crate::archive::header::Attribute;
use crate::archive::reader::TarEntry;
use crate::archive::{Kind, Time};
use crate::model::Remarks;
use crate::source::directory::accounts::Accounts;
use crate::source::directory::at;
use crate::source::directory::attributes::{self, Turn};
use crate::source::directory::meta::Meta;

/// What an entry gets when its content is there.
pub(super) struct Finish {
    /// None leaves it as it is.
    pub(super) owner: Option<(u64, u64)>,
    pub(super) mode: u32,
    /// None leaves it as it is.
    pub(super) mtime: Option<Time>,
    pub(super) attributes: Vec<Attribute>,
    /// An access list that the backup does not have is taken away: a folder may have been there
    /// before, or have inherited one.
    pub(super) only_these_rights: bool,
}

impl Finish {
    /// A folder of which the tarball says nothing (here).
    pub(super) fn as_is(meta: &Meta) -> Self {
        Self {
            owner: None,
            mode: meta.mode,
            mtime: Some(meta.mtime),
            attributes: Vec::new(),
            only_these_rights: false,
        }
    }

    /// Nothing in the folder inherits rights while it is filled; a folder that stays as it is gets
    /// its list back.
    pub(super) fn keep_default_list(&mut self, folder: BorrowedFd<'_>) {
        let list = attributes::take_default_list(folder);
        if !self.only_these_rights {
            self.attributes.extend(list);
        }
    }
}

/// Gives entries what they get, from several threads, and counts what the system refuses.
pub(super) struct Finisher {
    /// Whether the owner may be changed.
    restore_owner: bool,
    no_owner: bool,
    user: u32,
    group: u32,
    rules: OwnerRules,
    accounts: Accounts,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    owners: Refused,
    rights: Refused,
    attributes: Refused,
    text_lists: Refused,
    specials: Refused,
}

/// What the system refused, told once with a count.
#[derive(Default)]
struct Refused {
    count: u64,
    first: Option<(Vec<u8>, String)>,
}

impl Refused {
    fn add(&mut self, path: &[u8], reason: impl Into<String>) {
        self.count += 1;
        self.first.get_or_insert_with(|| (path.to_vec(), reason.into()));
    }

    fn tell(self, remarks: &mut Remarks) {
        if let Some((path, reason)) = self.first {
            let others = self.count - 1;
            remarks.warn(at(
                &path,
                if others > 0 { format!("{reason} (and so {others} more)") } else { reason },
            ));
        }
    }
}

impl Finisher {
    pub(super) fn new(no_owner: bool, rules: OwnerRules, accounts: Accounts) -> Self {
        let user = rustix::process::geteuid();
        Self {
            restore_owner: !no_owner && user.is_root(),
            no_owner,
            user: user.as_raw(),
            group: rustix::process::getegid().as_raw(),
            rules,
            accounts,
            told: Mutex::default(),
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all that was refused.
    pub(super) fn tell(self, remarks: &mut Remarks) {
        let told = self.told.into_inner().unwrap_or_else(PoisonError::into_inner);
        for refused in [told.owners, told.rights, told.attributes, told.text_lists, told.specials] {
            refused.tell(remarks);
        }
    }

    pub(super) fn special_refused(&self, path: &[u8], error: Errno) {
        let reason = format!("It is a device or a named pipe, which could not be made: {error}");
        self.told().specials.add(path, reason);
    }

    /// What an entry of the tarball gets. Its attributes are taken out of it.
    pub(super) fn of(&self, entry: &mut TarEntry) -> Finish {
        if self.rules.apply(entry) {
            self.told().rights.add(
                &entry.path,
                "It lost the bit that lets it act as its owner or group, as `--owner` gives it to \
                 another one",
            );
        }
        let mut attributes = std::mem::take(&mut entry.attributes);
        for list in &entry.text_lists {
            match access_list::binary(&list.text, &self.accounts) {
                Ok(value) => attributes.push((list.attribute.to_vec(), value)),
                Err(problem) => self.told().text_lists.add(
                    &entry.path,
                    format!("Its access list is text and was not restored, as {problem}"),
                ),
            }
        }
        Finish {
            owner: Some((entry.uid, entry.gid)),
            mode: entry.mode,
            mtime: Some(entry.mtime),
            attributes,
            only_these_rights: entry.kind == Kind::Directory,
        }
    }

    /// Finishes an open file or folder, in the order in which none undoes another.
    pub(super) fn finish(
        &self,
        file: BorrowedFd<'_>,
        finish: &Finish,
        path: &[u8],
    ) -> Result<(), Problem> {
        let mut mode = finish.mode;
        if let Some((uid, gid)) = finish.owner {
            let owned = self.give(path, uid, gid, |uid, gid| fchown(file, Some(uid), Some(gid)));
            if !owned {
                mode &= 0o1777;
            }
        }
        if finish.only_these_rights {
            attributes::remove_access_list(file)
                .map_err(|error| Problem::System("remove the access list of", error))?;
        }
        let mut refused = attributes::set(file, &finish.attributes, Turn::BeforeMode);
        fchmod(file, Mode::from_raw_mode(mode))
            .map_err(|error| Problem::System("set the permissions of", error))?;
        refused.extend(attributes::set(file, &finish.attributes, Turn::AfterMode));
        self.refused(path, refused);
        if let Some(mtime) = finish.mtime {
            futimens(file, &times(mtime))
                .map_err(|error| Problem::System("set the time of", error))?;
        }
        Ok(())
    }

    /// Finishes a link, a named pipe or a device, which has that name in the folder. It was made
    /// just now where nobody else looks in, so it is no link that would be followed.
    pub(super) fn finish_at(
        &self,
        folder: BorrowedFd<'_>,
        name: &CStr,
        kind: Kind,
        finish: &Finish,
        path: &[u8],
    ) -> Result<(), Problem> {
        let mut mode = finish.mode;
        if let Some((uid, gid)) = finish.owner {
            let change =
                |uid, gid| chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
            if !self.give(path, uid, gid, change) {
                mode &= 0o1777;
            }
        }
        let mut refused = attributes::set_at(folder, name, &finish.attributes, Turn::BeforeMode);
        if kind != Kind::Symlink {
            chmodat(folder, name, Mode::from_raw_mode(mode), AtFlags::empty())
                .map_err(|error| Problem::System("set the permissions of", error))?;
        }
        refused.extend(attributes::set_at(folder, name, &finish.attributes, Turn::AfterMode));
        self.refused(path, refused);
        if let Some(mtime) = finish.mtime {
            utimensat(folder, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| Problem::System("set the time of", error))?;
        }
        Ok(())
    }

    fn refused(&self, path: &[u8], refused: Vec<(String, Errno)>) {
        for (name, error) in refused {
            let reason = format!("Its extended attribute `{name}` could not be set: {error}");
            self.told().attributes.add(path, reason);
        }
    }

    /// Gives an entry its owner. False when it belongs to somebody else now.
    fn give(
        &self,
        path: &[u8],
        uid: u64,
        gid: u64,
        change: impl FnOnce(Uid, Gid) -> Result<(), Errno>,
    ) -> bool {
        let (Ok(user), Ok(group)) = (u32::try_from(uid), u32::try_from(gid)) else {
            self.told()
                .owners
                .add(path, format!("Its owner {uid}:{gid} is no number that this system has"));
            return false;
        };
        // All bits set means nobody: the system call would take it for "leave as it is".
        if self.restore_owner && user != u32::MAX && group != u32::MAX {
            return match change(Uid::from_raw(user), Gid::from_raw(group)) {
                Ok(()) => true,
                Err(error) => {
                    self.told()
                        .owners
                        .add(path, format!("Its owner {uid}:{gid} could not be restored: {error}"));
                    false
                }
            };
        }
        if user == self.user && group == self.group {
            return true;
        }
        if !self.no_owner {
            self.told().owners.add(
                path,
                format!("Its owner {uid}:{gid} was not restored, as only root can do that"),
            );
        }
        false
    }
}

/// The time of the last access is not in the tarball and is left to the system.
pub(super) fn times(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanos.into() },
    }
}
