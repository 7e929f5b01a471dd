//! Who belongs to the cluster, as the log says: members, removed ids, the cluster version.
//!
//! `membership` is the state that apply changes; `handle` is the copy that everybody else reads; `member` and `json`
//! spell it in etcd's bytes; `quorum` weighs a change before it is proposed; `v2_store` is the form that 3.4 to 3.6 expect in front of a snapshot.

pub mod handle;
pub mod json;
pub mod member;
pub mod membership;
pub mod quorum;
pub mod v2_store;
