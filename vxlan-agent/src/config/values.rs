//! Values of configuration files that have rules of their own: what is read is valid, and a refusal
//! names the line of the value.

use std::borrow::Borrow;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{self, Deserializer, Error as _, Visitor};
use serde::{Deserialize, Serialize};
use vxlan_ebpf_common::maps::DEFAULT_FLOWS;

use super::FLOWS;
use crate::net::Mtu;

/// Reads a string that is a `T`. With `#[serde(try_from = "String")]` a refusal in a list would
/// come when the value has been read, and name the line of the list.
pub(super) fn text<'de, D: Deserializer<'de>, T: FromStr<Err = String>>(
    deserializer: D,
) -> Result<T, D::Error> {
    struct TextVisitor<T>(PhantomData<T>);
    impl<T: FromStr<Err = String>> Visitor<'_> for TextVisitor<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }
    deserializer.deserialize_str(TextVisitor(PhantomData))
}

/// Name of a network: it becomes a directory, and a part of device aliases.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NetworkName(pub(crate) String);

impl Borrow<str> for NetworkName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for NetworkName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer)
    }
}

impl FromStr for NetworkName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 32 || !name.chars().all(plain) {
            let name = name.escape_debug();
            return Err(format!("network name '{name}' is not 1 to 32 letters, digits, '-' or '_'"));
        }
        Ok(Self(name.to_owned()))
    }
}

/// Name of a network interface.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct DeviceName(pub(super) String);

impl TryFrom<String> for DeviceName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if is_device_name(&name) {
            return Ok(Self(name));
        }
        let name = name.escape_debug();
        Err(format!("'{name}' is not an interface name: 1 to 15 characters without '/' or blanks"))
    }
}

/// As the kernel's `dev_valid_name`.
pub(super) fn is_device_name(name: &str) -> bool {
    let refused = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace();
    !name.is_empty() && name.len() <= 15 && name != "." && name != ".." && !name.contains(refused)
}

/// A UDP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u16")]
pub(super) struct Port(pub(super) u16);

impl TryFrom<u16> for Port {
    type Error = &'static str;

    fn try_from(port: u16) -> Result<Self, &'static str> {
        if port == 0 { Err("port 0 is not a UDP port") } else { Ok(Self(port)) }
    }
}

/// How many flows are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u32")]
pub(super) struct Flows(pub(super) u32);

impl Default for Flows {
    fn default() -> Self {
        Self(DEFAULT_FLOWS)
    }
}

impl TryFrom<u32> for Flows {
    type Error = String;

    fn try_from(flows: u32) -> Result<Self, String> {
        if FLOWS.contains(&flows) {
            return Ok(Self(flows));
        }
        Err(format!("flows is not {} to {}", FLOWS.start(), FLOWS.end()))
    }
}

/// The MTU of a vxlan device; `None` for `"auto"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WantedMtu(pub(super) Option<Mtu>);

impl<'de> Deserialize<'de> for WantedMtu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        mtu(deserializer).map(Self)
    }
}

fn mtu<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Mtu>, D::Error> {
    struct MtuVisitor;
    impl Visitor<'_> for MtuVisitor {
        type Value = Option<Mtu>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("\"auto\" or a number of bytes from 68 to 65485")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            if text == "auto" { Ok(None) } else { Err(E::invalid_value(de::Unexpected::Str(text), &self)) }
        }

        fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Self::Value, E> {
            match u32::try_from(bytes) {
                Ok(bytes @ 68..=65_485) => Ok(Some(Mtu(bytes))),
                _ => Err(E::invalid_value(de::Unexpected::Signed(bytes), &self)),
            }
        }
    }
    deserializer.deserialize_any(MtuVisitor)
}

/// The absolute path of a file.
pub(super) fn file<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.is_absolute() && path.file_name().is_some() {
        return Ok(path);
    }
    Err(D::Error::custom(format!("{path:?} is not the absolute path of a file")))
}

/// As [`file()`], where there may be none.
pub(super) fn some_file<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    file(deserializer).map(Some)
}
