//! Every error that travels to a client: etcd's texts and codes, each in one place.
//!
//! An *answer* is the same on every member and costs its request only. A *failure* (disk, corruption) is not in here: it
//! stops the node. Source: server.md 2.1 and 2.2.

use tonic::Code;
use tonic::Status;

macro_rules! answers {
    ($($name:ident => $code:ident, $text:literal;)*) => {
        /// What went wrong, by etcd's name. `Display` is the exact text on the wire.
        #[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
        pub enum Answer {
            $(#[error($text)] $name,)*
            /// Outside the catalogue: travels as UNKNOWN with this text.
            #[error("{0}")]
            Other(String),
        }

        impl Answer {
            /// The gRPC code that real etcd puts on the wire.
            pub fn code(&self) -> Code {
                match self {
                    $(Answer::$name => Code::$code,)*
                    Answer::Other(_) => Code::Unknown,
                }
            }

            /// The catalogue entry with exactly this text.
            pub fn from_text(text: &str) -> Option<Answer> {
                match text {
                    $($text => Some(Answer::$name),)*
                    _ => None,
                }
            }
        }
    };
}

answers! {
    EmptyKey => InvalidArgument, "etcdserver: key is not provided";
    KeyNotFound => InvalidArgument, "etcdserver: key not found";
    ValueProvided => InvalidArgument, "etcdserver: value is provided";
    LeaseProvided => InvalidArgument, "etcdserver: lease is provided";
    TooManyOps => InvalidArgument, "etcdserver: too many operations in txn request";
    DuplicateKey => InvalidArgument, "etcdserver: duplicate key given in txn request";
    InvalidClientApiVersion => InvalidArgument, "etcdserver: invalid client api version";
    InvalidSortOption => InvalidArgument, "etcdserver: invalid sort option";
    Compacted => OutOfRange, "etcdserver: mvcc: required revision has been compacted";
    FutureRevision => OutOfRange, "etcdserver: mvcc: required revision is a future revision";
    NoSpace => ResourceExhausted, "etcdserver: mvcc: database space exceeded";
    LeaseNotFound => NotFound, "etcdserver: requested lease not found";
    LeaseExists => FailedPrecondition, "etcdserver: lease already exists";
    LeaseTtlTooLarge => OutOfRange, "etcdserver: too large lease TTL";
    WatchCanceled => Cancelled, "etcdserver: watch canceled";
    MemberExists => FailedPrecondition, "etcdserver: member ID already exist";
    PeerUrlExists => FailedPrecondition, "etcdserver: Peer URLs already exists";
    // Declared FAILED_PRECONDITION, sent UNKNOWN (server.md 2.2).
    NotEnoughStartedMembers => Unknown, "etcdserver: re-configuration failed due to not enough started members";
    BadMemberUrls => InvalidArgument, "etcdserver: given member URLs are invalid";
    MemberNotFound => NotFound, "etcdserver: member not found";
    MemberNotLearner => FailedPrecondition, "etcdserver: can only promote a learner member";
    LearnerNotReady => FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader";
    TooManyLearners => FailedPrecondition, "etcdserver: too many learner members in cluster";
    ClusterIdMismatch => FailedPrecondition, "etcdserver: cluster ID mismatch";
    RequestTooLarge => InvalidArgument, "etcdserver: request is too large";
    // Declared RESOURCE_EXHAUSTED, sent UNKNOWN (server.md 2.2).
    TooManyRequests => Unknown, "etcdserver: too many requests";
    RootUserNotExist => FailedPrecondition, "etcdserver: root user does not exist";
    RootRoleNotExist => FailedPrecondition, "etcdserver: root user does not have root role";
    UserExists => FailedPrecondition, "etcdserver: user name already exists";
    UserEmpty => InvalidArgument, "etcdserver: user name is empty";
    UserNotFound => FailedPrecondition, "etcdserver: user name not found";
    RoleExists => FailedPrecondition, "etcdserver: role name already exists";
    RoleNotFound => FailedPrecondition, "etcdserver: role name not found";
    RoleEmpty => InvalidArgument, "etcdserver: role name is empty";
    AuthFailed => InvalidArgument, "etcdserver: authentication failed, invalid user ID or password";
    PermissionNotGiven => InvalidArgument, "etcdserver: permission not given";
    PermissionDenied => PermissionDenied, "etcdserver: permission denied";
    RoleNotGranted => FailedPrecondition, "etcdserver: role is not granted to the user";
    PermissionNotGranted => FailedPrecondition, "etcdserver: permission is not granted to the role";
    AuthNotEnabled => FailedPrecondition, "etcdserver: authentication is not enabled";
    InvalidAuthToken => Unauthenticated, "etcdserver: invalid auth token";
    InvalidAuthManagement => InvalidArgument, "etcdserver: invalid auth management";
    AuthOldRevision => InvalidArgument, "etcdserver: revision of auth store is old";
    NoLeader => Unavailable, "etcdserver: no leader";
    NotLeader => FailedPrecondition, "etcdserver: not leader";
    LeaderChanged => Unavailable, "etcdserver: leader changed";
    NotCapable => FailedPrecondition, "etcdserver: not capable";
    Stopped => Unavailable, "etcdserver: server stopped";
    Timeout => Unavailable, "etcdserver: request timed out";
    TimeoutLeaderFailure => Unavailable, "etcdserver: request timed out, possibly due to previous leader failure";
    TimeoutConnectionLost => Unavailable, "etcdserver: request timed out, possibly due to connection lost";
    TimeoutWaitAppliedIndex => Unavailable, "etcdserver: request timed out, waiting for the applied index took too long";
    Unhealthy => Unavailable, "etcdserver: unhealthy cluster";
    Corrupt => DataLoss, "etcdserver: corrupt cluster";
    NotSupportedForLearner => FailedPrecondition, "etcdserver: rpc not supported for learner";
    BadLeaderTransferee => FailedPrecondition, "etcdserver: bad leader transferee";
    WrongDowngradeVersionFormat => InvalidArgument, "etcdserver: wrong downgrade target version format";
    InvalidDowngradeTarget => InvalidArgument, "etcdserver: invalid downgrade target version";
    ClusterVersionNotFound => FailedPrecondition, "etcdserver: cluster version not found during downgrade";
    DowngradeInProgress => FailedPrecondition, "etcdserver: cluster has a downgrade job in progress";
    NoInflightDowngrade => FailedPrecondition, "etcdserver: no inflight downgrade job";
    RequestCanceled => Cancelled, "etcdserver: request canceled";
    // What a handler really sends when the caller's deadline passes or the caller goes away (server.md 2.2).
    ContextDeadlineExceeded => DeadlineExceeded, "context deadline exceeded";
    ContextCanceled => Cancelled, "context canceled";
    ProposalDropped => Unknown, "raft proposal dropped";
}

impl From<Answer> for Status {
    fn from(answer: Answer) -> Status {
        Status::new(answer.code(), answer.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_travel_with_etcds_codes() {
        let check = |answer: Answer, code: Code, text: &str| {
            let status = Status::from(answer);
            assert_eq!((status.code(), status.message()), (code, text));
        };
        check(Answer::Compacted, Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
        check(Answer::TooManyRequests, Code::Unknown, "etcdserver: too many requests");
        check(Answer::Other("x".to_owned()), Code::Unknown, "x");
        assert_eq!(Answer::from_text("etcdserver: no leader"), Some(Answer::NoLeader));
        assert_eq!(Answer::from_text("nothing"), None);
    }
}
