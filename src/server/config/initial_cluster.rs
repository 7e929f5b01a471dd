//! `--initial-cluster`: who starts the cluster, as typed. What it must fulfil is `server/bootstrap`'s affair.

use std::collections::BTreeMap;

use crate::common::urls;

/// Peer URLs by member name, each list sorted.
pub type InitialCluster = BTreeMap<String, Vec<String>>;

/// Reads `name=url,name=url`. A name may come more than once: its URLs add up.
pub fn parse(text: &str) -> Result<InitialCluster, String> {
    let mut texts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for pair in text.split(',').filter(|pair| !pair.is_empty()) {
        let (name, url) = pair.split_once('=').unwrap_or((pair, ""));
        texts.entry(name).or_default().push(url);
    }
    let mut members = InitialCluster::new();
    for (name, list) in texts {
        let list = urls::parse_all(list).map_err(|error| format!("error setting up initial cluster: {error}"))?;
        members.insert(name.to_owned(), urls::strings(&list));
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_and_urls_of_a_name_add_up() {
        let cluster = parse("b=http://h:2,a=http://h:1,b=http://h:0,").expect("valid");
        let pairs: Vec<(&str, String)> = cluster.iter().map(|(name, urls)| (name.as_str(), urls.join(" "))).collect();
        assert_eq!(pairs, [("a", "http://h:1".to_owned()), ("b", "http://h:0 http://h:2".to_owned())]);
        assert_eq!(parse(""), Ok(InitialCluster::new()));
    }

    #[test]
    fn wrong_pairs_get_etcds_texts() {
        let check = |text: &str, error: &str| {
            assert_eq!(parse(text), Err(format!("error setting up initial cluster: {error}")), "{text}");
        };
        check("a", "URL scheme must be http, https, unix, or unixs: ");
        check("a=http://h:1/x", "URL must not contain a path: http://h:1/x");
        check("a=http://h", "URL address does not have the form \"host:port\": http://h");
    }
}
