//! What apply shows to everybody else: the views of the store, the members, the alarms, the leases, the space used.
//!
//! All of it is shown before any waiter of the same batch is answered, so nobody is told of a change that a read on
//! this member cannot see.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::server::apply::alarm::AlarmsHandle;
use crate::server::apply::quota::Space;
use crate::server::cluster::handle::ClusterHandle;
use crate::server::lease::handle::LeasesHandle;
use crate::server::mvcc::view::View;
use crate::server::mvcc::view::Views;

/// The read side of the applied state. Clones show the same.
#[derive(Clone)]
pub struct Published {
    pub cluster: ClusterHandle,
    pub alarms: AlarmsHandle,
    pub space: Space,
    pub leases: LeasesHandle,
    /// Replaced as a whole when a snapshot is installed.
    views: Arc<ArcSwap<Views>>,
}

impl Published {
    pub fn new(cluster: ClusterHandle, alarms: AlarmsHandle, space: Space, views: Views) -> Published {
        Published {
            cluster,
            alarms,
            space,
            leases: LeasesHandle::default(),
            views: Arc::new(ArcSwap::from_pointee(views)),
        }
    }

    /// The newest view. Holders of one take a new one at least every 5 s (DESIGN.md 4).
    pub fn view(&self) -> Arc<View> {
        self.views.load().current()
    }

    /// The store's views, for HashKV and its cache. Not to be kept: a snapshot replaces them.
    pub fn views(&self) -> Arc<Views> {
        self.views.load_full()
    }

    /// The store was replaced.
    pub fn set_views(&self, views: Views) {
        self.views.store(Arc::new(views));
    }
}
