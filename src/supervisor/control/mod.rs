//! Control of a running supervisor by another process: goreman's RPC (`client`, `server`, `gob`), and HTTP with JSON on
//! the project's socket, or on a TCP port with a `token` (`http_client`, `http_server`, `messages`), both sides of each.

pub mod campaigns;
pub mod client;
pub mod gob;
pub mod http_client;
pub mod http_server;
pub mod messages;
pub mod query;
pub mod server;
pub mod streams;
pub mod token;
pub mod vocabulary;

use tokio::sync::oneshot;

/// What may be asked of a running supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Start,
    Stop,
    StopAll,
    Restart,
    RestartAll,
    List,
    Status,
}

/// Word on the command line and method on the wire.
const VERBS: [(&str, &str, Verb); 7] = [
    ("start", "Goreman.Start", Verb::Start),
    ("stop", "Goreman.Stop", Verb::Stop),
    ("stop-all", "Goreman.StopAll", Verb::StopAll),
    ("restart", "Goreman.Restart", Verb::Restart),
    ("restart-all", "Goreman.RestartAll", Verb::RestartAll),
    ("list", "Goreman.List", Verb::List),
    ("status", "Goreman.Status", Verb::Status),
];

impl Verb {
    pub fn from_word(word: &str) -> Option<Verb> {
        VERBS.iter().find(|(known, ..)| *known == word).map(|(_, _, verb)| *verb)
    }

    pub fn from_method(method: &str) -> Option<Verb> {
        VERBS.iter().find(|(_, known, _)| *known == method).map(|(_, _, verb)| *verb)
    }

    pub fn method(self) -> &'static str {
        VERBS.iter().find(|(.., verb)| *verb == self).map_or("", |(_, method, _)| method)
    }
}

/// One request, and where its answer goes.
#[derive(Debug)]
pub struct Request {
    pub verb: Verb,
    pub names: Vec<String>,
    pub answer: oneshot::Sender<Result<String, String>>,
}
