//! Files that are opened without waiting for what is none: a named pipe that nobody writes to would
//! keep a reader for ever, and a request to stop does not end that wait. Nor is a link followed
//! where the program put a file itself.

use std::fmt;
use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use super::Cancel;

/// How long a named pipe may have nobody who writes to it.
const WRITER: Duration = Duration::from_secs(5);
/// How long an input that is read whole may say nothing.
const SILENCE: Duration = Duration::from_secs(30);
/// How often a wait looks whether it was cancelled.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What stands where a file should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Irregular {
    /// A folder.
    Folder,
    /// A symbolic link, wherever it leads.
    Link,
    /// A named pipe.
    Pipe,
    /// A socket.
    Socket,
    /// A device.
    Device,
}

impl Irregular {
    /// None for a regular file.
    pub fn of(kind: FileType) -> Option<Self> {
        if kind.is_file() {
            None
        } else if kind.is_dir() {
            Some(Self::Folder)
        } else if kind.is_symlink() {
            Some(Self::Link)
        } else if kind.is_fifo() {
            Some(Self::Pipe)
        } else if kind.is_socket() {
            Some(Self::Socket)
        } else {
            Some(Self::Device)
        }
    }

    /// What was found in place of a file, where that is what `error` says.
    pub fn within(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref::<NotAFile>().map(|found| found.0)
    }
}

impl fmt::Display for Irregular {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Folder => "a folder",
            Self::Link => "a symbolic link",
            Self::Pipe => "a named pipe",
            Self::Socket => "a socket",
            Self::Device => "a device",
        })
    }
}

/// That something is no file.
#[derive(Debug, thiserror::Error)]
#[error("it is {0}, not a file")]
struct NotAFile(Irregular);

/// An error when `metadata`, which was not read through a link, is of anything but a regular file.
///
/// # Errors
/// One that [`Irregular::within`] knows.
pub fn expect_file(metadata: &Metadata) -> io::Result<()> {
    match Irregular::of(metadata.file_type()) {
        None => Ok(()),
        Some(found) => Err(io::Error::new(ErrorKind::InvalidInput, NotAFile(found))),
    }
}

/// Opens a file of the program's own with `options`: a regular one, under this very name.
///
/// # Errors
/// Those of opening it, and that of [`expect_file`].
pub fn open_own(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // Looked at first, as opening a device may do something.
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => expect_file(&metadata)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = options.custom_flags(flags.bits().cast_signed()).open(path)?;
    expect_file(&file.metadata()?)?;
    Ok(file)
}

/// Something that an operator named to be read: a file, by way of links too, or a pipe or terminal
/// (`/dev/stdin`, what a shell makes of `<(...)`). Reading it ends when it is cancelled.
pub struct Input {
    file: File,
    /// None where it is a file, which does not let a reader wait.
    waiting: Option<Waiting>,
}

struct Waiting {
    cancel: Cancel,
    silence: Option<Duration>,
    since: Instant,
    /// Whether anybody has it open to write to it, as far as is known.
    has_writer: bool,
}

impl Input {
    /// Opens the input at `path`. Only a pipe without anybody who writes to it ends by itself.
    ///
    /// # Errors
    /// Those of opening it, and when it is nothing that can be read to its end.
    pub fn open(path: &Path, cancel: &Cancel) -> io::Result<Self> {
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let file =
            OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
        let kind = file.metadata()?.file_type();
        let waiting = match Irregular::of(kind) {
            None => None,
            Some(Irregular::Pipe) => Some(false),
            Some(Irregular::Device) if kind.is_char_device() => Some(true),
            Some(found) => {
                return Err(io::Error::new(ErrorKind::InvalidInput, NotAFile(found)));
            }
        };
        let waiting = waiting.map(|has_writer| Waiting {
            cancel: cancel.clone(),
            silence: None,
            since: Instant::now(),
            has_writer,
        });
        Ok(Self { file, waiting })
    }

    /// Bytes of it, where that is known.
    pub fn size(&self) -> io::Result<Option<u64>> {
        if self.waiting.is_some() {
            return Ok(None);
        }
        self.file.metadata().map(|metadata| Some(metadata.len()))
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.file.read(buffer);
            let Some(waiting) = &mut self.waiting else { return read };
            match read {
                // Of a pipe that nobody has opened to write to, too.
                Ok(0) if !waiting.has_writer && !buffer.is_empty() => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => waiting.has_writer = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => {
                    waiting.has_writer = true;
                    waiting.since = Instant::now();
                    return read;
                }
            }
            waiting.wait(&self.file)?;
        }
    }
}

impl Waiting {
    /// Waits a moment for bytes, or for the end.
    fn wait(&mut self, file: &File) -> io::Result<()> {
        let waited = self.since.elapsed();
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("Cancelled"));
        }
        if !self.has_writer && waited > WRITER {
            return Err(io::Error::new(ErrorKind::TimedOut, "nobody writes to this named pipe"));
        }
        if self.silence.is_some_and(|silence| waited > silence) {
            return Err(io::Error::new(ErrorKind::TimedOut, "nothing came for 30 seconds"));
        }
        let mut polled = [PollFd::new(file, PollFlags::IN)];
        match poll(&mut polled, Some(&LOOK)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [polled] = polled;
        self.has_writer |= !polled.revents().is_empty();
        Ok(())
    }
}

/// An input of at most `limit` bytes, whole.
///
/// # Errors
/// Those of reading it; [`ErrorKind::FileTooLarge`]; that nothing comes for too long.
pub fn read_input(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut input = Input::open(path, &Cancel::new())?;
    if let Some(waiting) = &mut input.waiting {
        waiting.silence = Some(SILENCE);
    }
    let mut bytes = Vec::new();
    input.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let problem = format!("it has more than {limit} bytes");
        return Err(io::Error::new(ErrorKind::FileTooLarge, problem));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::{Irregular, open_own, read_input};
    use std::fs::OpenOptions;
    use std::io::{ErrorKind, Write as _};
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn pipe(path: &Path) {
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
    }

    #[test]
    fn own_files_are_files_under_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("file"), "x").unwrap();
        symlink("file", path("link")).unwrap();
        symlink("nothing", path("dangling")).unwrap();
        std::fs::create_dir(path("folder")).unwrap();
        pipe(&path("pipe"));
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for (name, found) in [
            ("file", None),
            ("link", Some(Irregular::Link)),
            ("dangling", Some(Irregular::Link)),
            ("folder", Some(Irregular::Folder)),
            ("pipe", Some(Irregular::Pipe)),
            ("socket", Some(Irregular::Socket)),
        ] {
            let write = || OpenOptions::new().write(true).create(true).truncate(false).clone();
            for mut options in [OpenOptions::new().read(true).clone(), write()] {
                let opened = open_own(&path(name), &mut options);
                let error = opened.as_ref().err().and_then(Irregular::within);
                assert_eq!((opened.is_ok(), error), (found.is_none(), found), "{name}");
            }
        }
        assert!(!path("nothing").exists());
        let device = open_own(Path::new("/dev/null"), OpenOptions::new().read(true)).unwrap_err();
        assert_eq!(Irregular::within(&device), Some(Irregular::Device));
        let missing = open_own(&path("missing"), OpenOptions::new().read(true)).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn an_input_may_be_a_pipe_that_somebody_writes_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("file"), "a file").unwrap();
        symlink("file", path("link")).unwrap();
        assert_eq!(read_input(&path("link"), 6).unwrap(), b"a file");
        let error = read_input(&path("file"), 5).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FileTooLarge);
        assert!(read_input(folder.path(), 5).is_err());
        assert_eq!(read_input(Path::new("/dev/null"), 5).unwrap(), b"");
        assert!(read_input(Path::new("/dev/zero"), 5).is_err());
        pipe(&path("pipe"));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Opening it waits for the reader.
                let mut pipe = OpenOptions::new().write(true).open(path("pipe")).unwrap();
                pipe.write_all(b"one ").unwrap();
                std::thread::yield_now();
                pipe.write_all(b"two").unwrap();
            });
            assert_eq!(read_input(&path("pipe"), 100).unwrap(), b"one two");
        });
        let error = read_input(&path("pipe"), 100).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "nobody writes to it");
    }
}
