//! How a member starts: from its log, as part of a new cluster, or as one that joins.
