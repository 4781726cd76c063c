//! Reads a tarball, ours or another program's: ustar, pax, and the long names, big numbers and
//! sparse files of GNU tar.
//!
//! The header blocks are taken apart by the `tar` crate. What stands between them is read here:
//! that crate splits pax records at newlines, which may be part of a value, takes a stream that was
//! cut between entries for a whole one, and reads a header of any size into memory.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::entry::{Kind, Time, lossy};
use super::header::{Attribute, BLOCK, PATH_LIMIT, padding};
use super::pax::{EXTENTS_LIMIT, Pax, TextList, number, pairs};

/// The longest pax header or long name that is read. Ours have at most four MiB of attributes.
const HEADER_LIMIT: u64 = 16 << 20;

/// Why a tarball could not be read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The stream behind it failed.
    #[error("Could not read the tarball")]
    Stream(#[source] io::Error),
    #[error("The tarball is damaged or no tarball, at byte {offset}: {problem}")]
    Malformed { offset: u64, problem: String },
}

/// One entry.
#[derive(Debug)]
pub(crate) struct TarEntry {
    /// As it stands there; nothing is checked of it.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) target: Vec<u8>,
    /// Bytes of the file that it describes.
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// The owner's name where the tarball has it.
    pub(crate) uname: Option<Vec<u8>>,
    pub(crate) gname: Option<Vec<u8>>,
    pub(crate) mtime: Time,
    pub(crate) rdev: (u32, u32),
    pub(crate) attributes: Vec<Attribute>,
    /// Access lists as text, of which there is no binary record.
    pub(crate) text_lists: Vec<TextList>,
    /// Where in a sparse file the content belongs: offset and length of each piece. None: it is in
    /// one piece.
    pub(crate) extents: Option<Vec<(u64, u64)>>,
    /// Where its first header begins.
    pub(crate) offset: u64,
    /// Where what is stored of it begins, the map of a sparse file too.
    pub(crate) data_offset: u64,
    /// Bytes that are stored from there, without the filling to a full block.
    pub(crate) length: u64,
}

impl TarEntry {
    /// Where the content belongs: offset and length of each piece.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (u64, u64)> {
        let whole = self.extents.is_none().then_some((0, self.size));
        self.extents.iter().flatten().copied().chain(whole)
    }
}

/// Reads a tarball, entry by entry.
pub(crate) struct TarReader<'a> {
    input: &'a mut dyn Read,
    /// Where in the stream it stands.
    offset: u64,
    /// Nothing is read beyond.
    limit: u64,
    /// Bytes of the present entry's content that were not read yet.
    left: u64,
    /// Zeros that fill up its last block.
    padding: u64,
    globals: Pax,
}

impl<'a> TarReader<'a> {
    pub(crate) fn new(input: &'a mut dyn Read) -> Self {
        Self { input, offset: 0, limit: u64::MAX, left: 0, padding: 0, globals: Pax::default() }
    }

    /// Where in the stream it stands.
    pub(crate) fn position(&self) -> u64 {
        self.offset
    }

    /// Reads over what is left of the present entry, and counts on from `offset`: the input goes on
    /// with another part of the stream.
    pub(crate) fn go_to(&mut self, offset: u64) -> Result<(), ReadError> {
        self.skip()?;
        self.offset = offset;
        Ok(())
    }

    /// What lies beyond is an error from here on.
    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    fn malformed(&self, problem: impl Into<String>) -> ReadError {
        ReadError::Malformed { offset: self.offset, problem: problem.into() }
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
        let most = usize::try_from(self.limit.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        // One more byte may be asked for: whether there is one tells whether the stream goes on.
        let most = most.max(1).min(buffer.len());
        loop {
            match self.input.read(buffer.get_mut(..most).unwrap_or_default()) {
                Ok(read) if read > 0 && self.offset >= self.limit => {
                    return Err(self.malformed("it goes on where it should end"));
                }
                Ok(read) => {
                    self.offset += read as u64;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ReadError::Stream(error)),
            }
        }
    }

    /// A block, none at the end of the stream.
    fn block(&mut self, block: &mut [u8; BLOCK as usize]) -> Result<bool, ReadError> {
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.read_some(rest)? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(self.malformed("it was cut")),
                read => filled += read,
            }
        }
        Ok(true)
    }

    /// The next bytes of the present entry's content; 0 at its end.
    pub(crate) fn content(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..length).filter(|buffer| !buffer.is_empty()) else {
            return Ok(0);
        };
        match self.read_some(buffer)? {
            0 => Err(self.malformed("it was cut within an entry")),
            read => {
                self.left -= read as u64;
                Ok(read)
            }
        }
    }

    /// Reads over what is left of the present entry.
    pub(crate) fn skip(&mut self) -> Result<(), ReadError> {
        let mut buffer = [0; 16 << 10];
        self.left = self
            .left
            .checked_add(std::mem::take(&mut self.padding))
            .ok_or_else(|| self.malformed("a size is impossible"))?;
        while self.content(&mut buffer)? > 0 {}
        Ok(())
    }

    /// Reads a whole content that is part of a header.
    fn whole(&mut self, what: &str) -> Result<Vec<u8>, ReadError> {
        if self.left > HEADER_LIMIT {
            return Err(self.malformed(format!("{what} of {} bytes is too long", self.left)));
        }
        let mut data = Vec::new();
        let mut buffer = [0; 4 << 10];
        loop {
            match self.content(&mut buffer)? {
                0 => return Ok(data),
                read => data.extend_from_slice(buffer.get(..read).unwrap_or_default()),
            }
        }
    }

    /// The next entry, none after the last. Everything that comes after the end mark is left.
    pub(crate) fn next(&mut self) -> Result<Option<TarEntry>, ReadError> {
        let mut pax: Option<Pax> = None;
        let mut long_name = None;
        let mut long_target = None;
        self.skip()?;
        let offset = self.offset;
        loop {
            self.skip()?;
            let mut header = Header::new_old();
            if !self.block(header.as_mut_bytes())? {
                return Err(self.malformed("its end mark is missing, so it was cut"));
            }
            if header.as_bytes().iter().all(|byte| *byte == 0) {
                if pax.is_some() || long_name.is_some() || long_target.is_some() {
                    return Err(self.malformed("it ends after the first header of an entry"));
                }
                return Ok(None);
            }
            if !is_intact(&header) {
                return Err(self.malformed("the checksum of a header is wrong"));
            }
            let kind = header.entry_type();
            let size = header.entry_size().map_err(|error| self.malformed(error.to_string()))?;
            let extension = kind.is_pax_local_extensions()
                || kind.is_pax_global_extensions()
                || kind.is_gnu_longname()
                || kind.is_gnu_longlink();
            // As GNU tar and libarchive have it: what stands in the header of a link, a folder or a
            // device is no length of a content, but a hard link in a pax tarball may have one.
            let bare = matches!(
                kind,
                EntryType::Symlink
                    | EntryType::Directory
                    | EntryType::Fifo
                    | EntryType::Char
                    | EntryType::Block
            ) || kind == EntryType::Link && pax.is_none();
            let size = if bare { 0 } else { size };
            let stored = pax
                .as_ref()
                .or(Some(&self.globals))
                .and_then(|pax| pax.size)
                .filter(|_| !extension && !bare)
                .unwrap_or(size);
            self.left = stored;
            self.padding = padding(stored);
            if kind.is_pax_global_extensions() {
                let data = self.whole("A pax header")?;
                let mut globals = std::mem::take(&mut self.globals);
                globals.read(&data).map_err(|problem| self.malformed(problem))?;
                self.globals = globals;
            } else if kind.is_pax_local_extensions() {
                let data = self.whole("A pax header")?;
                let mut records = pax.take().unwrap_or_else(|| self.globals.clone());
                records.read(&data).map_err(|problem| self.malformed(problem))?;
                pax = Some(records);
            } else if kind.is_gnu_longname() {
                long_name = Some(until_zero(self.whole("A name")?));
            } else if kind.is_gnu_longlink() {
                long_target = Some(until_zero(self.whole("The target of a link")?));
            } else if kind == EntryType::new(b'V') {
                // The label of a volume is no file.
            } else {
                let mut pax = pax.unwrap_or_else(|| self.globals.clone());
                pax.path = pax.path.or(long_name);
                pax.linkpath = pax.linkpath.or(long_target);
                return self.entry(&header, pax, stored, offset).map(Some);
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        mut pax: Pax,
        stored: u64,
        offset: u64,
    ) -> Result<TarEntry, ReadError> {
        let data_offset = self.offset;
        let path = pax
            .sparse_name
            .take()
            .or(pax.path.take())
            .unwrap_or_else(|| header.path_bytes().into_owned());
        if path.len() > PATH_LIMIT {
            return Err(self.malformed(format!("a path of {} bytes is too long", path.len())));
        }
        let kind = match header.entry_type() {
            // Programs from before POSIX wrote a folder as a file whose name ends with a slash.
            EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::Hardlink,
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char => Kind::Char,
            EntryType::Block => Kind::Block,
            other if other.as_byte() == b'D' => Kind::Directory,
            other => {
                let sign = char::from(other.as_byte()).escape_default();
                return Err(
                    self.malformed(format!("`{}` is of the unknown type `{sign}`", lossy(&path)))
                );
            }
        };
        let wrong =
            |error: io::Error| format!("the header of `{}` is wrong: {error}", lossy(&path));
        let fields = || -> io::Result<(u32, u64, u64, u64, u32, u32)> {
            let major = header.device_major().ok().flatten().unwrap_or_default();
            let minor = header.device_minor().ok().flatten().unwrap_or_default();
            Ok((
                header.mode()?,
                pax.uid.map_or_else(|| header.uid(), Ok)?,
                pax.gid.map_or_else(|| header.gid(), Ok)?,
                header.mtime()?,
                major,
                minor,
            ))
        };
        let (mode, uid, gid, seconds, major, minor) =
            fields().map_err(|error| self.malformed(wrong(error)))?;
        // GNU tar writes times before 1970 as negative binary numbers, which the first byte tells
        // from great ones.
        let negative = header.as_old().mtime.first() == Some(&0xff);
        let seconds = if negative {
            seconds.cast_signed()
        } else {
            i64::try_from(seconds).unwrap_or_default()
        };
        let mut size = stored;
        let mut extents = None;
        if header.entry_type().is_gnu_sparse() {
            let real = header.as_gnu().and_then(|gnu| gnu.real_size().ok());
            size = real.ok_or_else(|| self.malformed(format!("`{}` has no size", lossy(&path))))?;
            extents = Some(self.gnu_map(header)?);
        } else if kind == Kind::File && pax.sparse_major == Some(1) {
            extents = Some(self.pax_map()?);
        } else if kind == Kind::File {
            extents = pax.sparse_map.take();
        }
        if let Some(extents) = &extents {
            size = if header.entry_type().is_gnu_sparse() {
                size
            } else {
                pax.sparse_size.unwrap_or(size)
            };
            self.check_map(extents, size, &path)?;
        }
        pax.text_lists
            .retain(|list| !pax.attributes.iter().any(|(name, _)| name == list.attribute));
        let named = |name: Option<&[u8]>| name.filter(|name| !name.is_empty()).map(<[u8]>::to_vec);
        Ok(TarEntry {
            target: pax
                .linkpath
                .unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned()),
            path,
            kind,
            size,
            mode: mode & 0o7777,
            uid,
            gid,
            uname: pax.uname.or_else(|| named(header.username_bytes())),
            gname: pax.gname.or_else(|| named(header.groupname_bytes())),
            mtime: pax.mtime.unwrap_or(Time { seconds, nanos: 0 }),
            rdev: (major, minor),
            attributes: pax.attributes,
            text_lists: pax.text_lists,
            extents,
            offset,
            data_offset,
            length: stored,
        })
    }

    /// The pieces of a sparse file must follow one another within its size and be all that is
    /// stored.
    fn check_map(&self, extents: &[(u64, u64)], size: u64, path: &[u8]) -> Result<(), ReadError> {
        let mut end = 0;
        let mut stored = 0_u64;
        for (offset, length) in extents {
            let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= size);
            end = next.ok_or_else(|| {
                self.malformed(format!("the map of the sparse file `{}` is wrong", lossy(path)))
            })?;
            stored = stored.saturating_add(*length);
        }
        if stored == self.left {
            Ok(())
        } else {
            Err(self.malformed(format!(
                "the map of the sparse file `{}` is not that of its content",
                lossy(path)
            )))
        }
    }

    /// The map of GNU tar's own sparse files: four pieces in the header, 21 in each block that
    /// follows.
    fn gnu_map(&mut self, header: &Header) -> Result<Vec<(u64, u64)>, ReadError> {
        let mut extents = Vec::new();
        let mut more = false;
        if let Some(gnu) = header.as_gnu() {
            self.add_pieces(&gnu.sparse, &mut extents)?;
            more = gnu.is_extended();
        }
        while more {
            let mut block = GnuExtSparseHeader::new();
            if !self.block(block.as_mut_bytes())? {
                return Err(self.malformed("it was cut"));
            }
            self.add_pieces(block.sparse(), &mut extents)?;
            more = block.is_extended();
        }
        Ok(extents)
    }

    fn add_pieces(
        &self,
        pieces: &[GnuSparseHeader],
        extents: &mut Vec<(u64, u64)>,
    ) -> Result<(), ReadError> {
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            let pair = piece.offset().and_then(|offset| Ok((offset, piece.length()?)));
            extents.push(pair.map_err(|error| self.malformed(error.to_string()))?);
        }
        if extents.len() > EXTENTS_LIMIT {
            return Err(self.malformed("a sparse file has too many pieces"));
        }
        Ok(())
    }

    /// The map of sparse files in pax 1.0: numbers, a line each, before the content, filled up to
    /// whole blocks. The first says how many pieces there are.
    fn pax_map(&mut self) -> Result<Vec<(u64, u64)>, ReadError> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut line = Vec::new();
        let mut block = [0; BLOCK as usize];
        loop {
            let mut filled = 0;
            while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                match self.content(rest)? {
                    0 => return Err(self.malformed("the map of a sparse file was cut")),
                    read => filled += read,
                }
            }
            for byte in block {
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                let value = number(&line).ok_or_else(|| {
                    self.malformed("the map of a sparse file is no list of numbers")
                })?;
                line.clear();
                numbers.push(value);
                let count = usize::try_from(numbers.first().copied().unwrap_or_default())
                    .unwrap_or(usize::MAX);
                if count > EXTENTS_LIMIT {
                    return Err(self.malformed("a sparse file has too many pieces"));
                }
                if numbers.len() > 2 * count {
                    return Ok(pairs(numbers.get(1..).unwrap_or_default()));
                }
            }
            if line.len() > 32 {
                return Err(self.malformed("the map of a sparse file is no list of numbers"));
            }
        }
    }

    /// Reads the rest of the stream, which only then is known to be undamaged.
    pub(crate) fn drain(&mut self) -> Result<(), ReadError> {
        let mut buffer = vec![0; 64 << 10];
        while self.read_some(&mut buffer)? > 0 {}
        Ok(())
    }
}

/// The sum of a header's bytes, those of the sum itself counted as spaces.
fn is_intact(header: &Header) -> bool {
    let bytes = header.as_bytes().iter().enumerate();
    let sum: u32 =
        bytes.map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
    header.cksum().is_ok_and(|stated| stated == sum)
}

fn until_zero(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|byte| *byte == 0) {
        name.truncate(end);
    }
    name
}
