//! What a call can end with, in the words that etcd's client uses (ctl.md 1.2).

use tonic::Code;
use tonic::Status;

use crate::common::answer::Answer;

/// Why no client could be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("etcdclient: no available endpoints")]
    NoEndpoints,
    #[error("{0}")]
    Tls(String),
    #[error("the authentication token holds characters that cannot be sent")]
    BadToken,
}

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// An error that the server chose from the catalogue: told without gRPC's wrapping.
    #[error("{0}")]
    Answer(Answer),
    /// The caller's deadline passed. `last` is what was wrong with the last connection attempt, if that was it.
    #[error("context deadline exceeded")]
    Deadline { last: Option<String> },
    #[error("context canceled")]
    Canceled,
    /// Anything else keeps its code and text.
    #[error("rpc error: code = {} desc = {}", code_name(.0.code()), .0.message())]
    Other(Status),
}

impl CallError {
    /// Sorts a status as etcd's client does: known texts first, then the two codes of a caller that stopped waiting.
    pub(super) fn of(status: Status) -> CallError {
        match Answer::from_text(status.message()) {
            // Not in etcd's table of client errors. A server's own deadline (7 s for a proposal) travels as UNKNOWN
            // and is not the caller's.
            Some(Answer::ProposalDropped | Answer::ContextDeadlineExceeded | Answer::ContextCanceled) | None => {
                match status.code() {
                    Code::DeadlineExceeded => CallError::Deadline { last: None },
                    Code::Cancelled => CallError::Canceled,
                    _ => CallError::Other(status),
                }
            }
            Some(answer) => CallError::Answer(answer),
        }
    }

    /// With gRPC's wrapping, as commands tell it that do not take it off.
    pub fn wrapped(&self) -> String {
        match self {
            CallError::Answer(answer) => format!("rpc error: code = {} desc = {answer}", code_name(answer.code())),
            CallError::Deadline { .. } | CallError::Canceled | CallError::Other(_) => self.to_string(),
        }
    }

    /// Whether the server said exactly this.
    pub fn is(&self, answer: &Answer) -> bool {
        matches!(self, CallError::Answer(said) if said == answer)
    }
}

/// A status as grpc-go prints it, for log lines.
pub(super) fn wrapped(status: &Status) -> String {
    format!("rpc error: code = {} desc = {}", code_name(status.code()), status.message())
}

/// A gRPC code by grpc-go's name.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_errors_lose_their_wrapping() {
        let check = |code: Code, text: &str, expected: &str| {
            assert_eq!(CallError::of(Status::new(code, text)).to_string(), expected);
        };
        check(Code::InvalidArgument, "etcdserver: key is not provided", "etcdserver: key is not provided");
        check(Code::DeadlineExceeded, "context deadline exceeded", "context deadline exceeded");
        check(Code::DeadlineExceeded, "stream terminated", "context deadline exceeded");
        check(Code::Cancelled, "context canceled", "context canceled");
        check(Code::Unknown, "context deadline exceeded", "rpc error: code = Unknown desc = context deadline exceeded");
        check(Code::Unknown, "raft proposal dropped", "rpc error: code = Unknown desc = raft proposal dropped");
        check(
            Code::Unimplemented,
            "unknown method RangeStream for service etcdserverpb.KV",
            "rpc error: code = Unimplemented desc = unknown method RangeStream for service etcdserverpb.KV",
        );
    }
}
