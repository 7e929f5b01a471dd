//! Who waits for which proposal's outcome.
