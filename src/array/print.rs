//! Printing as PyTorch does: aligned columns, long axes elided.

use super::Array;
use crate::dtype::with_dtype;
use std::fmt::{self, Write};

/// Axes longer than twice this show only this many entries at both ends, once the tensor is large.
const EDGE: usize = 3;
/// Tensors of up to this many elements are printed whole.
const WHOLE: usize = 1000;

impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = self.shape();
        let elide = shape.numel() > WHOLE;
        let shown = shown_indices(shape, elide);
        let show: Box<dyn Fn(usize) -> String> = if self.dtype().is_float() {
            let values = self.to_f64().map_err(|_| fmt::Error)?;
            let style = Style::of(shown.iter().map(|&i| values[i]));
            Box::new(move |i| style.show(values[i]))
        } else {
            with_dtype!(self.dtype(), T => {
                let values = self.to_vec::<T>().map_err(|_| fmt::Error)?;
                Box::new(move |i| values[i].to_string())
            })
        };
        let width = shown.iter().map(|&i| show(i).len()).max().unwrap_or(0);
        let mut out = String::from("tensor(");
        let indent = out.len();
        block(&mut out, shape, 0, elide, indent, &|i| format!("{:>width$}", show(i)));
        write!(out, ", shape {shape}, {}", self.dtype())?;
        if !matches!(self.device(), crate::Device::Cpu) {
            write!(out, ", {}", self.device())?;
        }
        f.write_str(&out)?;
        f.write_str(")")
    }
}

/// How the numbers of one float tensor are written: all alike, so that columns align.
enum Style {
    /// Whole numbers: `1.`.
    Whole,
    Fixed,
    Scientific,
}

impl Style {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (mut whole, mut largest, mut least) = (true, 0f64, f64::INFINITY);
        for x in values.filter(|x| x.is_finite() && *x != 0.0) {
            whole &= x.fract() == 0.0;
            largest = largest.max(x.abs());
            least = least.min(x.abs());
        }
        if largest >= 1e8 || (!whole && (least < 1e-4 || (least.is_finite() && largest / least > 1e3 && largest >= 1e5))) {
            Style::Scientific
        } else if whole {
            Style::Whole
        } else {
            Style::Fixed
        }
    }

    fn show(&self, x: f64) -> String {
        if x.is_nan() {
            return "nan".into();
        }
        if x.is_infinite() {
            return if x > 0.0 { "inf" } else { "-inf" }.into();
        }
        match self {
            Style::Whole => format!("{x:.0}."),
            Style::Fixed => format!("{x:.4}"),
            Style::Scientific => format!("{x:.4e}"),
        }
    }
}

/// Positions along one axis, `None` for the gap.
fn entries(extent: usize, elide: bool) -> Vec<Option<usize>> {
    if elide && extent > 2 * EDGE {
        (0..EDGE).map(Some).chain([None]).chain((extent - EDGE..extent).map(Some)).collect()
    } else {
        (0..extent).map(Some).collect()
    }
}

fn shown_indices(shape: &[usize], elide: bool) -> Vec<usize> {
    let mut out = vec![0];
    for &d in shape {
        let e: Vec<usize> = entries(d, elide).into_iter().flatten().collect();
        out = out.iter().flat_map(|&i| e.iter().map(move |&j| i * d + j)).collect();
    }
    out
}

fn block(out: &mut String, shape: &[usize], at: usize, elide: bool, indent: usize, show: &dyn Fn(usize) -> String) {
    let Some((&extent, rest)) = shape.split_first() else {
        out.push_str(show(at).trim_start());
        return;
    };
    out.push('[');
    let inner: usize = rest.iter().product();
    let separator = if rest.is_empty() { ", ".to_owned() } else { format!(",{}{}", "\n".repeat(rest.len()), " ".repeat(indent + 1)) };
    let mut line = 0;
    for (k, entry) in entries(extent, elide).into_iter().enumerate() {
        if k > 0 {
            out.push_str(&separator);
            // Long rows wrap like the rest of the block.
            if rest.is_empty() && out.len() - out.rfind('\n').map_or(0, |i| i + 1) > 96 && line != k {
                out.truncate(out.trim_end().len());
                out.push('\n');
                out.push_str(&" ".repeat(indent + 1));
                line = k;
            }
        }
        match entry {
            None => out.push_str("..."),
            Some(i) if rest.is_empty() => out.push_str(&show(at + i)),
            Some(i) => block(out, rest, at + i * inner, elide, indent + 1, show),
        }
    }
    out.push(']');
}
