//! From a pod through two nodes to another.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vxlan_ebpf_common::oracle::roundtrip(data);
});
