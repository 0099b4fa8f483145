//! See [`vxlan_agent`].

use std::process::ExitCode;

fn main() -> ExitCode {
    vxlan_agent::cli::main()
}
