//! Finite differences and second derivatives, in f64.

use super::derivative::{arranged_seed, directions, pull, seed_values};
use super::{Arrangement, Case, Check, Report, place};
use crate::dtype::F64;
use crate::error::{Error, Result};
use crate::tape::Tape;
use crate::tensor::Tensor;
use crate::testing::{Dual, Nd};

/// Weights of `f(x + k h) − f(x − k h)`, k = 1, 2, 3, in units of 1/(60 h): sixth order.
const STENCIL: [f64; 3] = [45.0, -9.0, 1.0];

/// eps^(1/7), where truncation and rounding balance for this stencil.
const FIRST_STEP: f64 = 5.8e-3;

/// A sixth-order difference quotient, refined until two steps agree, and how far they were apart.
///
/// The step starts at `h` ([`FIRST_STEP`] is the optimum where the function's own scale is 1) and shrinks by 4:
/// a kink or the edge of the domain next to the point then falls outside.
pub(crate) fn difference_quotient(mut f: impl FnMut(f64) -> Result<f64>, mut h: f64, scale: f64) -> Result<(f64, f64)> {
    let mut best = (f64::NAN, f64::INFINITY);
    let mut last = f64::NAN;
    for _ in 0..8 {
        let (mut d, mut size) = (0.0, 0f64);
        for (k, w) in STENCIL.iter().enumerate() {
            let t = (k + 1) as f64 * h;
            let (up, down) = (f(t)?, f(-t)?);
            d += w * (up - down);
            size = size.max(up.abs()).max(down.abs());
        }
        d /= 60.0 * h;
        // Two steps may agree by chance, but never better than the value's own rounding allows.
        let apart = (d - last).abs();
        let apart = if apart.is_nan() { f64::INFINITY } else { apart.max(f64::EPSILON * size / h) };
        if apart < best.1 {
            best = (d, apart);
        }
        if apart <= 1e-11 * scale {
            break;
        }
        last = d;
        h /= 4.0;
    }
    Ok(best)
}

pub(super) fn finite_differences(case: &Case<'_>, floats: &[usize], r: &mut Report) -> Result<()> {
    let x = case.operands(F64)?;
    let p = pull(case, &x.tensors, floats, |k, y| arranged_seed(k, y, Arrangement::Contiguous, 0))?;
    let signs = directions(case, &x.values, floats, 77);
    // One operand at a time, so that errors in two of them cannot cancel.
    for &i in floats {
        let Some(bar) = p.bars[i].as_ref().map(Tensor::to_f64_vec).transpose()? else {
            continue;
        };
        if bar.is_empty() || p.y.iter().all(|y| y.numel() == 0) {
            continue;
        }
        let mut failed = None;
        // Plain steps; where those drown in large values, in proportion to max(1, |x|); where they cross an edge, to |x|.
        let scales: [fn(f64) -> f64; 3] = [|_| 1.0, |v| v.abs().max(1.0), f64::abs];
        for scale_of in scales {
            let along: Vec<f64> = x.values[i].iter().zip(&signs[i]).map(|(&v, s)| s * scale_of(v)).collect();
            let mut size = 0f64;
            let f = |t: f64| -> Result<f64> {
                let moved: Vec<f64> = x.values[i].iter().zip(&along).map(|(x, a)| x + t * a).collect();
                let mut tensors = x.tensors.clone();
                tensors[i] = place(&moved, case.shape(i), F64, Arrangement::Contiguous, 0)?.0;
                let mut sum = 0.0;
                let mut absolute = 0.0;
                for (k, y) in case.run(&tensors)?.iter().enumerate().filter(|(k, _)| p.seeds[*k].is_some()) {
                    for (y, v) in y.to_f64_vec()?.into_iter().zip(seed_values(k, y.numel())) {
                        sum += y * v;
                        absolute += (y * v).abs();
                    }
                }
                size = size.max(absolute);
                Ok(sum)
            };
            let got: f64 = bar.iter().zip(&along).map(|(b, a)| b * a).sum();
            let scale: f64 = bar.iter().zip(&along).map(|(b, a)| (b * a).abs()).sum();
            let (want, apart) = difference_quotient(f, FIRST_STEP, scale)?;
            // The stencil's rounding error grows with the size of the value.
            let allowed = 1e-9 * scale.max(1e-3 * size) + 4.0 * apart;
            if (got - want).abs() <= allowed && apart <= 1e-5 * scale.max(1e-3 * size) {
                failed = None;
                break;
            }
            failed.get_or_insert_with(|| {
                let hint = if apart > 1e-7 * scale { "; the differences do not converge: mark the sample `at_kink()` if it sits on one" } else { "" };
                format!("input {i}: derivative along a random direction {got:e}, differences give {want:e} (allowed difference {allowed:e}){hint}")
            });
        }
        case.count(r, F64, Arrangement::Contiguous, Check::FiniteDifferences);
        if let Some(what) = failed {
            case.fail(r, Check::FiniteDifferences, &what);
        }
    }
    Ok(())
}

/// The derivative of ⟨w, Jᵀv⟩ with respect to x and v, by a sweep over a recorded sweep, against nested duals:
/// `D²f[w, u]` and `Df[w]`.
pub(super) fn second(case: &Case<'_>, floats: &[usize], r: &mut Report) -> Result<()> {
    let x = case.operands(F64)?;
    let tape = Tape::new();
    let watched: Vec<Tensor> = x
        .tensors
        .iter()
        .enumerate()
        .map(|(i, t)| if floats.contains(&i) { tape.watch(t) } else { Ok(t.clone()) })
        .collect::<Result<_>>()?;
    let y = case.run(&watched)?;
    let mut seeds: Vec<Option<Tensor>> = Vec::new();
    for (k, y) in y.iter().enumerate() {
        let seed = if y.is_tracked() { arranged_seed(k, y, Arrangement::Contiguous, 0)? } else { None };
        seeds.push(seed.map(|s| tape.watch(&s)).transpose()?);
    }
    let pairs: Vec<(&Tensor, Tensor)> = y.iter().zip(&seeds).filter_map(|(y, s)| Some((y, s.clone()?))).collect();
    let wrt: Vec<&Tensor> = floats.iter().map(|&i| &watched[i]).collect();
    let bars = tape.cotangents_recorded(&pairs, &wrt).map_err(|e| Error::tape(format!("recording the derivative: {e}")))?;
    let w = directions(case, &x.values, floats, 5);
    // Directions of unequal length, so that symmetric mistakes do not cancel.
    let w: Vec<Vec<f64>> = w
        .iter()
        .enumerate()
        .map(|(i, w)| w.iter().enumerate().map(|(j, s)| s * (0.5 + ((i * 7 + j * 3) % 5) as f64 / 4.0)).collect())
        .collect();
    let mut results = Vec::new();
    for (&i, bar) in floats.iter().zip(&bars) {
        if let Some(bar) = bar.as_ref().filter(|b| b.is_tracked()) {
            results.push((bar, place(&w[i], case.shape(i), F64, Arrangement::Contiguous, 0)?.0));
        }
    }
    let inputs: Vec<&Tensor> = wrt.iter().copied().chain(seeds.iter().flatten()).collect();
    let found = if results.is_empty() {
        vec![None; inputs.len()]
    } else {
        tape.cotangents(&results, &inputs).map_err(|e| Error::tape(format!("second sweep: {e}")))?
    };
    let found: Vec<Option<Vec<f64>>> = found.iter().map(|t| t.as_ref().map(Tensor::to_f64_vec).transpose()).collect::<Result<_>>()?;
    case.count(r, F64, Arrangement::Contiguous, Check::Second);
    let v: Vec<Option<Vec<f64>>> = seeds.iter().map(|s| s.as_ref().map(Tensor::to_f64_vec).transpose()).collect::<Result<_>>()?;
    for round in 0..if case.config.quick { 2 } else { 4 } {
        let u = directions(case, &x.values, floats, 10 + round);
        let duals: Vec<Nd<Dual<Dual<f64>>>> = (0..x.values.len())
            .map(|i| {
                let data = (0..x.values[i].len()).map(|j| Dual::new(Dual::new(x.values[i][j], w[i][j]), Dual::new(u[i][j], 0.0))).collect();
                Nd::new(case.shape(i), data)
            })
            .collect();
        let (mut want, mut size) = (0.0, 0.0);
        let mut along_v = Vec::new();
        for (k, (y, v)) in case.s.op.define_second(&duals).iter().zip(&v).enumerate() {
            let Some(v) = v else { continue };
            let uv: Vec<f64> = seed_values(100 + k + 10 * round as usize, v.len()).into_iter().map(f64::signum).collect();
            for ((y, v), uv) in y.data.iter().zip(v).zip(&uv) {
                want += y.d.d * v + y.v.d * uv;
                size += (y.d.d * v).abs() + (y.v.d * uv).abs();
            }
            along_v.push(uv);
        }
        let directions = floats.iter().map(|&i| &u[i]).chain(&along_v);
        let (mut got, mut norm, mut n) = (0.0, 0.0, 0.0);
        for (h, u) in found.iter().zip(directions) {
            n += u.len() as f64;
            for (h, u) in h.iter().flatten().zip(u) {
                got += h * u;
                norm += h * h;
            }
        }
        if !want.is_finite() {
            continue;
        }
        if !((got - want).abs() <= 1e-9 * (norm * n).sqrt().max(want.abs()) + 1e-13 * size) {
            case.fail(r, Check::Second, &format!("second derivative along random directions {got:e}, nested dual numbers give {want:e}"));
            return Ok(());
        }
    }
    Ok(())
}
