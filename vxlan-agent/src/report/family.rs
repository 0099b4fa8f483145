//! Metrics whose values are known when they are asked for.

use std::fmt::Error;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Labels of a metric.
pub(super) type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

/// A metric with a value for each set of labels in `rows`; nothing if there is none.
pub(super) fn family<L: EncodeLabelSet, M: EncodeMetric + TypedMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (L, M)>,
) -> Result<(), Error> {
    let mut rows = rows.into_iter().peekable();
    if rows.peek().is_none() {
        return Ok(());
    }
    let mut metric = encoder.encode_descriptor(name, help, None, M::TYPE)?;
    for (labels, value) in rows {
        value.encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

/// A metric with one value.
pub(super) fn single<M: EncodeMetric + TypedMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: M,
) -> Result<(), Error> {
    value.encode(encoder.encode_descriptor(name, help, None, M::TYPE)?)
}

/// A gauge that says how many.
pub(super) fn number(count: usize) -> ConstGauge<u64> {
    ConstGauge::new(count as u64)
}

/// A gauge that is 1 or 0.
pub(super) fn flag(is_set: bool) -> ConstGauge<u64> {
    ConstGauge::new(u64::from(is_set))
}

/// A counter.
pub(super) fn counter(count: u64) -> ConstCounter<u64> {
    ConstCounter::new(count)
}

/// A time in seconds since 1970, as Prometheus has times.
pub(super) fn since_1970(time: SystemTime) -> Option<f64> {
    Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs_f64())
}
