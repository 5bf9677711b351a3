//! Times, as people write them.

use std::time::Duration;

/// Reads `90s`, `10m`, `24h` or `7d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: a number and s, m, h or d, such as 24h");
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    let total = number.checked_mul(seconds).filter(|total| (1..=365 * 86400).contains(total));
    total.map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        for (text, seconds) in [("60s", 60), ("10m", 600), ("24h", 86400), ("7d", 7 * 86400)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        for wrong in ["", "s", "10", "0s", "-1h", "1y", "1.5h", "ä", "99999999999999999999d"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }
}
