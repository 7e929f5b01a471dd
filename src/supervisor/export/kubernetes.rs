//! A StatefulSet of Kubernetes for the cluster of a Procfile: as many members as it has with a vote, with a volume each,
//! names that stay, and never a majority drained at once.
//!
//! Addresses, names and directories are those of pods; other flags that all members have are kept. Learners and everything
//! that is no member stay behind.

use super::Site;
use super::yaml_quoted;
use crate::supervisor::members;

const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
const DATA_DIR: &str = "/var/lib/quorate";
/// Flags that pods have of their own, and those that belong to one machine.
const REPLACED: [&str; 11] = [
    "name",
    "data-dir",
    "wal-dir",
    "listen-client-urls",
    "advertise-client-urls",
    "listen-peer-urls",
    "initial-advertise-peer-urls",
    "initial-cluster",
    "initial-cluster-state",
    "initial-cluster-token",
    "listen-metrics-urls",
];

/// The file, by its name.
pub fn files(site: &Site) -> Result<Vec<(String, String)>, String> {
    let variable = |_: &str| None;
    let mut voters = Vec::new();
    for service in &site.services {
        let Some(words) = members::words_of(&service.command, &variable) else { continue };
        if flag_of(&words, "initial-cluster-state").is_some_and(|state| state == "new") {
            voters.push(words);
        }
    }
    let first = voters.first().ok_or("no process founds a cluster: a StatefulSet is for the members of one")?;
    if first.iter().any(|word| word.contains("cert-file") || word.contains("trusted-ca-file")) {
        return Err("certificates of this machine are of no use to pods: export a cluster without TLS".to_owned());
    }
    let name = dns_label(&site.app);
    let size = voters.len();
    let pods: Vec<String> =
        (0..size).map(|number| format!("{name}-{number}={}", peer_url(&name, &format!("{name}-{number}")))).collect();
    let pod = "$(POD_NAME)";
    let mut arguments = vec![
        format!("--name={pod}"),
        format!("--data-dir={DATA_DIR}"),
        format!("--listen-client-urls=http://0.0.0.0:{CLIENT_PORT}"),
        format!("--advertise-client-urls=http://{pod}.{name}:{CLIENT_PORT}"),
        format!("--listen-peer-urls=http://0.0.0.0:{PEER_PORT}"),
        format!("--initial-advertise-peer-urls={}", peer_url(&name, pod)),
        format!("--initial-cluster-token={name}"),
        format!("--initial-cluster={}", pods.join(",")),
        "--initial-cluster-state=new".to_owned(),
    ];
    arguments.extend(kept(&first[1..]));
    let program = match first[0].as_str() {
        "quorate" => "[\"quorate\", \"server\"]".to_owned(),
        other => format!("[{}]", yaml_quoted(other)),
    };
    let arguments: String = arguments.iter().map(|word| format!("            - {}\n", yaml_quoted(word))).collect();
    let quorum = size / 2 + 1;
    let text = format!(
        "apiVersion: v1
kind: Service
metadata:
  name: {name}
  labels: {{app: {name}}}
spec:
  clusterIP: None
  # Members find each other before they are ready: a cluster is ready only together.
  publishNotReadyAddresses: true
  selector: {{app: {name}}}
  ports:
    - {{name: client, port: {CLIENT_PORT}}}
    - {{name: peer, port: {PEER_PORT}}}
---
apiVersion: v1
kind: Service
metadata:
  name: {name}-client
  labels: {{app: {name}}}
spec:
  selector: {{app: {name}}}
  ports:
    - {{name: client, port: {CLIENT_PORT}}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {name}
spec:
  minAvailable: {quorum}
  selector:
    matchLabels: {{app: {name}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {name}
  labels: {{app: {name}}}
spec:
  serviceName: {name}
  replicas: {size}
  podManagementPolicy: Parallel
  selector:
    matchLabels: {{app: {name}}}
  template:
    metadata:
      labels: {{app: {name}}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
        - name: member
          image: \"quorate:latest\"
          command: {program}
          args:
{arguments}          env:
            - name: POD_NAME
              valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}
          ports:
            - {{name: client, containerPort: {CLIENT_PORT}}}
            - {{name: peer, containerPort: {PEER_PORT}}}
          readinessProbe:
            httpGet: {{path: /health, port: client}}
            periodSeconds: 2
          volumeMounts:
            - {{name: data, mountPath: {DATA_DIR}}}
  volumeClaimTemplates:
    - metadata:
        name: data
      spec:
        accessModes: [ReadWriteOnce]
        resources: {{requests: {{storage: 8Gi}}}}
"
    );
    Ok(vec![(format!("{name}.yaml"), text)])
}

fn peer_url(service: &str, pod: &str) -> String {
    format!("http://{pod}.{service}:{PEER_PORT}")
}

/// The value of a flag in a member's words.
fn flag_of(words: &[String], name: &str) -> Option<String> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(body) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else { continue };
        match body.split_once('=') {
            Some((flag, value)) if flag == name => return Some(value.to_owned()),
            None if body == name => return words.next().cloned(),
            _ => {}
        }
    }
    None
}

/// The flags that are not replaced, with their values.
fn kept(words: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut drop_value = false;
    for word in words {
        let flag = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
        match flag {
            Some(body) => {
                let (name, value) = body.split_once('=').map_or((body, None), |(name, value)| (name, Some(value)));
                let replaced = REPLACED.contains(&name);
                drop_value = replaced && value.is_none();
                if !replaced {
                    kept.push(word.clone());
                }
            }
            None if drop_value => drop_value = false,
            None => kept.push(word.clone()),
        }
    }
    // In arguments `$(NAME)` would be a variable of the pod's.
    kept.iter().map(|word| word.replace("$(", "$$(")).collect()
}

/// A name as DNS has it: small letters, digits and dashes, a letter first.
fn dns_label(app: &str) -> String {
    let letter = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' };
    let text: String = app.chars().map(letter).take(40).collect();
    let text = text.trim_matches('-');
    match text.chars().next() {
        Some(first) if first.is_ascii_alphabetic() => text.to_owned(),
        _ => format!("quorate-{text}").trim_end_matches('-').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::yaml;
    use crate::common::yaml::Value;
    use crate::supervisor::export::tests::site;

    const VOTER: &str = "quorate server --name m1 --data-dir 'd d/m1' --listen-client-urls http://127.0.0.1:1 \
        --initial-cluster m1=http://127.0.0.1:2 --initial-cluster-state new --heartbeat-interval 50";

    #[test]
    fn a_cluster_is_a_set_of_as_many_members_as_it_has() {
        let learner = "quorate cluster join --endpoints e -- quorate server --name m4";
        let whole = site(&[("m1", VOTER), ("m2", VOTER), ("m3", VOTER), ("m4", learner), ("web", "x")], &[]);
        let (name, text) = files(&whole).unwrap().remove(0);
        assert_eq!(name, "app.yaml");
        let documents: Vec<Value> = text.split("---\n").map(|part| yaml::document(part).unwrap()).collect();
        assert_eq!(documents.len(), 4);
        let Value::Map(set) = &documents[3] else { panic!("a map") };
        assert_eq!(set[1].value.text(), Some("StatefulSet"));
        assert!(text.contains("replicas: 3\n") && text.contains("minAvailable: 2\n"), "{text}");
        assert!(text.contains(
            "--initial-cluster=app-0=http://app-0.app:2380,app-1=http://app-1.app:2380,app-2=http://app-2.app:2380\""
        ));
        assert!(text.contains("\"--heartbeat-interval\"\n            - \"50\""), "{text}");
        assert!(!text.contains("127.0.0.1") && !text.contains("d d/m1"), "{text}");
    }

    #[test]
    fn what_is_no_cluster_is_refused() {
        assert!(files(&site(&[("web", "x")], &[])).unwrap_err().contains("no process founds a cluster"));
        let tls = format!("{VOTER} --cert-file x");
        assert!(files(&site(&[("m1", &tls)], &[])).unwrap_err().contains("without TLS"));
    }

    #[test]
    fn names_are_those_of_dns() {
        assert_eq!(["My.App", "9", "-", "a_b-"].map(dns_label), ["my-app", "quorate-9", "quorate", "a-b"]);
    }
}
