//! Builds images for followers and for `snapshot save`, and keeps the newest ones for whoever sends them.
//!
//! An image is one paced pass over a frozen state into an unlinked temporary file: a slow receiver then pins disk, not the
//! database, and nothing is left behind whatever happens. A follower is sent a file that is complete; `snapshot save` reads
//! one while it grows, behind a first pass over headers alone that finds out what the file's first page says of its last.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;

use crate::common::failure::Failure;
use crate::proto::raftpb::Snapshot;
use crate::proto::raftpb::SnapshotMetadata;
use crate::server::checkpoint::Applied;
use crate::server::snapshot::Image;
use crate::server::snapshot::ImageSource;
use crate::server::snapshot::boltfile::writer::BoltWriter;
use crate::server::snapshot::contents::Frozen;
use crate::server::snapshot::metrics::SnapshotMetrics;

/// Bytes of pairs between two rests: a few milliseconds of work.
const PACE_BYTES: u64 = 1 << 20;

/// The longest rest. A slice that took longer met a busy disk, and waiting in proportion would not end.
const REST_MAX: Duration = Duration::from_millis(20);

/// Images kept for senders: the newest, and one that may still be on its way.
const IMAGES_MAX: usize = 2;

/// How the names of images begin while they have one, for removing what a crash left.
pub const IMAGE_PREFIX: &str = "image-";

/// Writes the state into an unlinked file in `dir`, in etcd's database format. `v2_store_json` is what members of 3.4 to 3.6
/// want beside it (server.md 14.1). Takes its time: call it on a thread of its own.
pub fn write_image(state: &Frozen, dir: &Path, v2_store_json: Bytes) -> Result<Image, Failure> {
    let (file, path) = unlinked_file(dir)?;
    let mut writer = BoltWriter::create(file, &path)?;
    let mut pace = Pace::start();
    state.write_to(&mut writer, &mut |writer| {
        if pace.is_due(writer) {
            pace.rest();
        }
        Ok(())
    })?;
    let (file, bytes) = writer.finish()?;
    Ok(Image { snapshot: raft_snapshot(&state.applied, v2_store_json), file, bytes })
}

/// An image that is read while it is written.
pub struct GrowingImage {
    state: Frozen,
    writer: BoltWriter,
    /// Its length in the end.
    pub bytes: u64,
}

/// Begins an image of the state in an unlinked file in `dir`: what writes it, and a reader at its start.
pub fn begin_image(state: Frozen, dir: &Path) -> Result<(GrowingImage, File), Failure> {
    let layout = state.layout()?;
    let (file, path) = unlinked_file(dir)?;
    let reader = reopen(&file)?;
    let writer = BoltWriter::create_as(layout, file, &path)?;
    Ok((GrowingImage { state, writer, bytes: layout.bytes() }, reader))
}

impl GrowingImage {
    /// Writes all of it. `grown` hears again and again how many bytes can be read, and ends the writing by answering false.
    /// It rests only when `busy` has moved since the last time it was due: at night nobody has to wait for those who save.
    pub fn write(self, grown: &mut dyn FnMut(u64) -> bool, busy: &mut dyn FnMut() -> u64) -> Result<(), Failure> {
        let GrowingImage { state, mut writer, bytes } = self;
        let mut pace = Pace::start();
        let mut seen = busy();
        state.write_to(&mut writer, &mut |writer| {
            if !pace.is_due(writer) {
                return Ok(());
            }
            if !grown(writer.readable()) {
                return Err(Failure::Refused("nobody reads the image any more".to_owned()));
            }
            match std::mem::replace(&mut seen, busy()) == seen {
                true => pace.go_on(),
                false => pace.rest(),
            }
            Ok(())
        })?;
        writer.finish()?;
        // Whoever has read it all in the meantime needs no word.
        let _ = grown(bytes);
        Ok(())
    }
}

/// A handle with a position of its own, at the start: a clone of the handle would share it, opening it again through its
/// number does not.
fn reopen(file: &File) -> Result<File, Failure> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    File::open(&path).map_err(Failure::io("cannot open", &path))
}

/// The raft snapshot that an image of this mark belongs to.
pub fn raft_snapshot(applied: &Applied, data: Bytes) -> Snapshot {
    let Applied { index, term, conf_state } = applied.clone();
    Snapshot { data, metadata: Some(SnapshotMetadata { conf_state: Some(conf_state), index, term }) }
}

/// A file without a name: mode 0600, readable and writable. Its former name is for messages.
fn unlinked_file(dir: &Path) -> Result<(File, PathBuf), Failure> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    for number in 0_u64.. {
        let path = dir.join(format!("{IMAGE_PREFIX}{number}"));
        match options.open(&path) {
            // Another image is between its creation and its unlinking, or a crash was.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Failure::io("cannot create", &path)(error)),
            Ok(file) => {
                fs::remove_file(&path).map_err(Failure::io("cannot remove", &path))?;
                return Ok((file, path));
            }
        }
    }
    unreachable!("a directory does not hold 2^64 files")
}

/// Rests as long as it worked, so that an image takes half a core and half the disk at most.
struct Pace {
    since: Instant,
    next_rest: u64,
}

impl Pace {
    fn start() -> Pace {
        Pace { since: Instant::now(), next_rest: PACE_BYTES }
    }

    /// Whether another slice is done.
    fn is_due(&mut self, writer: &BoltWriter) -> bool {
        let due = writer.written() >= self.next_rest;
        if due {
            self.next_rest = writer.written() + PACE_BYTES;
        }
        due
    }

    fn rest(&mut self) {
        thread::sleep(self.since.elapsed().min(REST_MAX));
        self.go_on();
    }

    fn go_on(&mut self) {
        self.since = Instant::now();
    }
}

/// The newest images by snapshot index. A reader that has one open keeps it however many come after.
#[derive(Debug)]
pub struct Images {
    /// Where images are built: a file system with room for another copy of the data.
    dir: PathBuf,
    metrics: SnapshotMetrics,
    images: Mutex<BTreeMap<u64, Image>>,
}

impl Images {
    /// No images yet; `dir` is the member's snapshot directory.
    pub fn new(dir: &Path, metrics: SnapshotMetrics) -> Images {
        Images { dir: dir.to_owned(), metrics, images: Mutex::default() }
    }

    /// Builds the image of a state and keeps it: the raft snapshot to send. As slow as `write_image`.
    pub fn build(&self, state: &Frozen, v2_store_json: Bytes) -> Result<Snapshot, Failure> {
        let timer = self.metrics.build_seconds.start_timer();
        let image = write_image(state, &self.dir, v2_store_json)?;
        timer.observe_duration();
        let snapshot = image.snapshot.clone();
        self.keep(image);
        Ok(snapshot)
    }

    /// Keeps an image, in place of one of the same index and of the oldest beyond two.
    fn keep(&self, image: Image) {
        let index = index_of(&image.snapshot);
        let mut images = self.lock();
        images.insert(index, image);
        while images.len() > IMAGES_MAX {
            images.pop_first();
        }
    }

    /// The raft snapshot of the newest image.
    pub fn newest(&self) -> Option<Snapshot> {
        self.lock().last_key_value().map(|(_, image)| image.snapshot.clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Image>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ImageSource for Images {
    fn open(&self, index: u64) -> Result<Option<Image>, Failure> {
        let images = self.lock();
        let Some(image) = images.get(&index) else { return Ok(None) };
        let file = reopen(&image.file)?;
        Ok(Some(Image { snapshot: image.snapshot.clone(), file, bytes: image.bytes }))
    }
}

/// Index of a raft snapshot; 0 when it has no metadata.
pub fn index_of(snapshot: &Snapshot) -> u64 {
    snapshot.metadata.as_ref().map_or(0, |metadata| metadata.index)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;

    use super::*;
    use crate::proto::raftpb::ConfState;
    use crate::server::checkpoint::Buckets;
    use crate::server::checkpoint::memory::MemoryTables;

    fn state(index: u64) -> Frozen {
        let conf_state = ConfState { voters: vec![1], ..Default::default() };
        let applied = Applied { index, term: 2, conf_state };
        Frozen { records: Arc::new(MemoryTables::of([])), buckets: Buckets::new(), applied }
    }

    #[test]
    fn an_image_belongs_to_one_raft_snapshot_and_leaves_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let image = write_image(&state(9), dir.path(), Bytes::from_static(b"{}")).unwrap();
        let metadata = image.snapshot.metadata.unwrap();
        assert_eq!((metadata.index, metadata.term), (9, 2));
        assert_eq!(metadata.conf_state.unwrap().voters, [1]);
        assert_eq!(image.snapshot.data, "{}");
        assert_eq!(image.file.metadata().unwrap().len(), image.bytes);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_newest_images_are_kept_and_readers_do_not_disturb_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = SnapshotMetrics::register(&prometheus::Registry::new());
        let images = Images::new(dir.path(), metrics);
        assert!(images.newest().is_none());
        for index in [7, 5, 9] {
            assert_eq!(index_of(&images.build(&state(index), Bytes::new()).unwrap()), index);
        }
        assert!(images.open(5).unwrap().is_none(), "the oldest index goes, not the first that came");
        assert_eq!(images.newest().map(|snapshot| index_of(&snapshot)), Some(9));
        let mut readers: Vec<Image> = (0..2).map(|_| images.open(7).unwrap().unwrap()).collect();
        images.build(&state(11), Bytes::new()).unwrap();
        assert!(images.open(7).unwrap().is_none());
        for reader in &mut readers {
            let mut bytes = Vec::new();
            reader.file.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, reader.bytes, "a dropped image stays readable from its start");
        }
    }
}
