//! What becomes of a packet, in words.

use serde::Serialize;
use vxlan_ebpf_common::listen::Event;
use vxlan_ebpf_common::{Disposition, Hook, Reason};

/// What a program has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// It takes the fast path.
    Forwarded,
    /// The kernel has it.
    Kernel,
    /// Nobody has it.
    Dropped,
}

impl Verdict {
    /// What `event` tells.
    pub(crate) fn of(event: &Event) -> Self {
        match event.reason().map(Reason::disposition) {
            _ if event.dropped != 0 => Self::Dropped,
            Some(Disposition::Forwarded) => Self::Forwarded,
            _ => Self::Kernel,
        }
    }
}

/// The verdict and what happens next.
pub(crate) fn sentence(event: &Event) -> String {
    let meaning = event.reason().map_or("for a reason that this version does not know", |reason| {
        reason.describe().trim().trim_end_matches('.')
    });
    match (Verdict::of(event), event.hook()) {
        (Verdict::Forwarded, _) => format!("forwarded: {meaning}"),
        (Verdict::Dropped, _) => format!("dropped: {meaning}"),
        (Verdict::Kernel, _) if event.reason() == Some(Reason::HandedOver) => format!("kernel: {meaning}"),
        (Verdict::Kernel, Some(hook)) => format!("{}: {meaning}", kernel(hook)),
        (Verdict::Kernel, None) => format!("left to the kernel: {meaning}"),
    }
}

/// What the kernel does with a packet that is left to it at `hook`.
const fn kernel(hook: Hook) -> &'static str {
    match hook {
        Hook::PodEgress => "left to the kernel, whose stack routes it",
        Hook::PortIngress => "left to the kernel, whose bridge switches it",
        Hook::TunnelEgress => "left to the kernel, whose vxlan device encapsulates it",
        Hook::UnderlayIngress => "left to the kernel, whose vxlan device decapsulates it",
        Hook::UnderlayXdp => "left to TC, which looks at it next",
        Hook::TunnelIngress => "left to the kernel, whose stack or bridge takes it on",
        Hook::PodIngress => "on its way from the kernel to the pod",
        Hook::StrippedIngress => "left to the kernel's stack",
    }
}

/// Whether an operator who looks for what goes wrong wants to see packets of this reason.
pub(crate) fn is_refusal(reason: Reason) -> bool {
    use Disposition::{Dropped, Malformed, Violation};
    matches!(reason.disposition(), Violation | Malformed | Dropped) || reason == Reason::OtherVni
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(hook: Hook, reason: Reason, dropped: u8) -> Event {
        Event { hook: hook as u8, reason: reason as u8, dropped, ..Event::default() }
    }

    #[test]
    fn a_sentence_has_the_verdict_what_the_kernel_does_and_why() {
        for (told, sentence_of_it) in [
            (
                event(Hook::PodEgress, Reason::Encapsulated, 0),
                "forwarded: Encapsulated and sent out of the underlay",
            ),
            (
                event(Hook::UnderlayIngress, Reason::UnknownVtep, 1),
                "dropped: The outer source is not a VTEP of this network",
            ),
            (
                event(Hook::UnderlayIngress, Reason::UnknownVtep, 0),
                "left to the kernel, whose vxlan device decapsulates it: The outer source is not a VTEP of this network",
            ),
        ] {
            assert_eq!(sentence(&told), sentence_of_it);
        }
        let unknown = Event { hook: 99, reason: 63, ..Event::default() };
        assert_eq!(sentence(&unknown), "left to the kernel: for a reason that this version does not know");
    }

    #[test]
    fn refusals_are_what_is_or_may_be_dropped() {
        assert!(
            [
                Reason::UnknownVtep,
                Reason::PodSpoofed,
                Reason::BadLength,
                Reason::WriteFailed,
                Reason::OtherVni
            ]
            .into_iter()
            .all(is_refusal)
        );
        assert!(![Reason::Encapsulated, Reason::Unverified, Reason::NoRoute].into_iter().any(is_refusal));
    }
}
