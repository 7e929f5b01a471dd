//! The addresses of one peer and which of them is in use: after a failure the next one gets its turn.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use crate::server::peer::http_client::PeerUrl;

/// Addresses, shared by everything that talks to the peer.
#[derive(Debug)]
pub(super) struct RemoteUrls {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    urls: Vec<Arc<PeerUrl>>,
    picked: usize,
}

impl RemoteUrls {
    /// URLs that cannot be understood are left out with a log line: they came from the log or from a header, and a
    /// member must not die of another one's typing mistake (server.md 15, trap on MemberUpdate).
    pub fn new(urls: &[String]) -> RemoteUrls {
        RemoteUrls { state: Mutex::new(State { urls: parsed(urls), picked: 0 }) }
    }

    pub fn replace(&self, urls: &[String]) {
        *self.lock() = State { urls: parsed(urls), picked: 0 };
    }

    /// The address to use now; `None` if the peer has none.
    pub fn pick(&self) -> Option<Arc<PeerUrl>> {
        let state = self.lock();
        state.urls.get(state.picked).cloned()
    }

    /// `url` did not work. Moves on unless someone else did already.
    pub fn failed(&self, url: &Arc<PeerUrl>) {
        let mut state = self.lock();
        if state.urls.get(state.picked) == Some(url) {
            state.picked = (state.picked + 1) % state.urls.len();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parsed(urls: &[String]) -> Vec<Arc<PeerUrl>> {
    let parse = |url: &String| match PeerUrl::parse(url) {
        Ok(url) => Some(Arc::new(url)),
        Err(error) => {
            tracing::warn!(url, %error, "peer url is not usable");
            None
        }
    };
    urls.iter().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_address_is_followed_by_the_next() {
        let urls = RemoteUrls::new(&["http://a:1".to_owned(), "nonsense".to_owned(), "http://b:2".to_owned()]);
        let first = urls.pick().unwrap();
        assert_eq!(first.authority(), "a:1");
        urls.failed(&first);
        let second = urls.pick().unwrap();
        assert_eq!(second.authority(), "b:2");
        // Both streams fail on the same address: it counts once.
        urls.failed(&first);
        assert_eq!(urls.pick().unwrap().authority(), "b:2");
        urls.failed(&second);
        assert_eq!(urls.pick().unwrap().authority(), "a:1");
        urls.replace(&[]);
        assert_eq!(urls.pick(), None);
    }
}
