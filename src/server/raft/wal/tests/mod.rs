//! The log as a whole: round trips, crashes, damage, and the logs of real members.
