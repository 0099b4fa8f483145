//! Captured frames without what differs from lab to lab or from packet to packet.

use super::course::{Course, IP, get, put};

/// Replaces what differs.
pub(super) struct Normal<'a> {
    course: &'a Course,
}

impl<'a> Normal<'a> {
    pub(super) const fn of(course: &'a Course) -> Self {
        Self { course }
    }

    /// A frame that the pod of node 2 received from its node; `None` for others, and for neighbours
    /// that ask for each other.
    pub(super) fn received(&self, frame: &[u8]) -> Option<Vec<u8>> {
        (frame[6..12] != self.course.pods[1] && !is_chatter(frame)).then(|| self.anonymous(frame))
    }

    /// A tunnel packet from node 1 to node 2. Its source port, identification and checksums may be
    /// anything.
    pub(super) fn on_wire(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let udp = self.course.udp();
        let tunnelled = frame.len() > udp + 8 && get(frame, udp + 2) == vxlan_tests::lab::PORT;
        if frame[6..12] != self.course.wire[0] || !tunnelled {
            return None;
        }
        let mut frame = self.anonymous(frame);
        if get(&frame, 12) == 0x0800 {
            put(&mut frame, IP + 4, 0);
            put(&mut frame, IP + 10, 0);
        }
        put(&mut frame, udp, 0);
        put(&mut frame, udp + 6, 0);
        Some(frame)
    }

    /// With numbers instead of the MACs of this lab.
    fn anonymous(&self, frame: &[u8]) -> Vec<u8> {
        let Course { wire, pods, gateways, .. } = self.course;
        let mut frame = frame.to_vec();
        let known = wire.iter().chain(pods).chain(gateways);
        for (number, mac) in (1..).zip(known) {
            for at in [0, 6] {
                if frame[at..at + 6] == *mac {
                    frame[at..at + 6].copy_from_slice(&[0, 0, 0, 0, 0, number]);
                }
            }
        }
        frame
    }
}

/// ARP, and ICMPv6 for neighbours, routers and multicast.
fn is_chatter(frame: &[u8]) -> bool {
    match get(frame, 12) {
        0x0806 => true,
        0x86dd if frame[IP + 6] == 58 => (130..=137).contains(&frame[IP + 40]) || frame[IP + 40] == 143,
        0x86dd => frame[IP + 6] == 0 && frame[IP + 24] == 0xff,
        _ => false,
    }
}

/// Version, type and code of the ICMP errors among `frames` from the MAC `from`, which lie `offset`
/// bytes deep. Not that a host cannot be reached: that comes when its neighbour has waited in vain.
pub(super) fn errors(frames: &[Vec<u8>], from: [u8; 6], offset: usize) -> Vec<[u8; 3]> {
    let error = |frame: &Vec<u8>| {
        let inner = frame.get(offset..).filter(|_| frame[6..12] == from)?;
        let (ip, version) = (inner.get(IP..)?, inner.get(IP)? >> 4);
        let (protocol, message) = match version {
            4 => (ip[9], ip.get(20..22)?),
            6 => (ip[6], ip.get(40..42)?),
            _ => return None,
        };
        let is_error = match protocol {
            1 => matches!(message[0], 3 | 4 | 5 | 11 | 12),
            58 => message[0] < 128,
            _ => false,
        };
        let waited = matches!((version, message), (4, [3, 1]) | (6, [1, 3]));
        (is_error && !waited).then_some([version, message[0], message[1]])
    };
    frames.iter().filter_map(error).collect()
}
