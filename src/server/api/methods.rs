//! Every gRPC method a client may call: its kind, and whether this release serves it.

use std::collections::HashMap;

/// How many messages go each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Unary,
    ServerStream,
    BidiStream,
}

impl Kind {
    /// The value of the label `grpc_type`.
    pub fn label(self) -> &'static str {
        match self {
            Kind::Unary => "unary",
            Kind::ServerStream => "server_stream",
            Kind::BidiStream => "bidi_stream",
        }
    }

    pub fn is_unary(self) -> bool {
        self == Kind::Unary
    }
}

/// One method of one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    pub service: &'static str,
    pub name: &'static str,
    pub kind: Kind,
}

impl Method {
    /// The path of the HTTP/2 request.
    pub fn path(&self) -> String {
        format!("/{}/{}", self.service, self.name)
    }

    /// Lock and election series appear in the metrics on first use only (server.md 11.1).
    pub fn counts_from_start(&self) -> bool {
        !self.service.starts_with("v3")
    }
}

use Kind::BidiStream;
use Kind::ServerStream;
use Kind::Unary;

/// Services and their methods (server.md 1.1).
const SERVICES: [(&str, &[(&str, Kind)]); 9] = [
    (
        "etcdserverpb.KV",
        &[
            ("Range", Unary),
            ("RangeStream", ServerStream),
            ("Put", Unary),
            ("DeleteRange", Unary),
            ("Txn", Unary),
            ("Compact", Unary),
        ],
    ),
    ("etcdserverpb.Watch", &[("Watch", BidiStream)]),
    (
        "etcdserverpb.Lease",
        &[
            ("LeaseGrant", Unary),
            ("LeaseRevoke", Unary),
            ("LeaseKeepAlive", BidiStream),
            ("LeaseTimeToLive", Unary),
            ("LeaseLeases", Unary),
        ],
    ),
    (
        "etcdserverpb.Cluster",
        &[
            ("MemberAdd", Unary),
            ("MemberRemove", Unary),
            ("MemberUpdate", Unary),
            ("MemberList", Unary),
            ("MemberPromote", Unary),
        ],
    ),
    (
        "etcdserverpb.Maintenance",
        &[
            ("Alarm", Unary),
            ("Status", Unary),
            ("Defragment", Unary),
            ("Hash", Unary),
            ("HashKV", Unary),
            ("Snapshot", ServerStream),
            ("MoveLeader", Unary),
            ("Downgrade", Unary),
        ],
    ),
    (
        "etcdserverpb.Auth",
        &[
            ("AuthEnable", Unary),
            ("AuthDisable", Unary),
            ("AuthStatus", Unary),
            ("Authenticate", Unary),
            ("UserAdd", Unary),
            ("UserGet", Unary),
            ("UserList", Unary),
            ("UserDelete", Unary),
            ("UserChangePassword", Unary),
            ("UserGrantRole", Unary),
            ("UserRevokeRole", Unary),
            ("RoleAdd", Unary),
            ("RoleGet", Unary),
            ("RoleList", Unary),
            ("RoleDelete", Unary),
            ("RoleGrantPermission", Unary),
            ("RoleRevokePermission", Unary),
        ],
    ),
    ("grpc.health.v1.Health", &[("Check", Unary), ("Watch", ServerStream)]),
    ("v3lockpb.Lock", &[("Lock", Unary), ("Unlock", Unary)]),
    (
        "v3electionpb.Election",
        &[("Campaign", Unary), ("Proclaim", Unary), ("Leader", Unary), ("Observe", ServerStream), ("Resign", Unary)],
    ),
];

/// Methods of etcd that this release answers with UNIMPLEMENTED: all of these services, and single ones of others.
const LATER_SERVICES: [&str; 1] = ["etcdserverpb.Auth"];
const LATER_METHODS: [&str; 1] = ["Downgrade"];

impl Method {
    pub fn is_served(&self) -> bool {
        !LATER_SERVICES.contains(&self.service) && !LATER_METHODS.contains(&self.name)
    }
}

pub fn all() -> impl Iterator<Item = Method> {
    SERVICES
        .iter()
        .flat_map(|(service, methods)| methods.iter().map(|(name, kind)| Method { service, name, kind: *kind }))
}

/// Methods by request path, with their place in `all`.
#[derive(Debug)]
pub struct MethodTable {
    by_path: HashMap<String, (usize, Method)>,
}

impl MethodTable {
    pub fn new() -> MethodTable {
        let by_path = all().enumerate().map(|(index, method)| (method.path(), (index, method))).collect();
        MethodTable { by_path }
    }

    pub fn find(&self, path: &str) -> Option<(usize, Method)> {
        self.by_path.get(path).copied()
    }
}

impl Default for MethodTable {
    fn default() -> MethodTable {
        MethodTable::new()
    }
}

/// What is said about a path that names no method, in grpc-go's words: clients of newer etcds fall back on them.
pub fn unknown_path(path: &str) -> String {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.rsplit_once('/')) else {
        return format!("malformed method name: \"{path}\"");
    };
    match SERVICES.iter().any(|(known, _)| *known == service) {
        true => format!("unknown method {method} for service {service}"),
        false => format!("unknown service {service}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_find_their_methods() {
        let table = MethodTable::new();
        let check = |path: &str, expected: Option<(Kind, bool)>| {
            let found = table.find(path).map(|(_, method)| (method.kind, method.is_served()));
            assert_eq!(found, expected, "{path}");
        };
        check("/etcdserverpb.KV/Range", Some((Unary, true)));
        check("/etcdserverpb.KV/RangeStream", Some((ServerStream, true)));
        check("/etcdserverpb.Watch/Watch", Some((BidiStream, true)));
        check("/grpc.health.v1.Health/Watch", Some((ServerStream, true)));
        check("/etcdserverpb.Maintenance/Snapshot", Some((ServerStream, true)));
        check("/etcdserverpb.Maintenance/MoveLeader", Some((Unary, true)));
        check("/etcdserverpb.Maintenance/Downgrade", Some((Unary, false)));
        check("/v3lockpb.Lock/Lock", Some((Unary, true)));
        check("/v3electionpb.Election/Observe", Some((ServerStream, true)));
        check("/etcdserverpb.KV/Nope", None);
        assert_eq!(all().count(), 51);
    }

    #[test]
    fn unknown_paths_are_named() {
        assert_eq!(unknown_path("/x.Y/Z"), "unknown service x.Y");
        assert_eq!(unknown_path("/etcdserverpb.KV/Z"), "unknown method Z for service etcdserverpb.KV");
        assert_eq!(unknown_path("nonsense"), "malformed method name: \"nonsense\"");
    }
}
