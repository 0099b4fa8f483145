//! Frames as they are on an interface: sending and capturing.

use std::io::{self, IoSliceMut, Read};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{set_int, uninterrupted};
use crate::lab::Netns;

/// `ETH_P_ALL` in network byte order, as packet sockets want it.
const ALL_PROTOCOLS: u16 = (libc::ETH_P_ALL as u16).to_be();
/// The two MACs in front of a frame, in bytes.
const ADDRESSES: usize = 12;

/// A captured frame, from the Ethernet header on.
///
/// Checksums may be left to the device and several segments may be one frame, as always on a veth:
/// `ethtool -K <interface> tx off gso off` at the sender makes frames as on a wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame(pub Vec<u8>);

impl Frame {
    /// The EtherType.
    pub fn ethertype(&self) -> Option<u16> {
        self.0.get(12..14).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Whether it has `payload`, which is not empty, somewhere in it.
    pub fn carries(&self, payload: &[u8]) -> bool {
        self.0.windows(payload.len()).any(|window| window == payload)
    }

    /// Destination and source port of a UDP datagram in IPv4 without options or plain IPv6.
    pub fn udp_ports(&self) -> Option<(u16, u16)> {
        let (protocol, at) = match self.ethertype()? {
            0x0800 => (*self.0.get(23)?, 14 + 20),
            0x86dd => (*self.0.get(20)?, 14 + 40),
            _ => return None,
        };
        let ports = self.0.get(at..at + 4).filter(|_| protocol == 17)?;
        let (source, destination) = ports.split_at(2);
        let port = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
        Some((port(source), port(destination)))
    }
}

/// Captures the frames that cross an interface, both directions, from its start on.
pub struct Capture {
    socket: Socket,
    tags: bool,
}

impl Capture {
    /// Starts to capture on `interface` in `ns`.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn start(ns: &Netns, interface: &str) -> Result<Self> {
        let socket = ns.run(|| open(interface))?;
        set_int(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20)?;
        Ok(Self { socket, tags: false })
    }

    /// As [`Capture::start`], for frames as they were sent: the kernel takes the outermost VLAN tag out of a
    /// frame that it receives, and [`Capture::next`] puts it back.
    ///
    /// # Errors
    /// As [`Capture::start`].
    pub fn start_with_tags(ns: &Netns, interface: &str) -> Result<Self> {
        let capture = Self::start(ns, interface)?;
        set_int(&capture.socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        Ok(Self { tags: true, ..capture })
    }

    /// The next frame that `wanted` accepts; `None` if there is none within `timeout`.
    ///
    /// # Errors
    /// The socket fails.
    pub fn next(&self, timeout: Duration, wanted: impl Fn(&Frame) -> bool) -> Result<Option<Frame>> {
        let end = Instant::now() + timeout;
        let mut buffer = vec![0; 1 << 16];
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
            self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match uninterrupted(|| self.read(&mut buffer)) {
                Ok(frame) => {
                    if wanted(&frame) {
                        return Ok(Some(frame));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("capturing"),
            }
        }
        Ok(None)
    }

    fn read(&self, buffer: &mut [u8]) -> io::Result<Frame> {
        if !self.tags {
            let len = (&self.socket).read(buffer)?;
            return Ok(Frame(buffer[..len].to_vec()));
        }
        let mut space = vec![0; 128];
        let mut slices = [IoSliceMut::new(buffer)];
        let message =
            recvmsg::<()>(self.socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty())?;
        let tag = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Unknown(data) => tag(&data.data_bytes),
            _ => None,
        });
        let len = message.bytes;
        let mut bytes = buffer[..len].to_vec();
        if let (Some(tag), true) = (tag, len >= ADDRESSES) {
            bytes.splice(ADDRESSES..ADDRESSES, tag);
        }
        Ok(Frame(bytes))
    }

    /// All frames that have been captured and not been returned yet.
    ///
    /// # Errors
    /// The socket fails.
    pub fn pending(&self) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        let mut buffer = Vec::with_capacity(1 << 16);
        loop {
            buffer.clear();
            match self.socket.recv_with_flags(buffer.spare_capacity_mut(), libc::MSG_DONTWAIT) {
                Ok(len) => {
                    // SAFETY: the kernel has written `len` bytes there.
                    unsafe { buffer.set_len(len) };
                    frames.push(Frame(buffer.clone()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(frames),
                Err(error) => return Err(error).context("capturing"),
            }
        }
    }

    /// All frames that `wanted` accepts, until none has come for `quiet`.
    ///
    /// # Errors
    /// The socket fails.
    pub fn drain(&self, quiet: Duration, wanted: impl Fn(&Frame) -> bool) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next(quiet, &wanted)? {
            frames.push(frame);
        }
        Ok(frames)
    }
}

/// The VLAN tag in `struct tpacket_auxdata`, as it is in a frame.
fn tag(auxdata: &[u8]) -> Option<[u8; 4]> {
    let field = |at: usize| Some(u16::from_ne_bytes(*auxdata.get(at..)?.first_chunk()?).to_be_bytes());
    let status = u32::from_ne_bytes(*auxdata.first_chunk()?);
    let ([a, b], [c, d]) = (field(18)?, field(16)?);
    (status & libc::TP_STATUS_VLAN_VALID != 0).then_some([a, b, c, d])
}

/// Sends frames out of an interface, just as they are.
pub struct Injector {
    socket: Socket,
}

impl Injector {
    /// For `interface` in `ns`.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn open(ns: &Netns, interface: &str) -> Result<Self> {
        Ok(Self { socket: ns.run(|| open(interface))? })
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// The interface does not take it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = self.socket.send(frame).with_context(|| format!("injecting {} bytes", frame.len()))?;
        (sent == frame.len()).then_some(()).ok_or_else(|| anyhow!("only {sent} bytes were sent"))
    }
}

/// Sends one frame out of `interface` in `ns`.
///
/// # Errors
/// There is no such interface, or it does not take the frame.
pub fn inject(ns: &Netns, interface: &str, frame: &[u8]) -> Result<()> {
    Injector::open(ns, interface)?.send(frame)
}

/// The MAC of an interface.
///
/// # Errors
/// There is no such interface.
pub fn mac_of(ns: &Netns, interface: &str) -> Result<[u8; 6]> {
    let listed = ns.sh(&format!("ip -o link show dev {interface}"))?;
    let text = listed.split_whitespace().skip_while(|w| *w != "link/ether").nth(1);
    let text = text.with_context(|| format!("{interface} has no MAC"))?;
    let mut mac = [0; 6];
    for (byte, part) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(part, 16).context("not a MAC")?;
    }
    Ok(mac)
}

/// A packet socket bound to `interface` of the current namespace.
pub(super) fn open(interface: &str) -> Result<Socket> {
    let protocol = Protocol::from(i32::from(ALL_PROTOCOLS));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
    let index =
        nix::net::if_::if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
    socket.bind(&link_address(index)?).with_context(|| format!("cannot bind to {interface}"))?;
    Ok(socket)
}

fn link_address(index: u32) -> Result<SockAddr> {
    let index = i32::try_from(index)?;
    // SAFETY: `storage` is zeroed and large enough for any address, `sockaddr_ll` included; the
    // length is set to that of what is written.
    let (_, address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let link: *mut libc::sockaddr_ll = storage.cast();
            (*link).sll_family = libc::AF_PACKET as u16;
            (*link).sll_protocol = ALL_PROTOCOLS;
            (*link).sll_ifindex = index;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}
