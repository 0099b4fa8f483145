//! Two questions over HTTP, as a kubelet asks them.
//!
//! - `/healthz`: does the agent's loop still turn? If not, a restart helps, and costs no packet.
//! - `/readyz`: is everything as the newest cluster state asks for? If not, the answer says what is
//!   missing, and the next node's update should wait.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use hyper::{Method, StatusCode};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Agent;
use super::network::Network;
use crate::report::http::{self, Answer};

/// So long without a turn is too long: thousands of nodes at once take it some seconds.
const STANDSTILL: Duration = Duration::from_secs(30);

/// How the agent is.
#[derive(Clone, Debug)]
pub(super) struct Health {
    turned: Instant,
    /// What is missing, a line each.
    missing: Vec<String>,
}

/// Answers at `address` for as long as the process lives; what is sent to the result is the answer. On a
/// thread of its own, which answers that the loop stands still even while something blocks that.
pub(super) fn serve(address: SocketAddr) -> anyhow::Result<watch::Sender<Health>> {
    let context = || format!("cannot listen for health checks on {address}");
    let listener = http::listen(address).with_context(context)?;
    let starting = Health { turned: Instant::now(), missing: vec!["starting".to_owned()] };
    let (sender, health) = watch::channel(starting);
    let answer = move |method: &Method, path: &str| {
        let (status, text) = health.borrow().answer(method, path, Instant::now());
        Answer::plain(status, text)
    };
    http::serve("health", move || listener, answer)?;
    Ok(sender)
}

impl Health {
    fn answer(&self, method: &Method, path: &str, now: Instant) -> (StatusCode, String) {
        let complaint = match (method, path) {
            (&Method::GET | &Method::HEAD, "/healthz" | "/livez") => {
                let still = now.duration_since(self.turned);
                let stuck = format!("the loop has stood still for {} s", still.as_secs());
                (still > STANDSTILL).then_some(stuck).into_iter().collect()
            }
            (&Method::GET | &Method::HEAD, "/readyz") => self.missing.clone(),
            _ => return (StatusCode::NOT_FOUND, "there are /healthz and /readyz\n".to_owned()),
        };
        match complaint.as_slice() {
            [] => (StatusCode::OK, "ok\n".to_owned()),
            lines => (StatusCode::SERVICE_UNAVAILABLE, lines.join("\n") + "\n"),
        }
    }
}

impl Agent {
    /// How the agent is, now that its loop has turned.
    pub(super) fn health(&self) -> Health {
        let of_network = |network: &Network| {
            let lines =
                network.reload_error.iter().chain(&network.plan_error).chain(&network.cluster.trouble);
            lines.map(|line| network.key(line)).collect::<Vec<_>>()
        };
        let waits =
            self.pending.iter().map(|pending| format!("{}: waiting: {}", pending.name(), pending.reason()));
        let refused = self.config_error.iter().map(|reason| format!("configuration refused: {reason}"));
        let errors = self.error.iter().cloned().chain(refused).chain(waits);
        let errors = errors.chain(self.networks.iter().flat_map(of_network));
        let failed = self.machine.retries.status().into_iter().map(|retry| retry.sentence());
        Health { turned: Instant::now(), missing: errors.chain(failed).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loop turns at least this often.
    const TURN: Duration = crate::agent::PEEK;

    fn answer(missing: &[&str], path: &str, still: Duration) -> (u16, String) {
        let turned = Instant::now();
        let missing = missing.iter().map(|line| (*line).to_owned()).collect();
        let (status, text) = Health { turned, missing }.answer(&Method::GET, path, turned + still);
        (status.as_u16(), text)
    }

    #[test]
    fn an_agent_is_alive_as_long_as_its_loop_turns() {
        assert_eq!(answer(&["x"], "/healthz", TURN).0, 200, "whatever else is missing");
        let (status, text) = answer(&[], "/healthz", STANDSTILL + TURN);
        assert!(status == 503 && text.contains("35 s"), "{text}");
    }

    #[test]
    fn an_agent_is_ready_when_nothing_is_missing() {
        assert_eq!(answer(&[], "/readyz", TURN), (200, "ok\n".into()));
        assert_eq!(answer(&["a", "b"], "/readyz", TURN), (503, "a\nb\n".into()));
        assert_eq!(answer(&[], "/", TURN).0, 404);
    }

    #[test]
    fn a_loop_that_is_blocked_is_reported_all_the_same() {
        use std::io::{Read as _, Write as _};
        let address: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let free = std::net::TcpListener::bind(address).and_then(|l| l.local_addr()).expect("a free port");
        let health = serve(free).expect("a server");
        let long_ago = Instant::now().checked_sub(STANDSTILL * 2).expect("the machine is up longer");
        health.send_replace(Health { turned: long_ago, missing: vec![] });
        // No loop turns in this test.
        let mut stream = std::net::TcpStream::connect(free).expect("a connection");
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("stood still"), "{answer}");
    }
}
