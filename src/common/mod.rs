//! What every part shares: ids, revisions, key ranges, the error catalogue, Go's durations, URLs, versions.

pub mod answer;
pub mod concurrency;
pub mod failure;
pub mod go_duration;
pub mod ids;
pub mod key_range;
pub mod logging;
pub mod os_reason;
pub mod procfs;
pub mod revision;
pub mod tls;
pub mod urls;
pub mod version;
pub mod yaml;
