//! The checks that every op passes, generic over the op.

use super::entry::BenchCase;
use super::{Ball, Describe, Dual, Gen, Input, Nd, Purpose, Sample, Scalar};
use crate::dtype::{BF16, DType, Element, F16, F32, F64, with_dtype};
use crate::error::Result;
use crate::op::Outputs;
use crate::rng::Key;
use crate::tape::Tape;
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// Runs an op on tensors.
pub(crate) type Call<O> = fn(&O, &[&Tensor]) -> Result<Outputs>;

/// What to check.
#[derive(Clone, Debug)]
pub struct Config {
    /// Seed of all random sizes and values.
    pub seed: u64,
    /// Largest random extent.
    pub limit: usize,
}

/// What was checked, and what failed.
#[derive(Debug, Default)]
pub struct Report {
    /// How often each (op, dtype, layout, check) ran.
    pub counts: BTreeMap<(&'static str, DType, &'static str, &'static str), u64>,
    /// Readable failures.
    pub failures: Vec<String>,
}

/// A tensor of the given values.
pub(crate) fn tensor(values: &[f64], shape: &crate::Shape, dtype: DType) -> Result<Tensor> {
    with_dtype!(dtype, T => {
        let v: Vec<T> = values.iter().map(|&x| <T as Element>::from_f64(x)).collect();
        Tensor::from_slice(&v, shape)
    })
}

fn materialise(inputs: &[Input], dtype: DType) -> Result<Vec<Tensor>> {
    inputs.iter().map(|i| tensor(&i.to_vec(), i.shape(), i.dtype().unwrap_or(dtype))).collect()
}

fn lift<S: Scalar>(t: &Tensor) -> Result<Nd<S>> {
    Ok(Nd::new(t.shape(), t.to_f64_vec()?.into_iter().map(S::lit).collect()))
}

/// Unit roundoff of the type that kernels compute in.
fn unit(dtype: DType) -> f64 {
    if dtype == F64 { f64::EPSILON / 2.0 } else { f64::from(f32::EPSILON) / 2.0 }
}

/// Whether a computed value is what the definition allows: the bound of a straightforward evaluation, twice, and one
/// rounding to the output's type. Written so that NaN fails.
fn close(got: f64, want: Ball, dtype: DType) -> bool {
    if want.v.is_nan() {
        return got.is_nan();
    }
    let rounded = with_dtype!(dtype, T => Element::to_f64(<T as Element>::from_f64(want.v)));
    if rounded.is_infinite() || got.is_infinite() {
        return got == rounded;
    }
    let tolerance = 2.0 * unit(dtype) * want.e + dtype.epsilon() / 2.0 * want.v.abs() + smallest(dtype);
    (got - want.v).abs() <= tolerance
}

/// Spacing of the subnormals.
fn smallest(dtype: DType) -> f64 {
    match dtype {
        F64 => f64::MIN_POSITIVE,
        F32 | BF16 => f64::from(f32::MIN_POSITIVE),
        F16 => f64::powi(2.0, -24),
        _ => 0.0,
    }
}

/// Runs every check on every sample of an op.
pub(crate) fn check<O: Describe>(call: Call<O>, config: &Config, report: &mut Report) {
    for sample in O::samples(&mut Gen::new(config.seed, config.limit)) {
        match sample.purpose {
            Purpose::Bench => {}
            Purpose::Reject(kind) => {
                let run = materialise(&sample.inputs, F32).and_then(|x| call(&sample.op, &x.iter().collect::<Vec<_>>()));
                report.count(O::NAME, F32, "contiguous", "reject");
                match run {
                    Ok(_) => report.fail::<O>(&sample, "accepted inputs it must refuse"),
                    Err(e) if e.kind() != kind => report.fail::<O>(&sample, &format!("refused with {:?}, expected {kind:?}: {e}", e.kind())),
                    Err(_) => {}
                }
            }
            Purpose::Check | Purpose::Value => {
                for dtype in DType::FLOATS {
                    if let Err(e) = value(call, &sample, dtype, report) {
                        report.fail::<O>(&sample, &format!("{dtype}: {e}"));
                    }
                }
                if sample.purpose == Purpose::Check
                    && let Err(e) = jacobian(call, &sample, report)
                {
                    report.fail::<O>(&sample, &format!("vjp: {e}"));
                }
            }
        }
    }
}

fn value<O: Describe>(call: Call<O>, s: &Sample<O>, dtype: DType, report: &mut Report) -> Result<()> {
    let x = materialise(&s.inputs, dtype)?;
    let y = call(&s.op, &x.iter().collect::<Vec<_>>())?;
    let balls: Vec<Nd<Ball>> = x.iter().map(lift).collect::<Result<_>>()?;
    let want = s.op.define(&balls);
    report.count(O::NAME, dtype, "contiguous", "value");
    for (k, (y, want)) in y.iter().zip(&want).enumerate() {
        if y.shape() != &want.shape {
            report.fail::<O>(s, &format!("{dtype}: output {k} has shape {}, the definition {}", y.shape(), want.shape));
            continue;
        }
        let got = y.to_f64_vec()?;
        if let Some(i) = (0..got.len()).find(|&i| !close(got[i], want.data[i], y.dtype())) {
            report.fail::<O>(s, &format!("{dtype}: output {k}, element {i}: {} instead of {} (bound {:e})", got[i], want.data[i].v, want.data[i].e));
        }
    }
    Ok(())
}

/// vjp in f64 against the dual-number directional derivative: `⟨v, J u⟩ = ⟨Jᵀ v, u⟩` for random `u`, `v`.
fn jacobian<O: Describe>(call: Call<O>, s: &Sample<O>, report: &mut Report) -> Result<()> {
    let x = materialise(&s.inputs, F64)?;
    let tape = Tape::new();
    let watched: Vec<Tensor> = x
        .iter()
        .enumerate()
        .map(|(i, t)| if t.dtype().is_float() && !s.no_grad.contains(&i) { tape.watch(t) } else { Ok(t.clone()) })
        .collect::<Result<_>>()?;
    let y = call(&s.op, &watched.iter().collect::<Vec<_>>())?;
    let key = Key::new(7);
    let seeds: Vec<Tensor> = y
        .iter()
        .enumerate()
        .map(|(k, y)| tensor(&(0..y.numel()).map(|i| key.fold(k as u64).normal(i as u64)).collect::<Vec<_>>(), y.shape(), F64))
        .collect::<Result<_>>()?;
    let pairs: Vec<(&Tensor, Tensor)> = y.iter().zip(seeds).filter(|(y, _)| y.is_tracked()).collect();
    let wrt: Vec<&Tensor> = watched.iter().filter(|t| t.is_tracked()).collect();
    let grads = tape.cotangents(&pairs, &wrt, false)?;
    report.count(O::NAME, F64, "contiguous", "vjp");
    for round in 0..4u64 {
        let mut k = 0;
        let (mut left, mut right, mut nu, mut ng) = (0.0, 0.0, 0.0, 0.0);
        let mut duals = Vec::new();
        for (i, t) in x.iter().enumerate() {
            let values = t.to_f64_vec()?;
            let tracked = watched[i].is_tracked();
            let sign = |j: usize| if tracked { if key.fold(100 + round).fold(i as u64).uniform_f64(j as u64) < 0.5 { -1.0 } else { 1.0 } } else { 0.0 };
            if tracked {
                if let Some(g) = &grads[k] {
                    for (j, g) in g.to_f64_vec()?.into_iter().enumerate() {
                        right += g * sign(j);
                        ng += g * g;
                    }
                }
                nu += values.len() as f64;
                k += 1;
            }
            duals.push(Nd::new(t.shape(), values.iter().enumerate().map(|(j, &v)| Dual::new(v, sign(j))).collect()));
        }
        for (y, d) in pairs.iter().zip(s.op.define(&duals)) {
            for (v, d) in y.1.to_f64_vec()?.iter().zip(&d.data) {
                left += v * d.d;
            }
        }
        if !((left - right).abs() <= 1e-11 * (ng.sqrt() * nu.sqrt()).max(left.abs())) {
            report.fail::<O>(s, &format!("vjp: ⟨v, J u⟩ = {left:e}, ⟨Jᵀ v, u⟩ = {right:e}"));
            break;
        }
    }
    Ok(())
}

impl Report {
    fn count(&mut self, op: &'static str, dtype: DType, layout: &'static str, check: &'static str) {
        *self.counts.entry((op, dtype, layout, check)).or_default() += 1;
    }

    fn fail<O: Describe>(&mut self, s: &Sample<O>, what: &str) {
        let shapes: Vec<String> = s.inputs.iter().map(|i| i.shape().to_string()).collect();
        self.failures.push(format!("{} {:?} on [{}] {}: {what}", O::NAME, s.op, shapes.join(", "), s.note));
    }
}

/// A sample to time.
pub(crate) fn bench_case<O: Describe>(call: Call<O>, s: Sample<O>, dtype: DType) -> Result<BenchCase> {
    let x = materialise(&s.inputs, dtype)?;
    let y = call(&s.op, &x.iter().collect::<Vec<_>>())?;
    let bytes = x.iter().chain(&y).map(|t| t.numel() * t.dtype().size()).sum();
    let shapes: Vec<String> = x.iter().map(|t| t.shape().to_string()).collect();
    let op = s.op.clone();
    let inputs = x.clone();
    let no_grad = s.no_grad.clone();
    let key = Key::new(11);
    let seeds: Vec<Option<Tensor>> = y
        .iter()
        .map(|y| if y.dtype().is_float() { tensor(&(0..y.numel()).map(|i| key.uniform_f64(i as u64) - 0.5).collect::<Vec<_>>(), y.shape(), y.dtype()).map(Some) } else { Ok(None) })
        .collect::<Result<_>>()?;
    let differentiable = seeds.iter().any(Option::is_some) && x.iter().enumerate().any(|(i, t)| t.dtype().is_float() && !no_grad.contains(&i));
    let backward = move || {
        let tape = Tape::new();
        let watched: Vec<Tensor> = inputs
            .iter()
            .enumerate()
            .map(|(i, t)| if t.dtype().is_float() && !no_grad.contains(&i) { tape.watch(t) } else { Ok(t.clone()) })
            .collect::<Result<_>>()?;
        let y = call(&op, &watched.iter().collect::<Vec<_>>())?;
        let pairs: Vec<(&Tensor, Tensor)> = y.iter().zip(&seeds).filter_map(|(y, s)| Some((y, s.clone()?))).filter(|(y, _)| y.is_tracked()).collect();
        let wrt: Vec<&Tensor> = watched.iter().filter(|t| t.is_tracked()).collect();
        tape.cotangents(&pairs, &wrt, false).map(drop)
    };
    Ok(BenchCase {
        id: format!("{}/{}", O::NAME, shapes.join("x")),
        bytes,
        forward: Box::new(move || call(&s.op, &x.iter().collect::<Vec<_>>())),
        backward: if differentiable { Some(Box::new(backward)) } else { None },
    })
}
