//! Streams a database image in chunks, its digest last (server.md 6.6).

use std::fs::File;
use std::io::Read;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use bytes::BytesMut;
use futures_core::Stream;
use sha2::Digest;
use sha2::Sha256;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tonic::Status;

use crate::proto::etcdserverpb::SnapshotResponse;

/// Bytes of the image in one message, as etcd sends them.
const CHUNK_BYTES: usize = 32 * 1024;

/// Messages read ahead of the caller: a slow one costs half a MiB, and a file on our disk.
const AHEAD_MAX: usize = 16;

/// An image that may still be written; the file has no name and goes with its handle.
#[derive(Debug)]
pub struct Image {
    pub file: File,
    /// Its length in the end.
    pub bytes: u64,
    /// How far it is written. Dropped by the receiver, the writing ends.
    pub written: watch::Receiver<Written>,
}

/// Bytes of an image that can be read, or why there will be no more.
pub type Written = Result<u64, String>;

impl Image {
    /// One that is written.
    pub fn whole(file: File, bytes: u64) -> Image {
        Image { file, bytes, written: watch::channel(Ok(bytes)).1 }
    }
}

/// The messages of one image. Dropping it ends the reading.
pub struct ImageStream {
    messages: mpsc::Receiver<Result<SnapshotResponse, Status>>,
}

impl ImageStream {
    /// Reads `image` on a thread of its own. `version` is told in every message.
    pub fn start(image: Image, version: String) -> ImageStream {
        let (sender, messages) = mpsc::channel(AHEAD_MAX);
        // It ends with the image, or when nobody listens any more.
        tokio::task::spawn_blocking(move || read(image, &version, &sender));
        ImageStream { messages }
    }
}

/// Reads everything; returns early when the receiver is gone.
fn read(image: Image, version: &str, sender: &mpsc::Sender<Result<SnapshotResponse, Status>>) {
    let Image { mut file, bytes, mut written } = image;
    let mut left = bytes;
    let mut readable = 0;
    let mut digest = Sha256::new();
    let message = |blob: Bytes, remaining_bytes: u64| {
        Ok(SnapshotResponse { header: None, remaining_bytes, blob, version: version.to_owned() })
    };
    while left > 0 {
        let mut chunk = BytesMut::zeroed(CHUNK_BYTES.min(usize::try_from(left).unwrap_or(CHUNK_BYTES)));
        let end = bytes - left + chunk.len() as u64;
        if readable < end {
            match until_written(&mut written, end) {
                Ok(upto) => readable = upto,
                Err(why) => {
                    let _ = sender.blocking_send(Err(Status::unknown(why)));
                    return;
                }
            }
        }
        if let Err(error) = file.read_exact(&mut chunk) {
            tracing::warn!(%error, "cannot read the image of a snapshot");
            let _ = sender.blocking_send(Err(Status::unknown(format!("cannot read the snapshot: {error}"))));
            return;
        }
        left -= chunk.len() as u64;
        digest.update(&chunk);
        if sender.blocking_send(message(chunk.freeze(), left)).is_err() {
            return;
        }
    }
    let _ = sender.blocking_send(message(Bytes::copy_from_slice(&digest.finalize()), 0));
}

/// Waits for so many bytes: how many there are then.
fn until_written(written: &mut watch::Receiver<Written>, end: u64) -> Written {
    let waiting = written.wait_for(|written| written.as_ref().map_or(true, |bytes| *bytes >= end));
    match tokio::runtime::Handle::current().block_on(waiting) {
        Ok(written) => written.clone(),
        Err(_) => Err("the snapshot was not written to its end".to_owned()),
    }
}

impl Stream for ImageStream {
    type Item = Result<SnapshotResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.messages.poll_recv(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Seek;
    use std::io::SeekFrom;
    use std::io::Write;

    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn chunks_count_down_and_the_digest_comes_last() {
        let mut file = tempfile::tempfile().unwrap();
        let contents: Vec<u8> = (0..CHUNK_BYTES * 20 + 7).map(|at| (at % 251) as u8).collect();
        file.write_all(&contents).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let image = Image::whole(file, contents.len() as u64);
        let messages: Vec<_> = ImageStream::start(image, "3.7.0".to_owned()).map(Result::unwrap).collect().await;
        let (digest, chunks) = messages.split_last().unwrap();
        assert_eq!(chunks.len(), 21);
        assert_eq!(chunks[0].remaining_bytes, (CHUNK_BYTES * 19 + 7) as u64);
        assert!(messages.iter().all(|message| message.version == "3.7.0" && message.header.is_none()));
        let sent: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.blob.to_vec()).collect();
        assert!(sent == contents);
        assert_eq!((digest.remaining_bytes, &digest.blob[..]), (0, &Sha256::digest(&contents)[..]));
    }

    #[tokio::test]
    async fn an_image_that_is_too_short_is_an_error() {
        let image = Image::whole(tempfile::tempfile().unwrap(), 5);
        let messages: Vec<_> = ImageStream::start(image, String::new()).collect().await;
        assert!(messages.len() == 1 && messages[0].is_err());
    }

    #[tokio::test]
    async fn an_image_is_read_while_it_grows_and_its_writer_may_fail() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let (sender, written) = watch::channel(Ok(0));
        let bytes = 3 * CHUNK_BYTES as u64;
        let mut stream = ImageStream::start(Image { file: file.reopen().unwrap(), bytes, written }, String::new());
        for number in 1..=2 {
            let waiting = tokio::time::timeout(std::time::Duration::from_millis(20), stream.next()).await;
            assert!(waiting.is_err(), "nothing of chunk {number} can be read");
            file.write_all(&[number; CHUNK_BYTES]).unwrap();
            drop(sender.send_replace(Ok(u64::from(number) * CHUNK_BYTES as u64)));
            let chunk = stream.next().await.unwrap().unwrap();
            assert_eq!((chunk.blob.len(), chunk.blob[0]), (CHUNK_BYTES, number));
        }
        drop(sender.send_replace(Err("no room".to_owned())));
        let failed = stream.next().await.unwrap().unwrap_err();
        assert_eq!((failed.code(), failed.message()), (tonic::Code::Unknown, "no room"));
        assert!(stream.next().await.is_none());
        assert!(sender.is_closed(), "the writer hears that nobody reads");
    }

    #[tokio::test]
    async fn an_image_whose_writer_is_gone_is_an_error() {
        let (_, written) = watch::channel(Ok(3));
        let image = Image { file: tempfile::tempfile().unwrap(), bytes: 5, written };
        let messages: Vec<_> = ImageStream::start(image, String::new()).collect().await;
        let texts: Vec<&str> = messages.iter().map(|message| message.as_ref().unwrap_err().message()).collect();
        assert_eq!(texts, ["the snapshot was not written to its end"]);
    }
}
