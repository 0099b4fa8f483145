//! Probing all other nodes now and then, for whoever asks for metrics.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::Agent;
use super::network::Network;
use crate::probe::{Overlay, sweep};
use crate::report::Probed;

/// What is probed, and what came of it.
pub(super) struct Connectivity {
    overlays: watch::Sender<Vec<Overlay>>,
    pub(super) probed: watch::Receiver<Arc<Probed>>,
}

impl Connectivity {
    /// Probes every `seconds`, for as long as this is kept.
    pub(super) fn start(seconds: NonZeroU32) -> Self {
        let (overlays, wanted) = watch::channel(vec![]);
        let (tell, probed) = watch::channel(Arc::default());
        tokio::spawn(probe(Duration::from_secs(u64::from(seconds.get())), wanted, tell));
        Self { overlays, probed }
    }
}

async fn probe(every: Duration, wanted: watch::Receiver<Vec<Overlay>>, tell: watch::Sender<Arc<Probed>>) {
    let mut said = String::new();
    // The agent ends, and with it who wants to know.
    while !tell.is_closed() {
        let overlays = wanted.borrow().clone();
        match sweep(&overlays, true).await {
            Ok(rows) => {
                said.clear();
                tell.send_replace(Arc::new(Probed { at: Some(SystemTime::now()), rows }));
            }
            Err(error) => {
                let now = format!("{error:#}");
                if now != said {
                    tracing::warn!("cannot probe other nodes, trying again in {} s: {now}", every.as_secs());
                    said = now;
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = tell.closed() => return,
        }
    }
}

impl Agent {
    /// Says what is to be probed, if that is new.
    pub(super) fn tell_probes(&self) {
        let Some(connectivity) = &self.connectivity else { return };
        let overlay = |network: &Network| {
            let mtu = network.underlays.iter().map(|underlay| underlay.inner_mtu.0).min()?;
            Some(Overlay::new(network.name(), &network.cluster, mtu as usize))
        };
        let routed = self.networks.iter().filter(|network| !network.is_bridged());
        let now: Vec<Overlay> = routed.filter_map(overlay).collect();
        connectivity.overlays.send_if_modified(|before| {
            let is_new = *before != now;
            *before = now;
            is_new
        });
    }
}
