//! What clients see: gRPC services, HTTP endpoints.
