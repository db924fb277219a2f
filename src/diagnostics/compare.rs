//! Two traces side by side: the first value that differs, by how much, and in which way.

use super::stats::{max_abs, norm_of, position};
use super::trace::Trace;
use crate::error::{Error, Result, bail};
use crate::memory;
use std::fmt;

/// How one value differs from its reference.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Name in both traces: see [`Trace`].
    pub name: String,
    /// L2 norm of the difference over that of the reference; infinite when the shapes differ, NaN when a value is.
    pub error: f64,
    /// Largest difference of an element.
    pub largest: f64,
    /// Where that is, with the value here and in the reference.
    pub at: Option<(Vec<usize>, f64, f64)>,
    /// What the difference looks like, when it has a form that tells its cause.
    pub hint: Option<String>,
    /// Whether the error is within the tolerance.
    pub ok: bool,
}

/// What [`Trace::compare`] found; prints the first difference, and a table.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Values that both traces have: forward in the order of computation, then cotangents in the order of the sweep.
    pub rows: Vec<Difference>,
    /// Names that only this trace has.
    pub only_here: Vec<String>,
    /// Names that only the reference has.
    pub only_there: Vec<String>,
    /// The relative error up to which values agree.
    pub tolerance: f64,
}

impl Trace {
    /// Compares with a reference value by value, in this trace's order. Axes of extent one do not count.
    ///
    /// Around 1e-5 separates rounding in f32 from mistakes, 1e-2 in bf16.
    ///
    /// # Errors
    /// Argument error when a trace is empty, the traces have no name in common, or the tolerance is negative or NaN.
    #[track_caller]
    pub fn compare(&self, reference: &Trace, tolerance: f64) -> Result<Comparison> {
        let at = std::panic::Location::caller();
        self.compared(reference, tolerance).map_err(|e: Error| e.in_op("trace", at))
    }

    fn compared(&self, reference: &Trace, tolerance: f64) -> Result<Comparison> {
        if tolerance.is_nan() || tolerance < 0.0 {
            bail!(argument, "the tolerance must not be negative or NaN, found {tolerance}");
        }
        for (trace, which) in [(self, "this trace"), (reference, "the reference")] {
            if trace.entries().is_empty() {
                bail!(argument, "{which} is empty: no op took a parameter of the model, and no value was tapped");
            }
        }
        let mut rows = Vec::new();
        for (name, here) in self.entries() {
            let Some(there) = reference.get(name) else { continue };
            let extents = |t: &crate::Tensor| -> crate::Shape { t.shape().iter().copied().filter(|n| *n != 1).collect() };
            let (a, b) = (extents(here), extents(there));
            let row = if a == b {
                difference(name, &here.to_f64_vec()?, &there.to_f64_vec()?, here.shape().dims(), tolerance)?
            } else {
                let hint = Some(format!("shapes differ: {} here, {} there", here.shape(), there.shape()));
                Difference { name: name.clone(), error: f64::INFINITY, largest: f64::INFINITY, at: None, hint, ok: false }
            };
            memory::push(&mut rows, row)?;
        }
        let missing = |from: &Trace, of: &Trace| {
            memory::try_collect_ok(from.entries().iter().filter(|(n, _)| of.get(n).is_none()).map(|(n, _)| memory::text(n)))
        };
        let (only_here, only_there) = (missing(self, reference)?, missing(reference, self)?);
        if rows.is_empty() {
            let some = |n: &[String]| n.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
            bail!(
                argument,
                "the two have no name in common; here [{}, …], there [{}, …]: rename one, paths must be the parameters' own",
                some(&only_here),
                some(&only_there)
            );
        }
        // Forward values come first: a wrong value makes every cotangent wrong.
        memory::ensure(rows.len() * size_of::<Difference>())?;
        rows.sort_by_key(|r| r.name.ends_with(":grad"));
        Ok(Comparison { rows, only_here, only_there, tolerance })
    }
}

impl Comparison {
    /// The first value that differs; `None` when all agree.
    pub fn first(&self) -> Option<&Difference> {
        self.rows.iter().find(|r| !r.ok)
    }

    /// The module that gives the first difference, and where to look; `None` when all agree.
    pub fn verdict(&self) -> Option<String> {
        let at = self.rows.iter().position(|r| !r.ok)?;
        let (r, before) = (&self.rows[at], self.rows[..at].last());
        let size = format!("relative error {:.2e}, tolerance {:.0e}", r.error, self.tolerance);
        let mut text = match (r.name.strip_suffix(":input"), r.name.strip_suffix(":grad"), before) {
            (Some(module), _, Some(b)) => format!(
                "`{module}` is given another input ({size}), while all before it agrees: the mistake is between `{}` and `{module}`",
                b.name.trim_end_matches(":input")
            ),
            (Some(module), _, None) => format!("`{module}`, the first module, is given another input ({size})"),
            (_, Some(module), _) => {
                format!("all values agree, but the cotangent of `{module}` differs ({size}): a derivative after it is wrong")
            }
            (_, _, Some(b)) if b.name.strip_suffix(":input") == Some(r.name.as_str()) => {
                format!("`{}` is given the same input and gives another output ({size}): its parameters, or how it uses them", r.name)
            }
            _ => format!("`{}` gives another output ({size})", r.name),
        };
        if let Some((place, here, there)) = &r.at {
            text.push_str(&format!("; largest at {place:?}: {here:.6} here, {there:.6} there"));
        }
        if let Some(hint) = &r.hint {
            text.push_str(&format!("; {hint}"));
        }
        Some(text)
    }
}

fn difference(name: &str, here: &[f64], there: &[f64], extents: &[usize], tolerance: f64) -> Result<Difference> {
    let d: Vec<f64> = memory::try_collect(here.iter().zip(there).map(|(a, b)| if a == b { 0.0 } else { a - b }))?;
    // An infinity in the reference would make every error zero.
    let finite: Vec<f64> = memory::try_collect(there.iter().copied().filter(|v| !v.is_infinite()))?;
    let (norm, largest) = (norm_of(&finite), max_abs(&d));
    let error = if largest == 0.0 { 0.0 } else { norm_of(&d) / norm.max(f64::MIN_POSITIVE) };
    let ok = error <= tolerance;
    let worst = d.iter().position(|x| x.is_nan()).or_else(|| d.iter().position(|x| x.abs() == largest));
    let at = worst.filter(|_| !ok).map(|i| (position(i, extents), here[i], there[i]));
    let hint = match (ok, not_finite(here), not_finite(there)) {
        (true, ..) => None,
        (_, 0, 0) => hint(&d, here, there, extents, tolerance)?,
        (_, a, b) => Some(format!("not finite: {a} of {} values here, {b} in the reference", d.len())),
    };
    Ok(Difference { name: name.to_owned(), error, largest, at, hint, ok })
}

fn not_finite(v: &[f64]) -> usize {
    v.iter().filter(|v| !v.is_finite()).count()
}

/// Forms of a difference that tell its cause.
fn hint(d: &[f64], here: &[f64], there: &[f64], extents: &[usize], tolerance: f64) -> Result<Option<String>> {
    let Some(width) = extents.last().copied().filter(|w| *w > 0) else { return Ok(None) };
    let rows = || d.chunks_exact(width);
    let near = |a: &[f64], b: &[f64]| -> Result<bool> {
        let apart: Vec<f64> = memory::try_collect(a.iter().zip(b).map(|(a, b)| a - b))?;
        Ok(norm_of(&apart) <= 10.0 * tolerance.max(1e-6) * norm_of(b).max(norm_of(there) / (d.len() as f64).sqrt()))
    };
    let Some(first) = rows().next() else { return Ok(None) };
    let mut same = rows().len() > 1;
    for r in rows() {
        same = same && near(r, first)?;
    }
    if same {
        return Ok(Some("the difference is the same vector at every position: a bias is missing or wrong".to_owned()));
    }
    let factor = here.iter().zip(there).map(|(a, b)| a * b).sum::<f64>() / there.iter().map(|b| b * b).sum::<f64>();
    let scaled: Vec<f64> = memory::try_collect(there.iter().map(|b| factor * b))?;
    if factor != 0.0 && near(here, &scaled)? {
        return Ok(Some(format!("everything here is {factor:.4} times the reference: a scale is missing or applied twice")));
    }
    // Over the axis before the last: in sequence models the position.
    let Some(time) = extents.len().checked_sub(2).map(|a| extents[a]).filter(|t| *t > 1) else { return Ok(None) };
    let differs = |t: usize| {
        rows().skip(t).step_by(time).zip(there.chunks_exact(width).skip(t).step_by(time)).any(|(d, b)| norm_of(d) > tolerance * norm_of(b))
    };
    Ok(match (0..time).find(|&t| differs(t)) {
        Some(t) if t > 0 => Some(format!("positions before {t} agree: look at what depends on the position (rotation, mask, cache)")),
        _ => None,
    })
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.verdict() {
            Some(v) => writeln!(f, "first difference: {v}")?,
            None => writeln!(f, "all {} values agree within {:.0e}", self.rows.len(), self.tolerance)?,
        }
        let width = self.rows.iter().map(|r| r.name.len()).max().unwrap_or(0);
        for r in &self.rows {
            writeln!(f, "{} {:<width$} {:>10.2e} {:>10.2e}", if r.ok { "  " } else { "≠ " }, r.name, r.error, r.largest)?;
        }
        for (names, whose) in [(&self.only_here, "only here"), (&self.only_there, "only in the reference")] {
            if !names.is_empty() {
                writeln!(f, "{whose}: {}", names.join(", "))?;
            }
        }
        Ok(())
    }
}
