//! The network between members: delay, loss, doubles, one-way cuts. It never changes a message.

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
}

/// How the network behaves now.
#[derive(Debug)]
pub struct Network {
    /// (from, to) that hear nothing.
    cuts: BTreeSet<(u64, u64)>,
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
        let cuts = BTreeSet::new();
        Network { cuts, loss_percent: 0, double_percent: 0, slow_percent: 0, delay_max: DELAY_USUAL_MAX }
    }

    pub fn cut(&mut self, from: u64, to: u64) {
        self.cuts.insert((from, to));
    }

    pub fn heal(&mut self) {
        *self = Network::new();
    }

    pub fn heal_cuts(&mut self) {
        self.cuts.clear();
    }

    /// No loss, no doubles, no delay; cuts stay.
    pub fn heal_weather(&mut self) {
        *self = Network { cuts: std::mem::take(&mut self.cuts), ..Network::new() };
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
