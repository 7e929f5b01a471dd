//! Range: fetch, filter, sort, cut, in etcd's order (server.md 3.3).
//!
//! Everything but values and leases is in the index, so filters and sorts run there and only the records that are
//! answered are read. Where that could be told from fetching first it is not done: sorting by value reads all.

use bytes::Bytes;

use crate::common::answer::Answer;
use crate::common::failure::Failure;
use crate::common::key_range::KeyRange;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::etcdserverpb::ResponseHeader;
use crate::proto::etcdserverpb::range_request::SortOrder;
use crate::proto::etcdserverpb::range_request::SortTarget;
use crate::proto::mvccpb::KeyValue;
use crate::server::mvcc::index::Found;
use crate::server::mvcc::view::Keys;
use crate::server::mvcc::view::ReadError;
use crate::server::mvcc::view::Records;
use crate::server::mvcc::view::Source;
use crate::server::mvcc::view::Views;

/// A Range with a limit up to this, or of one key, is selected under the writer's lock.
const GLANCE_KEYS_MAX: i64 = 100;

/// Answers a Range on the newest View. The header has the revision only: its sender adds the rest.
pub fn range_now(views: &Views, request: &RangeRequest) -> Result<RangeResponse, ReadError> {
    let is_one = request.range_end.is_empty();
    let is_page = !is_one && request.limit > 0 && !request.count_only && is_limited_early(request);
    // Counting an interval may take long at an old revision.
    let response = if is_one || is_page && request.limit <= GLANCE_KEYS_MAX && request.revision <= 0 {
        let (selection, records) = views.glance(|keys| select(keys, request, &|_, _| None));
        fetch(&records, selection?)?
    } else if is_page && request.revision > 0 {
        let view = views.current();
        fetch(view.as_ref(), select(view.as_ref(), request, &|range, at| views.counts().take(range, at))?)?
    } else {
        range(views.current().as_ref(), request)?
    };
    if is_page {
        remember_rest(views, request, &response);
    }
    Ok(response)
}

/// The next page of a list that goes on at this one's revision need not be counted.
fn remember_rest(views: &Views, request: &RangeRequest, page: &RangeResponse) {
    let newest = page.header.as_ref().map_or(0, |header| header.revision);
    let at = if request.revision > 0 { request.revision } else { newest };
    if let (Some(last), Ok(count)) = (page.kvs.last().filter(|_| page.more), usize::try_from(page.count)) {
        let range = KeyRange::new(request.key.clone(), request.range_end.clone());
        views.counts().went_on(&range, at, &last.key, count, page.kvs.len());
    }
}

/// Answers a Range. The header has the revision only: its sender adds the rest.
pub fn range(source: &dyn Source, request: &RangeRequest) -> Result<RangeResponse, ReadError> {
    fetch(source, select(source, request, &|_, _| None)?)
}

/// What of the answer the index knows.
struct Selection {
    /// In the order of the answer, unless that is by value.
    found: Vec<Found>,
    by_value: Option<Sort>,
    cut: usize,
    keys_only: bool,
    response: RangeResponse,
}

/// How many keys a range has at a main revision, where that is known without counting.
type KnownCount<'a> = &'a dyn Fn(&KeyRange, i64) -> Option<usize>;

/// Everything that needs the index: short, whatever the records are.
fn select(keys: &dyn Keys, request: &RangeRequest, known: KnownCount<'_>) -> Result<Selection, Answer> {
    let at = read_revision(keys, request.revision)?;
    let range = KeyRange::new(request.key.clone(), request.range_end.clone());
    let mut response = RangeResponse { header: header(keys.revision()), ..RangeResponse::default() };
    let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0);
    let cut = limit.unwrap_or(usize::MAX);
    let keys_only = request.keys_only;
    if request.count_only {
        response.count = wire_count(keys.count(&range, at));
        return Ok(Selection { found: Vec::new(), by_value: None, cut, keys_only, response });
    }
    // One more than asked for tells whether there are more.
    let fetched = match limit {
        Some(limit) if is_limited_early(request) => limit.saturating_add(1),
        _ => usize::MAX,
    };
    let mut found = keys.find(&range, at, fetched);
    let count = || known(&range, at).unwrap_or_else(|| keys.count(&range, at));
    response.count = wire_count(if found.len() < fetched { found.len() } else { count() });
    found.retain(|found| passes(request, found));
    response.more = found.len() > cut;
    let sort = Sort::of(request);
    let by_value = sort.filter(|sort| sort.target == SortTarget::Value);
    if by_value.is_none() {
        if let Some(sort) = sort {
            sort.apply(&mut found);
        }
        found.truncate(cut);
    }
    Ok(Selection { found, by_value, cut, keys_only, response })
}

/// Reads the records of a selection.
fn fetch(records: &(impl Records + ?Sized), selection: Selection) -> Result<RangeResponse, ReadError> {
    let Selection { found, by_value, cut, keys_only, mut response } = selection;
    response.kvs = match by_value {
        Some(sort) => sorted_by_value(records, &found, sort.descending, cut, keys_only)?,
        None => pairs(records, &found, keys_only)?,
    };
    Ok(response)
}

/// The revision that a read at `requested` reads: 0 and less mean the newest.
pub(super) fn read_revision(keys: &(impl Keys + ?Sized), requested: i64) -> Result<i64, Answer> {
    let newest = keys.revision();
    if requested > newest {
        return Err(Answer::FutureRevision);
    }
    let at = if requested > 0 { requested } else { newest };
    if at < keys.compact_revision() { Err(Answer::Compacted) } else { Ok(at) }
}

/// A header of a part of the store: the revision only.
pub fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..ResponseHeader::default() })
}

pub(super) fn wire_count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The pairs behind the marks. With `keys_only` they come from the index, which knows no lease (3.7 answers 0 too).
pub(super) fn pairs(
    records: &(impl Records + ?Sized),
    found: &[Found],
    keys_only: bool,
) -> Result<Vec<KeyValue>, Failure> {
    let from_index = |found: &Found| KeyValue {
        key: Bytes::copy_from_slice(&found.key),
        create_revision: found.mark.create_revision,
        mod_revision: found.mark.main,
        version: found.mark.version,
        ..KeyValue::default()
    };
    if keys_only {
        return Ok(found.iter().map(from_index).collect());
    }
    found.iter().map(|found| records.pair(&found.key, &found.mark)).collect()
}

/// Whether the limit may be applied while fetching, before any sort: also before an ascending sort on another target
/// that no order asked for (a quirk, server.md trap 5).
fn is_limited_early(request: &RangeRequest) -> bool {
    let by_key = request.sort_target == SortTarget::Key as i32;
    let in_order = request.sort_order == SortOrder::None as i32;
    let filters =
        [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision];
    (in_order || by_key && request.sort_order == SortOrder::Ascend as i32) && filters.iter().all(|bound| *bound == 0)
}

/// Bounds of 0 are off; negative ones are bounds.
fn passes(request: &RangeRequest, found: &Found) -> bool {
    let at_least = |bound: i64, value: i64| bound == 0 || value >= bound;
    let at_most = |bound: i64, value: i64| bound == 0 || value <= bound;
    at_least(request.min_mod_revision, found.mark.main)
        && at_most(request.max_mod_revision, found.mark.main)
        && at_least(request.min_create_revision, found.mark.create_revision)
        && at_most(request.max_create_revision, found.mark.create_revision)
}

/// A sort that is not the order of keys. Ties stay in ascending key order, also descending: what etcd does with few
/// results, and promises for none.
#[derive(Clone, Copy)]
struct Sort {
    target: SortTarget,
    descending: bool,
}

impl Sort {
    /// Numbers that etcd does not know sort nothing, as there.
    fn of(request: &RangeRequest) -> Option<Sort> {
        let target = SortTarget::try_from(request.sort_target).ok()?;
        let descending = match SortOrder::try_from(request.sort_order).ok()? {
            SortOrder::None | SortOrder::Ascend if target == SortTarget::Key => return None,
            SortOrder::None | SortOrder::Ascend => false,
            SortOrder::Descend => true,
        };
        Some(Sort { target, descending })
    }

    fn apply(self, found: &mut [Found]) {
        let number: fn(&Found) -> i64 = match self.target {
            SortTarget::Version => |found| found.mark.version,
            SortTarget::Create => |found| found.mark.create_revision,
            SortTarget::Mod => |found| found.mark.main,
            // Keys come in ascending order, so only the other one is left.
            SortTarget::Key | SortTarget::Value => return found.reverse(),
        };
        if self.descending {
            found.sort_by_key(|found| std::cmp::Reverse(number(found)));
        } else {
            found.sort_by_key(number);
        }
    }
}

/// Reads all, sorts, cuts. `keys_only` drops the values afterwards; the lease stays (server.md trap 6).
fn sorted_by_value(
    records: &(impl Records + ?Sized),
    found: &[Found],
    descending: bool,
    cut: usize,
    keys_only: bool,
) -> Result<Vec<KeyValue>, Failure> {
    let mut pairs = pairs(records, found, false)?;
    if descending {
        pairs.sort_by(|a, b| b.value.cmp(&a.value));
    } else {
        pairs.sort_by(|a, b| a.value.cmp(&b.value));
    }
    pairs.truncate(cut);
    if keys_only {
        pairs.iter_mut().for_each(|pair| pair.value = Bytes::new());
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::mvcc::store::Store;
    use crate::server::mvcc::testing::tables::MemoryTables;
    use std::sync::Arc;

    /// a: create 2, mod 5, version 2, value 3 · b: 3, 3, 1, value 1 · c: 4, 4, 1, value 2 lease 9.
    fn store() -> Store {
        let mut store = Store::new(Arc::new(MemoryTables::default()));
        for (key, value, lease) in [("a", "0", 0), ("b", "1", 0), ("c", "2", 9), ("a", "3", 0)] {
            let mut txn = store.begin();
            txn.put(&Bytes::from(key), Bytes::from(value), lease);
            txn.commit();
        }
        store
    }

    fn all() -> RangeRequest {
        RangeRequest { key: Bytes::from_static(b"\0"), range_end: Bytes::from_static(b"\0"), ..Default::default() }
    }

    fn check(request: RangeRequest, keys: &str, more: bool, count: i64) {
        let response = range(&store(), &request).unwrap();
        let got: Vec<&str> = response.kvs.iter().map(|kv| std::str::from_utf8(&kv.key).unwrap()).collect();
        assert_eq!((got.concat().as_str(), response.more, response.count), (keys, more, count), "{request:?}");
        assert_eq!(response.header.unwrap().revision, 5);
    }

    #[test]
    fn options_work_in_etcds_order() {
        let order = |target: SortTarget, order: SortOrder| RangeRequest {
            sort_target: target as i32,
            sort_order: order as i32,
            ..all()
        };
        check(all(), "abc", false, 3);
        check(RangeRequest { limit: 2, ..all() }, "ab", true, 3);
        check(RangeRequest { limit: 3, ..all() }, "abc", false, 3);
        check(RangeRequest { limit: -1, ..all() }, "abc", false, 3);
        check(RangeRequest { revision: 3, ..all() }, "ab", false, 2);
        check(RangeRequest { revision: -7, ..all() }, "abc", false, 3);
        check(RangeRequest { count_only: true, limit: 1, ..all() }, "", false, 3);
        check(RangeRequest { min_mod_revision: 4, ..all() }, "ac", false, 3);
        check(RangeRequest { max_mod_revision: 4, limit: 1, ..all() }, "b", true, 3);
        check(RangeRequest { max_create_revision: -1, ..all() }, "", false, 3);
        check(RangeRequest { min_create_revision: -1, max_create_revision: 3, ..all() }, "ab", false, 3);
        check(order(SortTarget::Key, SortOrder::Descend), "cba", false, 3);
        check(RangeRequest { limit: 1, ..order(SortTarget::Key, SortOrder::Descend) }, "c", true, 3);
        check(order(SortTarget::Mod, SortOrder::None), "bca", false, 3);
        check(RangeRequest { limit: 1, ..order(SortTarget::Value, SortOrder::Ascend) }, "b", true, 3);
        check(RangeRequest { limit: 1, ..order(SortTarget::Value, SortOrder::None) }, "b", true, 3);
        check(RangeRequest { limit: 1, ..order(SortTarget::Mod, SortOrder::Ascend) }, "b", true, 3);
        check(order(SortTarget::Version, SortOrder::Descend), "abc", false, 3);
        check(order(SortTarget::Version, SortOrder::Ascend), "bca", false, 3);
        check(order(SortTarget::Value, SortOrder::Descend), "acb", false, 3);
        check(order(SortTarget::Create, SortOrder::Descend), "cba", false, 3);
        check(RangeRequest { key: "b".into(), range_end: "a".into(), ..Default::default() }, "", false, 0);
        check(RangeRequest { key: "b".into(), ..Default::default() }, "b", false, 1);
        check(RangeRequest { key: "b".into(), range_end: "c".into(), ..Default::default() }, "b", false, 1);
    }

    #[test]
    fn without_an_order_other_targets_sort_only_what_the_limit_left() {
        // Keys a and b are fetched (limit 1 and one more), then sorted by mod: b 3, a 5.
        let request = RangeRequest { limit: 1, sort_target: SortTarget::Mod as i32, ..all() };
        check(request, "b", true, 3);
        let request = RangeRequest { limit: 1, sort_target: SortTarget::Create as i32, ..all() };
        check(request, "a", true, 3);
    }

    #[test]
    fn keys_only_has_a_lease_only_when_sorted_by_value() {
        for (target, lease) in [(SortTarget::Key, 0), (SortTarget::Mod, 0), (SortTarget::Value, 9)] {
            let request = RangeRequest { keys_only: true, sort_target: target as i32, ..all() };
            let response = range(&store(), &request).unwrap();
            let c = response.kvs.iter().find(|kv| kv.key == "c").unwrap();
            assert_eq!((c.lease, c.version, c.mod_revision, c.value.len()), (lease, 1, 4, 0), "{target:?}");
        }
    }

    #[test]
    fn revisions_out_of_reach_fail_before_any_lookup() {
        let mut store = store();
        store.compact(4).unwrap();
        for count_only in [false, true] {
            let check = |revision: i64, expected: Option<Answer>| {
                let request = RangeRequest { key: "absent".into(), revision, count_only, ..Default::default() };
                match (range(&store, &request), expected) {
                    (Ok(_), None) => {}
                    (Err(ReadError::Answer(answer)), Some(expected)) => assert_eq!(answer, expected),
                    (got, expected) => panic!("{revision}: {got:?}, not {expected:?}"),
                }
            };
            check(3, Some(Answer::Compacted));
            check(4, None);
            check(6, Some(Answer::FutureRevision));
            check(-1, None);
        }
    }
}
