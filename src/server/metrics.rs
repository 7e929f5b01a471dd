//! The registry behind /metrics, under etcd's names.
