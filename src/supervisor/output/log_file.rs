//! One log file: appended to, rotated by size and age, and honest about what it could not take.
//!
//! ```text
//! web.log     what is being written       a file ends where a line ends, so a line is never in two files
//! web.log.1   the one before it           or web.log.1.gz
//! web.log.2   ...                         up to `keep` of them
//! ```

use std::fmt;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::GzEncoder;
use nix::sys::statvfs::statvfs;

use crate::common::os_reason::os_reason;
use crate::supervisor::output::json;

/// Room that a full disk must have again before it counts as usable: less is gone at once.
const ROOM_BYTES: u64 = 1 << 20;

/// When a file is put aside, and how many of those are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    pub size: Option<u64>,
    pub age: Option<Duration>,
    pub keep: usize,
    pub gzip: bool,
}

/// How a file says that something is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    Text,
    Json,
}

/// What did not work.
#[derive(Debug)]
pub enum Trouble {
    Write(io::Error),
    Rotate(io::Error),
}

/// What could not be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    pub lines: u64,
    pub bytes: u64,
}

impl Lost {
    pub fn and(self, other: Lost) -> Lost {
        Lost { lines: self.lines + other.lines, bytes: self.bytes + other.bytes }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lines ({} bytes)", self.lines, self.bytes)
    }
}

#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    gap: Gap,
    rotation: Rotation,
    size: u64,
    /// When its first line was written.
    begun: SystemTime,
    /// It ends with a whole line, or is empty.
    at_line_start: bool,
    failing: Option<Failing>,
    /// Since the last mark in the file.
    missing: Lost,
    /// Since somebody asked.
    lost: Lost,
    /// The beginning of the present line is missing: so is the rest of it.
    skips_line: bool,
    compressor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Failing {
    error: io::Error,
    last_try: Instant,
}

impl LogFile {
    pub fn open(path: &Path, gap: Gap, rotation: Rotation) -> io::Result<LogFile> {
        let (file, size, begun) = open(path)?;
        Ok(LogFile {
            path: path.to_owned(),
            file,
            gap,
            rotation,
            size,
            begun,
            // What an earlier run left may end anywhere; a line end costs nothing.
            at_line_start: size == 0,
            failing: None,
            missing: Lost::default(),
            lost: Lost::default(),
            skips_line: false,
            compressor: None,
        }
        .ended_line())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is being written: another one after each rotation.
    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn take_lost(&mut self) -> Lost {
        std::mem::take(&mut self.lost)
    }

    /// The last line of an earlier run gets its end.
    fn ended_line(mut self) -> LogFile {
        let ends = || -> io::Result<bool> {
            let mut file = File::open(&self.path)?;
            file.seek(io::SeekFrom::End(-1))?;
            let mut last = [0];
            file.read_exact(&mut last)?;
            Ok(last == *b"\n")
        };
        // One that cannot be read, a device, has no lines.
        if !self.at_line_start && (ends().unwrap_or(true) || self.append(b"\n").is_ok()) {
            self.at_line_start = true;
        }
        self
    }

    /// Appends. While nothing can be written, counts.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), Trouble> {
        if self.failing.is_some() {
            self.lose(bytes);
            return Ok(());
        }
        if self.skips_line {
            let end = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
            self.lose(&bytes[..end]);
            bytes = &bytes[end..];
        }
        if self.is_old() && self.at_line_start && !bytes.is_empty() {
            self.rotate_or_go_on(bytes)?;
        }
        while !bytes.is_empty() {
            let cut = self.until_rotation(bytes);
            if let Err(error) = self.append(&bytes[..cut]) {
                self.lose(&bytes[cut..]);
                return Err(error);
            }
            bytes = &bytes[cut..];
            if !bytes.is_empty() {
                self.rotate_or_go_on(bytes)?;
            }
        }
        Ok(())
    }

    fn is_old(&self) -> bool {
        let age = self.begun.elapsed().unwrap_or_default();
        self.size > 0 && self.rotation.age.is_some_and(|limit| age >= limit)
    }

    /// How much of `bytes` belongs into this file: whole lines up to its size, but at least what a line needs.
    fn until_rotation(&self, bytes: &[u8]) -> usize {
        let Some(limit) = self.rotation.size else { return bytes.len() };
        let room = usize::try_from(limit.saturating_sub(self.size)).unwrap_or(usize::MAX);
        if bytes.len() <= room {
            return bytes.len();
        }
        match memchr::memrchr(b'\n', &bytes[..room]) {
            Some(at) => at + 1,
            None if self.at_line_start && self.size > 0 => 0,
            None => memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        let mut written = 0;
        while written < bytes.len() {
            match self.file.write(&bytes[written..]) {
                Ok(0) => return Err(self.fail(bytes, written, io::ErrorKind::WriteZero.into())),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.fail(bytes, written, error)),
            }
        }
        self.size += bytes.len() as u64;
        if let Some(last) = bytes.last() {
            self.at_line_start = *last == b'\n';
        }
        Ok(())
    }

    /// Keeps the whole lines of what was written; the rest is lost.
    fn fail(&mut self, bytes: &[u8], written: usize, error: io::Error) -> Trouble {
        let kept = memchr::memrchr(b'\n', &bytes[..written]).map_or(0, |at| at + 1);
        self.size += kept as u64;
        self.at_line_start |= kept > 0;
        if kept < written && self.file.set_len(self.size).is_err() {
            // It ends in the middle of a line then.
            self.at_line_start = false;
        }
        self.lose(&bytes[kept..]);
        let again = io::Error::new(error.kind(), os_reason(&error));
        self.failing = Some(Failing { error: again, last_try: Instant::now() });
        Trouble::Write(error)
    }

    fn lose(&mut self, bytes: &[u8]) {
        let Some(last) = bytes.last() else { return };
        let lines = memchr::memchr_iter(b'\n', bytes).count() as u64;
        let lost = Lost { lines, bytes: bytes.len() as u64 };
        self.missing = self.missing.and(lost);
        self.lost = self.lost.and(lost);
        self.skips_line = *last != b'\n';
    }

    /// Tries again, if the last try was longer ago than `interval`. Whether all is well.
    pub fn recover(&mut self, interval: Duration) -> bool {
        let Some(failing) = &mut self.failing else { return true };
        if failing.last_try.elapsed() < interval {
            return false;
        }
        failing.last_try = Instant::now();
        let full = failing.error.kind() == io::ErrorKind::StorageFull;
        if full && statvfs(&self.path).is_ok_and(|disk| room(&disk) < ROOM_BYTES) {
            return false;
        }
        let text = format!("{} are missing here: {}", self.missing, failing.error);
        let mut mark = match self.gap {
            Gap::Text => format!("[{text}]\n").into_bytes(),
            Gap::Json => json::own_line(&text),
        };
        if !self.at_line_start {
            mark.insert(0, b'\n');
        }
        let (missing, skips) = (self.missing, self.skips_line);
        let lost = self.lost;
        self.failing = None;
        if self.append(&mark).is_err() {
            // The mark itself was nobody's line.
            (self.missing, self.skips_line, self.lost) = (missing, skips, lost);
            return false;
        }
        self.missing = Lost::default();
        true
    }

    /// Puts the file aside; one for which that is impossible takes `bytes`, too.
    fn rotate_or_go_on(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        let Err(error) = self.rotate() else { return Ok(()) };
        self.append(bytes)?;
        Err(error)
    }

    /// Opens the path anew; what is there under another name is left alone.
    pub fn reopen(&mut self) -> Result<(), Trouble> {
        let (file, size, begun) = open(&self.path).map_err(Trouble::Rotate)?;
        (self.file, self.size, self.begun, self.at_line_start) = (file, size, begun, size == 0 || self.at_line_start);
        Ok(())
    }

    /// Puts the file aside and begins a new one. One that cannot be put aside grows on and is not tried again.
    fn rotate(&mut self) -> Result<(), Trouble> {
        let result = self.try_rotate();
        if result.is_err() {
            (self.rotation.size, self.rotation.age) = (None, None);
        }
        result.map_err(Trouble::Rotate)
    }

    fn try_rotate(&mut self) -> io::Result<()> {
        // The one before must have its last name before it gets another.
        self.finish();
        let keep = self.rotation.keep;
        for suffix in ["", ".gz"] {
            remove(&aside(&self.path, keep.max(1), suffix))?;
            for number in (1..keep).rev() {
                let from = aside(&self.path, number, suffix);
                if from.exists() {
                    std::fs::rename(from, aside(&self.path, number + 1, suffix))?;
                }
            }
        }
        if keep == 0 {
            remove(&self.path)?;
        } else {
            std::fs::rename(&self.path, aside(&self.path, 1, ""))?;
        }
        let (file, size, begun) = open(&self.path)?;
        (self.file, self.size, self.begun, self.at_line_start) = (file, size, begun, true);
        if self.rotation.gzip && keep > 0 {
            let (plain, packed) = (aside(&self.path, 1, ""), aside(&self.path, 1, ".gz"));
            // A disk that is too full for the packed file keeps the plain one.
            self.compressor = Some(std::thread::spawn(move || drop(compress(&plain, &packed))));
        }
        Ok(())
    }

    /// Waits for what is done beside.
    pub fn finish(&mut self) {
        if let Some(compressor) = self.compressor.take() {
            // It reports nothing: its file is there either way.
            let _ = compressor.join();
        }
    }
}

fn room(disk: &nix::sys::statvfs::Statvfs) -> u64 {
    disk.blocks_available().saturating_mul(disk.fragment_size())
}

fn open(path: &Path) -> io::Result<(File, u64, SystemTime)> {
    let file = File::options().create(true).append(true).open(path)?;
    let metadata = file.metadata()?;
    let created = if metadata.len() > 0 { metadata.created().ok() } else { None };
    Ok((file, metadata.len(), created.unwrap_or_else(SystemTime::now)))
}

fn aside(path: &Path, number: usize, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}{suffix}"));
    PathBuf::from(name)
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Under its name it is whole: a crash leaves the plain file.
fn compress(plain: &Path, packed: &Path) -> io::Result<()> {
    let mut name = packed.as_os_str().to_owned();
    name.push(".tmp");
    let unfinished = PathBuf::from(name);
    let work = || {
        let mut encoder = GzEncoder::new(File::create(&unfinished)?, Compression::default());
        io::copy(&mut File::open(plain)?, &mut encoder)?;
        encoder.finish()?.sync_all()?;
        std::fs::rename(&unfinished, packed)?;
        std::fs::remove_file(plain)
    };
    work().inspect_err(|_| drop(std::fs::remove_file(&unfinished)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(dir: &Path) -> Vec<(String, String)> {
        let mut found: Vec<(String, String)> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                let mut text = String::new();
                match name.ends_with(".gz") {
                    true => flate2::read::GzDecoder::new(File::open(&path).unwrap()).read_to_string(&mut text).unwrap(),
                    false => File::open(&path).unwrap().read_to_string(&mut text).unwrap(),
                };
                (name, text)
            })
            .collect();
        found.sort();
        found
    }

    fn check(rotation: Rotation, writes: &[&str], expected: &[(&str, &str)]) {
        let dir = tempfile::tempdir().unwrap();
        let mut file = LogFile::open(&dir.path().join("a.log"), Gap::Text, rotation).unwrap();
        for text in writes {
            file.write(text.as_bytes()).unwrap();
        }
        file.finish();
        let found = texts(dir.path());
        let found: Vec<(&str, &str)> = found.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn files_are_put_aside_at_line_ends() {
        let by_size = |keep: usize| Rotation { size: Some(8), keep, ..Rotation::default() };
        check(by_size(5), &["one\ntwo\n", "three\n"], &[("a.log", "three\n"), ("a.log.1", "one\ntwo\n")]);
        check(
            by_size(5),
            &["one\ntwo\nthree\nfour\n"],
            &[("a.log", "four\n"), ("a.log.1", "three\n"), ("a.log.2", "one\ntwo\n")],
        );
        // A line is never in two files, however it comes and however long it is.
        check(by_size(5), &["one\ntw", "o and mo", "re\nx\n"], &[("a.log", "x\n"), ("a.log.1", "one\ntwo and more\n")]);
        check(by_size(5), &["a very long line\n", "x\n"], &[("a.log", "x\n"), ("a.log.1", "a very long line\n")]);
        check(
            by_size(2),
            &["1234567\n", "2234567\n", "3234567\n", "4234567\n"],
            &[("a.log", "4234567\n"), ("a.log.1", "3234567\n"), ("a.log.2", "2234567\n")],
        );
        check(by_size(0), &["1234567\n", "2234567\n"], &[("a.log", "2234567\n")]);
        let packed = Rotation { gzip: true, ..by_size(2) };
        check(
            packed,
            &["1234567\n", "2234567\n", "3234567\n", "4234567\n"],
            &[("a.log", "4234567\n"), ("a.log.1.gz", "3234567\n"), ("a.log.2.gz", "2234567\n")],
        );
        let by_age = Rotation { age: Some(Duration::ZERO), keep: 9, ..Rotation::default() };
        check(by_age, &["one\n", "two", "\n"], &[("a.log", "two\n"), ("a.log.1", "one\n")]);
    }

    #[test]
    fn a_line_that_an_earlier_run_left_open_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        for (text, expected) in [("one\n", "cut\none\n"), ("two\n", "cut\none\ntwo\n")] {
            if !path.exists() {
                std::fs::write(&path, "cut").unwrap();
            }
            LogFile::open(&path, Gap::Text, Rotation::default()).unwrap().write(text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_lost_is_counted_and_marked_where_it_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let mut file = LogFile::open(&path, Gap::Text, Rotation::default()).unwrap();
        file.write(b"one\nbegun").unwrap();
        // As when the disk took only so much of it.
        let trouble = file.fail(b" and ended\ntwo\nthr", 0, io::ErrorKind::StorageFull.into());
        assert!(matches!(trouble, Trouble::Write(_)));
        file.write(b"ee\nfo").unwrap();
        assert!(!file.recover(Duration::from_secs(60)));
        assert!(file.recover(Duration::ZERO));
        file.write(b"ur\nfive\n").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "one\nbegun\n[3 lines (23 bytes) are missing here: no storage space]\nfive\n");
        assert_eq!(file.take_lost(), Lost { lines: 4, bytes: 26 });
    }

    #[test]
    fn of_what_was_half_written_the_whole_lines_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let mut file = LogFile::open(&path, Gap::Json, Rotation::default()).unwrap();
        file.file.write_all(b"one\ntw").unwrap();
        file.fail(b"one\ntwo\n", 6, io::ErrorKind::StorageFull.into());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\n");
        assert_eq!(file.take_lost(), Lost { lines: 1, bytes: 4 });
        assert!(file.recover(Duration::ZERO));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("one\n{\"time_ns\":") && text.ends_with("}\n"), "{text}");
    }
}
