//! Echo messages (RFC 792, RFC 4443 §4).

/// Bytes of an echo's header.
pub(super) const HEADER: usize = 8;
/// `ICMP_ECHO` and `ICMP_ECHOREPLY`, and those of ICMPv6.
pub(super) const REQUEST4: u8 = 8;
pub(super) const REPLY4: u8 = 0;
pub(super) const REQUEST6: u8 = 128;
pub(super) const REPLY6: u8 = 129;

/// A request with `payload` bytes behind its header.
pub(super) fn request(v6: bool, id: u16, sequence: u16, payload: usize) -> Vec<u8> {
    let mut message = vec![if v6 { REQUEST6 } else { REQUEST4 }, 0, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend(sequence.to_be_bytes());
    message.resize(HEADER + payload, 0xa5);
    if !v6 {
        // The kernel fills in the checksum of ICMPv6 only.
        let sum = checksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
    }
    message
}

/// The number of the request that `message` answers, if it answers one of `id`'s.
pub(super) fn answered(v6: bool, id: u16, message: &[u8]) -> Option<u16> {
    numbers(message, if v6 { REPLY6 } else { REPLY4 }, id)
}

/// The number of the request that `message` is, if it is one of `id`'s.
pub(super) fn requested(v6: bool, id: u16, message: &[u8]) -> Option<u16> {
    numbers(message, if v6 { REQUEST6 } else { REQUEST4 }, id)
}

fn numbers(message: &[u8], kind: u8, id: u16) -> Option<u16> {
    let header = message.first_chunk::<HEADER>()?;
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    (header[0] == kind && word(4) == id).then(|| word(6))
}

/// RFC 1071.
fn checksum(data: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let sum: u32 = data.chunks(2).map(word).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_known_by_its_numbers() {
        let mut reply = request(false, 7, 300, 10);
        assert_eq!(reply.len(), HEADER + 10);
        assert_eq!(requested(false, 7, &reply), Some(300));
        assert_eq!(answered(false, 7, &reply), None, "a request of somebody's");
        reply[0] = REPLY4;
        assert_eq!(answered(false, 7, &reply), Some(300));
        assert_eq!(answered(false, 8, &reply), None, "somebody else's");
        assert_eq!(answered(false, 7, &reply[..7]), None, "cut off");
    }

    #[test]
    fn a_requests_checksum_is_right() {
        for length in [0, 1, 56, 1473] {
            assert_eq!(checksum(&request(false, 0xffff, 0xffff, length)), 0, "{length}");
        }
    }
}
