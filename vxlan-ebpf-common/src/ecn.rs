//! Explicit congestion notification across the tunnel, as the kernel's devices do it
//! (`include/net/inet_ecn.h`, v6.18; RFC 6040).

/// The congestion bits of a TOS or traffic class.
pub const MASK: u8 = 3;
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// The outer TOS or traffic class for an inner one: the DSCP of `outer`, ECN copied, but CE becomes ECT(0)
/// (`INET_ECN_encapsulate`).
#[inline(always)]
pub const fn encapsulate(outer: u8, inner: u8) -> u8 {
    let ecn = match inner & MASK {
        CE => ECT_0,
        ecn => ecn,
    };
    outer & !MASK | ecn
}

/// The inner TOS or traffic class after decapsulation (`INET_ECN_decapsulate`); `None` where the
/// kernel drops: congestion was marked on a packet whose sender would not understand it.
#[inline(always)]
pub const fn decapsulate(outer: u8, inner: u8) -> Option<u8> {
    match (inner & MASK, outer & MASK) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(inner),
        (_, CE) => Some(inner | CE),
        (ECT_0, ECT_1) => Some(inner & !MASK | ECT_1),
        _ => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_is_as_in_the_kernel() {
        // rows: inner NOT_ECT, ECT(1), ECT(0), CE; columns: outer in the same order
        let expected = [
            [Some(0), Some(0), Some(0), None],
            [Some(1), Some(1), Some(1), Some(3)],
            [Some(2), Some(1), Some(2), Some(3)],
            [Some(3), Some(3), Some(3), Some(3)],
        ];
        for (inner, row) in expected.into_iter().enumerate() {
            for (outer, ecn) in row.into_iter().enumerate() {
                let dscp = 0xb8;
                let got = decapsulate(outer as u8, dscp | inner as u8);
                assert_eq!(got, ecn.map(|e: u8| dscp | e), "inner {inner} outer {outer}");
            }
        }
    }

    #[test]
    fn dscp_stays_inside() {
        assert_eq!(
            [0xb8, 0xb9, 0xba, 0xbb].map(|inner| encapsulate(0, inner)),
            [NOT_ECT, ECT_1, ECT_0, ECT_0]
        );
        assert_eq!([0xb8, 0xb9, 0xba, 0xbb].map(|inner| encapsulate(0x2b, inner)), [0x28, 0x29, 0x2a, 0x2a]);
    }
}
