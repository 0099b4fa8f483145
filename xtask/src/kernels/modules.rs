//! Kernel modules out of a package, with those that they need, in the order to load them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// What the lab uses. Not every kernel has each: some build them in.
pub(super) const LAB: &[&str] = &[
    "vxlan",
    "veth",
    "bridge",
    "br_netfilter",
    "sch_ingress",
    "cls_bpf",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_tables",
    "nft_meta_bridge",
    "nft_ct",
    "nft_counter",
    "nft_nat",
    "nft_chain_nat",
    "nft_masq",
    "nft_redir",
    "nft_fib_inet",
    "nft_reject_inet",
    "nft_limit",
    "nft_numgen",
    "nft_quota",
    "nft_log",
    "tun",
    "dummy",
    "8021q",
    "xfrm_user",
    "esp4",
    "authenc",
    "echainiv",
    "cbc",
    "aes_generic",
    "sha256_generic",
    "sha256",
    "hmac",
    "vrf",
    "bonding",
];

/// What a virtual machine needs for its network card and its console.
pub(super) const MACHINE: &[&str] = &["virtio_pci", "virtio_net", "virtio_console"];

/// Writes the modules `wanted`, uncompressed, to `target`, and their file names in order to `target/order`.
///
/// # Errors
/// There are no modules at all, or one cannot be read.
pub(super) fn extract(unpacked: &Path, target: &Path, wanted: &[&str]) -> Result<()> {
    let mut files = BTreeMap::new();
    for below in ["lib/modules", "usr/lib/modules"] {
        index(&unpacked.join(below), &mut files);
    }
    if files.is_empty() {
        bail!("no kernel modules in {}", unpacked.display());
    }
    fs::create_dir_all(target)?;
    let mut order = Vec::new();
    for name in wanted {
        take(name, &files, target, &mut order)?;
    }
    Ok(fs::write(target.join("order"), order.join("\n") + "\n")?)
}

/// Module files below `dir`, by the modules' names.
fn index(dir: &Path, files: &mut BTreeMap<String, PathBuf>) {
    for path in fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !path.is_symlink() {
            index(&path, files);
        } else if let Some((module, _)) = name.split_once(".ko") {
            files.insert(module.replace('-', "_"), path);
        }
    }
}

/// Takes the module `name`, after those that it depends on.
fn take(name: &str, files: &BTreeMap<String, PathBuf>, target: &Path, order: &mut Vec<String>) -> Result<()> {
    let file = format!("{name}.ko");
    let Some(path) = files.get(name).filter(|_| !order.contains(&file)) else { return Ok(()) };
    let content = uncompressed(path)?;
    for dependency in depends(&content) {
        take(&dependency, files, target, order)?;
    }
    fs::write(target.join(&file), content)?;
    order.push(file);
    Ok(())
}

fn uncompressed(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    let output = Command::new(program).arg("-dc").arg(path).output();
    let output = output.with_context(|| format!("{program} is needed to unpack {}", path.display()))?;
    if !output.status.success() {
        bail!("{program} cannot unpack {}", path.display());
    }
    Ok(output.stdout)
}

/// The modules named in the section `.modinfo`, a list of strings that end with a zero.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::depends;

    #[test]
    fn what_a_module_depends_on_is_found_in_it() {
        let module = b"ELF\0license=GPL\0depends=udp_tunnel,ip6-udp-tunnel\0name=vxlan\0";
        assert_eq!(depends(module), ["udp_tunnel", "ip6_udp_tunnel"]);
        assert_eq!(depends(b"\0depends=\0"), [""; 0]);
        assert_eq!(depends(b"nothing"), [""; 0]);
    }
}
