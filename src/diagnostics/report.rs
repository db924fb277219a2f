//! Pictures of a [`HealthHistory`], as SVG in one HTML page.

use super::history::{HealthHistory, HistoryStep};
use super::stats::quantile;
use super::verdict::Verdict;
use crate::error::{Error, Result, bail};
use crate::memory;
use plotters::coord::Shift;
use plotters::prelude::*;
use std::fmt::{Display, Write as _};
use std::path::Path;

/// The largest number on an axis: the drawing library computes with differences and squares of them.
const FURTHEST: f64 = 1e100;

const WIDTH: u32 = 900;
/// More steps than this are put together by their median: they could not be told apart.
const COLUMNS: usize = 200;
const INK: RGBColor = RGBColor(60, 60, 60);
const BLUE: RGBColor = RGBColor(31, 90, 166);
const RED: RGBColor = RGBColor(196, 59, 42);
/// Colours between these, dark to light, are told apart by everybody, and in grey print.
const RAMP: [(f64, f64, f64); 5] = [(68., 1., 84.), (59., 82., 139.), (33., 145., 140.), (94., 201., 98.), (253., 231., 37.)];

/// What a drawing library reports; text in memory cannot fail, but its types can.
fn drawn<T>(result: std::result::Result<T, impl Display>) -> Result<T> {
    result.map_err(|e| Error::io(format!("the picture could not be drawn: {e}")))
}

impl HealthHistory {
    /// The run as one HTML page: pictures, tables, no scripts, nothing loaded from elsewhere.
    ///
    /// # Errors
    /// Argument error when nothing was recorded.
    #[track_caller]
    pub fn html(&self) -> Result<String> {
        let at = std::panic::Location::caller();
        html(self).map_err(|e| e.in_op("html", at).called_at(at))
    }

    /// Writes [`HealthHistory::html`] to a file.
    ///
    /// # Errors
    /// As there; I/O error when the file cannot be written. An old file stays then.
    #[track_caller]
    pub fn write_html(&self, path: impl AsRef<Path>) -> Result<()> {
        let at = std::panic::Location::caller();
        self.html().and_then(|text| crate::io::write_text(path.as_ref(), &text)).map_err(|e| e.in_op("write_html", at))
    }
}

fn html(h: &HealthHistory) -> Result<String> {
    if h.steps.is_empty() {
        bail!(argument, "health_history: no step was recorded");
    }
    room_for(h)?;
    let series = |f: &dyn Fn(&HistoryStep) -> f64| memory::try_collect(h.steps.iter().map(|s| (s.step as f64, f(s))));
    let mut pictures = vec![heat_map(h)?];
    let mut losses = vec![("training", BLUE, series(&|s| s.loss)?)];
    if !h.validation.is_empty() {
        losses.push(("validation", RED, memory::try_collect(h.validation.iter().map(|&(step, loss)| (step as f64, loss)))?));
    }
    pictures.push(lines("Loss", "loss", &losses, &[], false)?);
    let limits = memory::try_collect(h.steps.iter().filter(|s| s.clipped).map(|s| (s.step as f64, s.norm)))?;
    pictures.push(norms(series(&|s| s.norm)?, &limits)?);
    pictures.push(lines("Clip rate (share of the last 20 recorded steps)", "share", &[("clipped", RED, clip_rate(h)?)], &[], false)?);
    pictures.push(lines("Learning rate", "rate", &[("learning rate", BLUE, series(&|s| s.lr)?)], &[], false)?);
    if h.steps.iter().any(|s| !s.updates.is_empty()) {
        pictures.push(updates(h)?);
    }
    let mut page = String::from(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Gradient health</title><style>\
         body{font:15px/1.5 system-ui,sans-serif;max-width:940px;margin:2em auto;padding:0 1em;color:#222}\
         pre{overflow-x:auto;background:#f6f6f6;padding:1em;font-size:12px}svg{width:100%;height:auto;margin:.5em 0}\
         .bad{color:#a52a1c}</style></head><body>\n<h1>Gradient health</h1>\n",
    );
    let (first, last) = (&h.steps[0], &h.steps[h.steps.len() - 1]);
    let _ = writeln!(
        page,
        "<p>{} recorded steps, {} to {}. Loss {:.4} → {:.4}.</p>",
        h.steps.len(),
        first.step,
        last.step,
        first.loss,
        last.loss
    );
    let warnings = h.warnings();
    if warnings.is_empty() {
        page.push_str("<p>Nothing conspicuous.</p>\n");
    } else {
        page.push_str("<ul class=\"bad\">\n");
        for w in &warnings {
            let _ = writeln!(page, "<li>{}</li>", escape(w));
        }
        page.push_str("</ul>\n");
    }
    for p in &pictures {
        page.push_str(p);
        page.push('\n');
    }
    let _ = write!(page, "<h2>Layers</h2>\n<pre>{}</pre>\n", escape(&h.to_string()));
    if let Some(r) = h.last() {
        let _ = write!(page, "<h2>Parameters at step {}</h2>\n<pre>{}</pre>\n", last.step, escape(&r.to_string()));
    }
    page.push_str("</body></html>\n");
    Ok(page)
}

/// Error unless there is memory for the page: what draws it asks for none. A point of a curve is a place in a list and up to forty characters,
/// a cell of the map a hundred and more; texts are copied, and double as they grow.
fn room_for(h: &HealthHistory) -> Result<()> {
    let points = (h.steps.len() + h.validation.len()).saturating_mul(9);
    let cells = h.layers.len().saturating_mul(2 * COLUMNS.min(h.steps.len()));
    memory::ensure(points.saturating_mul(200).saturating_add(cells.saturating_mul(800)))
}

fn escape(s: &str) -> String {
    s.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Share of clipped steps among the last twenty, at each step.
fn clip_rate(h: &HealthHistory) -> Result<Vec<(f64, f64)>> {
    let clipped = |s: &[HistoryStep]| s.iter().filter(|s| s.clipped).count() as f64 / s.len() as f64;
    memory::try_collect(h.steps.iter().enumerate().map(|(i, s)| (s.step as f64, clipped(&h.steps[i.saturating_sub(19)..=i]))))
}

/// Draws on a white canvas and returns the SVG element.
fn canvas(height: u32, draw: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        drawn(area.fill(&WHITE))?;
        draw(&area)?;
        drawn(area.present())?;
    }
    Ok(svg)
}

/// The ends of some values, a little apart, so that a constant has a place too.
fn ends(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    // What lies further out than this is drawn at the border: the distance between two such ends is not finite.
    let finite = || values.clone().filter(|v| v.is_finite()).map(|v| v.clamp(-FURTHEST, FURTHEST));
    let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
    if low > high {
        return (0.0, 1.0);
    }
    let apart = if high > low { 0.05 * (high - low) } else { (0.1 * high.abs()).max(1e-12) };
    (low - apart, high + apart)
}

fn steps_range(curves: &[(&str, RGBColor, Vec<(f64, f64)>)]) -> std::ops::Range<f64> {
    let (first, last) = curves.iter().flat_map(|c| &c.2).map(|p| p.0).fold((f64::INFINITY, 0f64), |(a, b), x| (a.min(x), b.max(x)));
    let first = first.min(last);
    // Apart by more than the spacing of numbers of that size.
    first..last.max(first + (first.abs() * 1e-9).max(if last > first { 0.0 } else { 1.0 }))
}

/// Curves over the steps, and dots (clipped steps) on them; with `log` over the powers of ten.
fn lines(title: &str, unit: &str, curves: &[(&str, RGBColor, Vec<(f64, f64)>)], dots: &[(f64, f64)], log: bool) -> Result<String> {
    let shown = |v: f64| if log { v.max(f64::MIN_POSITIVE).log10() } else { v };
    let (low, high) = ends(curves.iter().flat_map(|c| c.2.iter().map(|p| shown(p.1))).filter(|v| !log || *v > -300.0));
    let low = if unit == "share" { -0.02 } else { low };
    let high = if unit == "share" { 1.02 } else { high };
    // Pixels are counted in 32 bits: nothing far outside of the picture is drawn.
    let shown = |v: f64| if v.is_finite() { shown(v).clamp(low, high) } else { v };
    canvas(260, |area| {
        let mut chart = drawn(
            ChartBuilder::on(area)
                .caption(title, ("sans-serif", 17).into_font().color(&INK))
                .margin(10)
                .margin_right(24)
                .x_label_area_size(36)
                .y_label_area_size(76)
                .build_cartesian_2d(steps_range(curves), low..high),
        )?;
        let label = |v: &f64| if log { power(*v) } else { number(*v) };
        drawn(
            chart
                .configure_mesh()
                .light_line_style(TRANSPARENT)
                .bold_line_style(RGBColor(228, 228, 228))
                .axis_style(INK)
                .label_style(("sans-serif", 12).into_font().color(&INK))
                .x_desc("step")
                .y_desc(unit)
                .x_labels(9)
                .y_labels(6)
                .x_label_formatter(&|v| format!("{v:.0}"))
                .y_label_formatter(&label)
                .draw(),
        )?;
        for (name, colour, points) in curves {
            let c = *colour;
            // Gaps where a value is not finite (or zero, on a scale of powers).
            let runs = points.split(|p| !shown(p.1).is_finite() || (log && p.1 <= 0.0));
            for (i, run) in runs.filter(|r| !r.is_empty()).enumerate() {
                if let [p] = run {
                    // A line of one point would not be seen.
                    drawn(chart.draw_series([Circle::new((p.0, shown(p.1)), 2, c.filled())]))?;
                }
                let line = LineSeries::new(run.iter().map(|p| (p.0, shown(p.1))), c.stroke_width(2));
                let drawn_line = drawn(chart.draw_series(line))?;
                if i == 0 {
                    drawn_line.label(*name).legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], c.stroke_width(2)));
                }
            }
        }
        let seen = dots.iter().filter(|p| p.1.is_finite() && (!log || p.1 > 0.0)).map(|p| (p.0, shown(p.1)));
        if !dots.is_empty() {
            let series = drawn(chart.draw_series(seen.map(|p| Circle::new(p, 2, RED.filled()))))?;
            series.label("clipped").legend(|(x, y)| Circle::new((x + 9, y), 3, RED.filled()));
        }
        if curves.len() > 1 || !dots.is_empty() {
            drawn(
                chart
                    .configure_series_labels()
                    .background_style(WHITE.mix(0.85))
                    .border_style(RGBColor(200, 200, 200))
                    .label_font(("sans-serif", 12).into_font().color(&INK))
                    .position(SeriesLabelPosition::UpperRight)
                    .draw(),
            )?;
        }
        Ok(())
    })
}

/// The global norm before clipping, with the clipped steps marked.
fn norms(all: Vec<(f64, f64)>, clipped: &[(f64, f64)]) -> Result<String> {
    let title = format!("Global gradient norm before clipping ({} of {} steps clipped)", clipped.len(), all.len());
    lines(&title, "L2 norm (log scale)", &[("norm", BLUE, all)], clipped, true)
}

/// Update over parameter norm: the middle layer and the extremes.
fn updates(h: &HealthHistory) -> Result<String> {
    let curve = |q: f64| {
        let known = h.steps.iter().filter(|s| !s.updates.is_empty());
        memory::try_collect(known.map(|s| (s.step as f64, quantile(s.updates.iter().copied(), q))))
    };
    let grey = RGBColor(130, 130, 130);
    let curves = [("largest layer", RED, curve(1.0)?), ("median layer", BLUE, curve(0.5)?), ("smallest layer", grey, curve(0.0)?)];
    lines("Size of the step beside the parameters, by layer (1e-3 is usual)", "|step| / |param| (log)", &curves, &[], true)
}

/// Gradient norm by layer and step; a scale beside it, and a mark where the verdict is bad.
fn heat_map(h: &HealthHistory) -> Result<String> {
    const ROW: u32 = 18;
    let rows = h.layers.len();
    let per = h.steps.len().div_ceil(COLUMNS).max(1);
    let columns: Vec<&[HistoryStep]> = memory::try_collect(h.steps.chunks(per))?;
    let value = |c: &[HistoryStep], i: usize| quantile(c.iter().map(|s| s.norms[i]), 0.5);
    let values = columns.iter().flat_map(|c| (0..rows).map(|i| value(c, i)));
    let logs: Vec<f64> = memory::try_collect(values.filter(|v| *v > 0.0 && v.is_finite()).map(f64::log10))?;
    let (low, high) = ends(logs.iter().copied());
    let left = (h.layers.iter().map(String::len).max().unwrap_or(0) as u32 * 7 + 20).clamp(90, 320);
    let height = 110 + ROW * rows as u32;
    canvas(height, |area| {
        let (top, scale) = (40i32, WIDTH as i32 - 110);
        let (left, right, bottom) = (left as i32, scale - 24, top + (ROW * rows as u32) as i32);
        let font = |size| ("sans-serif", size).into_font().color(&INK);
        let text = |s: &str, at: (i32, i32), size: i32| drawn(area.draw(&Text::new(s.to_owned(), at, font(size))));
        text("Gradient norm by layer and step (before clipping)", (left, 8), 17)?;
        let x_of = |k: usize| left + ((right - left) as f64 * k as f64 / columns.len() as f64).round() as i32;
        for (i, name) in h.layers.iter().enumerate() {
            let y = top + ROW as i32 * i as i32;
            text(name, (8, y + 3), 12)?;
            for (k, c) in columns.iter().enumerate() {
                let colour = shade(value(c, i), low, high);
                drawn(area.draw(&Rectangle::new([(x_of(k), y), (x_of(k + 1), y + ROW as i32 - 1)], colour.filled())))?;
                let worst = c.iter().map(|s| s.verdicts[i]).max().unwrap_or(Verdict::Healthy);
                if worst != Verdict::Healthy {
                    let y = y + ROW as i32 - 4;
                    drawn(area.draw(&Rectangle::new([(x_of(k), y), (x_of(k + 1), y + 3)], RED.filled())))?;
                }
            }
        }
        // Round numbers of steps, each at the first column that reaches it.
        let (first, last) = (columns[0][0].step, columns[columns.len() - 1][0].step);
        let apart = round_up((last - first.min(last)) as f64 / 8.0);
        let start = first.div_ceil(apart).checked_mul(apart);
        for step in (0..=8).filter_map(|t| start?.checked_add(apart.checked_mul(t)?)) {
            let Some(k) = columns.iter().position(|c| c[0].step >= step).filter(|_| step <= last) else { continue };
            drawn(area.draw(&PathElement::new(vec![(x_of(k), bottom), (x_of(k), bottom + 4)], INK)))?;
            text(&step.to_string(), (x_of(k), bottom + 7), 12)?;
        }
        text("step", ((left + right) / 2 - 10, bottom + 24), 13)?;
        text("red underline: not healthy; grey: zero; black: not finite", (left, bottom + 44), 12)?;
        // The scale.
        let steps = (bottom - top).clamp(72, 240);
        for s in 0..steps {
            let v = high - (high - low) * f64::from(s) / f64::from(steps - 1);
            drawn(area.draw(&Rectangle::new([(scale, top + s), (scale + 16, top + s + 1)], shade(10f64.powf(v), low, high).filled())))?;
        }
        for q in 0..5 {
            let s = (steps - 1) * q / 4;
            text(&power(high - (high - low) * f64::from(s) / f64::from(steps - 1)), (scale + 22, top + s - 5), 12)?;
        }
        text("L2 norm", (scale, top - 18), 12)
    })
}

/// The next of 1, 2, 5, 10, 20, …
fn round_up(v: f64) -> u64 {
    let ten = 10f64.powf(v.max(1.0).log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * ten >= v).unwrap_or(10.0);
    (factor * ten) as u64
}

fn shade(v: f64, low: f64, high: f64) -> RGBColor {
    if !v.is_finite() {
        return BLACK;
    }
    if v <= 0.0 {
        return RGBColor(200, 200, 200);
    }
    let at = ((v.log10() - low) / (high - low)).clamp(0.0, 1.0) * (RAMP.len() - 1) as f64;
    let i = (at as usize).min(RAMP.len() - 2);
    let mix = |a: f64, b: f64| (a + (b - a) * (at - i as f64)).round() as u8;
    let (a, b) = (RAMP[i], RAMP[i + 1]);
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

/// A number on a scale of powers: its logarithm is given.
fn power(log: f64) -> String {
    number(10f64.powf(log))
}

/// Short: `0.25`, `1.5e-4`.
fn number(v: f64) -> String {
    if v == 0.0 {
        return "0".to_owned();
    }
    if !(1e-2..1e4).contains(&v.abs()) {
        return format!("{v:.1e}");
    }
    let digits = (2 - v.abs().log10().floor() as i32).clamp(0, 4) as usize;
    let text = format!("{v:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}
