//! Snapshots written by real etcd 3.6.14 and 3.7.1: our reader gives their contents and their hashes, and what we write
//! the real etcdutl reads.
