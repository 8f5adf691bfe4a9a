//! Times, in a table.

use std::time::Duration;

/// Prints what the columns of [`row`] are.
pub(super) fn head(what: &str) {
    println!("{what:<44} {:>7} {:>7} {:>7} {:>7}", "p50", "p90", "p99", "most");
}

/// Prints one row, in milliseconds.
pub(super) fn row(what: &str, times: &mut [Duration]) {
    times.sort();
    let [p50, p90, p99, most] = [50, 90, 99, 100].map(|percent| milliseconds(times, percent));
    println!("{what:<44} {p50:>7.2} {p90:>7.2} {p99:>7.2} {most:>7.2}");
}

/// The smallest of the sorted times that so many percent of them do not exceed.
fn milliseconds(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(
            [50, 90, 99, 100].map(|percent| milliseconds(&times, percent)),
            [100.0, 180.0, 198.0, 200.0]
        );
        assert_eq!(milliseconds(&times[..1], 50), 1.0);
        assert!(milliseconds(&[], 50).is_nan());
    }
}
