//! The membership as JSON of etcd's old store: what members of 3.4 to 3.6 want in a snapshot message.
//!
//! 3.6.14 dies on an empty one, on an empty event list and on members that are missing in it (peer.md 4.3); 3.7.1
//! ignores it. So we write the tree with every member, and a history of 1,000 empty slots.

use crate::server::cluster::json;
use crate::server::cluster::membership::Membership;

/// Slots of the old store's event history; its reader indexes into them.
const EVENT_SLOTS: usize = 1000;

const STATS: &str = concat!(
    r#"{"getsSuccess":0,"getsFail":0,"setsSuccess":0,"setsFail":0,"deleteSuccess":0,"deleteFail":0,"#,
    r#""updateSuccess":0,"updateFail":0,"createSuccess":0,"createFail":0,"compareAndSwapSuccess":0,"#,
    r#""compareAndSwapFail":0,"compareAndDeleteSuccess":0,"compareAndDeleteFail":0,"expireCount":0,"watchers":0}"#
);

/// A node of the tree: a value, or children sorted by name.
enum Node {
    Value(String),
    Children(Vec<(String, Node)>),
}

/// The whole store as JSON (server.md 14.1).
pub fn to_json(membership: &Membership) -> String {
    let members = membership.members().map(|member| {
        let mut raft = "{\"peerURLs\":".to_owned();
        json::push_strings(&mut raft, &member.peer_urls);
        raft.push_str(if member.is_learner { ",\"isLearner\":true}" } else { "}" });
        let children = vec![
            ("attributes".to_owned(), Node::Value(attributes(&member.name, &member.client_urls))),
            ("raftAttributes".to_owned(), Node::Value(raft)),
        ];
        (member.id.to_string(), Node::Children(children))
    });
    let mut members: Vec<_> = members.collect();
    // Go sorts the keys of a map by their text.
    members.sort_by(|(one, _), (other, _)| one.cmp(other));
    let removed = membership.removed().map(|id| (id.to_string(), Node::Value(String::new())));
    let mut removed: Vec<_> = removed.collect();
    removed.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut zero =
        vec![("members".to_owned(), Node::Children(members)), ("removed_members".to_owned(), Node::Children(removed))];
    if let Some(version) = membership.version() {
        zero.push(("version".to_owned(), Node::Value(version.to_string())));
    }
    let root =
        Node::Children(vec![("0".to_owned(), Node::Children(zero)), ("1".to_owned(), Node::Children(Vec::new()))]);
    let mut out = "{\"Root\":".to_owned();
    push_node(&mut out, "/", &root);
    out.push_str(",\"WatcherHub\":{\"EventHistory\":{\"Queue\":{\"Events\":[");
    out.push_str(&vec!["null"; EVENT_SLOTS].join(","));
    out.push_str(&format!("],\"Size\":0,\"Front\":0,\"Back\":0,\"Capacity\":{EVENT_SLOTS}}},"));
    out.push_str("\"StartIndex\":0,\"LastIndex\":0}},\"CurrentIndex\":0,\"Stats\":");
    out.push_str(STATS);
    out.push_str(",\"CurrentVersion\":2}");
    out
}

fn attributes(name: &str, client_urls: &[String]) -> String {
    let mut out = "{".to_owned();
    if !name.is_empty() {
        out.push_str("\"name\":");
        json::push_string(&mut out, name);
    }
    if !client_urls.is_empty() {
        out.push_str(if name.is_empty() { "\"clientURLs\":" } else { ",\"clientURLs\":" });
        json::push_strings(&mut out, client_urls);
    }
    out.push('}');
    out
}

fn push_node(out: &mut String, path: &str, node: &Node) {
    out.push_str("{\"Path\":");
    json::push_string(out, path);
    out.push_str(",\"CreatedIndex\":0,\"ModifiedIndex\":0,\"ExpireTime\":\"0001-01-01T00:00:00Z\",\"Value\":");
    match node {
        Node::Value(value) => {
            json::push_string(out, value);
            out.push_str(",\"Children\":null}");
        }
        Node::Children(children) => {
            out.push_str("\"\",\"Children\":{");
            for (at, (name, child)) in children.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                json::push_string(out, name);
                out.push(':');
                push_node(out, &format!("{}/{name}", path.trim_end_matches('/')), child);
            }
            out.push_str("}}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::ids::MemberId;
    use crate::common::version::Version;
    use crate::server::cluster::member::Member;
    use crate::server::cluster::membership::Change;

    #[test]
    fn the_tree_has_every_member_with_absolute_paths() {
        let mut membership = Membership::new(1);
        for (id, learner) in [(0xa, false), (0x1b, true), (0x2c, false)] {
            let member = Member {
                id: MemberId(id),
                peer_urls: vec![format!("http://h:{id}")],
                is_learner: learner,
                ..Member::default()
            };
            membership.change(Change::Add(member)).expect("a fresh member");
        }
        membership.change(Change::Remove(MemberId(0x2c))).expect("a member");
        membership.set_attributes(MemberId(0xa), "m1".to_owned(), vec!["http://c:1".to_owned()]);
        membership.set_version(Version::new(3, 6, 0)).expect("not above our own");
        let text = to_json(&membership);
        let tree: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let node = |path: &str| {
            let parts = path.split('/').filter(|part| !part.is_empty());
            let node = parts.fold(&tree["Root"], |node, part| &node["Children"][part]);
            assert_eq!(node["Path"], path);
            node["Value"].as_str().expect("a node").to_owned()
        };
        assert_eq!(node("/0/members/a/attributes"), r#"{"name":"m1","clientURLs":["http://c:1"]}"#);
        assert_eq!(node("/0/members/a/raftAttributes"), r#"{"peerURLs":["http://h:10"]}"#);
        assert_eq!(node("/0/members/1b/raftAttributes"), r#"{"peerURLs":["http://h:27"],"isLearner":true}"#);
        assert_eq!(node("/0/members/1b/attributes"), "{}");
        assert_eq!(node("/0/removed_members/2c"), "");
        assert_eq!(node("/0/version"), "3.6.0");
        assert_eq!(node("/1"), "");
        let queue = &tree["WatcherHub"]["EventHistory"]["Queue"];
        assert_eq!(queue["Events"].as_array().map(Vec::len), Some(EVENT_SLOTS));
        assert!(text.contains(r#"{"Path":"/0/version","CreatedIndex":0,"ModifiedIndex":0,"ExpireTime":"0001-01-01T00:00:00Z","Value":"3.6.0","Children":null}"#));
    }
}
