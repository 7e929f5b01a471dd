//! Answers of the peer port: the body type, and the shapes that Go's HTTP library gives errors.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::Response;
use http::StatusCode;
use http::header::ALLOW;
use http::header::CONTENT_TYPE;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use http_body_util::Full;

use crate::common::ids::ClusterId;
use crate::server::peer::headers;
use crate::server::peer::stream_out::StreamBody;

const PLAIN_TEXT: &str = "text/plain; charset=utf-8";

/// A whole body, or a stream that stays open.
pub(super) enum ReplyBody {
    Whole(Full<Bytes>),
    Stream(Box<StreamBody>),
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            ReplyBody::Whole(body) => Pin::new(body).poll_frame(context),
            ReplyBody::Stream(body) => Pin::new(body.as_mut()).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ReplyBody::Whole(body) => body.is_end_stream(),
            ReplyBody::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ReplyBody::Whole(body) => body.size_hint(),
            ReplyBody::Stream(body) => body.size_hint(),
        }
    }
}

pub(super) type Reply = Response<ReplyBody>;

pub(super) fn whole(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(ReplyBody::Whole(Full::new(body.into())));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

pub(super) fn json(body: impl Into<Bytes>) -> Reply {
    whole(StatusCode::OK, "application/json", body)
}

pub(super) fn plain(body: impl Into<Bytes>) -> Reply {
    whole(StatusCode::OK, PLAIN_TEXT, body)
}

/// A text and a line end, as Go's `http.Error`.
pub(super) fn error(status: StatusCode, text: impl std::fmt::Display) -> Reply {
    let mut reply = whole(status, PLAIN_TEXT, format!("{text}\n"));
    let nosniff = HeaderValue::from_static("nosniff");
    reply.headers_mut().insert(HeaderName::from_static("x-content-type-options"), nosniff);
    reply
}

pub(super) fn not_found() -> Reply {
    error(StatusCode::NOT_FOUND, "404 page not found")
}

/// 405; `/leases` says it without `Allow`.
pub(super) fn not_allowed(allow: Option<&Method>) -> Reply {
    let mut reply = error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    if let Some(value) = allow.and_then(|method| HeaderValue::from_str(method.as_str()).ok()) {
        reply.headers_mut().insert(ALLOW, value);
    }
    reply
}

pub(super) fn no_content() -> Reply {
    let mut reply = Response::new(ReplyBody::Whole(Full::default()));
    *reply.status_mut() = StatusCode::NO_CONTENT;
    reply
}

/// Adds the id that every answer of raft's paths carries.
pub(super) fn with_cluster(mut reply: Reply, cluster: ClusterId) -> Reply {
    reply.headers_mut().insert(headers::CLUSTER_ID, headers::text_value(cluster.to_string()));
    reply
}
