//! `--initial-cluster`: who starts the cluster, and whether this member is one of them (server.md 10.1, 10.2).

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::common::ids::MemberId;
use crate::common::urls;
use crate::common::urls::Urls;

/// Peer URLs by member name, each list sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitialCluster {
    members: BTreeMap<String, Urls>,
}

impl InitialCluster {
    /// Reads `name=url,name=url`. A name may come more than once: its URLs add up.
    pub fn parse(text: &str) -> Result<InitialCluster, String> {
        let mut texts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (name, url) = pair.split_once('=').unwrap_or((pair, ""));
            texts.entry(name).or_default().push(url);
        }
        let mut members = BTreeMap::new();
        for (name, list) in texts {
            let list = urls::parse_all(list).map_err(|error| format!("error setting up initial cluster: {error}"))?;
            members.insert(name.to_owned(), list);
        }
        Ok(InitialCluster { members })
    }

    pub fn members(&self) -> impl Iterator<Item = (&str, &Urls)> {
        self.members.iter().map(|(name, urls)| (name.as_str(), urls))
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Ids and names of the first members, by etcd's rule.
    pub fn ids(&self, token: &str) -> Vec<(MemberId, &str, &Urls)> {
        self.members()
            .map(|(name, list)| (MemberId::of_bootstrap_member(&urls::strings(list), token), name, list))
            .collect()
    }

    /// What etcd checks before anything else at a start without a log: the own name, and that no URL is used twice.
    pub fn check(&self, name: &str) -> Result<(), String> {
        if !self.members.contains_key(name) {
            return Err(format!("couldn't find local name \"{name}\" in the initial cluster configuration"));
        }
        let mut seen = BTreeSet::new();
        match self.members.values().flatten().all(|url| seen.insert(url)) {
            true => Ok(()),
            false => Err(format!("initial cluster {self} has duplicate url")),
        }
    }

    /// Whether the advertised peer URLs are this member's entry, as text. When they are not, names may still resolve to
    /// the same addresses: `resolve` turns a `host:port` into one; it may fail.
    pub fn check_advertised(
        &self,
        name: &str,
        advertised: &Urls,
        resolve: impl Fn(&str) -> Option<String>,
    ) -> Result<(), String> {
        let own = self.members.get(name).cloned().unwrap_or_default();
        if own == *advertised {
            return Ok(());
        }
        let resolved = |urls: &Urls| -> Vec<String> {
            let mut texts: Vec<String> = urls
                .iter()
                .map(|url| match resolve(url.authority()) {
                    Some(address) => format!("{}://{address}", url.scheme().as_str()),
                    None => url.to_string(),
                })
                .collect();
            texts.sort();
            texts
        };
        let (own_resolved, advertised_resolved) = (resolved(&own), resolved(advertised));
        if own_resolved == advertised_resolved {
            return Ok(());
        }
        for (url, wanted) in own.iter().zip(&own_resolved) {
            if !advertised_resolved.contains(wanted) {
                let found = advertised_resolved.first().map_or("", String::as_str);
                return Err(format!(
                    "--initial-cluster has {name}={url} but missing from --initial-advertise-peer-urls={} \
                     (resolved urls: \"{found}\" != \"{wanted}\")",
                    urls::join(advertised)
                ));
            }
        }
        let extra: Vec<String> = advertised.iter().map(|url| format!("{name}={url}")).collect();
        Err(format!("--initial-advertise-peer-urls has {} but missing from --initial-cluster={self}", extra.join(",")))
    }
}

impl std::fmt::Display for InitialCluster {
    /// Sorted pairs, as etcd writes them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pairs = self.members.iter().flat_map(|(name, urls)| urls.iter().map(move |url| format!("{name}={url}")));
        let mut pairs: Vec<String> = pairs.collect();
        pairs.sort();
        f.write_str(&pairs.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(text: &str) -> InitialCluster {
        InitialCluster::parse(text).expect("valid")
    }

    #[test]
    fn pairs_are_read_and_written_sorted() {
        let cluster = cluster("b=http://h:2,a=http://h:1,b=http://h:0,");
        assert_eq!((cluster.len(), cluster.to_string().as_str()), (2, "a=http://h:1,b=http://h:0,b=http://h:2"));
        let ids = InitialCluster::parse("m1=http://127.0.0.1:53001").expect("valid");
        assert_eq!(ids.ids("tok1")[0].0.to_string(), "4064c276627c13e8");
    }

    #[test]
    fn wrong_pairs_get_etcds_texts() {
        let check = |text: &str, error: &str| {
            let expected = Err(format!("error setting up initial cluster: {error}"));
            assert_eq!(InitialCluster::parse(text), expected, "{text}");
        };
        check("a", "URL scheme must be http, https, unix, or unixs: ");
        check("a=http://h:1/x", "URL must not contain a path: http://h:1/x");
        check("a=http://h", "URL address does not have the form \"host:port\": http://h");
    }

    #[test]
    fn the_own_name_and_unique_urls_are_demanded() {
        let check = |text: &str, expected: Result<(), &str>| {
            assert_eq!(cluster(text).check("a"), expected.map_err(str::to_owned), "{text}");
        };
        check("a=http://h:1,b=http://h:2", Ok(()));
        check("b=http://h:1", Err("couldn't find local name \"a\" in the initial cluster configuration"));
        check("", Err("couldn't find local name \"a\" in the initial cluster configuration"));
        check("b=http://h:1,a=http://h:1", Err("initial cluster a=http://h:1,b=http://h:1 has duplicate url"));
    }

    #[test]
    fn advertised_urls_are_the_own_entry() {
        let resolve = |authority: &str| match authority {
            "name:1" => Some("10.0.0.1:1".to_owned()),
            other => Some(other.to_owned()),
        };
        let check = |text: &str, advertised: &str, expected: Result<(), &str>| {
            let advertised = urls::parse_list(advertised).expect("valid");
            let result = cluster(text).check_advertised("a", &advertised, resolve);
            assert_eq!(result, expected.map_err(str::to_owned));
        };
        check("a=http://h:1", "http://h:1", Ok(()));
        check("a=http://name:1", "http://10.0.0.1:1", Ok(()));
        check(
            "a=http://h:1",
            "http://h:2",
            Err("--initial-cluster has a=http://h:1 but missing from --initial-advertise-peer-urls=http://h:2 \
                 (resolved urls: \"http://h:2\" != \"http://h:1\")"),
        );
        check(
            "a=http://h:1",
            "http://h:1,http://h:2",
            Err(
                "--initial-advertise-peer-urls has a=http://h:1,a=http://h:2 but missing from --initial-cluster=a=http://h:1",
            ),
        );
    }
}
