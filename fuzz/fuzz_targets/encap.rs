//! What pods and the host send, into the tunnel.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vxlan_ebpf_common::oracle::encap(data);
});
