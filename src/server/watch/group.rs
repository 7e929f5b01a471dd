//! Which watchers a key concerns: found in time that depends on the matches, not on how many watch.
//!
//! Single keys are looked up in a map. Ranges stand in a balanced search tree by their start, in which every node knows
//! the greatest end below it: a search leaves out every subtree that ends before the key.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::RwLockReadGuard;
use std::sync::RwLockWriteGuard;

use bytes::Bytes;

use crate::common::key_range::KeyRange;

/// A watcher's place in the hub's table.
pub type Slot = u32;

/// The keys of one watcher. Smaller than a `KeyRange`: there may be 100,000 of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interest {
    One(Arc<[u8]>),
    Span(Arc<[u8]>, Arc<[u8]>),
    From(Arc<[u8]>),
}

impl Interest {
    /// Reads the pair as a create request carries it: an empty key is the key of one zero byte. `None` if no key can be
    /// in the range (server.md 4.2).
    pub fn new(key: &[u8], range_end: &[u8]) -> Option<Interest> {
        let key: Arc<[u8]> = if key.is_empty() { Arc::from([0]) } else { Arc::from(key) };
        match range_end {
            [] => Some(Interest::One(key)),
            [0] => Some(Interest::From(key)),
            end if key.as_ref() < end => Some(Interest::Span(key, Arc::from(end))),
            _ => None,
        }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Interest::One(one) => one.as_ref() == key,
            Interest::Span(start, end) => start.as_ref() <= key && key < end.as_ref(),
            Interest::From(start) => start.as_ref() <= key,
        }
    }

    pub fn key_range(&self) -> KeyRange {
        match self {
            Interest::One(key) => KeyRange::One(Bytes::copy_from_slice(key)),
            Interest::Span(start, end) => KeyRange::Span(Bytes::copy_from_slice(start), Bytes::copy_from_slice(end)),
            Interest::From(start) => KeyRange::From(Bytes::copy_from_slice(start)),
        }
    }
}

/// Watchers of the same keys, ascending.
#[derive(Debug)]
enum Members {
    /// The usual case, without an allocation.
    One(Slot),
    Many(Vec<Slot>),
}

impl Members {
    fn add(&mut self, slot: Slot) {
        match self {
            Members::One(only) => *self = Members::Many(vec![(*only).min(slot), (*only).max(slot)]),
            Members::Many(slots) => {
                let at = slots.partition_point(|other| *other < slot);
                slots.insert(at, slot);
            }
        }
    }

    /// Whether nobody is left.
    fn remove(&mut self, slot: Slot) -> bool {
        match self {
            Members::One(only) => *only == slot,
            Members::Many(slots) => {
                if let Ok(at) = slots.binary_search(&slot) {
                    slots.remove(at);
                }
                slots.is_empty()
            }
        }
    }

    fn as_slice(&self) -> &[Slot] {
        match self {
            Members::One(only) => std::slice::from_ref(only),
            Members::Many(slots) => slots,
        }
    }
}

/// The end of a range; `None` lies behind all keys.
type End = Option<Arc<[u8]>>;

fn compare_ends(one: &End, other: &End) -> Ordering {
    match (one, other) {
        (Some(one), Some(other)) => one.cmp(other),
        (one, other) => one.is_none().cmp(&other.is_none()),
    }
}

fn is_before(key: &[u8], end: &End) -> bool {
    end.as_ref().is_none_or(|end| key < end.as_ref())
}

type Link = Option<Box<Node>>;

/// One range in the tree, ordered by start, then end. Heights of siblings differ by at most one (an AVL tree).
#[derive(Debug)]
struct Node {
    start: Arc<[u8]>,
    end: End,
    /// The greatest end in this subtree.
    max: End,
    height: u8,
    members: Members,
    left: Link,
    right: Link,
}

/// The watchers that the hub's thread keeps, for apply to look into.
pub type SharedGroup = Arc<RwLock<Group>>;

pub fn read(group: &RwLock<Group>) -> RwLockReadGuard<'_, Group> {
    group.read().unwrap_or_else(PoisonError::into_inner)
}

pub fn write(group: &RwLock<Group>) -> RwLockWriteGuard<'_, Group> {
    group.write().unwrap_or_else(PoisonError::into_inner)
}

/// All watchers by their keys.
#[derive(Debug, Default)]
pub struct Group {
    exact: HashMap<Arc<[u8]>, Members>,
    ranges: Link,
}

impl Group {
    pub fn add(&mut self, interest: &Interest, slot: Slot) {
        match interest {
            Interest::One(key) => match self.exact.get_mut(key) {
                Some(members) => members.add(slot),
                None => drop(self.exact.insert(key.clone(), Members::One(slot))),
            },
            Interest::Span(start, end) => insert(&mut self.ranges, start, &Some(end.clone()), slot),
            Interest::From(start) => insert(&mut self.ranges, start, &None, slot),
        }
    }

    pub fn remove(&mut self, interest: &Interest, slot: Slot) {
        match interest {
            Interest::One(key) => {
                if self.exact.get_mut(key).is_some_and(|members| members.remove(slot)) {
                    self.exact.remove(key);
                }
            }
            Interest::Span(start, end) => remove(&mut self.ranges, start, &Some(end.clone()), slot),
            Interest::From(start) => remove(&mut self.ranges, start, &None, slot),
        }
    }

    /// Whether anybody watches the key.
    pub fn concerns(&self, key: &[u8]) -> bool {
        let mut somebody = false;
        self.matching(key, &mut |_| somebody = true);
        somebody
    }

    /// Calls `visit` with the watchers of the key, in runs: those of the key itself first, then range by range.
    pub fn matching(&self, key: &[u8], visit: &mut impl FnMut(&[Slot])) {
        if let Some(members) = self.exact.get(key) {
            visit(members.as_slice());
        }
        stab(&self.ranges, key, visit);
    }

    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.ranges.is_none()
    }
}

fn stab(link: &Link, key: &[u8], visit: &mut impl FnMut(&[Slot])) {
    let Some(node) = link else { return };
    if !is_before(key, &node.max) {
        return;
    }
    stab(&node.left, key, visit);
    if node.start.as_ref() <= key {
        if is_before(key, &node.end) {
            visit(node.members.as_slice());
        }
        stab(&node.right, key, visit);
    }
}

fn order(start: &[u8], end: &End, node: &Node) -> Ordering {
    start.cmp(node.start.as_ref()).then_with(|| compare_ends(end, &node.end))
}

fn insert(link: &mut Link, start: &Arc<[u8]>, end: &End, slot: Slot) {
    let Some(node) = link else {
        let (start, max, members) = (start.clone(), end.clone(), Members::One(slot));
        let node = Node { start, end: end.clone(), max, height: 1, members, left: None, right: None };
        *link = Some(Box::new(node));
        return;
    };
    match order(start, end, node) {
        Ordering::Equal => return node.members.add(slot),
        Ordering::Less => insert(&mut node.left, start, end, slot),
        Ordering::Greater => insert(&mut node.right, start, end, slot),
    }
    rebalance(link);
}

fn remove(link: &mut Link, start: &Arc<[u8]>, end: &End, slot: Slot) {
    let Some(node) = link else { return };
    match order(start, end, node) {
        Ordering::Less => remove(&mut node.left, start, end, slot),
        Ordering::Greater => remove(&mut node.right, start, end, slot),
        Ordering::Equal if node.members.remove(slot) => {
            *link = match (node.left.take(), node.right.take()) {
                (only, None) | (None, only) => only,
                (left, mut right) => {
                    let next = take_first(&mut right);
                    next.map(|mut next| {
                        (next.left, next.right) = (left, right);
                        next
                    })
                }
            }
        }
        Ordering::Equal => return,
    }
    rebalance(link);
}

/// Takes the first node out of a subtree.
fn take_first(link: &mut Link) -> Link {
    let node = link.as_mut()?;
    if node.left.is_some() {
        let first = take_first(&mut node.left);
        rebalance(link);
        return first;
    }
    let mut first = link.take()?;
    *link = first.right.take();
    Some(first)
}

fn height(link: &Link) -> u8 {
    link.as_ref().map_or(0, |node| node.height)
}

/// Makes a node whose children are right, right itself.
fn update(node: &mut Node) {
    node.height = 1 + height(&node.left).max(height(&node.right));
    let below = [&node.left, &node.right].into_iter().flatten().map(|child| &child.max);
    node.max = below.fold(&node.end, |max, end| if compare_ends(end, max).is_gt() { end } else { max }).clone();
}

fn rebalance(link: &mut Link) {
    let Some(node) = link else { return };
    update(node);
    let (left, right) = (height(&node.left), height(&node.right));
    if left > right + 1 {
        if node.left.as_ref().is_some_and(|left| height(&left.left) < height(&left.right)) {
            rotate_left(&mut node.left);
        }
        rotate_right(link);
    } else if right > left + 1 {
        if node.right.as_ref().is_some_and(|right| height(&right.right) < height(&right.left)) {
            rotate_right(&mut node.right);
        }
        rotate_left(link);
    }
}

fn rotate_right(link: &mut Link) {
    let Some(mut node) = link.take() else { return };
    let Some(mut left) = node.left.take() else { return *link = Some(node) };
    node.left = left.right.take();
    update(&mut node);
    left.right = Some(node);
    update(&mut left);
    *link = Some(left);
}

fn rotate_left(link: &mut Link) {
    let Some(mut node) = link.take() else { return };
    let Some(mut right) = node.right.take() else { return *link = Some(node) };
    node.right = right.left.take();
    update(&mut node);
    right.left = Some(node);
    update(&mut right);
    *link = Some(right);
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn found(group: &Group, key: &[u8]) -> Vec<Slot> {
        let mut found = Vec::new();
        group.matching(key, &mut |slots| found.extend_from_slice(slots));
        found.sort_unstable();
        assert_eq!(group.concerns(key), !found.is_empty(), "{}", key.escape_ascii());
        found
    }

    /// Checks order, heights and ends; the number of nodes.
    fn check(link: &Link) -> usize {
        let Some(node) = link else { return 0 };
        let count = 1 + check(&node.left) + check(&node.right);
        let (left, right) = (height(&node.left), height(&node.right));
        assert!(left.abs_diff(right) <= 1 && node.height == 1 + left.max(right), "heights {left} and {right}");
        let ends = [&node.left, &node.right].into_iter().flatten().map(|child| child.max.clone());
        let max = ends.chain([node.end.clone()]).max_by(compare_ends).expect("its own end");
        assert_eq!(node.max, max);
        assert!(node.left.as_ref().is_none_or(|left| order(&left.start, &left.end, node).is_lt()));
        assert!(node.right.as_ref().is_none_or(|right| order(&right.start, &right.end, node).is_gt()));
        count
    }

    #[test]
    fn interests_are_read_as_requests_carry_them() {
        let check = |key: &[u8], end: &[u8], inside: &[&[u8]], outside: &[&[u8]]| {
            let interest = Interest::new(key, end).expect("not empty");
            inside.iter().for_each(|key| assert!(interest.contains(key), "{interest:?} {key:?}"));
            outside.iter().for_each(|key| assert!(!interest.contains(key), "{interest:?} {key:?}"));
            let range = interest.key_range();
            assert!(inside.iter().all(|key| range.contains(key)) && !outside.iter().any(|key| range.contains(key)));
        };
        check(b"k", b"", &[b"k"], &[b"", b"ka", b"l"]);
        check(b"k", b"m", &[b"k", b"lz"], &[b"j", b"m"]);
        check(b"k", b"\0", &[b"k", b"z", b"\xff"], &[b"j"]);
        check(b"", b"", &[b"\0"], &[b"\0\0", b"a"]);
        check(b"", b"\0", &[b"\0", b"a", b"\xff"], &[]);
        check(b"", b"b", &[b"\0", b"a"], &[b"b"]);
        assert_eq!(Interest::new(b"b", b"a"), None);
        assert_eq!(Interest::new(b"b", b"b"), None);
        assert_eq!(Interest::new(b"", b"\0").map(|_| ()), Some(()), "the zero byte is no end");
    }

    #[test]
    fn a_search_among_a_hundred_thousand_touches_few() {
        let mut group = Group::default();
        for slot in 0..100_000u32 {
            let key = format!("key/{slot:06}");
            group.add(&Interest::new(key.as_bytes(), b"").expect("a key"), slot);
            let end = format!("key/{slot:06}~");
            group.add(&Interest::new(key.as_bytes(), end.as_bytes()).expect("a range"), 100_000 + slot);
        }
        let height = height(&group.ranges);
        assert!(height <= 20, "a tree of height {height}");
        assert_eq!(check(&group.ranges), 100_000);
        assert_eq!(found(&group, b"key/031415"), [31_415, 131_415]);
        assert_eq!(found(&group, b"key/031415/x"), [131_415]);
        assert_eq!(found(&group, b"other"), [] as [Slot; 0]);
    }

    #[test]
    fn many_on_the_same_keys_come_and_go() {
        let mut group = Group::default();
        let interest = Interest::new(b"a", b"c").expect("a range");
        for slot in [5, 1, 9, 3] {
            group.add(&interest, slot);
        }
        assert_eq!(found(&group, b"b"), [1, 3, 5, 9]);
        for slot in [9, 1, 7, 5] {
            group.remove(&interest, slot);
        }
        assert_eq!(found(&group, b"b"), [3]);
        group.remove(&interest, 3);
        assert!(group.is_empty());
    }

    proptest! {
        #[test]
        fn a_group_finds_what_a_list_finds(
            steps in prop::collection::vec((any::<bool>(), 0u32..40, "[a-d]{0,3}", "[a-d]{0,3}"), 1..150)
        ) {
            let mut group = Group::default();
            let mut list: Vec<(Slot, Interest)> = Vec::new();
            for (add, slot, key, end) in steps {
                let taken = list.iter().position(|(other, _)| *other == slot);
                let end = if end.is_empty() && slot % 5 == 0 { "\0".to_owned() } else { end };
                match (add, taken, Interest::new(key.as_bytes(), end.as_bytes())) {
                    (true, None, Some(interest)) => {
                        group.add(&interest, slot);
                        list.push((slot, interest));
                    }
                    (false, Some(at), _) => {
                        let (slot, interest) = list.swap_remove(at);
                        group.remove(&interest, slot);
                    }
                    _ => {}
                }
                check(&group.ranges);
                for key in ["", "\0", "a", "ab", "b", "cd", "dddd"] {
                    let mut expected: Vec<Slot> =
                        list.iter().filter(|(_, i)| i.contains(key.as_bytes())).map(|(slot, _)| *slot).collect();
                    expected.sort_unstable();
                    prop_assert_eq!(found(&group, key.as_bytes()), expected);
                }
            }
        }
    }
}
