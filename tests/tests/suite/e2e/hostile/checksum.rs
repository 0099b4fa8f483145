//! Checksums of frames that have been changed.

use etherparse::checksum::Sum16BitWords;

use super::course::IP;

/// Makes the IPv4 header's checksum fit.
pub(super) fn mend_header(bytes: &mut [u8]) {
    if bytes[12..14] != [8, 0] {
        return;
    }
    let end = IP + 4 * usize::from(bytes[IP] & 15);
    let Some(header) = bytes.get_mut(IP..end).filter(|header| header.len() >= 20) else { return };
    header[10..12].fill(0);
    let sum = Sum16BitWords::new().add_slice(header).ones_complement();
    header[10..12].copy_from_slice(&sum.to_ne_bytes());
}

/// Makes the checksums of the IPv4 header, if it is one, and of the UDP header behind it fit.
pub(super) fn mend(bytes: &mut [u8]) {
    mend_header(bytes);
    let (udp, addresses) = match bytes[12..14] {
        [8, 0] => (IP + 4 * usize::from(bytes[IP] & 15), IP + 12..IP + 20),
        _ => (IP + 40, IP + 8..IP + 40),
    };
    if bytes.len() < udp + 8 {
        return;
    }
    bytes[udp + 6..udp + 8].fill(0);
    let pseudo = Sum16BitWords::new().add_slice(&bytes[addresses]).add_2bytes([0, 17]);
    let sum = pseudo.add_slice(&bytes[udp + 4..udp + 6]).add_slice(&bytes[udp..]).ones_complement();
    bytes[udp + 6..udp + 8].copy_from_slice(&sum.to_ne_bytes());
}
