//! What release the other members run, asked over their peer port.
