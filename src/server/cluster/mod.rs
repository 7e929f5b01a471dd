//! Who the members are, as the log says.
