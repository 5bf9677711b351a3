//! Durations, sizes and lists of CPUs, as people write them.

use std::time::Duration;

/// What is wrong with a value, and what to write instead.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) what: String,
    pub(super) hint: String,
}

/// Longer than anybody waits, and short enough that no sum of such overflows a clock.
const LONGEST: Duration = Duration::from_hours(365 * 24);

const DURATION_HINT: &str = r#"write a number and ms, s, min or h, like "250ms" or "5s""#;
const SIZE_HINT: &str = r#"write a number and B, KiB, MiB, GiB or TiB, like "64MiB""#;
const CPUS_HINT: &str = r#"write numbers and ranges, like "0-3,7""#;

/// Nanoseconds in each unit.
const DURATION_UNITS: &[(&str, u64)] = &[
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("min", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// Bytes in each unit.
const SIZE_UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// What `sched_setaffinity` takes in its ordinary form.
const CPUS: usize = 1024;

/// Reads a duration of more than nothing, like `250ms`, `1.5s` or `2min`.
pub(super) fn duration(text: &str) -> Result<Duration, Wrong> {
    let wrong = |what: String| Wrong { what, hint: DURATION_HINT.to_owned() };
    let nanos = scaled(text, DURATION_UNITS)
        .ok_or_else(|| wrong(format!("{} is not a duration", quoted(text))))?;
    let duration = Duration::from_nanos(nanos);
    if duration > LONGEST {
        return Err(wrong(format!("{} is longer than 365 days", quoted(text))));
    }
    if duration.is_zero() {
        return Err(Wrong {
            what: format!("{} is no time at all", quoted(text)),
            hint: "write a longer one".to_owned(),
        });
    }
    Ok(duration)
}

/// Reads a size in bytes, like `64MiB`.
pub(super) fn size(text: &str) -> Result<u64, Wrong> {
    scaled(text, SIZE_UNITS).ok_or_else(|| Wrong {
        what: format!("{} is not a size", quoted(text)),
        hint: SIZE_HINT.to_owned(),
    })
}

/// Reads numbers of CPUs, like `0-3,7`, into ascending order.
pub(super) fn cpus(text: &str) -> Result<Vec<usize>, Wrong> {
    let wrong = |what: String| Wrong { what, hint: CPUS_HINT.to_owned() };
    let number = |part: &str| part.trim().parse::<usize>().ok();
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let ends = match part.split_once('-') {
            Some((first, last)) => number(first).zip(number(last)),
            None => number(part).map(|only| (only, only)),
        };
        let Some((first, last)) = ends else {
            return Err(wrong(format!("{} is not a list of CPUs", quoted(text))));
        };
        if first > last {
            return Err(wrong(format!("the range {first}-{last} runs backwards")));
        }
        if last >= CPUS {
            return Err(wrong(format!(
                "there is no CPU {last}: the last possible is {}",
                CPUS - 1
            )));
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

/// Quotes a text of the file so that it stays on its line, and short.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN: usize = 60;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Reads a decimal number and its unit; `None` where it is neither, or too large.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|character: char| !(character.is_ascii_digit() || character == '.'))?;
    let (number, unit) = text.split_at(end);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.is_empty() || fraction.len() > 18 || fraction.contains('.') {
        return None;
    }
    // In whole numbers, since a float would make 0.3 something else.
    let parts = u128::from(fraction.parse::<u64>().ok()?) * u128::from(*scale);
    let fraction = u64::try_from(parts / 10_u128.pow(fraction.len() as u32)).ok()?;
    whole.parse::<u64>().ok()?.checked_mul(*scale)?.checked_add(fraction)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, millis) in [
            ("250ms", 250),
            ("5s", 5_000),
            (" 5 s", 5_000),
            ("1.5s", 1_500),
            ("0.3s", 300),
            ("2min", 120_000),
            ("1h", 3_600_000),
            ("365d", 31_536_000_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(duration("0.5ms"), Ok(Duration::from_micros(500)));
        for text in ["", "5", "s", ".s", "5.s", "1.2.3s", "-1s", "1e3s", "5S", "5 m", "5s5s", "∞s"]
        {
            assert_eq!(duration(text).unwrap_err().hint, DURATION_HINT, "{text}");
        }
        assert_eq!(duration("366d").unwrap_err().what, r#""366d" is longer than 365 days"#);
        assert_eq!(duration("99999999999999999999s").unwrap_err().hint, DURATION_HINT);
        assert_eq!(duration("0ms").unwrap_err().what, r#""0ms" is no time at all"#);
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [
            ("0B", 0),
            ("16KiB", 16 << 10),
            ("64MiB", 64 << 20),
            ("1.5GiB", 3 << 29),
            ("2TiB", 2 << 40),
            ("1kB", 1_000),
            ("1 MB", 1_000_000),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "64", "64M", "64mib", "MiB", "-1B", "99999999999TiB"] {
            assert_eq!(size(text).unwrap_err().hint, SIZE_HINT, "{text}");
        }
    }

    #[test]
    fn lists_of_cpus_are_read() {
        assert_eq!(cpus("0-3,7"), Ok(vec![0, 1, 2, 3, 7]));
        assert_eq!(cpus(" 5 , 1 - 2,2"), Ok(vec![1, 2, 5]));
        assert_eq!(cpus("1023"), Ok(vec![1023]));
        for text in ["", ",", "1,", "a", "1-", "-1", "1-2-3", "0x1"] {
            assert_eq!(cpus(text).unwrap_err().hint, CPUS_HINT, "{text}");
        }
        assert_eq!(cpus("3-1").unwrap_err().what, "the range 3-1 runs backwards");
        assert_eq!(
            cpus("0-4000000000").unwrap_err().what,
            "there is no CPU 4000000000: the last possible is 1023"
        );
    }

    #[test]
    fn quotes_keep_a_text_on_its_line_and_short() {
        assert_eq!(quoted("a\nb\u{1b}"), r#""a\nb\u{1b}""#);
        assert_eq!(quoted(&"é".repeat(61)), format!("\"{}\"...", "é".repeat(60)));
    }
}
