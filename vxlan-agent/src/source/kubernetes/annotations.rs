//! Flannel's annotations on a node: their names, and their values both ways.
//!
//! | name | value |
//! |---|---|
//! | `kube-subnet-manager` | `true`; a node without it takes no part |
//! | `backend-type` | `vxlan` |
//! | `backend-data`, `backend-v6-data` | `{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}` |
//! | `public-ip`, `public-ipv6` | underlay address |
//! | `public-ip-overwrite`, `public-ipv6-overwrite` | set by an operator: wins over what the node finds |

use std::collections::BTreeMap;
use std::net::IpAddr;

use vxlan_ebpf_common::maps::Family;

use crate::net::{Mac, Vni, family};

/// What flannel's annotations begin with unless it is told otherwise.
pub const DEFAULT_PREFIX: &str = "flannel.alpha.coreos.com";

/// Value of `backend-type`.
pub const VXLAN: &str = "vxlan";

/// Annotations of an object.
pub type Annotations = BTreeMap<String, String>;

/// Names of annotations under one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(String);

impl Default for Names {
    fn default() -> Self {
        Self(format!("{DEFAULT_PREFIX}/"))
    }
}

impl Names {
    /// A prefix as flannel's `--kube-annotation-prefix` takes it: a domain, or a domain, a slash
    /// and the beginning of a name.
    ///
    /// # Errors
    /// One sentence: it is empty or has more than one slash.
    pub fn new(prefix: &str) -> Result<Self, String> {
        match (prefix.is_empty(), prefix.matches('/').count()) {
            (false, 0) => Ok(Self(format!("{prefix}/"))),
            (false, 1) if prefix.ends_with(['/', '-']) => Ok(Self(prefix.to_owned())),
            (false, 1) => Ok(Self(format!("{prefix}-"))),
            _ => {
                Err(format!("annotation prefix '{prefix}' is not a domain, with at most one slash after it"))
            }
        }
    }

    /// What all names begin with.
    pub fn prefix(&self) -> &str {
        &self.0
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.0)
    }

    fn get<'a>(&self, annotations: &'a Annotations, name: &str) -> Option<&'a str> {
        annotations.get(&self.full(name)).map(String::as_str)
    }

    /// Whether the node says that it takes part.
    pub fn is_managed(&self, annotations: &Annotations) -> bool {
        self.get(annotations, "kube-subnet-manager") == Some("true")
    }

    /// The backend that the node runs.
    pub fn backend_type<'a>(&self, annotations: &'a Annotations) -> Option<&'a str> {
        self.get(annotations, "backend-type")
    }

    /// What the node says of its VTEP in `family`; `None` if nothing.
    ///
    /// # Errors
    /// One sentence: what is there cannot be read.
    pub fn backend_data(
        &self,
        annotations: &Annotations,
        family: Family,
    ) -> Result<Option<BackendData>, String> {
        self.get(annotations, data_name(family)).map_or(Ok(None), BackendData::parse)
    }

    /// The address that others send to; `None` if there is none.
    ///
    /// # Errors
    /// One sentence: it is no address of `family`.
    pub fn public_ip(&self, annotations: &Annotations, family: Family) -> Result<Option<IpAddr>, String> {
        self.address(annotations, ip_name(family), family)
    }

    /// The address that an operator wants others to send to.
    ///
    /// # Errors
    /// As [`Names::public_ip`].
    pub fn overwrite(&self, annotations: &Annotations, family: Family) -> Result<Option<IpAddr>, String> {
        self.address(annotations, &format!("{}-overwrite", ip_name(family)), family)
    }

    fn address(
        &self,
        annotations: &Annotations,
        name: &str,
        wanted: Family,
    ) -> Result<Option<IpAddr>, String> {
        let Some(text) = self.get(annotations, name).filter(|text| !text.is_empty()) else { return Ok(None) };
        match text.parse::<IpAddr>() {
            Ok(ip) if family(ip) == wanted => Ok(Some(ip)),
            _ => Err(format!("{} '{text}' is no address of its IP version", self.full(name))),
        }
    }

    /// What a node writes about itself.
    pub fn of(&self, published: &Published) -> Annotations {
        let mut all = Annotations::from([
            (self.full("kube-subnet-manager"), "true".to_owned()),
            (self.full("backend-type"), VXLAN.to_owned()),
        ]);
        for (ip, mac) in &published.vteps {
            let data = BackendData { vni: Some(published.vni), mac: *mac };
            all.insert(self.full(data_name(family(*ip))), data.to_string());
            all.insert(self.full(ip_name(family(*ip))), ip.to_string());
        }
        all
    }

    /// What of it `have` does not say yet, to be written.
    ///
    /// Flanneld passes over a change of a node that has both IP versions unless the annotations of
    /// both differ. So where only one version's do, the other's data is written in its other form.
    pub(super) fn changes(&self, published: &Published, have: &Annotations) -> Annotations {
        let mut all = self.of(published);
        let compact = all.clone();
        all.retain(|name, value| have.get(name).is_none_or(|h| h != value && *h != spaced(value)));
        let differs = |family: &Family| {
            [data_name(*family), ip_name(*family)].iter().any(|name| all.contains_key(&self.full(name)))
        };
        let families = published.vteps.iter().map(|(ip, _)| family(*ip));
        let (differing, same): (Vec<_>, Vec<_>) = families.partition(differs);
        if !differing.is_empty() {
            for name in same.into_iter().map(|family| self.full(data_name(family))) {
                let Some(value) = compact.get(&name) else { continue };
                let other = if have.get(&name) == Some(value) { spaced(value) } else { value.clone() };
                all.insert(name, other);
            }
        }
        all
    }
}

/// Backend data in another form that means the same. When flanneld looks for its own MAC it takes
/// the text apart at `:"` and at the end, so a blank may stand after the comma only.
fn spaced(compact: &str) -> String {
    compact.replacen(',', ", ", 1)
}

const fn data_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "backend-data",
        Family::V6 => "backend-v6-data",
    }
}

const fn ip_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "public-ip",
        Family::V6 => "public-ipv6",
    }
}

/// What a node tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The network's VNI.
    pub vni: Vni,
    /// Underlay address and MAC of its VTEPs: at most one for each IP version.
    pub vteps: Vec<(IpAddr, Mac)>,
}

/// Value of `backend-data` and `backend-v6-data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendData {
    /// VNI; older nodes do not say.
    pub vni: Option<Vni>,
    /// MAC of the vxlan device.
    pub mac: Mac,
}

impl BackendData {
    /// Reads a value: keys in any order and case, as Go does. `null` is what a node writes for an
    /// IP version that it does not run.
    ///
    /// # Errors
    /// One sentence.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let unreadable = |why: &str| format!("backend data {text:?} {why}");
        let value: serde_json::Value = serde_json::from_str(text).map_err(|_| unreadable("is not JSON"))?;
        let fields = match value {
            serde_json::Value::Null => return Ok(None),
            serde_json::Value::Object(fields) => fields,
            _ => return Err(unreadable("is not a JSON object")),
        };
        let field =
            |name: &str| fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v);
        let mac = field("VtepMAC").and_then(serde_json::Value::as_str).and_then(|mac| mac.parse().ok());
        let mac = mac.ok_or_else(|| unreadable("has no VtepMAC"))?;
        let vni = field("VNI").and_then(serde_json::Value::as_u64).filter(|vni| *vni != 0);
        let vni = vni.map(|vni| u32::try_from(vni).unwrap_or(u32::MAX).try_into()).transpose()?;
        Ok(Some(Self { vni, mac }))
    }
}

impl std::fmt::Display for BackendData {
    /// Exactly as flannel writes it, because flannel reads it back as text.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{{\"VNI\":{},\"VtepMAC\":\"{}\"}}", self.vni.map_or(0, Vni::get), self.mac)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names() -> Names {
        Names::new(DEFAULT_PREFIX).expect("valid")
    }

    fn published() -> Published {
        let mac = "12:c6:65:89:b4:e3".parse().expect("MAC");
        let mac6 = "6a:00:00:00:00:06".parse().expect("MAC");
        Published {
            vni: Vni::try_from(1).expect("in range"),
            vteps: vec![(IpAddr::from([192, 0, 2, 1]), mac), ("2001:db8::1".parse().expect("IP"), mac6)],
        }
    }

    #[test]
    fn annotations_are_written_as_flannel_writes_them() {
        let written: Vec<_> = names().of(&published()).into_iter().collect();
        let expected = [
            ("flannel.alpha.coreos.com/backend-data", r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#),
            ("flannel.alpha.coreos.com/backend-type", "vxlan"),
            ("flannel.alpha.coreos.com/backend-v6-data", r#"{"VNI":1,"VtepMAC":"6a:00:00:00:00:06"}"#),
            ("flannel.alpha.coreos.com/kube-subnet-manager", "true"),
            ("flannel.alpha.coreos.com/public-ip", "192.0.2.1"),
            ("flannel.alpha.coreos.com/public-ipv6", "2001:db8::1"),
        ];
        assert_eq!(written, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }

    #[test]
    fn a_node_of_one_ip_version_says_nothing_of_the_other() {
        let mut published = published();
        published.vteps.pop();
        assert!(names().of(&published).keys().all(|name| !name.contains("v6")));
    }

    #[test]
    fn backend_data_is_read_in_any_order_and_case_and_without_a_vni() {
        let mac = Mac([0x12, 0xc6, 0x65, 0x89, 0xb4, 0xe3]);
        for (text, vni) in [
            (r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#, Some(1)),
            (r#"{ "vtepmac": "12:C6:65:89:B4:E3", "vni": 7 }"#, Some(7)),
            (r#"{"VtepMAC":"12:c6:65:89:b4:e3"}"#, None),
            (r#"{"VNI":0,"VtepMAC":"12:c6:65:89:b4:e3","More":[]}"#, None),
        ] {
            let vni = vni.map(|vni| Vni::try_from(vni).expect("in range"));
            assert_eq!(BackendData::parse(text), Ok(Some(BackendData { vni, mac })), "{text}");
        }
        assert_eq!(BackendData::parse("null"), Ok(None));
        for bad in
            ["", "{", "[]", "{}", r#"{"VtepMAC":"12"}"#, r#"{"VNI":16777216,"VtepMAC":"12:c6:65:89:b4:e3"}"#]
        {
            assert!(BackendData::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_prefix_is_taken_as_flannel_takes_it() {
        let name = |prefix| Names::new(prefix).map(|names| names.full("public-ip"));
        assert_eq!(name("a.example").as_deref(), Ok("a.example/public-ip"));
        assert_eq!(name("a.example/").as_deref(), Ok("a.example/public-ip"));
        assert_eq!(name("a.example/net").as_deref(), Ok("a.example/net-public-ip"));
        assert_eq!(name("a.example/net-").as_deref(), Ok("a.example/net-public-ip"));
        assert!(name("a/b/c").is_err() && name("").is_err());
    }

    #[test]
    fn an_address_of_the_other_ip_version_is_refused() {
        let annotations = Annotations::from([(names().full("public-ip"), "2001:db8::1".to_owned())]);
        assert!(names().public_ip(&annotations, Family::V4).expect_err("IPv6").contains("public-ip"));
        assert_eq!(names().public_ip(&annotations, Family::V6), Ok(None));
    }

    #[test]
    fn a_change_of_one_ip_version_shows_in_the_other_s_data() {
        let (names, before) = (names(), published());
        let mut have = names.of(&before);
        assert_eq!(names.changes(&before, &have), Annotations::new());
        for expected in
            [r#"{"VNI":1, "VtepMAC":"6a:00:00:00:00:06"}"#, r#"{"VNI":1,"VtepMAC":"6a:00:00:00:00:06"}"#]
        {
            let mut moved = before.clone();
            moved.vteps[0].0 = if expected.contains(' ') { [192, 0, 2, 7] } else { [192, 0, 2, 8] }.into();
            let changes = names.changes(&moved, &have);
            assert_eq!(changes.len(), 2, "{changes:?}");
            assert_eq!(changes[&names.full("backend-v6-data")], expected);
            let data = BackendData::parse(expected).expect("readable").expect("data");
            assert_eq!(data.mac, before.vteps[1].1);
            have.extend(changes);
            assert_eq!(names.changes(&moved, &have), Annotations::new(), "either form will do");
        }
    }

    #[test]
    fn the_other_form_is_one_that_flanneld_finds_its_mac_in() {
        let data = spaced(r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#);
        let parts: Vec<_> = data.trim_matches(['"', '}']).split(":\"").collect();
        assert_eq!(parts, [r#"{"VNI":1, "VtepMAC""#, "12:c6:65:89:b4:e3"]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(vni in 1_u32..1 << 24, mac: [u8; 6], ip: [u8; 4], ip6: [u8; 16]) {
            let vni = Vni::try_from(vni).expect("in range");
            let vteps = vec![(IpAddr::from(ip), Mac(mac)), (IpAddr::from(ip6), Mac(mac))];
            let annotations = names().of(&Published { vni, vteps: vteps.clone() });
            prop_assert!(names().is_managed(&annotations));
            prop_assert_eq!(names().backend_type(&annotations), Some(VXLAN));
            for (ip, mac) in vteps {
                let data = BackendData { vni: Some(vni), mac };
                prop_assert_eq!(names().backend_data(&annotations, family(ip)), Ok(Some(data)));
                prop_assert_eq!(names().public_ip(&annotations, family(ip)), Ok(Some(ip)));
            }
        }

        #[test]
        fn any_text_is_read_or_refused_in_one_line(text in "\\PC*|[ -~\n\t]*") {
            if let Err(refused) = BackendData::parse(&text) {
                prop_assert!(!refused.is_empty() && !refused.contains('\n'), "{refused:?}");
            }
        }
    }
}
