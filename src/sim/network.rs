//! The network between members: delay, loss, doubles, one-way cuts. It never changes a message.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::disk::sim::Dice;
use crate::proto::raft_numbers as numbers;
use crate::proto::raftpb::Message;
use crate::sim::member::Image;
use crate::sim::world::Micros;

/// A message on its way, with the image that a snapshot's message names.
#[derive(Clone)]
pub struct Parcel {
    pub message: Message,
    pub image: Option<Arc<Image>>,
    /// It was held up in a clogged link and goes on now.
    pub freed: bool,
}

/// How the network behaves now.
#[derive(Debug)]
pub struct Network {
    /// (from, to) that hear nothing.
    cuts: BTreeSet<(u64, u64)>,
    /// Until when nothing arrives, by receiver.
    clogs: BTreeMap<u64, Micros>,
    /// When the last message that a clog held up arrives, by sender and receiver.
    lines: BTreeMap<(u64, u64), Micros>,
    /// Longest time between two messages that a clog held up.
    pub trickle: Micros,
    pub loss_percent: u64,
    pub double_percent: u64,
    /// Of so many messages in a hundred, the delay may be as long as `delay_max`.
    pub slow_percent: u64,
    pub delay_max: Micros,
}

const DELAY_MIN: Micros = 200;
const DELAY_USUAL_MAX: Micros = 2_000;

impl Network {
    /// A healthy one.
    pub fn new() -> Network {
        Network {
            cuts: BTreeSet::new(),
            clogs: BTreeMap::new(),
            lines: BTreeMap::new(),
            trickle: 1,
            loss_percent: 0,
            double_percent: 0,
            slow_percent: 0,
            delay_max: DELAY_USUAL_MAX,
        }
    }

    pub fn cut(&mut self, from: u64, to: u64) {
        self.cuts.insert((from, to));
    }

    /// Holds everything to `to` up until `free_at`.
    pub fn clog(&mut self, to: u64, free_at: Micros) {
        self.clogs.insert(to, free_at);
    }

    /// Until when a link is held up: by its clog, and then by what the clog held up, for links keep their order.
    pub fn held_until(&self, from: u64, to: u64, now: Micros) -> Option<Micros> {
        let clog = self.clogs.get(&to).into_iter().chain(self.lines.get(&(from, to)));
        clog.copied().max().filter(|free_at| *free_at > now)
    }

    /// When a message that was held up goes on: behind those before it.
    pub fn next_in_line(&mut self, from: u64, to: u64, free_at: Micros, gap: Micros) -> Micros {
        let line = self.lines.entry((from, to)).or_insert(free_at);
        *line = free_at.max(*line) + gap;
        *line
    }

    pub fn heal(&mut self) {
        *self = Network::new();
    }

    pub fn heal_cuts(&mut self) {
        self.cuts.clear();
    }

    /// No loss, no doubles, no delay; cuts stay.
    pub fn heal_weather(&mut self) {
        let Network { cuts, clogs, lines, trickle, .. } = std::mem::replace(self, Network::new());
        *self = Network { cuts, clogs, lines, trickle, ..Network::new() };
    }

    pub fn passes(&self, message: &Message) -> bool {
        !self.cuts.contains(&(message.from, message.to))
    }

    /// When the copies of a message arrive: none if it is lost.
    pub fn arrivals(&self, message: &Message, now: Micros, dice: &mut Dice) -> Vec<Micros> {
        if !self.passes(message) || dice.chance(self.loss_percent) {
            return Vec::new();
        }
        // A stream never brings a message twice. Raft does not mind if one does, but a forwarded proposal would be two.
        let doubled = message.r#type != numbers::MSG_PROP && dice.chance(self.double_percent);
        let copies = if doubled { 2 } else { 1 };
        (0..copies).map(|_| now + self.delay(dice)).collect()
    }

    /// Few messages are slow and most are not, so that the slow ones are overtaken.
    fn delay(&self, dice: &mut Dice) -> Micros {
        let longest = if dice.chance(self.slow_percent) { self.delay_max } else { DELAY_USUAL_MAX };
        DELAY_MIN + dice.below(longest)
    }
}
