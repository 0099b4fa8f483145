//! Flows in mode `verified`, and a host stack that passes, drops and translates.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vxlan_ebpf_common::oracle::flow(data);
});
