//! Finds the BPF object that the agent embeds.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=VXLAN_EBPF_OBJECT");
    let object = env::var_os("VXLAN_EBPF_OBJECT").map_or_else(default_object, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    if !object.is_file() {
        println!(
            "cargo::error=no BPF object at {}: run `cargo xtask build-ebpf` first, or set VXLAN_EBPF_OBJECT",
            object.display()
        );
    }
    println!("cargo::rustc-env=VXLAN_EBPF_OBJECT={}", object.display());
}

/// Where `cargo xtask build-ebpf` puts it, which is fixed: a target directory of one's own does not
/// move it.
fn default_object() -> PathBuf {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    manifest.join("../target/bpf/vxlan-ebpf.o")
}
