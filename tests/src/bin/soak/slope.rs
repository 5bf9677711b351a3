//! Whether what is held grows: least squares, and what they are worth.

/// A line through samples, by least squares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Line {
    /// In an hour.
    pub(crate) per_hour: f64,
    /// Of what the line does not explain: the standard deviation.
    pub(crate) noise: f64,
}

/// What the samples say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Level,
    Grows,
    /// There are too few samples, or of too short a time, to tell growth from chance.
    TooShort,
    /// It may grow as it will.
    NotJudged,
}

impl Verdict {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Verdict::Level => "level",
            Verdict::Grows => "GROWS",
            Verdict::TooShort => "too short to judge",
            Verdict::NotJudged => "not judged",
        }
    }
}

/// Less than so many seconds, or samples, say nothing.
const SPAN: f64 = 240.0;
const SAMPLES: usize = 60;

/// Lays a line through (seconds, value); `None` for less than two times.
pub(crate) fn fit(points: &[(f64, f64)]) -> Option<Line> {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|it| it.0), mean(|it| it.1));
    let spread: f64 = points.iter().map(|it| (it.0 - x).powi(2)).sum();
    if points.len() < 2 || spread <= 0.0 {
        return None;
    }
    let slope = points.iter().map(|it| (it.0 - x) * (it.1 - y)).sum::<f64>() / spread;
    let rest: f64 = points.iter().map(|it| (it.1 - y - slope * (it.0 - x)).powi(2)).sum();
    Some(Line { per_hour: slope * 3600.0, noise: (rest / count).sqrt() })
}

/// Judges samples: they grow if the line rises by more than `allowance` and what chance explains,
/// and still does in the second half. What is filled once, and stays so, does not.
pub(crate) fn judge(points: &[(f64, f64)], allowance: f64) -> (Option<Line>, Verdict) {
    let line = fit(points);
    let (Some(whole), Some(first), Some(last)) = (line, points.first(), points.last()) else {
        return (line, Verdict::TooShort);
    };
    let hours = (last.0 - first.0) / 3600.0;
    if last.0 - first.0 < SPAN || points.len() < SAMPLES {
        return (line, Verdict::TooShort);
    }
    let middle = f64::midpoint(first.0, last.0);
    let half = points.partition_point(|point| point.0 < middle);
    let still = fit(&points[half..]).map_or(0.0, |late| late.per_hour * hours / 2.0);
    let grows = whole.per_hour * hours > allowance + 2.0 * whole.noise && still > allowance / 4.0;
    (line, if grows { Verdict::Grows } else { Verdict::Level })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(value: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        (0..600).map(f64::from).map(|second| (second, value(second))).collect()
    }

    /// As chance would have it, within 10 of nothing.
    fn noise(second: f64) -> f64 {
        (second * 12.9898).sin() * 43_758.545_3 % 10.0
    }

    #[test]
    fn a_line_is_found() {
        let line = fit(&samples(|second| 5.0 + second / 36.0)).expect("600 points");
        assert!((line.per_hour - 100.0).abs() < 1e-6 && line.noise < 1e-6, "{line:?}");
        assert_eq!(fit(&[(1.0, 2.0)]), None);
        assert_eq!(fit(&[(1.0, 2.0), (1.0, 3.0)]), None);
    }

    #[test]
    fn what_leaks_is_found_and_what_varies_or_is_filled_once_is_not() {
        let verdict = |points: &[(f64, f64)]| judge(points, 20.0).1;
        assert_eq!(verdict(&samples(noise)), Verdict::Level);
        assert_eq!(verdict(&samples(|it| noise(it) + it / 5.0)), Verdict::Grows);
        assert_eq!(verdict(&samples(|it| noise(it) - it / 5.0)), Verdict::Level);
        assert_eq!(verdict(&samples(|it| noise(it) + it.min(100.0))), Verdict::Level, "a warm-up");
        let steps = samples(|it| (it / 60.0).floor() * 10.0);
        assert_eq!(verdict(&steps), Verdict::Grows, "in steps");
        assert_eq!(verdict(&samples(|it| it)[..200]), Verdict::TooShort);
        assert_eq!(verdict(&[]), Verdict::TooShort);
    }
}
