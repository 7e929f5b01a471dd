//! One configuration from flags, environment and defaults.
