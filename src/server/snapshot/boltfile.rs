//! etcd's database file (bbolt format 2, server.md 14.7), read and written by our own code.
//!
//! ```text
//! page 0, 1   meta: root bucket, high-water mark, txid, FNV-1a; the valid one with the higher txid counts
//! pages …     branch and leaf pages of each bucket's tree; a pair larger than a page overflows into the next pages
//! last        leaf of the root bucket: bucket name → root page, or the bucket itself when it is small
//! ```
//!
//! `page` knows the bytes of a page, `reader` walks a file that may be damaged or made up, `writer` streams a new one.

pub mod page;
pub mod reader;
pub mod writer;

/// etcd's ten buckets, ascending as in its file. All of them always exist (server.md 14.6).
pub const BUCKETS: [&str; 10] =
    ["alarm", "auth", "authRoles", "authUsers", "cluster", "key", "lease", "members", "members_removed", "meta"];

/// The bucket of records.
pub const KEY_BUCKET: &str = "key";

#[cfg(test)]
mod tests;
