//! How a member starts when it has no log yet: as a founder of a new cluster, or joining one that exists.
//!
//! Pure but for name resolution, which is passed in. Source: server.md 10.1, 10.2, 6.1.

use crate::common::ids::ClusterId;
use crate::common::ids::MemberId;
use crate::server::config::initial_cluster::InitialCluster;

/// A member as it is known before the first entry is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founder {
    pub id: MemberId,
    pub name: String,
    /// Sorted.
    pub peer_urls: Vec<String>,
}

/// Who we are and who the others are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub local: MemberId,
    pub cluster: ClusterId,
    /// Ascending by id.
    pub members: Vec<Founder>,
}

/// A member of a running cluster, from the JSON of its peers' `/members`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub struct RemoteMember {
    pub id: u64,
    #[serde(rename = "peerURLs", default)]
    pub peer_urls: Vec<String>,
    #[serde(default)]
    pub name: String,
    #[serde(rename = "clientURLs", default)]
    pub client_urls: Vec<String>,
}

/// Why this member cannot start. Texts are etcd's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapError {
    #[error("couldn't find local name \"{0}\" in the initial cluster configuration")]
    NoLocalName(String),
    #[error("initial cluster {0} has duplicate url")]
    DuplicateUrl(String),
    #[error("--initial-cluster has {entry} but missing from --initial-advertise-peer-urls={advertised} ({why})")]
    NotAdvertised { entry: String, advertised: String, why: String },
    #[error("--initial-advertise-peer-urls has {entry} but missing from --initial-cluster={cluster}")]
    NotInInitialCluster { entry: String, cluster: String },
    #[error("member {0} has already been bootstrapped")]
    AlreadyBootstrapped(MemberId),
    #[error("error validating peerURLs {0}: member count is unequal")]
    CountUnequal(String),
    #[error(
        "error validating peerURLs {urls}: PeerURLs: no match found for existing member ({id}, [{remote}]), last resolver error (<nil>)"
    )]
    NoMatch { urls: String, id: MemberId, remote: String },
    #[error("cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs")]
    NoRemote,
    #[error("incompatible with current running cluster")]
    Incompatible,
}

/// Compares URL lists that are spelled differently: gives each URL with its host as an address, or an error text.
pub type Resolve<'a> = &'a dyn Fn(&str) -> Result<String, String>;

/// The identity of a founder: ids from peer URLs and token, the same on all founders.
pub fn new_cluster(
    name: &str,
    advertised: &[String],
    cluster: &InitialCluster,
    token: &str,
    resolve: Resolve<'_>,
) -> Result<Identity, BootstrapError> {
    let own = cluster.get(name).ok_or_else(|| BootstrapError::NoLocalName(name.to_owned()))?;
    check_duplicates(cluster)?;
    check_advertised(name, own, advertised, resolve)?;
    let mut members: Vec<Founder> = cluster
        .iter()
        .map(|(name, urls)| Founder {
            id: MemberId::of_bootstrap_member(urls, token),
            name: name.clone(),
            peer_urls: sorted(urls),
        })
        .collect();
    members.sort_by_key(|member| member.id);
    let ids: Vec<MemberId> = members.iter().map(|member| member.id).collect();
    Ok(Identity { local: MemberId::of_bootstrap_member(own, token), cluster: ClusterId::of_members(&ids), members })
}

/// A founder that its peers already know with client URLs has run before and lost its log: it must not vote again.
pub fn check_not_bootstrapped(local: MemberId, remote: &[RemoteMember]) -> Result<(), BootstrapError> {
    let known = remote.iter().find(|member| member.id == local.0);
    match known {
        Some(member) if !member.client_urls.is_empty() => Err(BootstrapError::AlreadyBootstrapped(local)),
        _ => Ok(()),
    }
}

/// The identity of a member that joins: ids come from the running cluster, matched by peer URLs.
pub fn join_cluster(
    name: &str,
    cluster: &InitialCluster,
    cluster_id: ClusterId,
    remote: &[RemoteMember],
    resolve: Resolve<'_>,
) -> Result<Identity, BootstrapError> {
    let own = cluster.get(name).ok_or_else(|| BootstrapError::NoLocalName(name.to_owned()))?;
    check_duplicates(cluster)?;
    let all = || format_urls(cluster);
    if remote.len() != cluster.len() {
        return Err(BootstrapError::CountUnequal(all()));
    }
    let mut local = None;
    let mut members = Vec::new();
    for member in remote {
        let entry = cluster.iter().find(|(_, urls)| same_urls(urls, &member.peer_urls, resolve));
        let Some((entry_name, urls)) = entry else {
            let remote = member.peer_urls.join(" ");
            return Err(BootstrapError::NoMatch { urls: all(), id: MemberId(member.id), remote });
        };
        if entry_name == name {
            local = Some(MemberId(member.id));
        }
        members.push(Founder { id: MemberId(member.id), name: entry_name.clone(), peer_urls: sorted(urls) });
    }
    members.sort_by_key(|member| member.id);
    let local = local.ok_or_else(|| BootstrapError::NoMatch { urls: all(), id: MemberId(0), remote: own.join(" ") })?;
    Ok(Identity { local, cluster: cluster_id, members })
}

fn check_duplicates(cluster: &InitialCluster) -> Result<(), BootstrapError> {
    let mut urls: Vec<&String> = cluster.values().flatten().collect();
    let count = urls.len();
    urls.sort_unstable();
    urls.dedup();
    if urls.len() == count { Ok(()) } else { Err(BootstrapError::DuplicateUrl(format_cluster(cluster))) }
}

fn check_advertised(
    name: &str,
    own: &[String],
    advertised: &[String],
    resolve: Resolve<'_>,
) -> Result<(), BootstrapError> {
    let Err(why) = compare_urls(advertised, own, resolve) else { return Ok(()) };
    let (own, advertised) = (sorted(own), sorted(advertised));
    let entries = |urls: &[String], others: &[String]| {
        let missing = urls.iter().filter(|url| !others.contains(url)).map(|url| format!("{name}={url}"));
        missing.collect::<Vec<_>>().join(",")
    };
    let entry = entries(&own, &advertised);
    if !entry.is_empty() {
        return Err(BootstrapError::NotAdvertised { entry, advertised: advertised.join(","), why });
    }
    // Not equal, and everything of the one list is in the other: the other has more.
    let cluster = own.iter().map(|url| format!("{name}={url}")).collect::<Vec<_>>().join(",");
    Err(BootstrapError::NotInInitialCluster { entry: entries(&advertised, &own), cluster })
}

fn same_urls(left: &[String], right: &[String], resolve: Resolve<'_>) -> bool {
    compare_urls(left, right, resolve).is_ok()
}

/// Equal as written, or equal once hosts are resolved; else why not, in etcd's words.
fn compare_urls(left: &[String], right: &[String], resolve: Resolve<'_>) -> Result<(), String> {
    if sorted(left) == sorted(right) {
        return Ok(());
    }
    if left.len() != right.len() {
        let quoted = |urls: &[String]| urls.iter().map(|url| format!("{url:?}")).collect::<Vec<_>>().join(" ");
        return Err(format!("len([{}]) != len([{}])", quoted(left), quoted(right)));
    }
    let resolved = |urls: &[String]| -> Result<Vec<String>, String> {
        let urls = urls.iter().map(|url| resolve(url)).collect::<Result<Vec<_>, _>>()?;
        Ok(sorted(&urls))
    };
    let (left, right) = (resolved(left)?, resolved(right)?);
    match left.iter().zip(&right).find(|(left, right)| left != right) {
        Some((left, right)) => Err(format!("resolved urls: {left:?} != {right:?}")),
        None => Ok(()),
    }
}

/// `name=url` pairs sorted by name, as etcd prints a cluster.
fn format_cluster(cluster: &InitialCluster) -> String {
    let pairs = cluster.iter().flat_map(|(name, urls)| urls.iter().map(move |url| format!("{name}={url}")));
    pairs.collect::<Vec<_>>().join(",")
}

fn format_urls(cluster: &InitialCluster) -> String {
    let lists = cluster.values().map(|urls| urls.join(" "));
    format!("{{{}}}", lists.collect::<Vec<_>>().join(" "))
}

fn sorted(urls: &[String]) -> Vec<String> {
    let mut urls = urls.to_vec();
    urls.sort_unstable();
    urls
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(pairs: &[(&str, &str)]) -> InitialCluster {
        let mut cluster = InitialCluster::new();
        for (name, url) in pairs {
            cluster.entry((*name).to_owned()).or_default().push((*url).to_owned());
        }
        cluster
    }

    fn no_names(url: &str) -> Result<String, String> {
        Ok(url.replace("localhost", "127.0.0.1"))
    }

    fn urls(list: &[&str]) -> Vec<String> {
        list.iter().map(|url| (*url).to_owned()).collect()
    }

    #[test]
    fn founders_get_etcds_ids() {
        let three = cluster(&[
            ("m1", "http://127.0.0.1:53001"),
            ("m2", "http://127.0.0.1:53002"),
            ("m3", "http://127.0.0.1:53003"),
        ]);
        let identity = new_cluster("m2", &urls(&["http://127.0.0.1:53002"]), &three, "tok1", &no_names).unwrap();
        assert_eq!(identity.local.to_string(), "a50afd602f55893f");
        assert_eq!(identity.cluster.to_string(), "a9a3f2aa4603e843");
        let ids: Vec<u64> = identity.members.iter().map(|member| member.id.0).collect();
        assert!(ids.is_sorted());
    }

    #[test]
    fn a_wrong_cluster_string_is_refused_in_etcds_words() {
        let two = cluster(&[("a", "http://h:1"), ("b", "http://h:2")]);
        let check = |name: &str, own: &[&str], cluster: &InitialCluster, text: &str| {
            let error = new_cluster(name, &urls(own), cluster, "t", &no_names).unwrap_err();
            assert_eq!(error.to_string(), text);
        };
        check("x", &[], &two, "couldn't find local name \"x\" in the initial cluster configuration");
        let double = cluster(&[("a", "http://h:1"), ("b", "http://h:1")]);
        check("a", &["http://h:1"], &double, "initial cluster a=http://h:1,b=http://h:1 has duplicate url");
        check(
            "a",
            &["http://h:9"],
            &two,
            "--initial-cluster has a=http://h:1 but missing from --initial-advertise-peer-urls=http://h:9 \
             (resolved urls: \"http://h:9\" != \"http://h:1\")",
        );
        check(
            "a",
            &["http://h:9", "http://h:1"],
            &two,
            "--initial-advertise-peer-urls has a=http://h:9 but missing from --initial-cluster=a=http://h:1",
        );
        let more = cluster(&[("a", "http://h:1"), ("a", "http://h:3")]);
        check(
            "a",
            &["http://h:1"],
            &more,
            "--initial-cluster has a=http://h:3 but missing from --initial-advertise-peer-urls=http://h:1 \
             (len([\"http://h:1\"]) != len([\"http://h:1\" \"http://h:3\"]))",
        );
    }

    #[test]
    fn differently_spelled_urls_match_once_resolved() {
        let one = cluster(&[("a", "http://localhost:1")]);
        assert!(new_cluster("a", &urls(&["http://127.0.0.1:1"]), &one, "t", &no_names).is_ok());
    }

    #[test]
    fn a_founder_known_with_client_urls_must_not_start_again() {
        let remote = |client: &[&str]| RemoteMember { id: 7, client_urls: urls(client), ..RemoteMember::default() };
        assert_eq!(check_not_bootstrapped(MemberId(7), &[remote(&[])]), Ok(()));
        let again = check_not_bootstrapped(MemberId(7), &[remote(&["http://c"])]);
        assert_eq!(again, Err(BootstrapError::AlreadyBootstrapped(MemberId(7))));
    }

    #[test]
    fn a_joining_member_takes_the_ids_of_the_cluster() {
        let two = cluster(&[("a", "http://h:1"), ("b", "http://h:2")]);
        let remote = |id: u64, url: &str| RemoteMember { id, peer_urls: urls(&[url]), ..RemoteMember::default() };
        let known = [remote(20, "http://h:1"), remote(10, "http://h:2")];
        let identity = join_cluster("b", &two, ClusterId(5), &known, &no_names).unwrap();
        assert_eq!((identity.local, identity.cluster), (MemberId(10), ClusterId(5)));
        assert_eq!(identity.members[0].name, "b");
        let short = join_cluster("b", &two, ClusterId(5), &known[..1], &no_names).unwrap_err();
        assert_eq!(short.to_string(), "error validating peerURLs {http://h:1 http://h:2}: member count is unequal");
        let other = [remote(20, "http://h:1"), remote(10, "http://h:3")];
        let error = join_cluster("b", &two, ClusterId(5), &other, &no_names).unwrap_err();
        assert!(error.to_string().contains("no match found for existing member (a, [http://h:3])"), "{error}");
    }
}
