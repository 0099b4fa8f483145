//! What an operator has in hand: status, the live view, the report, and what the agent may do.

mod check;
mod init;
mod report;
mod rights;
mod status;
mod top;

use std::fs;

use vxlan_tests::lab::Agent;

/// Something that no archive may have in it.
const SECRET: &str = "hunter2-never-in-an-archive";

/// Breaks the configuration of an agent, with a secret in what is left of it, and returns what it was.
fn break_configuration(agent: &Agent) -> String {
    let before = fs::read_to_string(agent.config()).expect("a configuration");
    let broken = format!("{before}\n[[network]\npassword = \"{SECRET}\"\n");
    fs::write(agent.config(), broken).expect("written");
    before
}
