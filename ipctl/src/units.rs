//! Durations as people write and read them.

use std::time::Duration;

/// Units that a duration may be written in, with their seconds.
const UNITS: [(&str, f64); 7] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// Longest duration that makes sense on a command line: a week.
const LONGEST: Duration = Duration::from_hours(7 * 24);

/// Reads a duration over zero, up to a week: a number and a unit, such as `500ms` or `1.5s`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let example = "write a number and a unit, such as 500ms, 1.5s or 2m";
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| example.to_owned())?;
    let (_, seconds) = UNITS
        .into_iter()
        .find(|(name, _)| *name == unit)
        .ok_or(if unit.is_empty() { "the unit is missing; " } else { "no such unit; " })
        .map_err(|reason| format!("{reason}{example}"))?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(duration) if !duration.is_zero() && duration <= LONGEST => Ok(duration),
        _ => Err("it must be over zero, up to a week".to_owned()),
    }
}

/// Reads seconds: over zero, up to an hour.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.001..=3600.0).contains(&number) => Ok(Duration::from_secs_f64(number)),
        _ => Err("a number of seconds from 0.001 to 3600".to_owned()),
    }
}

/// Writes a duration with three or four digits in the unit that fits it.
pub(crate) fn show(duration: Duration) -> String {
    let ns = duration.as_nanos() as f64;
    let (value, unit) = match ns {
        ns if ns < 1e3 => return format!("{ns} ns"),
        ns if ns < 1e6 => (ns / 1e3, "µs"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    match value {
        value if value.fract() == 0.0 => format!("{value} {unit}"),
        value if value < 10.0 => format!("{value:.2} {unit}"),
        value => format!("{value:.1} {unit}"),
    }
}

/// Writes a time, in µs since 1970, as RFC 3339 has it.
pub(crate) fn utc(us: u64) -> String {
    let seconds = us / 1_000_000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Eras of 400 years that begin in March: days of the era, then years, then months of 153 days
    // to five.
    let era_days = days + 719_468;
    let (era, day) = (era_days / 146_097, era_days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hours, minutes, seconds) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}Z")
}

/// Writes how long something has been up, in its two largest units.
pub(crate) fn uptime(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if days > 0 => format!("{days} d {} h", hours % 24),
        () if hours > 0 => format!("{hours} h {} min", minutes % 60),
        () if minutes > 0 => format!("{minutes} min {} s", seconds % 60),
        () => format!("{seconds} s"),
    }
}

/// Microseconds, to the nanosecond: the unit of every duration in JSON that ends in `micros`.
pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("1m"), Ok(Duration::from_mins(1)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("0.5h"), Ok(Duration::from_mins(30)));
        assert_eq!(duration("30us"), duration("30µs"));
        assert_eq!(duration("250ns"), Ok(Duration::from_nanos(250)));
    }

    #[test]
    fn other_durations_are_refused_with_a_reason() {
        assert!(duration("5").is_err_and(|reason| reason.contains("unit is missing")));
        assert!(duration("5 parsecs").is_err_and(|reason| reason.contains("no such unit")));
        for text in ["", "s", "-1s", "1e3s", "inf", "NaN", "1.2.3s", "0s", "0.1ns", "8000h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn seconds_are_a_number() {
        assert_eq!(seconds("2"), Ok(Duration::from_secs(2)));
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for text in ["0", "-1", "nan", "inf", "3601", "2s"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_shown_in_the_unit_that_fits() {
        assert_eq!(show(Duration::from_nanos(999)), "999 ns");
        assert_eq!(show(Duration::from_nanos(1234)), "1.23 µs");
        assert_eq!(show(Duration::from_nanos(45_670)), "45.7 µs");
        assert_eq!(show(Duration::from_millis(500)), "500 ms");
        assert_eq!(show(Duration::from_millis(1500)), "1.50 s");
        assert_eq!(show(Duration::from_secs(10)), "10 s");
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_399_999_999), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_782_400_000_000), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_800_000_000_000_000), "2027-01-15T08:00:00Z");
        assert_eq!(utc(4_107_542_400_000_000), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn uptimes_have_two_units() {
        assert_eq!(uptime(Duration::from_secs(59)), "59 s");
        assert_eq!(uptime(Duration::from_secs(125)), "2 min 5 s");
        assert_eq!(uptime(Duration::from_mins(181)), "3 h 1 min");
        assert_eq!(uptime(Duration::from_hours(48)), "2 d 0 h");
    }
}
