//! The standard gRPC health service: the empty name is known, and serving as long as this member runs.

use std::pin::Pin;
use std::task::Context;
use std::task::Poll;

use futures_core::Stream;
use tonic::Request;
use tonic::Response;
use tonic::Status;

use crate::proto::health::HealthCheckRequest;
use crate::proto::health::HealthCheckResponse;
use crate::proto::health::health_check_response::ServingStatus;
use crate::proto::health::health_server::Health;

/// Serves grpc.health.v1.
#[derive(Clone, Copy, Debug, Default)]
pub struct HealthService;

/// One status, then silence until the caller leaves: it never changes while the port answers.
#[derive(Debug)]
pub struct StatusStream {
    next: Option<ServingStatus>,
}

impl Stream for StatusStream {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.next.take() {
            Some(status) => Poll::Ready(Some(Ok(HealthCheckResponse { status: status as i32 }))),
            // Nothing will wake this stream but the end of the connection, which drops it.
            None => Poll::Pending,
        }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match request.into_inner().service.is_empty() {
            true => Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving as i32 })),
            false => Err(Status::not_found("unknown service")),
        }
    }

    type WatchStream = StatusStream;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<StatusStream>, Status> {
        let known = request.into_inner().service.is_empty();
        let status = if known { ServingStatus::Serving } else { ServingStatus::ServiceUnknown };
        Ok(Response::new(StatusStream { next: Some(status) }))
    }
}
