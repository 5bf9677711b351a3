//! The figures as drawings. A contender has a colour and a mark, the same in every plot; sleeping
//! is dashed, in place is hollow. The colours are Okabe's and Ito's, which most people tell apart.

use std::fs;
use std::io;
use std::path::Path;

use benches::report::size;
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::contender::{Payload, Waits};
use crate::figures::{Report, Row};
use crate::run::{CROWDS, SIZES};

const WIDTH: u32 = 980;
const HEIGHT: u32 = 600;
/// Where the legend begins.
const LEGEND: u32 = 710;
const FONT: &str = "sans-serif";
const GREY: RGBColor = RGBColor(90, 90, 90);
const FAINT: RGBColor = RGBColor(225, 225, 225);

/// Sizes whose distributions are drawn.
const DISTRIBUTIONS: [usize; 2] = [64, 1024];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// A line, its points already in the logarithms that the axes are made of.
struct Series {
    title: String,
    color: RGBColor,
    mark: Mark,
    dashed: bool,
    hollow: bool,
    points: Vec<(f64, f64)>,
}

#[derive(Clone, Copy)]
enum Mark {
    Circle,
    Square,
    Triangle,
    Cross,
}

/// One axis: whole numbers are its ticks, and `label` says what they stand for.
struct Axis {
    name: &'static str,
    label: fn(f64) -> String,
}

const TIME: Axis = Axis { name: "round trip (logarithmic)", label: time };
const NINES: Axis = Axis { name: "share of calls that were no slower", label: nines };
const SIZE: Axis = Axis { name: "payload", label: payload };
const CLIENTS: Axis = Axis { name: "clients, sharing one CPU", label: clients };
const BYTES: Axis = Axis { name: "payload per second, each way (logarithmic)", label: bytes };
const CALLS: Axis = Axis { name: "calls per second (logarithmic)", label: calls };

/// Draws everything into a directory.
///
/// # Errors
/// Those of creating the directory and its files.
pub fn all(report: &Report, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let draw = |name: String, title: String, axes: [&Axis; 2], series: Vec<Series>| {
        if series.is_empty() {
            return Ok(());
        }
        let caption = caption(report);
        chart(&directory.join(name), [&title, &caption], axes, series).map_err(io::Error::other)
    };
    for bytes in DISTRIBUTIONS {
        let name = format!("latency-{bytes}.svg");
        let title = format!("Round trip of {}: the distribution", size(bytes));
        draw(name, title, [&NINES, &TIME], distributions(report, bytes))?;
    }
    let by_size = |figure: fn(&Row) -> Option<f64>| lines(&report.calls, |row| row.size, figure);
    let half = |row: &Row| row.median.as_ref()?.p50.map(|ns| ns as f64);
    let volume = |row: &Row| row.median.as_ref().map(|it| it.per_second * row.size as f64);
    let rate = |row: &Row| row.median.as_ref().map(|it| it.per_second);
    let title = "Median round trip by payload".to_owned();
    draw("latency-by-size.svg".to_owned(), title, [&SIZE, &TIME], by_size(half))?;
    let title = "Throughput of calls by payload, one client".to_owned();
    draw("throughput-by-size.svg".to_owned(), title, [&SIZE, &BYTES], by_size(volume))?;
    let title = "Throughput of 64 B calls by number of clients".to_owned();
    let crowds = lines(&report.crowds, |row| row.clients, rate);
    draw("clients.svg".to_owned(), title, [&CLIENTS, &CALLS], crowds)
}

fn caption(report: &Report) -> String {
    let machine = report.machine.to_string().replace('\n', ", ");
    let (rounds, seconds, distance) = (report.rounds, report.seconds, report.distance);
    format!("{machine} ({distance}); medians of up to {rounds} rounds of {seconds} s")
}

fn distributions(report: &Report, size: usize) -> Vec<Series> {
    let of_size = report.calls.iter().filter(|row| row.size == size);
    of_size
        .filter_map(|row| {
            let quantiles = &row.median.as_ref()?.quantiles;
            let point = |(share, ns): (&f64, &u64)| (-(1.0 - share).log10(), log(*ns as f64));
            Some(series(row, report.shares.iter().zip(quantiles).map(point).collect()))
        })
        .collect()
}

/// Makes a line for each contender, of the rows that have the figure.
fn lines(
    rows: &[Row],
    at: impl Fn(&Row) -> usize,
    figure: impl Fn(&Row) -> Option<f64>,
) -> Vec<Series> {
    let mut lines: Vec<Series> = Vec::new();
    for row in rows {
        let Some(value) = figure(row).filter(|value| *value > 0.0) else { continue };
        let point = ((at(row) as f64).log2(), log(value));
        match lines.iter_mut().find(|line| line.title == row.title()) {
            Some(line) => line.points.push(point),
            None => lines.push(series(row, vec![point])),
        }
    }
    lines
}

fn series(row: &Row, points: Vec<(f64, f64)>) -> Series {
    let (color, mark) = family(row.contender);
    Series {
        title: row.title(),
        color,
        mark,
        dashed: row.waits == Waits::Sleeping,
        hollow: row.payload == Payload::InPlace,
        points,
    }
}

fn family(contender: &str) -> (RGBColor, Mark) {
    match contender {
        "libipc" => (RGBColor(0, 114, 178), Mark::Circle),
        "Unix stream" => (RGBColor(0, 158, 115), Mark::Triangle),
        "Unix seqpacket" => (RGBColor(86, 180, 233), Mark::Triangle),
        "POSIX mq" => (RGBColor(213, 94, 0), Mark::Cross),
        "ipc-channel" => (RGBColor(150, 150, 150), Mark::Cross),
        "ZeroMQ" => (RGBColor(204, 121, 167), Mark::Cross),
        "tonic (gRPC)" => (RGBColor(140, 81, 10), Mark::Triangle),
        _ if contender.starts_with("iceoryx2") => (RGBColor(230, 159, 0), Mark::Square),
        _ => (BLACK, Mark::Circle),
    }
}

fn chart(
    path: &Path,
    [title, caption]: [&str; 2],
    [x, y]: [&Axis; 2],
    mut series: Vec<Series>,
) -> Result<(), DrawingAreaErrorKind<io::Error>> {
    let root = SVGBackend::new(path, (WIDTH, HEIGHT)).into_drawing_area();
    root.fill(&WHITE)?;
    text(&root, title, (16, 14), 20, BLACK)?;
    text(&root, caption, (16, HEIGHT as i32 - 20), 11, GREY)?;
    let plain = root.margin(44, 30, 10, WIDTH - LEGEND);
    let mut chart =
        ChartBuilder::on(&plain).x_label_area_size(44).y_label_area_size(76).build_cartesian_2d(
            span(&series, |point| point.0, 0.0),
            span(&series, |point| point.1, 1.0),
        )?;
    chart
        .configure_mesh()
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
        .axis_style(GREY)
        .x_desc(x.name)
        .y_desc(y.name)
        .x_labels(24)
        .y_labels(10)
        .x_label_formatter(&|at| tick(x, *at))
        .y_label_formatter(&|at| tick(y, *at))
        .label_style((FONT, 12))
        .axis_desc_style((FONT, 13))
        .draw()?;
    for line in &series {
        draw(&root, &mut chart, line)?;
    }
    // Top to bottom as the lines end, so that the eye finds one from the other.
    let end = |line: &Series| line.points.last().map_or(f64::MIN, |point| point.1);
    series.sort_by(|a, b| end(b).total_cmp(&end(a)));
    for (index, line) in series.iter().enumerate() {
        legend(&root, line, 64 + 24 * index as i32)?;
    }
    root.present()
}

/// The whole range of points; widened to whole `step`s where that is not 0.
fn span(series: &[Series], of: impl Fn(&(f64, f64)) -> f64, step: f64) -> std::ops::Range<f64> {
    let all = || series.iter().flat_map(|line| &line.points).map(&of);
    let (low, high) = (all().fold(f64::MAX, f64::min), all().fold(f64::MIN, f64::max));
    if step > 0.0 {
        let (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
        return low..if high > low { high } else { low + step };
    }
    let room = ((high - low) * 0.05).max(0.05);
    low - room..high + room
}

fn draw(
    root: &Area<'_>,
    chart: &mut Chart<'_, '_>,
    line: &Series,
) -> Result<(), DrawingAreaErrorKind<io::Error>> {
    let style = line.color.stroke_width(2);
    let points = || line.points.iter().copied();
    if line.dashed {
        chart.draw_series(DashedLineSeries::new(line.points.clone(), 6, 4, style))?;
    } else {
        chart.draw_series(LineSeries::new(points(), style))?;
    }
    points().try_for_each(|point| mark(root, line, chart.backend_coord(&point)))
}

fn legend(root: &Area<'_>, line: &Series, y: i32) -> Result<(), DrawingAreaErrorKind<io::Error>> {
    let left = LEGEND as i32 + 6;
    let style = line.color.stroke_width(2);
    let ends = [(left, y), (left + 34, y)];
    if line.dashed {
        root.draw(&DashedPathElement::new(ends, 6, 4, style))?;
    } else {
        root.draw(&PathElement::new(ends, style))?;
    }
    mark(root, line, (left + 17, y))?;
    text(root, &line.title, (left + 42, y - 7), 13, BLACK)
}

fn mark(
    root: &Area<'_>,
    line: &Series,
    (x, y): (i32, i32),
) -> Result<(), DrawingAreaErrorKind<io::Error>> {
    let fill = if line.hollow { WHITE } else { line.color };
    let edge = line.color.stroke_width(2);
    let corners = match line.mark {
        Mark::Circle => {
            root.draw(&Circle::new((x, y), 3, fill.filled()))?;
            return root.draw(&Circle::new((x, y), 3, edge));
        }
        Mark::Cross => return root.draw(&Cross::new((x, y), 3, edge)),
        Mark::Square => vec![(x - 3, y - 3), (x + 3, y - 3), (x + 3, y + 3), (x - 3, y + 3)],
        Mark::Triangle => vec![(x, y - 4), (x + 4, y + 3), (x - 4, y + 3)],
    };
    let mut around = corners.clone();
    around.extend(corners.first());
    root.draw(&Polygon::new(corners, fill.filled()))?;
    root.draw(&PathElement::new(around, edge))
}

fn text(
    root: &Area<'_>,
    words: &str,
    at: (i32, i32),
    height: u32,
    color: RGBColor,
) -> Result<(), DrawingAreaErrorKind<io::Error>> {
    let style = TextStyle::from((FONT, height).into_font())
        .color(&color)
        .pos(Pos::new(HPos::Left, VPos::Top));
    root.draw_text(words, &style, at)
}

fn log(value: f64) -> f64 {
    value.max(1.0).log10()
}

/// Labels whole numbers only: the rest are between decades.
fn tick(axis: &Axis, at: f64) -> String {
    if (at - at.round()).abs() < 1e-6 { (axis.label)(at.round()) } else { String::new() }
}

fn time(decade: f64) -> String {
    scaled(decade, ["ns", "µs", "ms", "s"])
}

fn bytes(decade: f64) -> String {
    scaled(decade, ["B/s", "kB/s", "MB/s", "GB/s"])
}

fn calls(decade: f64) -> String {
    scaled(decade, ["", "k", "M", "G"])
}

fn scaled(decade: f64, units: [&str; 4]) -> String {
    let unit = ((decade / 3.0).floor() as usize).min(units.len() - 1);
    let number = 10_f64.powf(decade - 3.0 * unit as f64);
    format!("{number} {}", units[unit]).trim_end().to_owned()
}

fn nines(count: f64) -> String {
    let digits = (count as usize).saturating_sub(2);
    format!("{:.digits$} %", 100.0 - 100.0 / 10_f64.powf(count))
}

fn payload(power: f64) -> String {
    let bytes = power.exp2() as usize;
    if SIZES.contains(&bytes) { size(bytes) } else { String::new() }
}

fn clients(power: f64) -> String {
    let count = power.exp2() as usize;
    if CROWDS.contains(&count) { count.to_string() } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_say_what_they_stand_for() {
        assert_eq!([2.0, 3.0, 6.0, 9.0].map(time), ["100 ns", "1 µs", "1 ms", "1 s"]);
        assert_eq!(
            [0.0, 1.0, 2.0, 3.0, 4.0].map(nines),
            ["0 %", "90 %", "99 %", "99.9 %", "99.99 %"]
        );
        assert_eq!([3.0, 4.0, 20.0].map(payload), ["8 B", "", "1 MiB"]);
        assert_eq!(tick(&TIME, 2.5), "");
    }

    #[test]
    fn times_span_whole_decades() {
        let row = |points| Series {
            title: String::new(),
            color: BLACK,
            mark: Mark::Circle,
            dashed: false,
            hollow: false,
            points,
        };
        let series = [row(vec![(3.0, 2.3), (6.0, 4.1)])];
        assert_eq!(span(&series, |point| point.1, 1.0), 2.0..5.0);
    }
}
