//! Copies that rearrange whole axes: flip, roll, pad, the derivative of slicing, triangles, concatenation.

use super::kernels::remap as kernels;
use super::launch::MAX_RANK;
use super::map::grid;
use super::operand::{In, Out};
use crate::dtype::DType;
use crate::error::{Result, bail};
use half::{bf16, f16};
use smallvec::SmallVec;

/// How an output axis reads the operand's: `struct Remap` of kernels/remap.cu, one axis of it.
///
/// Position `c` becomes `p = c + shift`, less `wrap` where it reaches that (0: never), and reads element `p / step` if
/// `step` divides it and `0 ≤ p / step < len`; else it lies outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AxisMap {
    /// Positions of the output.
    pub extent: usize,
    /// What is added to a position.
    pub shift: i64,
    /// Where positions begin again at 0.
    pub wrap: usize,
    /// Positions per element.
    pub step: usize,
    /// Elements of the operand.
    pub len: usize,
    /// Whether the operand is read from its end.
    pub reversed: bool,
}

impl AxisMap {
    /// The whole axis in order.
    pub(crate) fn whole(len: usize) -> Self {
        AxisMap { extent: len, shift: 0, wrap: 0, step: 1, len, reversed: false }
    }
}

/// What the kernel gets of all axes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remap {
    rank: i32,
    extent: [i64; MAX_RANK],
    shift: [i64; MAX_RANK],
    wrap: [i64; MAX_RANK],
    step: [i64; MAX_RANK],
    len: [i64; MAX_RANK],
    stride: [i64; MAX_RANK],
}

impl Remap {
    /// Axes that nothing happens to are merged into the one before where a single stride walks both.
    fn new(axes: &[AxisMap], strides: &[usize]) -> Result<Self> {
        let mut out: SmallVec<[(AxisMap, i64); MAX_RANK]> = SmallVec::new();
        for (&a, &s) in axes.iter().zip(strides) {
            let same = a == AxisMap::whole(a.extent);
            if same && a.extent == 1 {
                continue;
            }
            let stride = if a.reversed { -(s as i64) } else { s as i64 };
            match out.last_mut() {
                Some((last, step)) if same && last.step == 1 && *step == stride * a.extent as i64 => {
                    *last = AxisMap {
                        extent: last.extent * a.extent,
                        shift: last.shift * a.extent as i64,
                        wrap: last.wrap * a.extent,
                        len: last.len * a.extent,
                        ..*last
                    };
                    *step = stride;
                }
                _ => out.push((a, stride)),
            }
        }
        if out.len() > MAX_RANK {
            bail!(
                shape,
                "{} axes that cannot be merged: kernels address at most {MAX_RANK}; call contiguous() on fewer axes first",
                out.len()
            );
        }
        let zero = [0; MAX_RANK];
        let mut m =
            Remap { rank: out.len() as i32, extent: [1; MAX_RANK], shift: zero, wrap: zero, step: [1; MAX_RANK], len: zero, stride: zero };
        for (k, (a, stride)) in out.into_iter().enumerate() {
            m.extent[k] = a.extent as i64;
            m.shift[k] = a.shift;
            m.wrap[k] = a.wrap as i64;
            // A step beyond any position reads one element all the same.
            m.step[k] = i64::try_from(a.step).unwrap_or(i64::MAX);
            m.len[k] = a.len as i64;
            m.stride[k] = stride;
        }
        Ok(m)
    }
}

/// Writes `y`, whose axes read the operand's; what lies outside becomes `fill`.
pub(crate) fn remap(x: &In<'_>, axes: &[AxisMap], fill: f64, y: &mut Out<'_>) -> Result<()> {
    let (on, n) = (y.context(), y.numel());
    if n == 0 {
        return Ok(());
    }
    let strides = x.layout().strides();
    let map = Remap::new(axes, strides)?;
    // A reversed axis is walked down from its last element.
    let last: usize = axes.iter().zip(strides).filter(|(a, _)| a.reversed && a.len > 0).map(|(a, s)| (a.len - 1) * s).sum();
    let from = if x.numel() == 0 { x.start() } else { x.at(x.layout()).offset(last) };
    let fill = bits(y.dtype(), fill);
    kernels::remap(on, grid(on, n, y.dtype().size()), &y.dst(), &from, map, fill, n as i64)
}

/// The part of each matrix between two diagonals: columns less rows from `low` to `high`; zeros elsewhere.
pub(crate) fn band(x: &In<'_>, low: i64, high: i64, y: &mut Out<'_>) -> Result<()> {
    let (on, n) = (y.context(), y.numel());
    if n == 0 {
        return Ok(());
    }
    let shape = y.shape();
    let (rows, cols) = (shape[shape.rank() - 2], shape[shape.rank() - 1]);
    let (x, view) = x.view()?;
    kernels::band(on, grid(on, n, y.dtype().size()), &y.dst(), &x, view, rows as i64, cols as i64, low, high, n as i64)
}

/// Writes the operands one after the other along an axis of `y`.
pub(crate) fn concat(parts: &[In<'_>], axis: usize, y: &mut Out<'_>) -> Result<()> {
    let on = y.context();
    let (_, total, inner) = y.shape().split_at(axis);
    let mut start = 0;
    for x in parts {
        let (n, run) = (x.numel(), x.shape()[axis] * inner);
        if n > 0 {
            let (src, view) = x.view()?;
            let grid = grid(on, n, y.dtype().size());
            kernels::part(on, grid, &y.dst(), &src, view, start as i64, run as i64, (total * inner) as i64, n as i64)?;
        }
        start += run;
    }
    Ok(())
}

/// The bits of a number in a dtype, lowest first.
pub(crate) fn bits(dtype: DType, value: f64) -> u64 {
    match dtype {
        DType::F64 => value.to_bits(),
        DType::F32 => u64::from((value as f32).to_bits()),
        DType::BF16 => u64::from(bf16::from_f64(value).to_bits()),
        DType::F16 => u64::from(f16::from_f64(value).to_bits()),
        DType::I64 => (value as i64).cast_unsigned(),
        DType::U32 => u64::from(value as u32),
        DType::U8 => u64::from(value as u8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untouched_axes_are_merged() {
        let pad = AxisMap { extent: 7, shift: -1, ..AxisMap::whole(4) };
        let m = Remap::new(&[AxisMap::whole(2), AxisMap::whole(3), pad, AxisMap::whole(5)], &[60, 20, 5, 1]).unwrap();
        assert_eq!(
            (m.rank, &m.extent[..2], &m.shift[..2], &m.len[..2], &m.stride[..2]),
            (2, &[6, 35][..], &[0, -5][..], &[6, 20][..], &[20, 1][..])
        );
        let back = AxisMap { reversed: true, ..AxisMap::whole(3) };
        let m = Remap::new(&[back, AxisMap::whole(2)], &[2, 1]).unwrap();
        assert_eq!((m.rank, &m.stride[..2]), (2, &[-2, 1][..]));
        assert!(Remap::new(&[back; 9], &[1; 9]).unwrap_err().is_shape());
    }

    #[test]
    fn bits_of_every_dtype() {
        assert_eq!(bits(DType::F64, 1.0), 0x3ff0 << 48);
        assert_eq!(DType::ALL.map(|d| bits(d, 1.0))[1..], [0x3f80_0000, 0x3f80, 0x3c00, 1, 1, 1]);
        assert_eq!(bits(DType::I64, -2.0), u64::MAX - 1);
    }
}
