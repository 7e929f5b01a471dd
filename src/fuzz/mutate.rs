//! Wrong inputs made of right ones.

use crate::disk::sim::Dice;

/// No input grows beyond this.
const INPUT_BYTES_MAX: usize = 1 << 20;

/// Numbers at which lengths and counts go wrong.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// One to eight changes of an input of the corpus.
pub fn mutate(dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = corpus[below(dice, corpus.len())].clone();
    for _ in 0..1 + dice.below(8) {
        change(dice, &mut input, corpus);
        input.truncate(INPUT_BYTES_MAX);
    }
    input
}

fn change(dice: &mut Dice, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = below(dice, input.len() + 1);
    match dice.below(9) {
        0 if at < input.len() => input[at] ^= 1 << dice.below(8),
        1 if at < input.len() => input[at] = dice.roll() as u8,
        2 => input.truncate(at),
        3 => {
            let end = (at + 1 + below(dice, 16)).min(input.len());
            input.drain(at.min(end)..end);
        }
        4 => {
            let other = &corpus[below(dice, corpus.len())];
            let from = below(dice, other.len() + 1);
            let end = (from + below(dice, 64)).min(other.len());
            input.splice(at..at, other[from..end].iter().copied());
        }
        5 => {
            let end = (at + below(dice, 32)).min(input.len());
            let again = input[at..end].repeat(1 + below(dice, 8));
            input.splice(at..at, again);
        }
        6 => edge(dice, input, at),
        7 => {
            let random: Vec<u8> = (0..dice.below(9)).map(|_| dice.roll() as u8).collect();
            input.splice(at..at, random);
        }
        _ => {
            let other = &corpus[below(dice, corpus.len())];
            let from = below(dice, other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
    }
}

/// Overwrites a number: 1, 4 or 8 bytes in either order, or a varint.
fn edge(dice: &mut Dice, input: &mut Vec<u8>, at: usize) {
    let number = dice.pick(&EDGES);
    let bytes = match dice.below(6) {
        0 => vec![number as u8],
        1 => (number as u32).to_le_bytes().to_vec(),
        2 => (number as u32).to_be_bytes().to_vec(),
        3 => number.to_le_bytes().to_vec(),
        4 => number.to_be_bytes().to_vec(),
        _ => {
            let mut varint = Vec::new();
            prost::encoding::encode_varint(number, &mut varint);
            varint
        }
    };
    let end = (at + bytes.len()).min(input.len());
    input.splice(at..end, bytes);
}

fn below(dice: &mut Dice, bound: usize) -> usize {
    dice.below(bound as u64) as usize
}
