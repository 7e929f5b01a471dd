//! `hashkv`: the hash of a file's keys and their history, as a member that serves it would answer (server.md 3.9).
//!
//! etcd's file is walked twice and never held in memory: first for the newest record of each key that a compaction may have
//! spared, then for the hash. The file is only read; etcdutl's own command changes it, and its digest no longer fits.

use std::collections::HashMap;
use std::collections::HashSet;
use std::path::Path;

use bytes::Bytes;

use crate::common::answer::Answer;
use crate::common::failure::Failure;
use crate::common::revision::Revision;
use crate::ctl::flags::Flag;
use crate::ctl::flags::Kind;
use crate::server::checkpoint::Bucket;
use crate::server::checkpoint::Checkpoint;
use crate::server::checkpoint::Record;
use crate::server::checkpoint::store::RedbCheckpoint;
use crate::server::mvcc::compaction::FINISHED;
use crate::server::mvcc::compaction::SCHEDULED;
use crate::server::mvcc::hash::hash_kv;
use crate::server::mvcc::store::Store;
use crate::server::mvcc::view::ReadError;
use crate::server::snapshot::boltfile::KEY_BUCKET;
use crate::server::snapshot::contents::Import;
use crate::server::snapshot::contents::import_file;
use crate::utl::Session;
use crate::utl::command::Command;
use crate::utl::error::UtlError;
use crate::utl::file;
use crate::utl::print::Format;
use crate::utl::print::HashKv;

pub static COMMAND: Command = Command {
    arguments: "<filename>",
    flags: &[Flag::new("rev", Kind::Int, "", "newest revision to take in, 0 for all")],
    one_argument: true,
    ..Command::leaf("hashkv", "Prints the hash of a file's keys and their history", run)
};

fn run(session: &mut Session<'_>) -> Result<(), UtlError> {
    let format = Format::parse(session.values.text("write-out"))?;
    let (path, revision) = (session.words[0].clone(), session.values.int("rev"));
    let path = Path::new(&path);
    std::fs::metadata(path).map_err(|error| UtlError::call("stat", path, &error))?;
    let hash = match file::is_ours(path)? {
        true => hash_ours(path, revision)?,
        false => {
            let locked = file::open_bolt(path, session.values.duration("timeout"))?;
            hash_etcds(&import_file(file::bolt(&locked, path)?)?, revision)?
        }
    };
    session.print(&hash.format(format)?)
}

/// etcd's texts: here they are the store's own, without the server's name in front.
fn told(answer: &Answer) -> UtlError {
    UtlError::failed(match answer {
        Answer::Compacted => "mvcc: required revision has been compacted".to_owned(),
        Answer::FutureRevision => "mvcc: required revision is a future revision".to_owned(),
        other => other.to_string(),
    })
}

fn hash_ours(path: &Path, revision: i64) -> Result<HashKv, UtlError> {
    let checkpoint = RedbCheckpoint::open(path)?;
    let store = Store::restore(checkpoint.tables()?, &checkpoint.buckets()?.0)?;
    match hash_kv(&store.views(), revision) {
        Ok(found) => Ok(HashKv {
            hash: found.hash,
            hash_revision: found.hash_revision,
            compact_revision: found.compact_revision,
        }),
        Err(ReadError::Answer(answer)) => Err(told(&answer)),
        Err(ReadError::Failure(failure)) => Err(failure.into()),
    }
}

/// Revision up to which the file's history was ordered to be compacted; -1 for never.
fn compacted(import: &Import) -> i64 {
    let mark = |name: &'static str| {
        let bytes = import.buckets.get(&(Bucket::Meta, Bytes::from_static(name.as_bytes())));
        bytes.and_then(|bytes| Revision::from_storage_key(bytes)).map_or(-1, |(revision, _)| revision.main)
    };
    mark(FINISHED).max(mark(SCHEDULED))
}

fn hash_etcds(import: &Import, requested: i64) -> Result<HashKv, UtlError> {
    let compact_revision = compacted(import);
    let newest = import.last_revision()?.map_or(1, |revision| revision.main).max(compact_revision).max(1);
    if requested > 0 && requested < compact_revision {
        return Err(told(&Answer::Compacted));
    }
    if requested > newest {
        return Err(told(&Answer::FutureRevision));
    }
    let at = if requested == 0 { newest } else { requested };
    let kept = visible(import, at)?;
    let mut hash = crc32c::crc32c(KEY_BUCKET.as_bytes());
    for record in import.records()? {
        let record = record?;
        let Revision { main, .. } = record.revision;
        let superseded = main <= compact_revision && !kept.is_empty() && !kept.contains(&record.revision);
        if main > at || superseded || (main == compact_revision && record.tombstone) {
            continue;
        }
        hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, &record.storage_key()), &record.encoded());
    }
    Ok(HashKv { hash, hash_revision: at, compact_revision })
}

/// The records that a reader at a revision sees, as etcd keeps them: a put that follows a deletion of its key in that very
/// revision is not among them.
fn visible(import: &Import, at: i64) -> Result<HashSet<Revision>, Failure> {
    let mut newest_of: HashMap<Bytes, Revision> = HashMap::new();
    let mut deleted_at: HashSet<Bytes> = HashSet::new();
    for record in import.records()? {
        let Record { revision, tombstone, kv } = record?;
        if revision.main > at {
            break;
        }
        if tombstone {
            newest_of.remove(&kv.key);
            if revision.main == at {
                deleted_at.insert(kv.key);
            }
        } else if !deleted_at.contains(&kv.key) {
            newest_of.insert(kv.key, revision);
        }
    }
    Ok(newest_of.into_values().collect())
}
