//! Nodes that run our agent: one configuration with all tenants.

use std::fmt::Write as _;

use anyhow::Result;

use super::SegmentLab;
use crate::lab::agent_files::{Place, file_section};
use crate::lab::{Agent, AgentOptions};

/// Writes the configuration for node `n`, with a network per tenant that has the tenant's name; starts
/// nothing. Beside the kernel's devices, there are those of all tenants.
pub(super) fn new(lab: &SegmentLab, n: u8, options: &AgentOptions) -> Result<Agent> {
    let place = Place::of(&lab.site, &lab.node(n).name)?;
    let mut text = place.node_section(Some(lab.node(n).underlay), options);
    for tenant in &lab.spec.tenants {
        let kind = match options.beside {
            Some(_) => "kind = \"accelerate\"\n".to_owned(),
            None => format!(
                "kind = \"l2\"\nvni = {vni}\nport = {port}\nmtu = \"auto\"\nbridge = \"{bridge}\"\n",
                vni = tenant.vni,
                port = tenant.port,
                bridge = tenant.bridge(),
            ),
        };
        let _ = write!(
            text,
            "\n[[network]]\nname = \"{name}\"\n{kind}device = \"{device}\"\nfastpath = \"{mode}\"\n{extra}\n",
            name = tenant.name,
            device = tenant.device(),
            mode = options.fastpath,
            extra = options.network,
        );
    }
    let _ = write!(text, "\n[state]\n{}\n{}", file_section(&lab.site), options.sections);
    Agent::with_config(&lab.site, place, &text, options)
}
