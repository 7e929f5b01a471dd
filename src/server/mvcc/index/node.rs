//! The B-tree under the index: leaves of entries, inner nodes whose slots know how much lies below them.
//!
//! Nodes are shared between the roots that readers hold and the writer's: `Arc::make_mut` copies one only while
//! somebody else holds it. Every slot carries how many keys are alive below it and the newest main revision there, so
//! a count at revision R takes `live` of every subtree with `newest <= R` and descends only elsewhere.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::common::key_range::KeyRange;
use crate::server::mvcc::index::entry::Compacted;
use crate::server::mvcc::index::entry::Entry;
use crate::server::mvcc::index::mark::Mark;

/// Entries of a leaf and slots of an inner node: a node is copied whole when a reader holds it, so it stays small.
pub const NODE_MAX: usize = 32;

/// A node left with fewer than this many children is merged with a neighbour that has room.
const NODE_MIN: usize = 8;

/// Children of a node that is built from sorted input: room for a few insertions before it splits.
const NODE_FILL: usize = 28;

/// Memory for children grows by so many at a time: doubling would leave a third of it empty.
const ROOM: usize = 4;

#[derive(Clone, Debug)]
pub enum Node {
    Leaf(Vec<Entry>),
    Inner(Vec<Slot>),
}

/// A child of an inner node. All keys below are at least `first`.
#[derive(Clone, Debug)]
pub struct Slot {
    first: Arc<[u8]>,
    pub summary: Summary,
    pub child: Arc<Node>,
}

/// What a subtree holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Keys whose latest change is a put.
    pub live: usize,
    /// The newest main revision of any change; may stay too high after compactions, never too low.
    pub newest: i64,
}

/// What a change did below a node.
#[derive(Debug, Default)]
pub struct Changed {
    /// The new right half, if the node split.
    pub split: Option<Slot>,
    /// By how much the number of live keys grew.
    live: isize,
    /// The main revision added, 0 if nothing was.
    newest: i64,
}

impl Summary {
    fn add(self, other: Summary) -> Summary {
        Summary { live: self.live + other.live, newest: self.newest.max(other.newest) }
    }
}

impl Slot {
    fn new(child: Node) -> Slot {
        Slot { first: child.first_key(), summary: child.summary(), child: Arc::new(child) }
    }
}

impl Node {
    pub fn summary(&self) -> Summary {
        match self {
            Node::Leaf(entries) => entries.iter().fold(Summary::default(), |sum, entry| {
                sum.add(Summary { live: usize::from(entry.is_alive()), newest: entry.newest().main })
            }),
            Node::Inner(slots) => slots.iter().fold(Summary::default(), |sum, slot| sum.add(slot.summary)),
        }
    }

    /// Entries or slots.
    pub fn width(&self) -> usize {
        match self {
            Node::Leaf(entries) => entries.len(),
            Node::Inner(slots) => slots.len(),
        }
    }

    fn first_key(&self) -> Arc<[u8]> {
        match self {
            Node::Leaf(entries) => entries.first().map(|entry| entry.key.clone()),
            Node::Inner(slots) => slots.first().map(|slot| slot.first.clone()),
        }
        .expect("only the root may be empty, and the root is in no slot")
    }

    pub fn get(&self, key: &[u8]) -> Option<&Entry> {
        match self {
            Node::Leaf(entries) => entries.get(position(entries, key).ok()?),
            Node::Inner(slots) => slots[slot_of(slots, key)].child.get(key),
        }
    }

    /// Gives the key's latest mark to `change` and adds the mark it answers.
    pub fn change(&mut self, key: &[u8], change: &mut dyn FnMut(Option<&Mark>) -> Option<Mark>) -> Changed {
        match self {
            Node::Leaf(entries) => change_leaf(entries, key, change),
            Node::Inner(slots) => {
                let at = slot_of(slots, key);
                let slot = &mut slots[at];
                let Changed { split, live, newest } = Arc::make_mut(&mut slot.child).change(key, change);
                if key < slot.first.as_ref() {
                    slot.first = slot.child.first_key();
                }
                let Some(right) = split else {
                    // Not summed up again: that would read the whole child.
                    slot.summary.live = slot.summary.live.saturating_add_signed(live);
                    slot.summary.newest = slot.summary.newest.max(newest);
                    return Changed { split: None, live, newest };
                };
                slot.summary = slot.child.summary();
                let split = insert(slots, at + 1, right).map(|right| Slot::new(Node::Inner(right)));
                Changed { split, live, newest }
            }
        }
    }

    /// Compacts one key, which is here, and removes it if nothing is left.
    pub fn compact(&mut self, key: &[u8], at: i64) -> Compacted {
        match self {
            Node::Leaf(entries) => {
                let Ok(found) = position(entries, key) else { return Compacted::default() };
                let compacted = entries[found].compact(at);
                if compacted.dead {
                    entries.remove(found);
                }
                compacted
            }
            Node::Inner(slots) => {
                let at_slot = slot_of(slots, key);
                let slot = &mut slots[at_slot];
                let compacted = Arc::make_mut(&mut slot.child).compact(key, at);
                slot.summary = slot.child.summary();
                if compacted.dead {
                    mend(slots, at_slot);
                }
                compacted
            }
        }
    }

    /// Calls `visit` on entries of the range in key order. `skip` leaves out subtrees.
    pub fn walk<'a>(
        &'a self,
        range: &KeyRange,
        skip: &dyn Fn(Summary) -> bool,
        visit: &mut dyn FnMut(&'a Entry) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        match self {
            Node::Leaf(entries) => {
                let start = position(entries, range.start()).unwrap_or_else(|at| at);
                entries[start..].iter().take_while(|entry| !range.is_past(&entry.key)).try_for_each(visit)
            }
            Node::Inner(slots) => slots[slot_of(slots, range.start())..]
                .iter()
                .take_while(|slot| !range.is_past(&slot.first))
                .filter(|slot| !skip(slot.summary))
                .try_for_each(|slot| slot.child.walk(range, skip, visit)),
        }
    }

    /// Keys of the range that are alive at main revision `at`.
    pub fn count(&self, range: &KeyRange, at: i64) -> usize {
        match self {
            Node::Leaf(entries) => {
                let start = position(entries, range.start()).unwrap_or_else(|at| at);
                let inside = entries[start..].iter().take_while(|entry| !range.is_past(&entry.key));
                inside.filter(|entry| entry.alive_at(at).is_some()).count()
            }
            Node::Inner(slots) => {
                let count_slot = |(i, slot): (usize, &Slot)| {
                    // All keys of a child lie before the first of the next one.
                    let starts_inside = slot.first.as_ref() >= range.start().as_ref();
                    let ends_inside = slots.get(i + 1).is_some_and(|next| !range.is_past(&next.first));
                    let whole = starts_inside && (ends_inside || matches!(range, KeyRange::From(_)));
                    if whole && slot.summary.newest <= at { slot.summary.live } else { slot.child.count(range, at) }
                };
                let from = slot_of(slots, range.start());
                let inside = slots.iter().enumerate().skip(from);
                inside.take_while(|(_, slot)| !range.is_past(&slot.first)).map(count_slot).sum()
            }
        }
    }

    /// A tree of the entries, which are sorted by key.
    pub fn build(entries: Vec<Entry>) -> Node {
        let mut nodes = fill(entries, Node::Leaf);
        while nodes.len() > 1 {
            nodes = fill(nodes.into_iter().map(Slot::new).collect(), Node::Inner);
        }
        nodes.pop().unwrap_or(Node::Leaf(Vec::new()))
    }

    /// After a split of the root: a root over both halves.
    pub fn grow(root: &mut Arc<Node>, split: Slot) {
        let left = Slot { first: root.first_key(), summary: root.summary(), child: root.clone() };
        *root = Arc::new(Node::Inner(vec![left, split]));
    }

    /// While the root has a single child, that child is the root.
    pub fn shrink(root: &mut Arc<Node>) {
        while let Node::Inner(slots) = root.as_ref() {
            match slots.as_slice() {
                [] => *root = Arc::new(Node::Leaf(Vec::new())),
                [only] => *root = only.child.clone(),
                _ => return,
            }
        }
    }

    /// Panics unless order, summaries and sizes are as promised. Returns the height.
    #[cfg(test)]
    pub fn check(&self) -> usize {
        assert!(self.width() <= NODE_MAX);
        match self {
            Node::Leaf(entries) => {
                assert!(entries.is_sorted_by(|a, b| a.key < b.key));
                1
            }
            Node::Inner(slots) => {
                assert!(slots.is_sorted_by(|a, b| a.first < b.first));
                let heights: Vec<usize> = slots.iter().map(|slot| slot.child.check()).collect();
                assert!(heights.iter().all(|height| *height == heights[0]));
                for (slot, next) in slots.iter().zip(slots.iter().skip(1)) {
                    let _ = slot.child.walk(&KeyRange::From(bytes::Bytes::new()), &|_| false, &mut |entry| {
                        assert!(entry.key >= slot.first && entry.key < next.first);
                        ControlFlow::Continue(())
                    });
                }
                for slot in slots {
                    assert!(slot.child.width() > 0);
                    assert_eq!(slot.summary, slot.child.summary());
                }
                heights[0] + 1
            }
        }
    }
}

fn position(entries: &[Entry], key: &[u8]) -> Result<usize, usize> {
    entries.binary_search_by(|entry| entry.key.as_ref().cmp(key))
}

/// The child that holds the key, or would.
fn slot_of(slots: &[Slot], key: &[u8]) -> usize {
    slots.partition_point(|slot| slot.first.as_ref() <= key).saturating_sub(1)
}

fn change_leaf(entries: &mut Vec<Entry>, key: &[u8], change: &mut dyn FnMut(Option<&Mark>) -> Option<Mark>) -> Changed {
    let found = position(entries, key);
    let old = found.ok().map(|at| *entries[at].newest());
    let Some(mark) = change(old.as_ref()) else { return Changed::default() };
    let split = match found {
        Ok(at) => {
            entries[at].push(mark);
            None
        }
        Err(at) => insert(entries, at, Entry::new(Arc::from(key), mark)),
    };
    let was_live = old.is_some_and(|old| !old.is_tombstone());
    let live = isize::from(!mark.is_tombstone()) - isize::from(was_live);
    Changed { split: split.map(|right| Slot::new(Node::Leaf(right))), live, newest: mark.main }
}

/// Inserts, and returns the right half if the node was full. Appending to a full node starts a new one, so that
/// ascending keys leave full nodes behind.
fn insert<T>(items: &mut Vec<T>, at: usize, item: T) -> Option<Vec<T>> {
    if items.len() < NODE_MAX {
        if items.len() == items.capacity() {
            items.reserve_exact(ROOM);
        }
        items.insert(at, item);
        return None;
    }
    if at == items.len() {
        return Some(vec![item]);
    }
    let mut right = items.split_off(NODE_MAX / 2);
    items.shrink_to(NODE_MAX / 2 + ROOM);
    if at <= items.len() {
        items.insert(at, item);
    } else {
        right.insert(at - items.len(), item);
    }
    Some(right)
}

/// After a removal below `slots[at]`: an empty child goes, a small one joins a neighbour with room.
fn mend(slots: &mut Vec<Slot>, at: usize) {
    if slots[at].child.width() == 0 {
        slots.remove(at);
        return;
    }
    if slots[at].child.width() >= NODE_MIN {
        return;
    }
    let fits =
        |left: usize| left + 1 < slots.len() && slots[left].child.width() + slots[left + 1].child.width() <= NODE_FILL;
    let Some(left) = [Some(at), at.checked_sub(1)].into_iter().flatten().find(|left| fits(*left)) else { return };
    let right = slots.remove(left + 1);
    let slot = &mut slots[left];
    match (Arc::make_mut(&mut slot.child), right.child.as_ref()) {
        (Node::Leaf(entries), Node::Leaf(more)) => entries.extend_from_slice(more),
        (Node::Inner(inner), Node::Inner(more)) => inner.extend_from_slice(more),
        _ => unreachable!("all children of a node have one height"),
    }
    slot.summary = slot.summary.add(right.summary);
}

fn fill<T>(items: Vec<T>, node: fn(Vec<T>) -> Node) -> Vec<Node> {
    let mut nodes = Vec::with_capacity(items.len().div_ceil(NODE_FILL));
    let mut items = items.into_iter().peekable();
    while items.peek().is_some() {
        nodes.push(node(items.by_ref().take(NODE_FILL).collect()));
    }
    nodes
}
