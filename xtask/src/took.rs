//! How long the steps of one command took, for the table at its end.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A step that has ended.
struct Took {
    name: String,
    time: Duration,
}

static STEPS: Mutex<Vec<Took>> = Mutex::new(Vec::new());

/// Notes that the step `name` has ended after `time`.
pub(crate) fn note(name: &str, time: Duration) {
    let step = Took { name: name.to_owned(), time };
    STEPS.lock().unwrap_or_else(PoisonError::into_inner).push(step);
}

/// Does `work`, then prints what all steps took, failed ones as well.
pub(crate) fn with_table<T>(work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    let steps = STEPS.lock().unwrap_or_else(PoisonError::into_inner);
    eprint!("{}", table(&steps, start.elapsed()));
    result
}

/// One line per step; steps may have run side by side, so the last line is no sum.
fn table(steps: &[Took], all: Duration) -> String {
    let line = |name: &str, time: Duration| {
        let seconds = time.as_secs();
        format!("{:>4}:{:02}  {name}\n", seconds / 60, seconds % 60)
    };
    let mut text: String = steps.iter().map(|step| line(&step.name, step.time)).collect();
    text.insert_str(0, "==> minutes and seconds\n");
    text + &line("all of it", all)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Took, table};

    #[test]
    fn steps_are_listed_in_minutes_and_seconds_and_what_all_took_is_last() {
        let steps = [("first", 65), ("second", 600)]
            .map(|(name, seconds)| Took { name: name.into(), time: Duration::from_secs(seconds) });
        let text = table(&steps, Duration::from_secs(601));
        let lines: Vec<_> = text.lines().skip(1).map(str::trim).collect();
        assert_eq!(lines, ["1:05  first", "10:00  second", "10:01  all of it"]);
    }
}
