//! What one request of a workload is.

use bytes::Bytes;

use super::keys;
use super::keys::Keys;
use crate::client::CallError;
use crate::client::direct::Direct;
use crate::client::direct::DirectError;
use crate::common::answer::Answer;
use crate::proto::etcdserverpb::LeaseGrantRequest;
use crate::proto::etcdserverpb::LeaseKeepAliveRequest;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RequestOp;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::request_op::Request as Op;

/// As a range's end: to the last key of all.
const TO_THE_LAST: &[u8] = b"\0";

/// Which keys a read asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ranges {
    /// One of these keys.
    Keys(Keys),
    /// Always the same; without an end one key.
    Fixed { key: Bytes, end: Bytes },
}

/// A workload: request n follows from n alone, so that any client can make any request.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    Put {
        keys: Keys,
        value: Bytes,
    },
    Range {
        which: Ranges,
        limit: i64,
        serializable: bool,
    },
    /// The whole of a range in pages; each page after the first asks for the first one's revision, as clients that want
    /// one consistent list do.
    List {
        from: (Bytes, Bytes),
        limit: i64,
        serializable: bool,
    },
    Txn {
        keys: Keys,
        value: Bytes,
        ops: u64,
    },
    /// `reads` of all requests are reads: 0 to 1.
    Mixed {
        keys: Keys,
        value: Bytes,
        reads: f64,
        limit: i64,
        serializable: bool,
    },
    /// Grants a lease of so many seconds.
    Grant {
        ttl: i64,
    },
    /// Renews one of so many leases, in turn.
    KeepAlive {
        leases: u64,
    },
}

/// The first lease that is renewed; the others follow. A run finds those of an earlier one.
const FIRST_LEASE: i64 = 0x0071_756f_7261_7465;

/// Seconds that they live: longer than anybody measures.
const RENEWED_TTL: i64 = 3600;

/// What a request was, once it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    Write,
    /// Keys that came back, and the answers that they came in.
    Read {
        keys: u64,
        pages: u64,
    },
}

impl Ranges {
    /// The same as the two ends of a list.
    pub fn to_end(&self) -> (Bytes, Bytes) {
        let last = Bytes::from_static(TO_THE_LAST);
        match self {
            Ranges::Keys(_) => (last.clone(), last),
            Ranges::Fixed { key, end } if end.is_empty() => (key.clone(), last),
            Ranges::Fixed { key, end } => (key.clone(), end.clone()),
        }
    }

    fn of(&self, number: u64) -> (Bytes, Bytes) {
        match self {
            Ranges::Keys(keys) => (keys.of(number), Bytes::new()),
            Ranges::Fixed { key, end } => (key.clone(), end.clone()),
        }
    }
}

impl Work {
    /// Whether request `number` is a read.
    pub fn reads(&self, number: u64) -> bool {
        match self {
            Work::Put { .. } | Work::Txn { .. } | Work::Grant { .. } | Work::KeepAlive { .. } => false,
            Work::Range { .. } | Work::List { .. } => true,
            // The top 53 bits, as a number from 0 up to 1, itself not in it. Not the bits that choose the key.
            Work::Mixed { reads, .. } => *reads > (keys::mix(!number) >> 11) as f64 / (1u64 << 53) as f64,
        }
    }

    /// Whether the service that does nothing can be asked.
    pub fn has_floors(&self) -> bool {
        !matches!(self, Work::Grant { .. } | Work::KeepAlive { .. })
    }

    /// Makes what the requests need to be there.
    pub async fn prepare(&self, direct: &mut Direct) -> Result<(), String> {
        let Work::KeepAlive { leases } = self else { return Ok(()) };
        for number in 0..*leases {
            let request = LeaseGrantRequest { id: FIRST_LEASE + number as i64, ttl: RENEWED_TTL };
            match direct.lease_grant(&request).await {
                Ok(_) => {}
                Err(DirectError::Refused(error)) if error.is(&Answer::LeaseExists) => {}
                Err(error) => return Err(format!("cannot grant a lease: {error}")),
            }
        }
        Ok(())
    }

    /// Makes request `number` and waits for its answer.
    pub async fn perform(&self, direct: &mut Direct, number: u64) -> Result<Done, DirectError> {
        match self {
            Work::Put { keys, value } => put(direct, keys.of(number), value).await,
            Work::Range { which, limit, serializable } => {
                let (key, range_end) = which.of(number);
                range(direct, read(key, range_end, *limit, *serializable)).await
            }
            Work::List { from: (key, end), limit, serializable } => {
                list(direct, read(key.clone(), end.clone(), *limit, *serializable)).await
            }
            Work::Txn { keys, value, ops } => txn(direct, keys, value, number * ops, *ops).await,
            Work::Mixed { keys, limit, serializable, .. } if self.reads(number) => {
                let end = if *limit == 0 { Bytes::new() } else { Bytes::from_static(TO_THE_LAST) };
                range(direct, read(keys.of(number), end, *limit, *serializable)).await
            }
            Work::Mixed { keys, value, .. } => put(direct, keys.of(number), value).await,
            Work::Grant { ttl } => {
                direct.lease_grant(&LeaseGrantRequest { id: 0, ttl: *ttl }).await?;
                Ok(Done::Write)
            }
            Work::KeepAlive { leases } => {
                let id = FIRST_LEASE + (number % leases) as i64;
                match direct.lease_keep_alive(&LeaseKeepAliveRequest { id }).await?.ttl {
                    1.. => Ok(Done::Write),
                    _ => Err(DirectError::Refused(CallError::Answer(Answer::LeaseNotFound))),
                }
            }
        }
    }
}

fn read(key: Bytes, range_end: Bytes, limit: i64, serializable: bool) -> RangeRequest {
    RangeRequest { key, range_end, limit, serializable, ..RangeRequest::default() }
}

async fn put(direct: &mut Direct, key: Bytes, value: &Bytes) -> Result<Done, DirectError> {
    direct.put(&PutRequest { key, value: value.clone(), ..PutRequest::default() }).await?;
    Ok(Done::Write)
}

async fn range(direct: &mut Direct, request: RangeRequest) -> Result<Done, DirectError> {
    let answer = direct.range(&request).await?;
    Ok(Done::Read { keys: answer.kvs.len() as u64, pages: 1 })
}

async fn list(direct: &mut Direct, mut request: RangeRequest) -> Result<Done, DirectError> {
    let (mut keys, mut pages) = (0, 0);
    let mut expected = None;
    loop {
        let answer = direct.range(&request).await?;
        // A page has the count of all keys from its first one on, and one revision is one list: a server that saves
        // itself the counting must not look fast.
        if expected.is_some_and(|expected| answer.count != expected) {
            let told = format!("page {} says that {} keys are left, not {expected:?}", pages + 1, answer.count);
            return Err(DirectError::Lost(told));
        }
        expected = Some(answer.count - answer.kvs.len() as i64);
        keys += answer.kvs.len() as u64;
        pages += 1;
        let Some(last) = answer.kvs.last().filter(|_| answer.more) else { return Ok(Done::Read { keys, pages }) };
        // The next key that could exist.
        request.key = [last.key.as_ref(), b"\0"].concat().into();
        if request.revision == 0 {
            request.revision = answer.header.map_or(0, |header| header.revision);
        }
    }
}

async fn txn(direct: &mut Direct, keys: &Keys, value: &Bytes, first: u64, ops: u64) -> Result<Done, DirectError> {
    let mut request = TxnRequest::default();
    for number in first..first + ops {
        let put = PutRequest { key: keys.of(number), value: value.clone(), ..PutRequest::default() };
        request.success.push(RequestOp { request: Some(Op::RequestPut(put)) });
    }
    direct.txn(&request).await?;
    Ok(Done::Write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixture_has_the_share_of_reads_that_was_asked_for() {
        let check = |reads: f64| {
            let keys = Keys { size: 8, space: 10, sequential: false };
            let work = Work::Mixed { keys, value: Bytes::new(), reads, limit: 0, serializable: false };
            let found = (0..100_000).filter(|number| work.reads(*number)).count() as f64 / 100_000.0;
            assert!((found - reads).abs() < 0.01, "{found} for {reads}");
        };
        check(0.0);
        check(0.5);
        check(0.75);
        check(1.0);
    }
}
