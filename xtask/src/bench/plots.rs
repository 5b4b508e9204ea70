//! Plots as SVG text: the cost of a unit as bars, and latency by percentile as curves.

use plotters::prelude::*;

use super::latency::Latency;
use super::peers::Peer;
use super::table::{Row, short};

type Drawn = Result<String, Box<dyn std::error::Error>>;

const WIDTH: u32 = 610;
const GRID: RGBColor = RGBColor(225, 225, 225);

fn colour(peer: Peer) -> RGBColor {
    match peer {
        Peer::Direct => RGBColor(150, 150, 150),
        Peer::L4 => RGBColor(148, 103, 189),
        Peer::L4Splice => RGBColor(197, 176, 213),
        Peer::NginxRecipe => RGBColor(214, 39, 40),
        Peer::NginxTuned => RGBColor(255, 127, 14),
        Peer::Haproxy => RGBColor(44, 160, 44),
        Peer::DcvSplice => RGBColor(31, 119, 180),
        Peer::DcvSpliceEbpf => RGBColor(23, 190, 207),
        Peer::DcvSpliceKtls => RGBColor(188, 189, 34),
        Peer::DcvSpliceBefore => RGBColor(140, 86, 75),
    }
}

/// A bar for each peer that has a cost, with its spread as a line.
pub(super) fn bars(title: &str, rows: &[Row]) -> Drawn {
    let bars: Vec<_> = rows.iter().filter_map(|row| Some((row.peer, row.cost?))).collect();
    let highest = bars.iter().map(|(_, cost)| cost.max).fold(f64::MIN_POSITIVE, f64::max);
    let count = u32::try_from(bars.len())?;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, 70 + 28 * count)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 16))
            .margin(8)
            .x_label_area_size(24)
            .y_label_area_size(110)
            .build_cartesian_2d(0.0..highest * 1.15, 0.0..f64::from(count.max(1)))?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(0)
            .light_line_style(WHITE)
            .bold_line_style(GRID)
            .x_label_formatter(&|value| short(*value))
            .draw()?;
        for (index, (peer, cost)) in bars.iter().enumerate() {
            let middle = f64::from(count) - 0.5 - index as f64;
            let bar = [(0.0, middle - 0.35), (cost.median, middle + 0.35)];
            chart.draw_series([Rectangle::new(bar, colour(*peer).filled())])?;
            chart.draw_series([PathElement::new([(cost.min, middle), (cost.max, middle)], BLACK)])?;
            let style = ("sans-serif", 13).into_font();
            let number = (cost.max.max(cost.median) + highest * 0.01, middle + 0.2);
            chart.draw_series([Text::new(short(cost.median), number, style.clone())])?;
            let (_, y) = chart.backend_coord(&(0.0, middle));
            area.draw(&Text::new(peer.name(), (10, y - 7), style))?;
        }
        area.present()?;
    }
    Ok(svg)
}

/// A curve for each peer: percentiles on a scale that gives each further nine the same room.
pub(super) fn curves(title: &str, name: &str, rows: &[Row]) -> Drawn {
    let curves: Vec<(Peer, &Latency)> =
        rows.iter().filter_map(|row| Some((row.peer, row.latencies.get(name)?))).collect();
    let values = || curves.iter().flat_map(|(_, latency)| latency.curve.iter().map(|(_, value)| *value));
    let low = values().fold(f64::MAX, f64::min).clamp(1.0, 1e6) * 0.8;
    let high = values().fold(low * 2.0, f64::max) * 1.2;
    let points = |latency: &Latency| {
        latency.curve.iter().map(|(percent, value)| (nines(*percent), *value)).collect::<Vec<_>>()
    };
    let lines: Vec<_> = curves.iter().map(|(peer, latency)| (*peer, points(latency))).collect();
    let axes = Axes {
        x: ("percentile", 4.1),
        x_text: |nines| short_percent(percentile(nines)),
        y: ("us", low..high),
        legend: SeriesLabelPosition::LowerRight,
        width: 2,
    };
    draw(title, &axes, lines)
}

/// What each peer's values were, in ms, while time went on.
pub(super) fn over_time(title: &str, series: &[(Peer, &[(f64, f64)])]) -> Drawn {
    let values = || series.iter().flat_map(|(_, points)| points.iter());
    let end = values().map(|(at, _)| *at).fold(1.0, f64::max) / 1e3;
    let (low, high) =
        values().fold((f64::MAX, 10.0_f64), |(low, high), (_, value)| (low.min(*value), high.max(*value)));
    let low = low.clamp(1.0, high / 2.0);
    let points = |points: &[(f64, f64)]| {
        // As many points as there are pixels.
        let step = points.len().div_ceil(WIDTH as usize).max(1);
        points.iter().step_by(step).map(|(at, value)| (at / 1e3, value.max(low))).collect::<Vec<_>>()
    };
    let lines: Vec<_> = series.iter().map(|(peer, seen)| (*peer, points(seen))).collect();
    let axes = Axes {
        x: ("seconds", end),
        x_text: short,
        y: ("ms", low * 0.8..high * 1.2),
        legend: SeriesLabelPosition::UpperRight,
        width: 1,
    };
    draw(title, &axes, lines)
}

/// What lines are drawn against: x from 0, y on a logarithmic scale.
struct Axes<'a> {
    x: (&'a str, f64),
    x_text: fn(f64) -> String,
    y: (&'a str, std::ops::Range<f64>),
    legend: SeriesLabelPosition,
    /// Of a line; the proxy's own is one wider.
    width: u32,
}

/// A line for each peer, and who is who.
fn draw(title: &str, axes: &Axes<'_>, lines: Vec<(Peer, Vec<(f64, f64)>)>) -> Drawn {
    let ((x_name, x_end), (y_name, y_range)) = (axes.x, axes.y.clone());
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, 340)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 16))
            .margin(8)
            .x_label_area_size(38)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..x_end, y_range.log_scale())?;
        chart
            .configure_mesh()
            .x_labels(5)
            .y_labels(6)
            .light_line_style(WHITE)
            .bold_line_style(GRID)
            .x_desc(x_name)
            .y_desc(y_name)
            .x_label_formatter(&|value| (axes.x_text)(*value))
            .y_label_formatter(&|value| short(*value))
            .draw()?;
        for (peer, points) in lines {
            let style = colour(peer).stroke_width(axes.width + u32::from(peer == Peer::DcvSplice));
            chart
                .draw_series(LineSeries::new(points, style))?
                .label(peer.name())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        chart
            .configure_series_labels()
            .position(axes.legend.clone())
            .background_style(WHITE.mix(0.85))
            .border_style(GRID)
            .draw()?;
        area.present()?;
    }
    Ok(svg)
}

/// 90 is 1, 99 is 2, 99.9 is 3.
fn nines(percentile: f64) -> f64 {
    -(1.0 - percentile / 100.0).log10()
}

fn percentile(nines: f64) -> f64 {
    100.0 * (1.0 - 10_f64.powf(-nines))
}

fn short_percent(percentile: f64) -> String {
    let text = format!("{percentile:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_nine_has_the_same_room() {
        for (percent, wanted) in [(0.0, 0.0), (90.0, 1.0), (99.0, 2.0), (99.9, 3.0)] {
            assert!((nines(percent) - wanted).abs() < 1e-9);
            assert!((percentile(wanted) - percent).abs() < 1e-9);
        }
        assert_eq!([0.0, 90.0, 99.9, 99.99].map(short_percent), ["0", "90", "99.9", "99.99"]);
    }
}
