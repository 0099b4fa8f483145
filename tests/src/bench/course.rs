//! Where traffic is measured: two ends and what is between them.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::cpu;
use crate::lab::traffic::Cable;
use crate::lab::{Agent, Lab, Netns, SegmentLab};

/// A client or a server.
#[derive(Clone, Copy)]
pub struct End<'a> {
    /// The namespace that it runs in.
    pub ns: &'a Netns,
    /// Its address.
    pub ip4: Ipv4Addr,
    /// What carries its frames to its node, if that is a thread of this process.
    pub cable: Option<&'a Cable>,
}

impl End<'_> {
    /// Has its frames carried on one CPU.
    pub(super) fn bind_to_cpu(self, cpu: usize) -> Result<()> {
        self.cable.map_or(Ok(()), |cable| cpu::bind(cable.thread(), cpu))
    }
}

/// A lab that traffic can be measured in.
pub trait Course {
    /// Client and server, on different nodes if there are two.
    fn ends(&self) -> [End<'_>; 2];

    /// The agents of its nodes, in order.
    fn agents(&self) -> Vec<&Agent>;
}

/// From pod 1 of node 1 to pod 1 of node 2.
impl Course for Lab {
    fn ends(&self) -> [End<'_>; 2] {
        [1, 2].map(|n| self.pod(n, 1)).map(|pod| End { ns: pod, ip4: pod.ip4, cable: None })
    }

    fn agents(&self) -> Vec<&Agent> {
        self.agents().collect()
    }
}

/// From host 1 of node 1 to host 1 of node 2, or to host 2 where node 1 is alone; of the first tenant.
impl Course for SegmentLab {
    fn ends(&self) -> [End<'_>; 2] {
        let tenant = &self.spec().tenants[0].name;
        let second = if self.nodes().len() > 1 { self.host(2, tenant, 1) } else { self.host(1, tenant, 2) };
        [self.host(1, tenant, 1), second].map(|host| End { ns: host, ip4: host.ip4, cable: host.cable() })
    }

    fn agents(&self) -> Vec<&Agent> {
        self.agents().collect()
    }
}
