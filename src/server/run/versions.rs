//! What release the other members run, asked over their peer port.

use std::time::Duration;

use serde::Deserialize;

use crate::common::version::Version;
use crate::server::cluster::member::Member;
use crate::server::duties::version::VersionSource;
use crate::server::peer::dialer::Dialer;
use crate::server::peer::fetch::fetch_version;

/// For one member's answer. A member that is down must not hold up the others for long.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Asks each member's `/version`.
pub struct PeerVersions(pub Dialer);

#[derive(Deserialize)]
struct Answer {
    etcdserver: String,
}

#[tonic::async_trait]
impl VersionSource for PeerVersions {
    async fn server_version(&self, member: &Member) -> Option<Version> {
        for url in &member.peer_urls {
            match fetch_version(&self.0, url, TIMEOUT).await {
                Ok(json) => {
                    let answer: Option<Answer> = serde_json::from_str(&json).ok();
                    return answer.and_then(|answer| Version::parse(&answer.etcdserver));
                }
                Err(error) => tracing::debug!(member = %member.id, %error, "cannot get a member's version"),
            }
        }
        None
    }
}
