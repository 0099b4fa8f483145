//! How a vxlan device makes the outer headers of packets, as far as it can be told.

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::tables::Vxlan;

/// A value of all outer packets, or that of the packet inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// This one. A TTL of 0 is the kernel's choice, by the way there.
    Fixed(u8),
    /// That of the packet inside.
    Inherit,
}

/// Don't Fragment of outer IPv4 packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DontFragment {
    /// Not set.
    Unset,
    /// Set.
    Set,
    /// As inside; set around IPv6.
    Inherit,
}

/// How a device makes outer headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// TTL or hop limit. Whether it is the inner packet's cannot change without a new device.
    pub ttl: Field,
    /// TOS or traffic class.
    pub tos: Field,
    /// Don't Fragment.
    pub df: DontFragment,
    /// Whether there is a UDP checksum. This cannot change without a new device.
    pub checksum: bool,
}

/// What a configuration says of [`Headers`]; `None`: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WantedHeaders {
    /// TTL or hop limit.
    pub ttl: Option<Field>,
    /// TOS or traffic class.
    pub tos: Option<Field>,
    /// Don't Fragment.
    pub df: Option<DontFragment>,
    /// Whether there is a UDP checksum.
    pub checksum: Option<bool>,
}

impl Headers {
    /// Those of a new device. Without checksums over IPv4: the programs can add one to no aggregate, and what is
    /// inside has its own.
    pub const fn of_new_device(v6: bool) -> Self {
        Self { ttl: Field::Fixed(0), tos: Field::Fixed(0), df: DontFragment::Unset, checksum: v6 }
    }

    /// Whether a device of these can become one of `other` in place.
    pub fn can_become(&self, other: &Self) -> bool {
        self.checksum == other.checksum && (self.ttl == Field::Inherit) == (other.ttl == Field::Inherit)
    }
}

impl WantedHeaders {
    /// What should be, where `found` is what is.
    pub fn over(&self, found: Headers) -> Headers {
        Headers {
            ttl: self.ttl.unwrap_or(found.ttl),
            tos: self.tos.unwrap_or(found.tos),
            df: self.df.unwrap_or(found.df),
            checksum: self.checksum.unwrap_or(found.checksum),
        }
    }
}

impl Vxlan {
    /// How it makes outer headers over IPv6 or IPv4.
    pub fn headers(&self, v6: bool) -> Headers {
        Headers {
            ttl: if self.ttl_inherit { Field::Inherit } else { Field::Fixed(self.ttl) },
            tos: if self.tos == TOS_INHERIT { Field::Inherit } else { Field::Fixed(self.tos) },
            df: match self.df {
                0 => DontFragment::Unset,
                1 => DontFragment::Set,
                _ => DontFragment::Inherit,
            },
            checksum: if v6 { self.checksum6 } else { self.checksum4 },
        }
    }
}

/// A device's TOS that stands for that of the packet inside (`vxlan_xmit_one`, v6.18).
pub(super) const TOS_INHERIT: u8 = 1;

const INHERIT: &str = "inherit";

/// Reads a number that `is_valid`, or `"inherit"`.
fn field<'de, D: Deserializer<'de>>(
    deserializer: D,
    expected: &'static str,
    is_valid: fn(u8) -> bool,
) -> Result<Option<Field>, D::Error> {
    struct FieldVisitor(&'static str, fn(u8) -> bool);
    impl Visitor<'_> for FieldVisitor {
        type Value = Field;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Field, E> {
            let other = || E::invalid_value(de::Unexpected::Str(text), &self);
            if text == INHERIT { Ok(Field::Inherit) } else { Err(other()) }
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<Field, E> {
            let valid = u8::try_from(number).ok().filter(|number| self.1(*number));
            valid.map(Field::Fixed).ok_or_else(|| E::invalid_value(de::Unexpected::Signed(number), &self))
        }
    }
    deserializer.deserialize_any(FieldVisitor(expected, is_valid)).map(Some)
}

/// Reads a TTL.
pub fn ttl<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Field>, D::Error> {
    field(deserializer, "\"inherit\" or a number of hops from 1 to 255", |ttl| ttl > 0)
}

/// Reads a TOS. Its last two bits are congestion marks, which come from the packet inside (RFC 6040).
pub fn tos<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Field>, D::Error> {
    let expected = "\"inherit\" or a multiple of 4 from 0 to 252 (a DSCP times 4)";
    field(deserializer, expected, |tos| tos % 4 == 0)
}

impl Serialize for Field {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Fixed(value) => serializer.serialize_u8(*value),
            Self::Inherit => serializer.serialize_str(INHERIT),
        }
    }
}

impl<'de> Deserialize<'de> for DontFragment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DfVisitor;
        impl Visitor<'_> for DfVisitor {
            type Value = DontFragment;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("true, false or \"inherit\"")
            }

            fn visit_bool<E: de::Error>(self, set: bool) -> Result<DontFragment, E> {
                Ok(if set { DontFragment::Set } else { DontFragment::Unset })
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<DontFragment, E> {
                let other = || E::invalid_value(de::Unexpected::Str(text), &self);
                if text == INHERIT { Ok(DontFragment::Inherit) } else { Err(other()) }
            }
        }
        deserializer.deserialize_any(DfVisitor)
    }
}

impl Serialize for DontFragment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unset => serializer.serialize_bool(false),
            Self::Set => serializer.serialize_bool(true),
            Self::Inherit => serializer.serialize_str(INHERIT),
        }
    }
}
