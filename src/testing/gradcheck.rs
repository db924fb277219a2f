//! Gradient checks for any function of tensors: yours, not only the crate's ops.

use super::suite::difference_quotient;
use crate::dtype::F64;
use crate::error::{Error, Result, bail};
use crate::rng::Key;
use crate::tape::{Tape, lost_message};
use crate::tensor::Tensor;
use std::fmt;
use std::panic::Location;

/// How to check a gradient; see [`gradcheck`].
#[derive(Clone, Debug)]
pub struct GradCheck {
    /// Largest allowed difference, relative to the gradient's element (and to a thousandth of the largest one).
    pub tolerance: f64,
    /// First step of the differences, in units of max(1, |x|); it is refined from there.
    pub step: f64,
    /// Seed of the random cotangent.
    pub seed: u64,
    /// Elements to difference per input; larger inputs are sampled evenly, and checked along a random direction.
    pub elements: usize,
    /// Take the gradient with respect to an input that the result does not depend on for zero, instead of an error that names it: the
    /// function may have captured a tensor in place of its argument, and then nothing was checked.
    pub allow_disconnected: bool,
}

impl Default for GradCheck {
    fn default() -> Self {
        GradCheck { tolerance: 1e-6, step: f64::EPSILON.powf(1.0 / 7.0), seed: 0, elements: 128, allow_disconnected: false }
    }
}

/// What a check found for one input.
#[derive(Clone, Debug)]
pub struct InputVerdict {
    /// Its name, or `input 0`, `input 1`, ….
    pub name: String,
    /// Its extents.
    pub shape: crate::Shape,
    /// Whether the gradient is right.
    pub ok: bool,
    /// Whether the tape connects the result with it. If not, the gradient counts as zero.
    pub connected: bool,
    /// Index of the element that fits worst; `None` for an input without elements, or when a direction fits worst.
    pub worst: Option<Vec<usize>>,
    /// Whether there were elements, and every derivative compared was zero, by the tape and by differences: at these inputs
    /// the function is flat, so the check says little.
    pub flat: bool,
    /// The tape's derivative there.
    pub analytic: f64,
    /// The differences' derivative there.
    pub numeric: f64,
    /// How far the two finest difference quotients were apart.
    pub uncertainty: f64,
    /// Whether the derivative is wrong where the slopes to both sides differ: the function has a kink there, and the tape gives one of the
    /// slopes between. Move the inputs off the kink.
    pub kink: bool,
}

/// What a check found, by input. Prints as a table.
#[derive(Clone, Debug)]
pub struct GradCheckReport {
    /// One verdict per float input.
    pub inputs: Vec<InputVerdict>,
    /// Number of elements and directions compared.
    pub compared: usize,
}

impl fmt::Display for GradCheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} derivatives compared", self.compared)?;
        for v in &self.inputs {
            let verdict = if v.ok { "ok" } else { "WRONG" };
            let at = v.worst.as_ref().map_or_else(|| "along a random direction".into(), |i| format!("at {i:?}"));
            write!(f, "\n  {} {}: {verdict}, worst {at}: tape {:.10e}, differences {:.10e}", v.name, v.shape, v.analytic, v.numeric)?;
            if v.flat {
                write!(f, " (all derivatives are zero here: nothing was tested)")?;
            }
            if !v.connected {
                write!(f, " (the tape does not connect the result with it)")?;
            }
            if v.kink {
                write!(f, " (a kink: the slopes to both sides differ there; check beside it)")?;
            } else if !v.ok && !(v.uncertainty <= 1e-4 * v.numeric.abs()) {
                write!(f, " (the differences are uncertain by {:.1e}: is this a kink?)", v.uncertainty)?;
            }
        }
        Ok(())
    }
}

/// Checks the gradient of a function against finite differences, at these inputs, for a random cotangent.
///
/// Float inputs must be `f64`: in lower precision differences cannot tell a wrong derivative from rounding. Integer
/// inputs are handed through. The function must be deterministic (give it a [`Key`], not a generator) and smooth
/// around the inputs. [`GradCheck`] has options.
///
/// # Errors
/// GradCheck error when a derivative is wrong: the message is the report, [`Error::names`] lists the wrong inputs. Disconnected, with
/// the names, when the result does not depend on some input ([`GradCheck::allow_disconnected`] allows that).
/// Dtype error for other float types; argument error when two calls give different values; whatever `f` returns.
///
/// ```
/// use cotangent::{Tensor, testing::gradcheck};
/// let x = Tensor::from_slice(&[0.5f64, -1.0, 2.0], [3])?;
/// let report = gradcheck(|x| x[0].exp()?.mul(&x[0])?.sum(..), &[x.clone()])?;
/// assert!(report.inputs[0].ok);
///
/// // A function that loses half of its gradient:
/// let wrong = gradcheck(|x| x[0].detach().mul(&x[0]), &[x]).unwrap_err();
/// assert!(wrong.is_gradcheck());
/// assert_eq!(wrong.names(), ["input 0"]);
/// println!("{wrong}"); // gradcheck: input 0 [3]: WRONG, worst at [2]: tape …, differences …
/// # Ok::<(), cotangent::Error>(())
/// ```
#[track_caller]
pub fn gradcheck(f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor]) -> Result<GradCheckReport> {
    GradCheck::default().run(f, inputs)
}

/// Checks second derivatives: the gradient of `⟨w, ∇⟨v, f⟩⟩`, taken by a sweep over a recorded sweep, against finite
/// differences of the first gradient. The cotangent `v` counts as a further input.
///
/// # Errors
/// As [`gradcheck`].
///
/// ```
/// use cotangent::{Tensor, testing::gradgradcheck};
/// let x = Tensor::from_slice(&[0.5f64, -1.0, 2.0], [3])?;
/// gradgradcheck(|x| x[0].exp()?.mul(&x[0]), &[x])?;
/// # Ok::<(), cotangent::Error>(())
/// ```
#[track_caller]
pub fn gradgradcheck(f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor]) -> Result<GradCheckReport> {
    GradCheck::default().second(f, inputs)
}

impl GradCheck {
    /// [`gradcheck`] with these options.
    ///
    /// # Errors
    /// As [`gradcheck`].
    #[track_caller]
    pub fn run(&self, f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor]) -> Result<GradCheckReport> {
        self.run_named(f, &number(inputs))
    }

    /// [`gradcheck`] with names for the inputs.
    ///
    /// # Errors
    /// As [`gradcheck`].
    #[track_caller]
    pub fn run_named(&self, f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[(String, Tensor)]) -> Result<GradCheckReport> {
        let at = Location::caller();
        self.first_order(f, inputs).map_err(|e| e.in_op("gradcheck", at))
    }

    fn first_order(&self, f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[(String, Tensor)]) -> Result<GradCheckReport> {
        let x = prepare(inputs)?;
        let y = f(&x)?;
        if !y.dtype().is_float() {
            bail!(dtype, "the result is {}: only float results have a gradient", y.dtype());
        }
        if bits(&y)? != bits(&f(&x)?)? {
            bail!(argument, "two calls gave different values; give the function a fixed Key instead of a generator");
        }
        let v = self.cotangent(&y, 0)?;
        let tape = Tape::new();
        let watched = watch(&tape, &x)?;
        let y = f(&watched)?;
        let wrt: Vec<&Tensor> = watched.iter().filter(|t| t.is_tracked()).collect();
        let bars = if y.is_tracked() { tape.cotangents(&[(&y, v.clone())], &wrt)? } else { vec![None; wrt.len()] };
        let lost = lost(&tape, inputs, &wrt, &bars, &y);
        self.compare(inputs, &x, &bars, lost, |x| dot(&f(x)?, &v))
    }

    /// [`gradgradcheck`] with these options.
    ///
    /// # Errors
    /// As [`gradcheck`].
    #[track_caller]
    pub fn second(&self, f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor]) -> Result<GradCheckReport> {
        self.second_named(f, &number(inputs))
    }

    /// [`gradgradcheck`] with names for the inputs.
    ///
    /// # Errors
    /// As [`gradcheck`].
    #[track_caller]
    pub fn second_named(&self, f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[(String, Tensor)]) -> Result<GradCheckReport> {
        let at = Location::caller();
        self.second_order(f, inputs).map_err(|e| e.in_op("gradgradcheck", at))
    }

    fn second_order(&self, f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[(String, Tensor)]) -> Result<GradCheckReport> {
        let mut named = inputs.to_vec();
        let y = f(&prepare(inputs)?)?;
        named.push(("cotangent".into(), self.cotangent(&y, 0)?));
        let x = prepare(&named)?;
        let n = inputs.len();
        // ⟨w, ∇⟨v, f⟩⟩ as tensors on a tape: the recorded gradients and their weights.
        let gradients = |tape: &Tape, x: &[Tensor], record: bool| -> Result<(Vec<(Tensor, Tensor)>, Option<Error>)> {
            let y = f(&x[..n])?;
            let wrt: Vec<&Tensor> = x[..n].iter().filter(|t| t.is_tracked()).collect();
            let bars = if y.is_tracked() {
                if record { tape.cotangents_recorded(&[(&y, x[n].clone())], &wrt)? } else { tape.cotangents(&[(&y, x[n].clone())], &wrt)? }
            } else {
                vec![None; wrt.len()]
            };
            // Of the second derivative, zero is an answer; of the first it means that the function has another argument.
            let lost = lost(tape, inputs, &wrt, &bars, &y);
            let found = bars.into_iter().enumerate().filter_map(|(i, b)| Some((i, b?)));
            let found: Result<_> = found.map(|(i, b)| Ok((b.clone(), self.cotangent(&b, i + 1)?))).collect();
            Ok((found?, lost))
        };
        let tape = Tape::new();
        let watched = watch(&tape, &x)?;
        let (results, lost) = gradients(&tape, &watched, true)?;
        let pairs: Vec<(&Tensor, Tensor)> = results.iter().filter(|(b, _)| b.is_tracked()).map(|(b, w)| (b, w.clone())).collect();
        let wrt: Vec<&Tensor> = watched.iter().filter(|t| t.is_tracked()).collect();
        let bars = if pairs.is_empty() { vec![None; wrt.len()] } else { tape.cotangents(&pairs, &wrt)? };
        self.compare(&named, &x, &bars, lost, |x| {
            let tape = Tape::new();
            let mut watched = watch(&tape, &x[..n])?;
            watched.push(x[n].clone());
            gradients(&tape, &watched, false)?.0.iter().map(|(b, w)| dot(b, w)).sum()
        })
    }

    /// Random values in ±[0.5, 1.5): never uniform, so that nothing cancels by symmetry.
    fn cotangent(&self, y: &Tensor, stream: usize) -> Result<Tensor> {
        let key = Key::new(self.seed).fold(stream as u64);
        let v: Vec<f64> = (0..y.numel() as u64)
            .map(|i| {
                let u = key.uniform_f64(i) * 2.0 - 1.0;
                u + 0.5f64.copysign(u)
            })
            .collect();
        Tensor::from_slice(&v, y.shape())
    }

    fn compare(
        &self,
        names: &[(String, Tensor)],
        x: &[Tensor],
        bars: &[Option<Tensor>],
        lost: Option<Error>,
        f: impl Fn(&[Tensor]) -> Result<f64>,
    ) -> Result<GradCheckReport> {
        let mut report = GradCheckReport { inputs: Vec::new(), compared: 0 };
        let floats = (0..x.len()).filter(|&i| x[i].dtype().is_float());
        for (i, bar) in floats.zip(bars) {
            let values = x[i].to_f64_vec()?;
            let gradient = bar.as_ref().map_or_else(|| Ok(vec![0.0; values.len()]), Tensor::to_f64_vec)?;
            let largest = gradient.iter().fold(0f64, |m, g| m.max(g.abs()));
            let mut verdict = InputVerdict {
                name: names[i].0.clone(),
                shape: x[i].shape().clone(),
                ok: true,
                connected: bar.is_some(),
                worst: None,
                flat: !values.is_empty(),
                analytic: 0.0,
                numeric: 0.0,
                uncertainty: 0.0,
                kink: false,
            };
            let mut worst = f64::NEG_INFINITY;
            let mut try_along = |along: &dyn Fn(usize) -> f64, index: Option<Vec<usize>>| -> Result<()> {
                let analytic: f64 = gradient.iter().enumerate().map(|(j, g)| g * along(j)).sum();
                let scale: f64 = gradient.iter().enumerate().map(|(j, g)| (g * along(j)).abs()).sum();
                let mut tensors = x.to_vec();
                let mut moved_by = |t: f64| {
                    let moved: Vec<f64> = values.iter().enumerate().map(|(j, v)| v + t * along(j)).collect();
                    tensors[i] = Tensor::from_slice(&moved, x[i].shape())?;
                    f(&tensors)
                };
                let (numeric, apart) = difference_quotient(&mut moved_by, self.step, scale)?;
                report.compared += 1;
                // Differences of a large value that stays the same leave rounding errors.
                verdict.flat &= scale == 0.0 && numeric.abs() <= 1e-9;
                let allowed = self.tolerance * scale.max(numeric.abs()).max(1e-3 * largest)
                    + 4.0 * apart.min(1e-3 * scale.max(numeric.abs()))
                    + 1e-12;
                let error = (analytic - numeric).abs();
                let ratio = if error.is_nan() { f64::INFINITY } else { error / allowed };
                if ratio > worst {
                    worst = ratio;
                    verdict.ok = error <= allowed;
                    verdict.kink = !verdict.ok && has_kink(&mut moved_by)?;
                    (verdict.worst, verdict.analytic, verdict.numeric, verdict.uncertainty) = (index, analytic, numeric, apart);
                }
                Ok(())
            };
            let n = values.len();
            let chosen = n.min(self.elements.max(1));
            for c in 0..chosen {
                let j = if chosen == 1 { 0 } else { c * (n - 1) / (chosen - 1) };
                let size = values[j].abs().max(1.0);
                // Along one element, in units of its own size: divide that out again.
                try_along(&|k| if k == j { size } else { 0.0 }, Some(index_of(j, x[i].shape())))?;
            }
            if chosen < n {
                let key = Key::new(self.seed).fold(999);
                try_along(&|k| if key.uniform_f64(k as u64) < 0.5 { -1.0 } else { 1.0 } * values[k].abs().max(1.0), None)?;
            }
            if let Some(at) = &verdict.worst {
                let size = values[flat(at, x[i].shape())].abs().max(1.0);
                verdict.analytic /= size;
                verdict.numeric /= size;
                verdict.uncertainty /= size;
            }
            verdict.flat &= verdict.ok;
            report.inputs.push(verdict);
        }
        let wrong: Vec<String> = report.inputs.iter().filter(|v| !v.ok).map(|v| v.name.clone()).collect();
        match lost {
            None if wrong.is_empty() => Ok(report),
            Some(_) if wrong.is_empty() && self.allow_disconnected => Ok(report),
            Some(lost) if wrong.is_empty() => Err(lost),
            // Why the tape does not connect what it does not.
            Some(lost) => Err(Error::gradcheck(format!("{report}\n  {}", lost.why())).with_names(wrong)),
            None => Err(Error::gradcheck(report.to_string()).with_names(wrong)),
        }
    }
}

/// Whether the slopes to both sides of 0 differ by more than curvature explains.
fn has_kink(f: &mut impl FnMut(f64) -> Result<f64>) -> Result<bool> {
    let h = 1e-5;
    let (left, here, right) = (f(-h)?, f(0.0)?, f(h)?);
    let (left, right) = ((here - left) / h, (right - here) / h);
    Ok((right - left).abs() > 0.1 * left.abs().max(right.abs()) + 1e-9)
}

fn number(inputs: &[Tensor]) -> Vec<(String, Tensor)> {
    inputs.iter().enumerate().map(|(i, t)| (format!("input {i}"), t.clone())).collect()
}

fn prepare(inputs: &[(String, Tensor)]) -> Result<Vec<Tensor>> {
    for (name, t) in inputs {
        if t.dtype().is_float() && t.dtype() != F64 {
            bail!(dtype, "{name} is {}: finite differences need f64, cast it first", t.dtype());
        }
    }
    Ok(inputs.iter().map(|(_, t)| t.detach()).collect())
}

fn watch(tape: &Tape, x: &[Tensor]) -> Result<Vec<Tensor>> {
    x.iter().map(|t| if t.dtype().is_float() { tape.watch(t) } else { Ok(t.clone()) }).collect()
}

/// What is said of the watched inputs that the result does not depend on, when there are any.
fn lost(tape: &Tape, inputs: &[(String, Tensor)], wrt: &[&Tensor], bars: &[Option<Tensor>], y: &Tensor) -> Option<Error> {
    let names = inputs.iter().filter(|(_, t)| t.dtype().is_float()).map(|(name, _)| name);
    let all = names.zip(wrt).zip(bars).filter(|(_, bar)| bar.is_none());
    let lost: Vec<(String, usize)> = all.filter_map(|((name, t), _)| Some((name.clone(), tape.id_of(t).ok()?))).collect();
    let end: Vec<usize> = tape.id_of(y).ok().into_iter().collect();
    let allow = "leave it out of the inputs, or allow it by GradCheck { allow_disconnected: true, ..GradCheck::default() }";
    let names = lost.iter().map(|(name, _)| name.clone()).collect();
    let message = (!lost.is_empty()).then(|| lost_message(&tape.inner, &lost, wrt.len(), &end, allow));
    message.map(|message| Error::disconnected(message).with_names(names))
}

fn dot(y: &Tensor, v: &Tensor) -> Result<f64> {
    if y.shape() != v.shape() {
        bail!(shape, "the result's shape changes with the inputs' values: {} and {}", y.shape(), v.shape());
    }
    Ok(y.to_f64_vec()?.iter().zip(v.to_f64_vec()?).map(|(a, b)| a * b).sum())
}

fn bits(t: &Tensor) -> Result<Vec<u64>> {
    Ok(t.to_f64_vec()?.into_iter().map(f64::to_bits).collect())
}

fn index_of(mut j: usize, shape: &[usize]) -> Vec<usize> {
    let mut out = vec![0; shape.len()];
    for (o, &d) in out.iter_mut().zip(shape).rev() {
        *o = j % d;
        j /= d;
    }
    out
}

fn flat(index: &[usize], shape: &[usize]) -> usize {
    index.iter().zip(shape).fold(0, |acc, (i, d)| acc * d + i)
}
