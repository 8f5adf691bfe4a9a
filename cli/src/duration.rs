//! Times as people write them on a command line.

use std::time::Duration;

/// Reads `500ms`, `60s`, `10m`, `2h`; a number alone is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time: write it as 500ms, 60s, 10m or 2h");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u32 = number.parse().map_err(|_| wrong())?;
    match unit {
        "ms" => Ok(Duration::from_millis(number.into())),
        "s" | "" => Ok(Duration::from_secs(number.into())),
        "m" => Ok(Duration::from_mins(number.into())),
        "h" => Ok(Duration::from_hours(number.into())),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("60"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(
            (duration("2m"), duration("1h")),
            (Ok(Duration::from_secs(120)), Ok(Duration::from_secs(3600)))
        );
        for bad in ["", "s", "-1s", "1.5s", "1 s", "9d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
