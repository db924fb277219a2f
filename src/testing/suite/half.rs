//! Elementwise ops of one operand on all 65 536 values of both 16-bit types, forward and derivative.

use super::derivative::pull;
use super::tolerance::Tolerance;
use super::{AnySample, Arrangement, Case, Check, Config, Report, Traits};
use crate::dtype::{BF16, DType, F16};
use crate::error::Result;
use crate::tensor::Tensor;
use crate::testing::{Ball, Dual, Input, Nd, Purpose, Scalar, lift};
use half::{bf16, f16};
use std::collections::HashSet;

pub(super) fn all_patterns(samples: &[AnySample], traits: Traits, config: &Config, r: &mut Report) {
    let mut seen = HashSet::new();
    for (index, s) in samples.iter().enumerate() {
        // Once per set of options.
        if !matches!(s.purpose, Purpose::Check | Purpose::Value) || !seen.insert(s.op.show()) {
            continue;
        }
        let case = Case { s, index, traits, config, raw: s.inputs.iter().map(Input::to_vec).collect() };
        for dtype in [BF16, F16] {
            let done = one(&case, dtype, r);
            case.expect(r, Check::AllHalfPatterns, done);
        }
    }
}

fn patterns(dtype: DType) -> Result<(Tensor, Vec<f64>)> {
    let t = if dtype == BF16 {
        Tensor::from_slice(&(0..=u16::MAX).map(bf16::from_bits).collect::<Vec<_>>(), [1 << 16])?
    } else {
        Tensor::from_slice(&(0..=u16::MAX).map(f16::from_bits).collect::<Vec<_>>(), [1 << 16])?
    };
    let v = t.to_f64_vec()?;
    Ok((t, v))
}

fn one(case: &Case<'_>, dtype: DType, r: &mut Report) -> Result<()> {
    let (x, values) = patterns(dtype)?;
    // A power of two, and different signs: exact factors that still show a lost cotangent.
    let seed = |i: usize| [1.0, -2.0, 0.5, -1.0][i % 4];
    let x = super::moved(&x, case.config.device)?;
    let p = pull(case, &[x], &[0], |_, y| {
        let v: Vec<f64> = (0..y.numel()).map(seed).collect();
        let (t, _) = super::place(&v, y.shape(), dtype, Arrangement::Contiguous, 0)?;
        super::moved(&t, y.device()).map(Some)
    })?;
    let duals: Vec<Dual<Ball>> = lift::<Dual<Ball>>(&values).into_iter().map(|x| Dual::new(x.v, Ball::lit(1.0))).collect();
    let want = case.s.op.define_dual_ball(&[Nd::new([1 << 16], duals)]).swap_remove(0);
    case.count(r, dtype, Arrangement::Contiguous, Check::AllHalfPatterns);
    let y = p.y[0].to_f64_vec()?;
    let tolerance = Tolerance::value(dtype, case.traits, case.config.device);
    if let Some(i) = (0..y.len()).find(|&i| !tolerance.accepts(y[i], want.data[i].v)) {
        let w = want.data[i].v;
        case.fail(
            r,
            Check::AllHalfPatterns,
            &format!("{dtype} {:e}: {:e} instead of {:e}, allowed error {:e}", values[i], y[i], w.v, tolerance.bound(w)),
        );
    }
    let Some(bar) = &p.bars[0] else { return Ok(()) };
    let bar = bar.to_f64_vec()?;
    let tolerance = Tolerance::vjp(dtype, dtype);
    let wrong = |i: usize| {
        let w = want.data[i].d * Ball::lit(seed(i));
        // At infinity the definition's slope may be 0 · ∞; the kernel may know the limit.
        let undefined = !values[i].is_finite() && !w.v.is_finite();
        // A derivative is written in the slope and perhaps in the value, and one of them overflowed.
        let overflowed = values[i].is_finite() && (y[i].is_infinite() || want.data[i].d.v.abs() > dtype.max_value());
        !undefined && !overflowed && !tolerance.accepts(bar[i], w)
    };
    if let Some(i) = (0..bar.len()).find(|&i| wrong(i)) {
        let w = want.data[i].d * Ball::lit(seed(i));
        case.fail(
            r,
            Check::AllHalfPatterns,
            &format!("{dtype} {:e}: cotangent {:e} instead of {:e}, allowed error {:e}", values[i], bar[i], w.v, tolerance.bound(w)),
        );
    }
    Ok(())
}
