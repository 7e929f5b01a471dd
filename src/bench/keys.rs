//! Which key a request names and what a value holds: the same for every run, so that two servers see the same work.

use bytes::Bytes;
use bytes::BytesMut;

/// Keys 0 to `space` - 1 as decimal digits with zeros in front, `size` bytes long: their order is the numbers' order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    pub size: usize,
    pub space: u64,
    /// Request n names key n (from the start again when the space is used up), otherwise one at random.
    pub sequential: bool,
}

/// Why there are no such keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    #[error("--key-space-size must be at least 1")]
    NoKeys,
    #[error("{space} different keys need --key-size {needed} at least")]
    TooShort { space: u64, needed: usize },
}

impl Keys {
    pub fn new(size: usize, space: u64, sequential: bool) -> Result<Keys, KeysError> {
        let last = space.checked_sub(1).ok_or(KeysError::NoKeys)?;
        let needed = last.checked_ilog10().map_or(1, |digits| digits as usize + 1);
        if size < needed {
            return Err(KeysError::TooShort { space, needed });
        }
        Ok(Keys { size, space, sequential })
    }

    /// Which of the keys request `number` names.
    pub fn number(&self, number: u64) -> u64 {
        (if self.sequential { number } else { mix(number) }) % self.space
    }

    /// The key of request `number`.
    pub fn of(&self, number: u64) -> Bytes {
        let mut rest = self.number(number);
        let mut key = BytesMut::zeroed(self.size);
        for digit in key.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        key.freeze()
    }
}

/// A number that looks random, the same each time (SplitMix64's last step).
pub fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Bytes that do not compress: a server that compresses must not look fast because of its tester.
pub fn value(size: usize) -> Bytes {
    (0..size as u64).map(|at| mix(at) as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequential_keys_count_and_start_again() {
        let keys = Keys::new(3, 11, true).expect("fits");
        let named: Vec<Bytes> = [0, 1, 10, 11, 12].map(|number| keys.of(number)).into();
        assert_eq!(named, ["000", "001", "010", "000", "001"]);
    }

    #[test]
    fn random_keys_reach_the_whole_space_and_repeat_from_run_to_run() {
        let keys = Keys::new(8, 100, false).expect("fits");
        let named: std::collections::BTreeSet<Bytes> = (0..2000).map(|number| keys.of(number)).collect();
        assert_eq!(named.len(), 100);
        assert!(named.iter().all(|key| key.len() == 8));
        assert_eq!(keys.of(7), keys.of(7));
    }

    #[test]
    fn a_space_that_its_keys_cannot_name_is_refused() {
        assert_eq!(Keys::new(8, 0, true), Err(KeysError::NoKeys));
        assert_eq!(Keys::new(2, 101, true), Err(KeysError::TooShort { space: 101, needed: 3 }));
        assert!(Keys::new(2, 100, true).is_ok());
        assert!(Keys::new(1, 1, false).is_ok());
        assert_eq!(Keys::new(0, 1, false), Err(KeysError::TooShort { space: 1, needed: 1 }));
    }

    #[test]
    fn values_have_their_size_and_do_not_repeat_themselves() {
        assert_eq!(value(256).len(), 256);
        assert!(value(256).iter().collect::<std::collections::BTreeSet<_>>().len() > 100);
        assert!(value(0).is_empty());
    }
}
