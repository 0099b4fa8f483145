//! Internet checksum arithmetic (RFC 1071, RFC 1624).
//!
//! Sums run over 16-bit words in the host's byte order; one's complement addition does not care
//! as long as all words agree.

use crate::headers::{Be16, Be32};

/// A one's complement sum that has not been folded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds a word.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, word: Be16) -> Self {
        Self(self.0 + word.0 as u64)
    }

    /// Adds two words.
    #[inline(always)]
    #[must_use]
    pub const fn double(self, words: Be32) -> Self {
        Self(self.0 + words.0 as u64)
    }

    /// Adds an IPv6 address.
    #[inline(always)]
    #[must_use]
    pub const fn address(self, [a, b, c, d]: [Be32; 4]) -> Self {
        self.double(a).double(b).double(c).double(d)
    }

    /// Adds what `other` has summed.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.fold() as u64)
    }

    /// Subtracts what `other` has summed.
    #[inline(always)]
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0 + (!other.fold()) as u64)
    }

    /// The folded 16-bit sum.
    #[inline(always)]
    const fn fold(self) -> u16 {
        // Fewer than 2^16 words were added: 48 → 33 → 18 → 17 → 16 bits.
        let s = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let s = (s & 0xffff) + (s >> 16);
        let s = (s & 0xffff) + (s >> 16);
        let s = (s & 0xffff) + (s >> 16);
        s as u16
    }

    /// The checksum to store in a header.
    #[inline(always)]
    pub const fn checksum(self) -> Be16 {
        Be16(!self.fold())
    }

    /// Whether data that contains its own checksum adds up.
    #[inline(always)]
    pub const fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }
}

/// `checksum` after the word `from`, which it covers, has become `to` (RFC 1624, eqn. 3).
#[inline(always)]
pub const fn replace(checksum: Be16, from: Be16, to: Be16) -> Be16 {
    Sum(!checksum.0 as u64 + !from.0 as u64 + to.0 as u64).checksum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 word by word, for comparison.
    fn reference(words: &[u16]) -> Be16 {
        let mut sum = 0u32;
        for word in words {
            sum += u32::from(*word);
            sum = (sum & 0xffff) + (sum >> 16);
        }
        Be16::new(!(sum as u16))
    }

    fn sum(words: &[u16]) -> Sum {
        words.iter().fold(Sum::default(), |sum, word| sum.word(Be16::new(*word)))
    }

    proptest! {
        #[test]
        fn a_sum_equals_the_word_by_word_definition(words: [u16; 11]) {
            prop_assert_eq!(sum(&words).checksum(), reference(&words));
        }

        #[test]
        fn a_double_adds_its_two_words(a: u16, b: u16, rest: [u16; 4]) {
            let double = Be32::new(u32::from(a) << 16 | u32::from(b));
            prop_assert_eq!(sum(&rest).double(double).checksum(), sum(&rest).word(Be16::new(a)).word(Be16::new(b)).checksum());
        }

        #[test]
        fn data_with_its_checksum_is_valid(mut words: [u16; 10]) {
            words[5] = 0;
            words[5] = sum(&words).checksum().get();
            prop_assert!(sum(&words).is_valid());
        }

        #[test]
        fn an_incremental_update_equals_a_full_sum(mut words: [u16; 10], to: u16) {
            words[0] = 0x4500; // as in a header, the data is not all zero
            words[5] = 0;
            let updated = replace(sum(&words).checksum(), Be16::new(words[4]), Be16::new(to));
            words[4] = to;
            prop_assert_eq!(updated, sum(&words).checksum());
        }

        #[test]
        fn subtracting_undoes_adding(a: [u16; 10], b: [u16; 4]) {
            let (all, part) = (sum(&a), sum(&b));
            let round_trip = all.plus(part).minus(part).fold();
            prop_assert!(round_trip % 0xffff == all.fold() % 0xffff);
        }
    }
}
