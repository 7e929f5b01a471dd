//! etcd's peer protocol: what other members, also real ones, see of us.
