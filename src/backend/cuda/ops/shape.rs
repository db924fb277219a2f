//! Copies that rearrange whole axes: flip, roll, pad, the derivative of slicing, triangles, concatenation.

use crate::backend::cuda::abi::{Remap, bits};
use crate::backend::cuda::launch::kernels::remap as kernels;
use crate::backend::cuda::launch::{In, Out, grid};
use crate::error::Result;

pub(crate) use crate::backend::cuda::abi::AxisMap;

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
