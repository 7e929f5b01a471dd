//! What one member does unasked: auto-compaction, quota, cluster version.
