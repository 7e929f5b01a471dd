//! Which leases exist and which keys they hold, as the log says.
