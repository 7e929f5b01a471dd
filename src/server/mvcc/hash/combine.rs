//! CRC-32C of two byte strings from the CRCs of both and the length of the second, without the bytes.
//!
//! Appending a zero byte to a message is a linear map of its CRC over GF(2), a matrix of 32 columns; appending n is a
//! product of the maps for the powers of two in n. Those are made once.

/// The reflected Castagnoli polynomial.
const POLYNOMIAL: u32 = 0x82f6_3b78;

type Matrix = [u32; 32];

/// Maps for 2^0, 2^1, ... zero bytes: as many as a u32 length needs.
pub struct Combiner {
    zeros: [Matrix; 32],
}

impl Default for Combiner {
    fn default() -> Combiner {
        let mut one_bit: Matrix =
            std::array::from_fn(|column| if column == 0 { POLYNOMIAL } else { 1 << (column - 1) });
        for _ in 0..3 {
            one_bit = square(&one_bit);
        }
        let mut zeros = [one_bit; 32];
        for power in 1..zeros.len() {
            zeros[power] = square(&zeros[power - 1]);
        }
        Combiner { zeros }
    }
}

impl Combiner {
    /// The CRC of a ++ b.
    pub fn combine(&self, crc_a: u32, crc_b: u32, bytes_b: u32) -> u32 {
        let mut crc = crc_a;
        let mut rest = bytes_b;
        while rest != 0 {
            crc = apply(&self.zeros[rest.trailing_zeros() as usize], crc);
            rest &= rest - 1;
        }
        crc ^ crc_b
    }
}

fn apply(matrix: &Matrix, mut vector: u32) -> u32 {
    let mut product = 0;
    while vector != 0 {
        product ^= matrix[vector.trailing_zeros() as usize];
        vector &= vector - 1;
    }
    product
}

fn square(matrix: &Matrix) -> Matrix {
    std::array::from_fn(|column| apply(matrix, matrix[column]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combining_equals_hashing_the_whole() {
        let combiner = Combiner::default();
        let bytes: Vec<u8> = (0..5000u32).map(|i| (i * 7 + i / 13) as u8).collect();
        for (cut, end) in [(0, 0), (0, 1), (1, 1), (3, 20), (17, 400), (100, 4196), (4999, 5000), (1000, 5000)] {
            let (a, b) = (&bytes[..cut], &bytes[cut..end]);
            let combined = combiner.combine(crc32c::crc32c(a), crc32c::crc32c(b), b.len() as u32);
            assert_eq!(combined, crc32c::crc32c(&bytes[..end]), "{cut} of {end}");
        }
    }
}
