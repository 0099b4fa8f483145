//! What frames on an interface leave to be done by whoever gets them next: checksums and segmentation.

use std::io;
use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::libc;
use socket2::Socket;

use super::raw::open;
use super::{set_int, uninterrupted};
use crate::lab::Netns;

/// `struct virtio_net_hdr` (linux/virtio_net.h), which comes in front of every frame: flags, kind, and in the
/// host's byte order the length of the headers, of a segment, and where the checksum is.
const HEADER: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;
const NOT_SEGMENTED: u8 = 0;

/// Frames of TCP that came by, and their payload with all headers, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames.
    pub frames: u64,
    /// Bytes of all frames.
    pub bytes: u64,
    /// Bytes of those that are several segments yet, with a checksum that is to be filled in.
    pub whole: u64,
    /// Bytes of those that are several segments yet, but have no checksum to be filled in.
    pub odd: u64,
}

impl Offloads {
    /// The share of bytes that came by in aggregates.
    pub fn share(&self) -> f64 {
        self.whole as f64 / self.bytes.max(1) as f64
    }
}

/// Looks at frames of TCP over IPv4 from one MAC that cross an interface, in either direction.
pub struct OffloadCapture(Socket);

impl OffloadCapture {
    /// Starts to look at `interface` in `ns`.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn start(ns: &Netns, interface: &str) -> Result<Self> {
        let socket = ns.run(|| open(interface))?;
        set_int(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20)?;
        set_int(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        socket.set_read_timeout(Some(Duration::from_millis(1)))?;
        Ok(Self(socket))
    }

    /// What has come by from `mac`. Frames for which there was no memory are missing.
    ///
    /// # Errors
    /// The socket fails.
    pub fn stop(self, mac: [u8; 6]) -> Result<Offloads> {
        let mut seen = Offloads::default();
        let mut buffer = vec![0; 1 << 17];
        loop {
            match uninterrupted(|| (&self.0).read(&mut buffer)) {
                Ok(len) => seen.add(&buffer[..len], mac),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(seen),
                Err(error) => return Err(error).context("capturing"),
            }
        }
    }
}

impl Offloads {
    fn add(&mut self, captured: &[u8], mac: [u8; 6]) {
        let Some((header, frame)) = captured.split_at_checked(HEADER) else { return };
        let is_tcp = frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&6);
        if !is_tcp || frame.get(6..12) != Some(&mac) {
            return;
        }
        let bytes = frame.len() as u64;
        self.frames += 1;
        self.bytes += bytes;
        match (header[1], header[0] & NEEDS_CHECKSUM) {
            (NOT_SEGMENTED, _) => {}
            (_, 0) => self.odd += bytes,
            _ => self.whole += bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aggregates_are_told_from_segments_by_what_is_in_front() {
        let mac = [2, 0, 0, 0, 0, 1];
        let frame = |flags: u8, kind: u8, protocol: u8, from: [u8; 6]| {
            let mut bytes = vec![0; HEADER + 60];
            (bytes[0], bytes[1]) = (flags, kind);
            bytes[HEADER + 6..HEADER + 12].copy_from_slice(&from);
            bytes[HEADER + 12] = 8;
            bytes[HEADER + 23] = protocol;
            bytes
        };
        let mut seen = Offloads::default();
        for bytes in [frame(1, 1, 6, mac), frame(1, 0, 6, mac), frame(0, 1, 6, mac)] {
            seen.add(&bytes, mac);
        }
        for bytes in [frame(1, 1, 17, mac), frame(1, 1, 6, [0; 6]), vec![0; 9], vec![0; 12]] {
            seen.add(&bytes, mac);
        }
        assert_eq!(seen, Offloads { frames: 3, bytes: 180, whole: 60, odd: 60 });
        assert!((seen.share() - 1.0 / 3.0).abs() < 1e-9);
    }
}
