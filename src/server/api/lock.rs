//! The Lock service: locks for clients that bring no recipe of their own.

use tonic::Request;
use tonic::Response;
use tonic::Status;

use crate::common::concurrency::Queue;
use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::proto::v3lockpb::LockRequest;
use crate::proto::v3lockpb::LockResponse;
use crate::proto::v3lockpb::UnlockRequest;
use crate::proto::v3lockpb::UnlockResponse;
use crate::proto::v3lockpb::lock_server::Lock;
use crate::server::api::in_process::InProcess;
use crate::server::api::in_process::plain;
use crate::server::api::in_process::refused;

/// Serves Lock over the member itself.
#[derive(Clone)]
pub struct LockService {
    store: InProcess,
}

impl LockService {
    pub fn new(store: InProcess) -> LockService {
        LockService { store }
    }
}

#[tonic::async_trait]
impl Lock for LockService {
    /// Returns when the caller holds the lock. A caller that goes away before loses its place.
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let LockRequest { name, lease } = request.into_inner();
        let store = &self.store;
        let lease = store.lease(lease).await.map_err(plain)?;
        let queue = Queue::new(&name);
        let place = queue.enter(store, lease, Default::default()).await.map_err(refused)?;
        let held = store.hold(&place);
        match queue.wait(store, &place).await {
            Ok(header) => {
                held.keep();
                Ok(Response::new(LockResponse { header: Some(header), key: place.key }))
            }
            Err(error) => {
                held.leave().await;
                Err(refused(error))
            }
        }
    }

    /// Deletes the key, whoever holds the lock and whether it is there or not.
    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let request = DeleteRangeRequest { key: request.into_inner().key, ..DeleteRangeRequest::default() };
        let header = self.store.delete_range(request).await.map_err(plain)?.header;
        Ok(Response::new(UnlockResponse { header }))
    }
}
