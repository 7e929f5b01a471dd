//! Who a member without a log is: decided from the command line, with a question to the others.

use std::net::ToSocketAddrs;
use std::time::Duration;

use crate::common::urls;
use crate::common::urls::Url;
use crate::common::version::ETCD_VERSION;
use crate::common::version::MIN_CLUSTER_VERSION;
use crate::common::version::Version;
use crate::server::bootstrap;
use crate::server::bootstrap::BootstrapError;
use crate::server::bootstrap::Identity;
use crate::server::bootstrap::RemoteMember;
use crate::server::config::ClusterState;
use crate::server::config::Config;
use crate::server::config::initial_cluster::InitialCluster;
use crate::server::peer::dialer::Dialer;
use crate::server::peer::fetch::fetch_members;
use crate::server::peer::fetch::fetch_version;

/// For one member's answer to a founder: mostly the others are not up yet.
const FOUNDER_TIMEOUT: Duration = Duration::from_secs(1);
/// For one member's answer to a member that joins.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The identity, and whether it is a founder's.
pub async fn decide(config: &Config, dialer: &Dialer) -> Result<(Identity, bool), String> {
    let cluster = config.initial_cluster()?;
    let advertised = urls::strings(&config.advertise_peer_urls);
    match config.initial_cluster_state {
        ClusterState::New => found(config, dialer, &cluster, &advertised).await.map(|identity| (identity, true)),
        ClusterState::Existing => join(config, dialer, &cluster).await.map(|identity| (identity, false)),
    }
}

async fn found(
    config: &Config,
    dialer: &Dialer,
    cluster: &InitialCluster,
    advertised: &[String],
) -> Result<Identity, String> {
    let token = &config.initial_cluster_token;
    let identity = bootstrap::new_cluster(&config.name, advertised, cluster, token, &resolve);
    let identity = identity.map_err(|error| error.to_string())?;
    let others = other_urls(config, cluster);
    if let Ok((_, json)) = fetch_members(dialer, &others, FOUNDER_TIMEOUT).await {
        let remote = parse_members(&json)?;
        bootstrap::check_not_bootstrapped(identity.local, &remote).map_err(|error| error.to_string())?;
    }
    Ok(identity)
}

async fn join(config: &Config, dialer: &Dialer, cluster: &InitialCluster) -> Result<Identity, String> {
    let others = other_urls(config, cluster);
    let no_remote = || BootstrapError::NoRemote.to_string();
    let (cluster_id, json) = fetch_members(dialer, &others, JOIN_TIMEOUT).await.map_err(|_| no_remote())?;
    let remote = parse_members(&json)?;
    let identity = bootstrap::join_cluster(&config.name, cluster, cluster_id, &remote, &resolve);
    let identity = identity.map_err(|error| error.to_string())?;
    check_compatible(dialer, &others).await?;
    Ok(identity)
}

/// The cluster's version must be one that we can serve (server.md 6.8).
async fn check_compatible(dialer: &Dialer, others: &[String]) -> Result<(), String> {
    #[derive(serde::Deserialize)]
    struct Answer {
        etcdcluster: String,
    }
    let mut answered = false;
    for url in others {
        let Ok(json) = fetch_version(dialer, url, JOIN_TIMEOUT).await else { continue };
        answered = true;
        let version = serde_json::from_str::<Answer>(&json).ok();
        // One that has not applied the decision yet says nothing about it; another one may.
        let Some(version) = version.and_then(|answer| Version::parse(&answer.etcdcluster)) else { continue };
        let (version, ours) = (Some(version.line()), Version::parse(ETCD_VERSION).map(Version::line));
        return match version >= Version::parse(MIN_CLUSTER_VERSION) && version <= ours {
            true => Ok(()),
            false => Err(BootstrapError::Incompatible.to_string()),
        };
    }
    Err(if answered { BootstrapError::Incompatible } else { BootstrapError::NoRemote }.to_string())
}

fn parse_members(json: &str) -> Result<Vec<RemoteMember>, String> {
    serde_json::from_str(json).map_err(|error| format!("cannot read the members of the cluster: {error}"))
}

/// Peer URLs of everybody but us.
fn other_urls(config: &Config, cluster: &InitialCluster) -> Vec<String> {
    let others = cluster.iter().filter(|(name, _)| **name != config.name);
    others.flat_map(|(_, urls)| urls.clone()).collect()
}

/// A URL with its host resolved, for comparing. As in etcd, `localhost` stays what it is.
pub fn resolve(url: &str) -> Result<String, String> {
    let parsed = Url::parse(url)?;
    if parsed.host() == "localhost" {
        return Ok(url.to_owned());
    }
    let mut addresses = parsed.authority().to_socket_addrs().map_err(|error| error.to_string())?;
    let address = addresses.next().ok_or_else(|| format!("{url} has no address"))?;
    Ok(format!("{}://{address}", parsed.scheme().as_str()))
}
