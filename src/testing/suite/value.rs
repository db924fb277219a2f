//! Values against the definition, in every dtype and under every layout.

use super::tolerance::Tolerance;
use super::{Arrangement, Case, Check, Operands, Report};
use crate::backend::Device;
use crate::dtype::{BF16, DType, F32};
use crate::error::Result;
use crate::op::Outputs;
use crate::testing::{Ball, Nd, Purpose, lift};

/// Elements above which a sample is checked under fewer layouts.
const LARGE: usize = 4096;

pub(super) fn check(case: &Case<'_>, dtype: DType, r: &mut Report) -> Result<()> {
    let plain = case.operands(dtype)?;
    let want = define(case, &plain);
    compare(case, &plain, &want, Arrangement::Contiguous, r)?;
    let n = case.s.inputs.len();
    let large = case.numel() > LARGE;
    // Rotation: in turn every operand has every layout, and neighbours differ; then each operand alone.
    for turn in 0..5usize {
        if large && turn != 1 && turn != 3 {
            continue;
        }
        arranged(case, dtype, &want, |i| (Arrangement::ALL[(i * 2 + turn) % 5], turn + i), Arrangement::ALL[turn], r)?;
    }
    if far(case, dtype) {
        arranged(case, dtype, &want, |i| (Arrangement::Far, i), Arrangement::Far, r)?;
    }
    if !large && !case.config.quick && n > 1 && !dtype.is_half() {
        for alone in 0..n {
            for a in &Arrangement::ALL[1..] {
                arranged(case, dtype, &want, |i| (if i == alone { *a } else { Arrangement::Contiguous }, alone), *a, r)?;
            }
        }
    }
    Ok(())
}

/// Inputs whose values an op cannot repeat freely: saved statistics must match the operand they belong to.
pub(super) fn may_repeat(case: &Case<'_>) -> bool {
    case.s.purpose == Purpose::Check && !case.s.no_grad.iter().any(|&i| case.s.inputs[i].is_float())
}

/// Whether operands are also given with rows that 32 bits cannot tell apart. Their storage takes address space in proportion to
/// the element's size, so a 16-bit type represents all: layouts are read by the same code in each.
pub(super) fn far(case: &Case<'_>, dtype: DType) -> bool {
    dtype == BF16 && !case.config.quick && case.config.device == Device::Cpu && case.s.purpose == Purpose::Check
}

fn arranged(
    case: &Case<'_>,
    dtype: DType,
    want: &[Nd<Ball>],
    how: impl Fn(usize) -> (Arrangement, usize),
    label: Arrangement,
    r: &mut Report,
) -> Result<()> {
    let repeats = (0..case.s.inputs.len()).any(|i| how(i).0 == Arrangement::Expanded);
    if !repeats {
        return compare(case, &case.arranged(dtype, how)?.0, want, label, r);
    }
    let (x, _) = case
        .arranged(dtype, |i| if how(i).0 == Arrangement::Expanded && !may_repeat(case) { (Arrangement::Transposed, 1) } else { how(i) })?;
    compare(case, &x, &define(case, &x), label, r)
}

pub(super) fn define(case: &Case<'_>, x: &Operands) -> Vec<Nd<Ball>> {
    let balls: Vec<Nd<Ball>> = x.values.iter().enumerate().map(|(i, v)| Nd::new(case.shape(i), lift(v))).collect();
    case.s.op.define_ball(&balls)
}

fn compare(case: &Case<'_>, x: &Operands, want: &[Nd<Ball>], label: Arrangement, r: &mut Report) -> Result<()> {
    case.count(r, x.dtype, label, Check::Value);
    let y = case.run(&x.tensors)?;
    if let Some(what) = differs(case, &y, want) {
        case.fail(r, Check::Value, &format!("{} ({}): {what}{}", x.dtype, label.name(), layouts(x)));
    }
    Ok(())
}

/// The operands' strides and offsets, for messages.
pub(super) fn layouts(x: &Operands) -> String {
    let parts: Vec<String> = x.tensors.iter().map(|t| format!("{:?}+{}", t.layout().strides(), t.layout().offset())).collect();
    format!("\n    strides+offset of the inputs: {}", parts.join(" "))
}

fn differs(case: &Case<'_>, y: &Outputs, want: &[Nd<Ball>]) -> Option<String> {
    if y.len() != want.len() {
        return Some(format!("{} outputs, the definition gives {}", y.len(), want.len()));
    }
    for (k, (y, want)) in y.iter().zip(want).enumerate() {
        if y.shape() != &want.shape {
            return Some(format!("output {k} has shape {}, the definition's {}", y.shape(), want.shape));
        }
        let tolerance = Tolerance::value(y.dtype(), case.traits, y.device());
        let got = match y.to_f64_vec() {
            Ok(v) => v,
            Err(e) => return Some(e.to_string()),
        };
        let bad: Vec<usize> = (0..got.len()).filter(|&i| !tolerance.accepts(got[i], want.data[i])).collect();
        if let Some(&i) = bad.first() {
            return Some(format!(
                "output {k}, element {i}: {:e} instead of {:e}, allowed error {:e} ({} of {} elements wrong)",
                got[i],
                want.data[i].v,
                tolerance.bound(want.data[i]),
                bad.len(),
                got.len()
            ));
        }
    }
    None
}

/// Index operands of the other integer types, where the values fit: the same bits, or a dtype error.
pub(super) fn index_types(case: &Case<'_>, r: &mut Report) -> Result<()> {
    if case.numel() > LARGE {
        return Ok(());
    }
    let x = case.operands(F32)?;
    let mut base = None;
    for (i, input) in case.s.inputs.iter().enumerate() {
        let Some(own) = input.dtype().filter(|d| !d.is_float()) else { continue };
        for other in [DType::I64, DType::U32, DType::U8] {
            let lowest = if other == DType::I64 { f64::MIN } else { 0.0 };
            if other == own || x.values[i].iter().any(|&v| v < lowest || v > other.max_value()) {
                continue;
            }
            let mut tensors = x.tensors.clone();
            tensors[i] =
                super::moved(&super::place(&x.values[i], input.shape(), other, Arrangement::Contiguous, 0)?.0, case.config.device)?;
            match case.run(&tensors) {
                Err(e) if e.is_dtype() => continue,
                Err(e) => return Err(e),
                Ok(y) => {
                    case.count(r, F32, Arrangement::Contiguous, Check::IndexTypes);
                    let want = match &base {
                        None => base.insert(bits(&case.run(&x.tensors)?)?),
                        Some(b) => b,
                    };
                    // An op may hand its integer input on; then only the values must agree.
                    if bits(&y)? != *want {
                        case.fail(r, Check::IndexTypes, &format!("input {i} as {other} gives another result than as {own}"));
                    }
                }
            }
        }
    }
    Ok(())
}

/// The exact values of tensors.
pub(super) fn bits<'a>(tensors: impl IntoIterator<Item = &'a crate::Tensor>) -> Result<Vec<Vec<u64>>> {
    tensors.into_iter().map(|t| Ok(t.to_f64_vec()?.into_iter().map(f64::to_bits).collect())).collect()
}
