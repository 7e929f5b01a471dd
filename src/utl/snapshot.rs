//! `snapshot status`: what a snapshot file holds, after a walk over every page of it; and a pointer for `snapshot save`.

use std::collections::HashSet;
use std::path::Path;

use bytes::Bytes;
use prost::Message;

use crate::common::failure::Failure;
use crate::common::revision::Revision;
use crate::common::version::Version;
use crate::proto::mvccpb::KeyValue;
use crate::server::checkpoint::Bucket;
use crate::server::snapshot::boltfile::KEY_BUCKET;
use crate::server::snapshot::boltfile::reader::BoltFile;
use crate::server::snapshot::contents::STORAGE_VERSION;
use crate::utl::Session;
use crate::utl::command::Command;
use crate::utl::command::Reach;
use crate::utl::error::UtlError;
use crate::utl::file;
use crate::utl::print::Format;
use crate::utl::print::Status;

pub static STATUS: Command = Command {
    arguments: "<filename>",
    ..Command::leaf("status", "Shows hash, revision, keys, size and version of a snapshot file", status)
};

pub static SAVE: Command = Command {
    arguments: "<filename>",
    reach: Reach::Hidden,
    ..Command::leaf("save", "Says which program saves snapshots", save)
};

fn save(session: &mut Session<'_>) -> Result<(), UtlError> {
    let client = match session.manner {
        crate::program::Manner::Original => "etcdctl",
        crate::program::Manner::Native => "quorate ctl",
    };
    Err(UtlError::bad_arguments(format!("In order to download snapshot use: `{client} snapshot save ...`")))
}

fn status(session: &mut Session<'_>) -> Result<(), UtlError> {
    let [path] = &session.words[..] else {
        return Err(UtlError::bad_arguments("snapshot status requires exactly one argument"));
    };
    let path = Path::new(path);
    let format = Format::parse(session.values.text("write-out"))?;
    let file = file::open_bolt(path, session.values.duration("timeout"))?;
    let bolt = file::bolt(&file, path)?;
    let status = status_of(&bolt).map_err(|failure| {
        UtlError::failed(format!("snapshot file integrity check failed. 1 errors found.\n{failure}"))
    })?;
    session.print(&status.format(format)?)
}

/// Walks the whole file. The digest behind it is not looked at (ctl.md 11, trap 29).
pub fn status_of(bolt: &BoltFile) -> Result<Status, Failure> {
    let mut status = Status { bytes: bolt.image_bytes(), ..Status::default() };
    let mut live: HashSet<Bytes> = HashSet::new();
    for name in bolt.buckets()? {
        let text = String::from_utf8_lossy(&name).into_owned();
        status.hash = crc32c::crc32c_append(status.hash, &name);
        for pair in bolt.pairs(&text)? {
            let (key, value) = pair?;
            status.hash = crc32c::crc32c_append(crc32c::crc32c_append(status.hash, &key), &value);
            if text == KEY_BUCKET {
                let (revision, tombstone) = Revision::from_storage_key(&key)
                    .ok_or_else(|| Failure::damaged(bolt.path(), format!("{} is no revision", key.escape_ascii())))?;
                status.revision = revision.main;
                let user = KeyValue::decode(value).map_err(|error| {
                    Failure::damaged(bolt.path(), format!("the pair of revision {revision} cannot be decoded: {error}"))
                })?;
                match tombstone {
                    true => live.remove(&user.key),
                    // Copied: a slice would keep its whole page.
                    false => live.insert(Bytes::copy_from_slice(&user.key)),
                };
            } else if text == Bucket::Meta.name() && key == STORAGE_VERSION {
                let version = std::str::from_utf8(&value).ok().and_then(Version::parse);
                status.version = version.map(|version| version.to_string()).unwrap_or_default();
            }
        }
    }
    status.keys = live.len() as u64;
    Ok(status)
}
