//! What the kernel has: over netlink, message by message.

use crate::archive::Archive;
use crate::kernel::{self, Netlink};

/// Adds the kernel's state of this network namespace. `tables`: the nf_tables tables that are ours.
pub(crate) async fn kernel(archive: &mut Archive, tables: &[String]) {
    match Netlink::open() {
        Ok(netlink) => {
            for (name, text) in netlink.describe().await {
                archive.add(&format!("kernel/{name}.txt"), text.map_err(Into::into));
            }
        }
        Err(error) => archive.add("kernel/netlink.txt", Err(error)),
    }
    archive.add("kernel/traffic-control.txt", kernel::disciplines().await.map_err(Into::into));
    archive.add("kernel/nftables.txt", kernel::describe_tables(tables).map_err(Into::into));
    let policies = kernel::policies().await.map(|policies| format!("{policies:#?}\n"));
    archive.add("kernel/ipsec.txt", policies.map_err(Into::into));
}
