//! Which alarms are raised, and what they forbid (server.md 6.4).

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use prost::Message;

use crate::common::failure::Failure;
use crate::proto::etcdserverpb::AlarmMember;
use crate::proto::etcdserverpb::AlarmRequest;
use crate::proto::etcdserverpb::AlarmType;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::server::checkpoint::Bucket;
use crate::server::checkpoint::Buckets;

/// A change of a bucket: `None` deletes.
type Pair = (Bucket, Bytes, Option<Bytes>);

/// The alarms: member id and type number, any of both.
#[derive(Clone, Debug, Default)]
pub struct Alarms {
    raised: BTreeSet<(u64, i32)>,
    pairs: Vec<Pair>,
}

/// What everybody but apply sees of the alarms: a copy, swapped when it changes.
#[derive(Clone, Debug, Default)]
pub struct AlarmsHandle {
    raised: Arc<ArcSwap<Vec<AlarmMember>>>,
}

impl Alarms {
    /// Reads bucket `alarm` back. A key that cannot be read is damage.
    pub fn restore(buckets: &Buckets) -> Result<Alarms, Failure> {
        let mut alarms = Alarms::default();
        for (_, key) in buckets.keys().filter(|(bucket, _)| *bucket == Bucket::Alarm) {
            let stored = AlarmMember::decode(key.clone());
            let stored = stored.map_err(|_| Failure::Refused(format!("bucket alarm holds a bad key {key:?}")))?;
            alarms.raised.insert((stored.member_id, stored.alarm));
        }
        Ok(alarms)
    }

    /// Carries out a request: the alarms to answer with. Unknown actions do nothing.
    pub fn apply(&mut self, request: &AlarmRequest) -> Vec<AlarmMember> {
        let alarm = (request.member_id, request.alarm);
        let one = |alarm: (u64, i32)| vec![message(alarm)];
        match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => self.list(request.alarm),
            Ok(AlarmAction::Activate) if request.alarm == AlarmType::None as i32 => Vec::new(),
            Ok(AlarmAction::Activate) => {
                if self.raised.insert(alarm) {
                    self.pairs.push((Bucket::Alarm, key(alarm), Some(Bytes::new())));
                }
                one(alarm)
            }
            Ok(AlarmAction::Deactivate) if self.raised.remove(&alarm) => {
                self.pairs.push((Bucket::Alarm, key(alarm), None));
                one(alarm)
            }
            Ok(AlarmAction::Deactivate) | Err(_) => Vec::new(),
        }
    }

    /// Alarms of this type; all for type NONE. By member id, then type.
    pub fn list(&self, r#type: i32) -> Vec<AlarmMember> {
        let wanted = |alarm: &&(u64, i32)| r#type == AlarmType::None as i32 || alarm.1 == r#type;
        self.raised.iter().filter(wanted).map(|alarm| message(*alarm)).collect()
    }

    pub fn any(&self, r#type: AlarmType) -> bool {
        self.raised.iter().any(|alarm| alarm.1 == r#type as i32)
    }

    /// Changes of pairs since the last call, in order.
    pub fn take_pairs(&mut self) -> Vec<Pair> {
        std::mem::take(&mut self.pairs)
    }

    /// All pairs as they are now.
    pub fn buckets(&self) -> Buckets {
        self.raised.iter().map(|alarm| ((Bucket::Alarm, key(*alarm)), Bytes::new())).collect()
    }
}

impl AlarmsHandle {
    /// Shows a new state. Called by apply before anyone is told of the change.
    pub fn publish(&self, alarms: &Alarms) {
        self.raised.store(Arc::new(alarms.list(AlarmType::None as i32)));
    }

    /// All alarms, by member id, then type.
    pub fn list(&self) -> Arc<Vec<AlarmMember>> {
        self.raised.load_full()
    }

    pub fn any(&self, r#type: AlarmType) -> bool {
        self.raised.load().iter().any(|alarm| alarm.alarm == r#type as i32)
    }

    /// Has this member raised this alarm?
    pub fn has(&self, member: u64, r#type: AlarmType) -> bool {
        self.raised.load().contains(&message((member, r#type as i32)))
    }
}

fn message((member_id, alarm): (u64, i32)) -> AlarmMember {
    AlarmMember { member_id, alarm }
}

fn key(alarm: (u64, i32)) -> Bytes {
    Bytes::from(message(alarm).encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: i32 = AlarmAction::Get as i32;
    const ACTIVATE: i32 = AlarmAction::Activate as i32;
    const DEACTIVATE: i32 = AlarmAction::Deactivate as i32;

    fn request(action: i32, member_id: u64, alarm: i32) -> AlarmRequest {
        AlarmRequest { action, member_id, alarm }
    }

    #[test]
    fn alarms_are_a_set_of_member_and_type() {
        let mut alarms = Alarms::default();
        let mut check = |action: i32, member: u64, alarm: i32, expected: &[(u64, i32)]| {
            let answer = alarms.apply(&request(action, member, alarm));
            let answer: Vec<_> = answer.iter().map(|alarm| (alarm.member_id, alarm.alarm)).collect();
            assert_eq!(answer, expected, "{action} {member} {alarm}");
        };
        check(GET, 0, 0, &[]);
        check(ACTIVATE, 7, 0, &[]);
        check(ACTIVATE, 7, 1, &[(7, 1)]);
        check(ACTIVATE, 7, 1, &[(7, 1)]);
        check(ACTIVATE, 5, 2, &[(5, 2)]);
        check(ACTIVATE, 5, 99, &[(5, 99)]);
        check(GET, 3, 0, &[(5, 2), (5, 99), (7, 1)]);
        check(GET, 3, 2, &[(5, 2)]);
        check(DEACTIVATE, 5, 1, &[]);
        check(DEACTIVATE, 7, 1, &[(7, 1)]);
        check(9, 7, 1, &[]);
        check(GET, 0, 1, &[]);
    }

    #[test]
    fn keys_are_etcds_and_restore_the_set() {
        let mut alarms = Alarms::default();
        alarms.apply(&request(ACTIVATE, 0x4d, 1));
        alarms.apply(&request(ACTIVATE, 0x4d, 1));
        let pairs = alarms.take_pairs();
        let expected = Bytes::from_static(&[0x08, 0x4d, 0x10, 0x01]);
        assert_eq!(pairs, [(Bucket::Alarm, expected.clone(), Some(Bytes::new()))]);
        assert_eq!(alarms.buckets(), Buckets::from([((Bucket::Alarm, expected), Bytes::new())]));
        let back = Alarms::restore(&alarms.buckets()).expect("keys of our own");
        assert!(back.any(AlarmType::Nospace) && !back.any(AlarmType::Corrupt));
        let bad = Buckets::from([((Bucket::Alarm, Bytes::from_static(b"\xff")), Bytes::new())]);
        assert!(Alarms::restore(&bad).is_err());
        let handle = AlarmsHandle::default();
        handle.publish(&back);
        assert!(handle.clone().has(0x4d, AlarmType::Nospace) && handle.any(AlarmType::Nospace));
    }
}
