//! The state file.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vxlan_agent::oracle::state(data);
});
