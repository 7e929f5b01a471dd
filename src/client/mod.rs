//! What ctl, proxy, bench and supervisor speak to a member with: endpoints, balancing, calls.
