//! Whether a device completes packets itself because somebody has switched its offloads off.
//!
//! Netlink tells that features have changed, not to what; `ETHTOOL_GTXCSUM` and its like do.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `ETHTOOL_GTXCSUM`, `ETHTOOL_GTSO` and `ETHTOOL_GGSO` of `linux/ethtool.h`.
const OFFLOADS: [u32; 3] = [0x16, 0x1e, 0x23];

/// `SIOCETHTOOL` of `linux/sockios.h`.
const ETHTOOL: u32 = 0x8946;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ifreq` with a pointer in its union, which is 24 bytes long.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    value: *mut Value,
    rest: [u8; 24 - size_of::<*mut Value>()],
}

/// Whether `device` leaves checksums and segmentation to what is below it; one that cannot be asked
/// does.
pub fn offloads(device: &str) -> bool {
    OFFLOADS.into_iter().all(|command| ask(device, command).unwrap_or(true))
}

fn ask(device: &str, command: u32) -> io::Result<bool> {
    let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = Value { command, data: 0 };
    let mut request = Request { name: [0; libc::IFNAMSIZ], value: &raw mut value, rest: Default::default() };
    // The last byte stays zero: the kernel reads a string.
    let name = request.name.iter_mut().take(libc::IFNAMSIZ - 1);
    name.zip(device.bytes()).for_each(|(to, from)| *to = from);
    // SAFETY: the request is as long as `struct ifreq` and points to an `ethtool_value` that outlives
    // the call, which is what these commands read and write.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), ETHTOOL as _, &raw mut request) };
    nix::errno::Errno::result(result)?;
    Ok(value.data != 0)
}
