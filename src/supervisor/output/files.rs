//! Log files: one a process with its bytes as they came, and one of all of them; written by a thread of its own.
//!
//! Nothing is dropped on the way to a file: when the disk is slow the processes wait, as they would at a redirection of a
//! shell. A disk that is *full* is told of once; the processes go on, lines are counted instead of written, and when there
//! is room again the file says how many are missing where they are missing. Files end with whole lines all the time.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Notify;

use crate::common::os_reason::os_reason;
use crate::supervisor::output::log_file::Gap;
use crate::supervisor::output::log_file::LogFile;
use crate::supervisor::output::log_file::Lost;
use crate::supervisor::output::log_file::Rotation;
use crate::supervisor::output::log_file::Trouble;
use crate::supervisor::output::queue::Batch;
use crate::supervisor::output::queue::Queue;

/// Bytes that may wait for the disk. Full means that the processes wait.
const WAITING_BYTES_MAX: usize = 4 << 20;
/// How often a file that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a disk that accepts nothing keeps us from ending.
const STALLED_MAX: Duration = Duration::from_secs(5);
/// The batch that asks for the files to be opened again.
const REOPEN: usize = usize::MAX;

/// What is kept in files.
#[derive(Clone, Debug, Default)]
pub struct FilesSettings {
    /// Of one file a process, `NAME.log`.
    pub dir: Option<PathBuf>,
    /// Of all processes together.
    pub merged: Option<PathBuf>,
    /// The merged file holds JSON, one object a line.
    pub json: bool,
    pub rotation: Rotation,
}

/// Why log files cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot write logs to {}: {}", path.display(), os_reason(error))]
pub struct OpenError {
    pub path: PathBuf,
    pub error: io::Error,
}

/// A file's place among the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId(usize);

/// The way to the files.
#[derive(Clone, Debug)]
pub struct Files {
    queue: Arc<Queue>,
    files: Arc<Mutex<Vec<LogFile>>>,
    settings: Arc<FilesSettings>,
    writer: Arc<Writer>,
}

#[derive(Debug, Default)]
struct Writer {
    progress: Notify,
    ended: AtomicBool,
}

/// Says something to whoever watches the supervisor.
pub type Report = Box<dyn Fn(&str) + Send>;

impl Files {
    pub fn start(settings: FilesSettings, report: Report) -> Files {
        let files = Files {
            queue: Arc::new(Queue::new(WAITING_BYTES_MAX)),
            files: Arc::default(),
            settings: Arc::new(settings),
            writer: Arc::default(),
        };
        let work = Work { files: files.clone(), report, troubled: false };
        std::thread::spawn(move || work.run());
        files
    }

    /// The file of this process, if there is one a process.
    pub fn of_process(&self, name: &str) -> Result<Option<FileId>, OpenError> {
        let path = self.settings.dir.as_ref().map(|dir| dir.join(file_name(name)));
        path.map(|path| self.open(&path, Gap::Text)).transpose()
    }

    /// The file of all processes.
    pub fn of_all(&self) -> Result<Option<FileId>, OpenError> {
        let gap = if self.settings.json { Gap::Json } else { Gap::Text };
        self.settings.merged.as_ref().map(|path| self.open(path, gap)).transpose()
    }

    fn open(&self, path: &Path, gap: Gap) -> Result<FileId, OpenError> {
        let mut files = self.lock();
        if let Some(known) = files.iter().position(|file| file.path() == path) {
            return Ok(FileId(known));
        }
        let file = LogFile::open(path, gap, self.settings.rotation);
        files.push(file.map_err(|error| OpenError { path: path.to_owned(), error })?);
        Ok(FileId(files.len() - 1))
    }

    /// Bytes for a file: waits for room.
    pub async fn write(&self, file: FileId, bytes: Vec<u8>) {
        self.queue.push_waiting(Batch::new(bytes, 0, file.0)).await;
    }

    /// Lines of our own for a file: never wait.
    pub fn own(&self, file: FileId, bytes: Vec<u8>) {
        self.queue.push_own(bytes, file.0);
    }

    /// Opens all files anew: somebody has moved them.
    pub fn reopen(&self) {
        self.queue.push_own(Vec::new(), REOPEN);
    }

    /// Waits until everything is written, as long as there is progress.
    pub async fn finish(&self) {
        self.queue.close();
        while !self.writer.ended.load(Ordering::Acquire) {
            if tokio::time::timeout(STALLED_MAX, self.writer.progress.notified()).await.is_err() {
                return;
            }
        }
    }

    /// A panic while the lock was held leaves files that are still there.
    fn lock(&self) -> MutexGuard<'_, Vec<LogFile>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `NAME.log`; a name stays one, and one file in the directory, whatever it holds.
fn file_name(name: &str) -> String {
    format!("{}.log", name.replace('%', "%25").replace('/', "%2F"))
}

/// The thread's side.
struct Work {
    files: Files,
    report: Report,
    /// Some file could not be written, and not all can be again.
    troubled: bool,
}

impl Work {
    fn run(mut self) {
        let queue = Arc::clone(&self.files.queue);
        // Tries of its own: a process that is silent now has its gap told, too.
        while let Some(taken) = queue.take(self.troubled.then_some(RETRY)) {
            for batch in taken.batches {
                match batch.target {
                    REOPEN => self.each(LogFile::reopen),
                    target => self.write(target, &batch.bytes),
                }
            }
            if self.troubled {
                self.recover(RETRY);
            }
            queue.written(taken.bytes);
            self.files.writer.progress.notify_one();
        }
        if self.troubled {
            self.recover(Duration::ZERO);
        }
        if self.troubled {
            let lost = self.take_lost();
            (self.report)(&format!("{lost} could not be written to logs"));
        }
        self.each(|file| {
            file.finish();
            Ok(())
        });
        self.files.writer.ended.store(true, Ordering::Release);
        self.files.writer.progress.notify_one();
    }

    fn write(&mut self, target: usize, bytes: &[u8]) {
        let mut files = self.files.lock();
        let Some(file) = files.get_mut(target) else { return };
        let result = file.write(bytes);
        let path = file.path().to_owned();
        drop(files);
        self.note(&path, result);
    }

    fn each(&mut self, act: impl Fn(&mut LogFile) -> Result<(), Trouble>) {
        let results: Vec<_> = {
            let mut files = self.files.lock();
            files.iter_mut().map(|file| (file.path().to_owned(), act(file))).collect()
        };
        for (path, result) in results {
            self.note(&path, result);
        }
    }

    /// The first trouble is told of; what follows until its end is the same trouble.
    fn note(&mut self, path: &Path, result: Result<(), Trouble>) {
        let path = path.display();
        match result {
            Ok(()) => {}
            Err(Trouble::Rotate(error)) => {
                (self.report)(&format!("cannot rotate {path}: {}; it grows on", os_reason(&error)));
            }
            Err(Trouble::Write(error)) if !self.troubled => {
                self.troubled = true;
                let what = "the processes go on, their lines are missing in the logs until it works again";
                (self.report)(&format!("cannot write {path}: {}; {what}", os_reason(&error)));
            }
            Err(Trouble::Write(_)) => {}
        }
    }

    fn recover(&mut self, interval: Duration) {
        // Every file is tried, also behind one that fails.
        let still = self.files.lock().iter_mut().filter_map(|file| (!file.recover(interval)).then_some(())).count();
        if still == 0 {
            self.troubled = false;
            let lost = self.take_lost();
            (self.report)(&format!("logs are written again; {lost} are missing in them"));
        }
    }

    fn take_lost(&self) -> Lost {
        self.files.lock().iter_mut().map(LogFile::take_lost).fold(Lost::default(), Lost::and)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard() -> (Report, Arc<Mutex<Vec<String>>>) {
        let texts = Arc::<Mutex<Vec<String>>>::default();
        let inner = Arc::clone(&texts);
        (Box::new(move |text: &str| inner.lock().unwrap().push(text.to_owned())), texts)
    }

    #[tokio::test]
    async fn every_process_has_a_file_whatever_it_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let settings = FilesSettings { dir: Some(dir.path().to_owned()), ..FilesSettings::default() };
        let (report, texts) = heard();
        let files = Files::start(settings, report);
        for name in ["web", "../a/b", "%2F"] {
            let file = files.of_process(name).unwrap().unwrap();
            assert_eq!(files.of_process(name).unwrap(), Some(file));
            files.write(file, format!("of {name}\n").into_bytes()).await;
        }
        assert_eq!(files.of_all().unwrap(), None);
        files.finish().await;
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("web.log"), "of web\n");
        assert_eq!(read("..%2Fa%2Fb.log"), "of ../a/b\n");
        assert_eq!(read("%252F.log"), "of %2F\n");
        assert_eq!(*texts.lock().unwrap(), [""; 0]);
    }

    #[tokio::test]
    async fn a_moved_file_is_left_alone_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let (now, moved) = (dir.path().join("web.log"), dir.path().join("moved"));
        let settings = FilesSettings { dir: Some(dir.path().to_owned()), ..FilesSettings::default() };
        let (report, _) = heard();
        let files = Files::start(settings, report);
        let file = files.of_process("web").unwrap().unwrap();
        files.write(file, b"one\n".to_vec()).await;
        std::fs::rename(&now, &moved).unwrap();
        files.write(file, b"two\n".to_vec()).await;
        files.reopen();
        files.write(file, b"three\n".to_vec()).await;
        files.finish().await;
        assert_eq!(std::fs::read_to_string(moved).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(now).unwrap(), "three\n");
    }

    #[tokio::test]
    async fn a_device_that_is_full_is_told_of_once() {
        let settings = FilesSettings { merged: Some("/dev/full".into()), ..FilesSettings::default() };
        let (report, texts) = heard();
        let files = Files::start(settings, report);
        let file = files.of_all().unwrap().unwrap();
        for _ in 0..50 {
            files.write(file, b"a line\n".to_vec()).await;
        }
        files.finish().await;
        let texts = texts.lock().unwrap();
        assert!(
            texts[0].starts_with("cannot write /dev/full: no space left on device; the processes go on"),
            "{texts:?}"
        );
        assert_eq!(texts[1..], ["50 lines (350 bytes) could not be written to logs"]);
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let (report, _) = heard();
        let files = Files::start(FilesSettings { dir: Some("/proc/none".into()), ..FilesSettings::default() }, report);
        let error = files.of_process("web").unwrap_err().to_string();
        assert_eq!(error, "cannot write logs to /proc/none/web.log: no such file or directory");
        files.queue.close();
    }
}
