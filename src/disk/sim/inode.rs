//! The content of one simulated file: what is durable, what a reader sees, and the changes in between.

use crate::disk::sim::dice::Dice;

/// What a disk writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Resize(usize),
}

#[derive(Clone, Debug, Default)]
pub struct Inode {
    durable: Vec<u8>,
    current: Vec<u8>,
    /// Changes since the last sync, oldest first.
    pending: Vec<Change>,
}

impl Inode {
    pub fn content(&self) -> &[u8] {
        &self.current
    }

    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.change(Change::Write { offset, bytes: bytes.to_vec() });
    }

    pub fn resize(&mut self, len: usize) {
        self.change(Change::Resize(len));
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.current, &change);
        self.pending.push(change);
    }

    pub fn sync(&mut self) {
        for change in self.pending.drain(..) {
            apply(&mut self.durable, &change);
        }
    }

    /// A failed fdatasync: the pages count as clean although they never reached the disk, so that a later sync that
    /// succeeds does not save them either (the "fsyncgate" of 2018).
    pub fn fail_sync(&mut self) {
        self.pending.clear();
    }

    /// Overwrites the content, durably: damage made on purpose.
    pub fn replace(&mut self, content: Vec<u8>) {
        self.pending.clear();
        self.durable.clone_from(&content);
        self.current = content;
    }

    /// What a power cut leaves. Lengths are journaled in order, so they stop at one change; sectors of unsynced writes
    /// reach the disk in any combination.
    pub fn crash(&self, dice: &mut Dice) -> Inode {
        let kept_percent = dice.pick(&[0, 30, 70, 95, 100]);
        let lengths_kept = match dice.below(3) {
            0 => self.pending.len(),
            _ => usize::try_from(dice.below(self.pending.len() as u64 + 1)).expect("at most a length"),
        };
        let mut content = self.durable.clone();
        for (number, change) in self.pending.iter().enumerate() {
            let length_kept = number < lengths_kept;
            match change {
                Change::Resize(len) if length_kept => content.resize(*len, 0),
                Change::Resize(_) => {}
                Change::Write { offset, bytes } => {
                    let end = offset + bytes.len();
                    if length_kept && content.len() < end {
                        content.resize(end, 0);
                    }
                    keep_some_sectors(&mut content, *offset, bytes, kept_percent, dice);
                }
            }
        }
        Inode { current: content.clone(), durable: content, pending: Vec::new() }
    }
}

fn apply(content: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Resize(len) => content.resize(*len, 0),
        Change::Write { offset, bytes } => {
            let end = offset + bytes.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[*offset..end].copy_from_slice(bytes);
        }
    }
}

fn keep_some_sectors(content: &mut [u8], offset: usize, bytes: &[u8], percent: u64, dice: &mut Dice) {
    let mut at = 0;
    while at < bytes.len() {
        let start = offset + at;
        let count = (SECTOR_BYTES - start % SECTOR_BYTES).min(bytes.len() - at);
        // Behind the durable length there is nothing to keep.
        if dice.chance(percent) && start < content.len() {
            let end = (start + count).min(content.len());
            content[start..end].copy_from_slice(&bytes[at..at + end - start]);
        }
        at += count;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn synced_content_survives_every_crash() {
        let mut inode = Inode::default();
        inode.write(0, &[1; 2000]);
        inode.sync();
        for seed in 0..100 {
            assert_eq!(inode.crash(&mut Dice::new(seed)).content(), [1; 2000]);
        }
    }

    #[test]
    fn unsynced_sectors_survive_in_any_combination_and_only_whole() {
        let mut inode = Inode::default();
        inode.resize(4 * SECTOR_BYTES);
        inode.sync();
        inode.write(100, &[9; 1500]);
        let mut shapes = BTreeSet::new();
        for seed in 0..400 {
            let crashed = inode.crash(&mut Dice::new(seed));
            let sectors: Vec<bool> = crashed.content().chunks(SECTOR_BYTES).map(|sector| sector.contains(&9)).collect();
            assert!(crashed.content()[..100].iter().all(|byte| *byte == 0));
            let first_written = crashed.content()[100..512].iter().filter(|byte| **byte == 9).count();
            assert!(first_written == 0 || first_written == 412, "a sector was cut: {first_written}");
            shapes.insert(sectors);
        }
        assert_eq!(shapes.len(), 16, "four sectors, each old or new");
    }

    #[test]
    fn unsynced_lengths_and_truncations_may_be_lost() {
        let mut inode = Inode::default();
        inode.write(0, &[1; 600]);
        inode.sync();
        inode.resize(100);
        inode.resize(700);
        let lengths: BTreeSet<usize> = (0..100).map(|seed| inode.crash(&mut Dice::new(seed)).content().len()).collect();
        assert_eq!(lengths, BTreeSet::from([100, 600, 700]));
    }

    #[test]
    fn pages_of_a_failed_sync_are_gone_after_the_next_one() {
        let mut inode = Inode::default();
        inode.write(0, b"lost");
        inode.fail_sync();
        inode.sync();
        assert_eq!(inode.content(), b"lost");
        assert!((0..50).all(|seed| inode.crash(&mut Dice::new(seed)).content().is_empty()));
    }
}
