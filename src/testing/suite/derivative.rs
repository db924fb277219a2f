//! Cotangents against the exact derivative of the definition, in every dtype and under every layout of the operands
//! and of the cotangent.

use super::tolerance::{Tolerance, coarsest, smallest};
use super::value::{bits, far, layouts, may_repeat};
use super::{Arrangement, Case, Check, Operands, Report, moved, place};
use crate::dtype::{BF16, DType, F16, F32, F64};
use crate::error::{Error, Result};
use crate::op::Outputs;
use crate::rng::Key;
use crate::tape::Tape;
use crate::tensor::Tensor;
use crate::testing::{Ball, Dual, Nd, Purpose, Scalar, lift};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::LazyLock;

/// Elements up to which the whole Jacobian is compared in f64.
const FULL: usize = 64;
/// Elements above which a sample's derivative is not checked at all: the definition is too slow.
const TOO_LARGE: usize = 300_000;

/// An op's result and the cotangents of its inputs.
pub(super) struct Pulled {
    pub(super) y: Outputs,
    /// Cotangents given to the outputs.
    pub(super) seeds: Vec<Option<Tensor>>,
    /// Per input; `None` is zero.
    pub(super) bars: Vec<Option<Tensor>>,
}

impl Pulled {
    fn bits(&self) -> Result<Vec<Vec<u64>>> {
        bits(self.y.iter().chain(self.bars.iter().flatten()))
    }
}

/// Random values for the cotangent of output `k`; never uniform, because a constant cotangent hides errors (the
/// derivative of a softmax along it is zero).
pub(super) fn seed_values(k: usize, n: usize) -> Vec<f64> {
    let key = Key::new(71).fold(k as u64);
    (0..n).map(|i| key.normal(i as u64)).collect()
}

/// Runs the op on a tape that watches `track`, and pulls back the cotangents that `seed` gives for each output.
pub(super) fn pull(
    case: &Case<'_>,
    x: &[Tensor],
    track: &[usize],
    seed: impl Fn(usize, &Tensor) -> Result<Option<Tensor>>,
) -> Result<Pulled> {
    let tape = Tape::new();
    let watched: Vec<Tensor> =
        x.iter().enumerate().map(|(i, t)| if track.contains(&i) { tape.watch(t) } else { Ok(t.clone()) }).collect::<Result<_>>()?;
    let y = case.run(&watched)?;
    if let Some(k) = y.iter().position(|y| y.dtype().is_float() && !y.is_tracked()) {
        return Err(Error::tape(format!("output {k} left the tape although an input is tracked")));
    }
    let mut seeds = Vec::new();
    for (k, y) in y.iter().enumerate() {
        seeds.push(if y.is_tracked() { seed(k, y)? } else { None });
    }
    let pairs: Vec<(&Tensor, Tensor)> = y.iter().zip(&seeds).filter_map(|(y, s)| Some((y, s.clone()?))).collect();
    let wrt: Vec<&Tensor> = track.iter().map(|&i| &watched[i]).collect();
    let mut bars = vec![None; x.len()];
    for (&i, bar) in track.iter().zip(tape.cotangents(&pairs, &wrt)?) {
        if let Some(bar) = &bar
            && (bar.shape() != x[i].shape() || bar.dtype() != x[i].dtype())
        {
            return Err(Error::shape(format!(
                "input {i} is {}{}, its cotangent {}{}",
                x[i].dtype(),
                x[i].shape(),
                bar.dtype(),
                bar.shape()
            )));
        }
        bars[i] = bar;
    }
    Ok(Pulled { y, seeds, bars })
}

fn contiguous_seed(k: usize, y: &Tensor) -> Result<Option<Tensor>> {
    arranged_seed(k, y, Arrangement::Contiguous, 0)
}

pub(super) fn arranged_seed(k: usize, y: &Tensor, how: Arrangement, turn: usize) -> Result<Option<Tensor>> {
    let (seed, _) = place(&seed_values(k, y.numel()), y.shape(), y.dtype(), how, turn)?;
    moved(&seed, y.device()).map(Some)
}

/// What the definition says about a derivative.
struct Exact {
    /// `(input, element, cotangent)`.
    columns: Vec<(usize, usize, Ball)>,
    /// A direction per input, and the cotangents' inner product with it.
    dots: Vec<(Vec<Vec<f64>>, Ball)>,
}

fn exact(case: &Case<'_>, values: &[Vec<f64>], seeds: &[Option<Tensor>], floats: &[usize], columns: usize, dots: usize) -> Result<Exact> {
    let v: Vec<Option<Vec<f64>>> = seeds.iter().map(|s| s.as_ref().map(Tensor::to_f64_vec).transpose()).collect::<Result<_>>()?;
    let mut x: Vec<Nd<Dual<Ball>>> = values.iter().enumerate().map(|(i, v)| Nd::new(case.shape(i), lift(v))).collect();
    // ⟨v, J u⟩ for the direction that the tangents hold.
    let contract = |x: &[Nd<Dual<Ball>>]| {
        let y = case.s.op.define_dual_ball(x);
        let terms: Vec<Ball> = y
            .iter()
            .zip(&v)
            .filter_map(|(y, v)| Some((y, v.as_ref()?)))
            .flat_map(|(y, v)| y.data.iter().zip(v).map(|(y, &v)| y.d * Ball::lit(v)))
            .collect();
        Ball::sum(&terms)
    };
    let elements: Vec<(usize, usize)> = floats.iter().flat_map(|&i| (0..values[i].len()).map(move |j| (i, j))).collect();
    let chosen = columns.min(elements.len());
    let mut out = Exact { columns: Vec::new(), dots: Vec::new() };
    for c in 0..chosen {
        // Spread over all elements, the first and the last included.
        let (i, j) = elements[if chosen == 1 { 0 } else { c * (elements.len() - 1) / (chosen - 1) }];
        x[i].data[j].d = Ball::lit(1.0);
        out.columns.push((i, j, contract(&x)));
        x[i].data[j].d = Ball::lit(0.0);
    }
    for round in 0..dots {
        let signs = directions(case, values, floats, round as u64);
        for (x, s) in x.iter_mut().zip(&signs) {
            for (x, &s) in x.data.iter_mut().zip(s) {
                x.d = Ball::lit(s);
            }
        }
        out.dots.push((signs, contract(&x)));
    }
    Ok(out)
}

/// Random signs for every element of the differentiable inputs, 0 for the others.
pub(super) fn directions(case: &Case<'_>, values: &[Vec<f64>], floats: &[usize], round: u64) -> Vec<Vec<f64>> {
    let key = Key::new(case.config.seed).fold(1000 + round);
    let sign = |i: usize, j: usize| if key.fold(i as u64).uniform_f64(j as u64) < 0.5 { -1.0 } else { 1.0 };
    values.iter().enumerate().map(|(i, v)| (0..v.len()).map(|j| if floats.contains(&i) { sign(i, j) } else { 0.0 }).collect()).collect()
}

/// Why the cotangents are not those of the definition, if they are not.
fn differs(p: &Pulled, x: &Operands, want: &Exact, floats: &[usize]) -> Result<Option<String>> {
    let bars: Vec<Option<Vec<f64>>> = p.bars.iter().map(|b| b.as_ref().map(Tensor::to_f64_vec).transpose()).collect::<Result<_>>()?;
    let bar = |i: usize, j: usize| bars[i].as_ref().map_or(0.0, |b| b[j]);
    let seen = floats.iter().map(|&i| x.tensors[i].dtype()).chain(p.y.iter().map(Tensor::dtype));
    let widest = coarsest(seen);
    let (mut wrong, mut first) = (0, None);
    for &(i, j, ball) in &want.columns {
        let tolerance = Tolerance::vjp(x.tensors[i].dtype(), widest);
        if !tolerance.accepts(bar(i, j), ball) {
            wrong += 1;
            first.get_or_insert_with(|| {
                format!(
                    "cotangent of input {i}, element {j}: {:e} instead of {:e}, allowed error {:e}",
                    bar(i, j),
                    ball.v,
                    tolerance.bound(ball)
                )
            });
        }
    }
    if let Some(first) = first {
        return Ok(Some(format!("{first} ({wrong} of {} columns of the Jacobian wrong)", want.columns.len())));
    }
    for (signs, ball) in &want.dots {
        // Overflow and undefined slopes are judged element by element, not in a sum.
        if !ball.v.is_finite() || !ball.e.is_finite() {
            continue;
        }
        let (mut got, mut bound, mut norm, mut n) = (0.0, Tolerance::vjp(F64, widest).bound(*ball), 0.0, 0.0);
        for &i in floats {
            let dtype = x.tensors[i].dtype();
            for (j, s) in signs[i].iter().enumerate() {
                let b = bar(i, j);
                got += b * s;
                bound += dtype.epsilon() / 2.0 * b.abs() + smallest(dtype);
                norm += b * b;
                n += 1.0;
            }
        }
        if widest == F64 {
            bound = bound.max(1e-11 * (norm * n).sqrt());
        }
        // An element beyond the type's range says nothing along a direction; the columns above compare it by itself.
        if got.is_infinite() || bound.is_infinite() {
            continue;
        }
        if !((got - ball.v).abs() <= bound) {
            return Ok(Some(format!("⟨Jᵀ v, u⟩ = {got:e}, but ⟨v, J u⟩ = {:e} (allowed difference {bound:e})", ball.v)));
        }
    }
    Ok(None)
}

/// Whether the sample's values exceed the dtype.
fn overflows(case: &Case<'_>, x: &Operands) -> bool {
    case.raw.iter().zip(&x.values).any(|(raw, x)| raw.iter().zip(x).any(|(r, x)| r.is_finite() && !x.is_finite()))
}

fn finite(values: &[Vec<f64>]) -> bool {
    values.iter().flatten().all(|v| v.is_finite())
}

pub(super) fn check(case: &Case<'_>, dtype: DType, floats: &[usize], r: &mut Report) -> Result<()> {
    let x = case.operands(dtype)?;
    if overflows(case, &x) {
        return Ok(());
    }
    let quick = case.config.quick;
    let elements: usize = floats.iter().map(|&i| x.values[i].len()).sum();
    let columns = match (dtype, quick) {
        (F64, _) if elements <= FULL => FULL,
        (_, false) => 24,
        (_, true) => 8,
    };
    let dots = if dtype == F64 { 4 } else { 2 };
    let base = pull(case, &x.tensors, floats, contiguous_seed)?;
    // A derivative may be written in the value: where that exceeds a 16-bit type, the derivative does too.
    if dtype.is_half() && finite(&x.values) && !finite(&base.y.iter().map(Tensor::to_f64_vec).collect::<Result<Vec<_>>>()?) {
        return Ok(());
    }
    let want = exact(case, &x.values, &base.seeds, floats, columns, dots)?;
    case.count(r, dtype, Arrangement::Contiguous, Check::Vjp);
    if let Some(what) = differs(&base, &x, &want, floats)? {
        case.fail(r, Check::Vjp, &format!("{dtype}: {what}"));
        return Ok(());
    }
    unchanged(case, &x, &base, r)?;
    layout_turns(case, dtype, floats, &want, r)?;
    zero(case, &x, floats, &want, r)?;
    if dtype == F32 || (dtype == F64 && !quick) {
        subsets(case, &x, floats, &base, r)?;
    }
    unused_outputs(case, &x, floats, &base, r)
}

fn unchanged(case: &Case<'_>, x: &Operands, p: &Pulled, r: &mut Report) -> Result<()> {
    case.count(r, x.dtype, Arrangement::Contiguous, Check::Unchanged);
    let to_bits = |v: &[f64]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    for (i, (t, v)) in x.tensors.iter().zip(&x.values).enumerate() {
        if to_bits(&t.to_f64_vec()?) != to_bits(v) {
            case.fail(r, Check::Unchanged, &format!("{}: the op wrote into its input {i}", x.dtype));
        }
    }
    for (k, s) in p.seeds.iter().enumerate().filter_map(|(k, s)| Some((k, s.as_ref()?))) {
        let Some(fresh) = contiguous_seed(k, s)? else { continue };
        if to_bits(&s.to_f64_vec()?) != to_bits(&fresh.to_f64_vec()?) {
            case.fail(r, Check::Unchanged, &format!("{}: the derivative wrote into the cotangent of output {k}", x.dtype));
        }
    }
    Ok(())
}

/// Every operand and every cotangent under every layout, independently.
fn layout_turns(case: &Case<'_>, dtype: DType, floats: &[usize], want: &Exact, r: &mut Report) -> Result<()> {
    let n = case.s.inputs.len();
    let few = case.config.quick && dtype != F32;
    for turn in 0..5usize {
        if few && !turn.is_multiple_of(2) {
            continue;
        }
        let how = |i: usize| (Arrangement::ALL[(i * 2 + turn) % 5], turn + i);
        if !one_layout(case, dtype, floats, want, how, Arrangement::ALL[turn], r)? {
            return Ok(());
        }
    }
    if case.config.quick {
        return Ok(());
    }
    if far(case, dtype) && !one_layout(case, dtype, floats, want, |i| (Arrangement::Far, i), Arrangement::Far, r)? {
        return Ok(());
    }
    // Alone: the operands only where precision is not the question, the cotangent (operand `n`) always.
    for alone in if dtype.is_half() { n..n + 1 } else { 0..n + 1 } {
        for a in &Arrangement::ALL[1..] {
            let how = |i: usize| (if i == alone || (i >= n && alone == n) { *a } else { Arrangement::Contiguous }, alone);
            if !one_layout(case, dtype, floats, want, how, *a, r)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// `how` says the layout of input `i`, and of the cotangent of output `k` as `inputs + k`.
fn one_layout(
    case: &Case<'_>,
    dtype: DType,
    floats: &[usize],
    want: &Exact,
    how: impl Fn(usize) -> (Arrangement, usize),
    label: Arrangement,
    r: &mut Report,
) -> Result<bool> {
    let n = case.s.inputs.len();
    let input = |i: usize| if how(i).0 == Arrangement::Expanded && !may_repeat(case) { (Arrangement::Transposed, 1) } else { how(i) };
    let (x, _) = case.arranged(dtype, input)?;
    let p = pull(case, &x.tensors, floats, |k, y| arranged_seed(k, y, how(n + k).0, how(n + k).1))?;
    let repeats = (0..n).any(|i| input(i).0 == Arrangement::Expanded) || (0..p.y.len()).any(|k| how(n + k).0 == Arrangement::Expanded);
    case.count(r, dtype, label, Check::Vjp);
    let own;
    let want = if repeats {
        own = exact(case, &x.values, &p.seeds, floats, 0, 2)?;
        &own
    } else {
        want
    };
    if let Some(what) = differs(&p, &x, want, floats)? {
        let seeds: Vec<String> = p.seeds.iter().flatten().map(|t| format!("{:?}+{}", t.layout().strides(), t.layout().offset())).collect();
        case.fail(r, Check::Vjp, &format!("{dtype} ({}): {what}{}; of the cotangent: {}", label.name(), layouts(&x), seeds.join(" ")));
        return Ok(false);
    }
    Ok(true)
}

fn zero(case: &Case<'_>, x: &Operands, floats: &[usize], want: &Exact, r: &mut Report) -> Result<()> {
    // Where the slope is infinite, 0 · ∞ is NaN, as IEEE has it.
    if want.columns.iter().map(|c| c.2).chain(want.dots.iter().map(|d| d.1)).any(|b| !b.v.is_finite()) {
        return Ok(());
    }
    case.count(r, x.dtype, Arrangement::Contiguous, Check::ZeroCotangent);
    let p = pull(case, &x.tensors, floats, |_, y| {
        let (zero, _) = place(&vec![0.0; y.numel()], y.shape(), y.dtype(), Arrangement::Contiguous, 0)?;
        moved(&zero, y.device()).map(Some)
    })?;
    for (i, bar) in p.bars.iter().enumerate() {
        if let Some(bar) = bar
            && let Some(v) = bar.to_f64_vec()?.into_iter().find(|v| *v != 0.0)
        {
            case.fail(r, Check::ZeroCotangent, &format!("{}: a zero cotangent gives {v:e} in the cotangent of input {i}", x.dtype));
        }
    }
    Ok(())
}

fn subsets(case: &Case<'_>, x: &Operands, floats: &[usize], base: &Pulled, r: &mut Report) -> Result<()> {
    let n = floats.len();
    case.count(r, x.dtype, Arrangement::Contiguous, Check::WantSubsets);
    let all: Vec<u32> = if n <= 5 { (1..1 << n).collect() } else { (0..n).flat_map(|i| [1 << i, ((1 << n) - 1) ^ (1 << i)]).collect() };
    for mask in all {
        let track: Vec<usize> = (0..n).filter(|b| mask >> b & 1 == 1).map(|b| floats[b]).collect();
        let p = pull(case, &x.tensors, &track, contiguous_seed)?;
        if bits(&p.y)? != bits(&base.y)? {
            case.fail(r, Check::WantSubsets, &format!("{}: the value changes when only inputs {track:?} are tracked", x.dtype));
        }
        for &i in &track {
            let same = match (&p.bars[i], &base.bars[i]) {
                (Some(a), Some(b)) => bits([a])? == bits([b])?,
                (a, b) => a.is_none() && b.is_none(),
            };
            if !same {
                case.fail(
                    r,
                    Check::WantSubsets,
                    &format!("{}: the cotangent of input {i} changes when only inputs {track:?} are tracked", x.dtype),
                );
                return Ok(());
            }
        }
    }
    Ok(())
}

fn unused_outputs(case: &Case<'_>, x: &Operands, floats: &[usize], base: &Pulled, r: &mut Report) -> Result<()> {
    let tracked: Vec<usize> = (0..base.y.len()).filter(|&k| base.seeds[k].is_some()).collect();
    if tracked.len() < 2 {
        return Ok(());
    }
    for &only in &tracked {
        case.count(r, x.dtype, Arrangement::Contiguous, Check::UnusedOutputs);
        let p = pull(case, &x.tensors, floats, |k, y| if k == only { contiguous_seed(k, y) } else { Ok(None) })?;
        let want = exact(case, &x.values, &p.seeds, floats, 8, 2)?;
        if let Some(what) = differs(&p, x, &want, floats)? {
            case.fail(r, Check::UnusedOutputs, &format!("{}, only output {only} used: {what}", x.dtype));
        }
    }
    Ok(())
}

/// Samples too large for Jacobians: one or more random directions, where a derivative exists.
pub(super) fn large(case: &Case<'_>, r: &mut Report) -> Result<()> {
    let floats: Vec<usize> = (0..case.s.inputs.len()).filter(|&i| case.differentiable(i)).collect();
    let n = case.numel();
    if n <= FULL || n > TOO_LARGE || case.raw.iter().flatten().any(|v| !v.is_finite()) {
        return Ok(());
    }
    for dtype in [F64, F32] {
        let x = case.operands(dtype)?;
        if overflows(case, &x) {
            continue;
        }
        let p = pull(case, &x.tensors, &floats, contiguous_seed)?;
        if p.seeds.iter().all(Option::is_none) {
            return Ok(()); // indices and comparisons: nothing to differentiate
        }
        let want = exact(case, &x.values, &p.seeds, &floats, 0, if dtype == F64 && !case.config.quick { 4 } else { 1 })?;
        case.count(r, dtype, Arrangement::Contiguous, Check::Vjp);
        if let Some(what) = differs(&p, &x, &want, &floats)? {
            case.fail(r, Check::Vjp, &format!("{dtype} (large): {what}"));
        }
    }
    Ok(())
}

/// A pool that cannot be had (no threads left) is left out.
static POOLS: LazyLock<Vec<ThreadPool>> =
    LazyLock::new(|| (1..=3).filter_map(|n| ThreadPoolBuilder::new().num_threads(n).build().ok()).collect());

/// The same bits again, and with 1, 2 and 3 threads; forward and, where there is one, backward.
pub(super) fn determinism(case: &Case<'_>, r: &mut Report) -> Result<()> {
    let dtype = [F32, BF16, F64, F16][case.index % 4];
    let x = case.operands(dtype)?;
    let floats: Vec<usize> = (0..case.s.inputs.len()).filter(|&i| case.differentiable(i)).collect();
    let backward = !floats.is_empty() && (case.s.purpose == Purpose::Check || x.values.iter().flatten().all(|v| v.is_finite()));
    let run = || {
        if backward { pull(case, &x.tensors, &floats, contiguous_seed)?.bits() } else { bits(&case.run(&x.tensors)?) }
    };
    let base = run()?;
    case.count(r, dtype, Arrangement::Contiguous, Check::Determinism);
    if run()? != base {
        case.fail(r, Check::Determinism, &format!("{dtype}: a second run gives other bits"));
        return Ok(());
    }
    #[cfg(feature = "emulator")]
    if case.config.device == crate::Device::CudaEmulated {
        for order in [1, 7, 0] {
            crate::backend::cuda::set_emulated_order(order);
            if run()? != base {
                case.fail(r, Check::Determinism, &format!("{dtype}: threads started in order {order} give other bits"));
                return Ok(());
            }
        }
    }
    if case.config.device != crate::Device::Cpu {
        return Ok(());
    }
    for pool in POOLS.iter() {
        if case.config.quick && pool.current_num_threads() == 2 {
            continue;
        }
        if pool.install(run)? != base {
            case.fail(r, Check::Determinism, &format!("{dtype}: {} threads give other bits", pool.current_num_threads()));
            return Ok(());
        }
    }
    Ok(())
}
