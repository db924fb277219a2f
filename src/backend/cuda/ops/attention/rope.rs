//! Rotary embedding: a table of cosines and sines, then the rotation.

use crate::backend::cuda::abi::{CHUNK, Frequencies, Grid, View};
use crate::backend::cuda::device::{Buffer, Dst, Src};
use crate::backend::cuda::launch::kernels::rope as kernels;
use crate::backend::cuda::launch::{In, Out, THREADS, grid};
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::Layout;

/// Turns the pairs of the last axis of each `x`, which agree in their last two extents. `positions`: the first one, or an operand `[T]` or `[B, T]`.
pub(crate) fn rotate(
    x: &[In<'_>],
    positions: Option<&In<'_>>,
    start: usize,
    frequencies: &[f64],
    interleaved: bool,
    y: &mut [Out<'_>],
) -> Result<()> {
    if y.iter().all(|y| y.numel() == 0) {
        return Ok(());
    }
    let (on, shape, half) = (x[0].context(), x[0].shape(), frequencies.len());
    let time = shape[shape.rank() - 2];
    let count = positions.map_or(time, In::numel);
    let acc = if x[0].dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let mut table = on.alloc(acc, count * 2 * half)?;
    let given = positions.map(|p| p.contiguous_as(DType::I64)).transpose()?;
    let given = given.as_ref().map(|p| p.src());
    for (chunk, part) in frequencies.chunks(CHUNK).enumerate() {
        let mut f = Frequencies { f: [0.0; CHUNK] };
        f.f[..part.len()].copy_from_slice(part);
        let grid = Grid::over(count * part.len(), THREADS, on.grid_cap());
        let first = (chunk * CHUNK) as i64;
        kernels::table(
            on,
            grid,
            &Dst::new(&mut table),
            given.as_ref(),
            start as i64,
            count as i64,
            half as i64,
            first,
            part.len() as i64,
            f,
        )?;
    }
    let batched = positions.is_some_and(|p| p.shape().rank() == 2);
    x.iter().zip(y).try_for_each(|(x, y)| turn(x, &table, half, batched, interleaved, y))
}

fn turn(x: &In<'_>, table: &Buffer, half: usize, batched: bool, interleaved: bool, y: &mut Out<'_>) -> Result<()> {
    let (on, n, shape) = (y.context(), y.numel(), x.shape());
    if n == 0 {
        return Ok(());
    }
    let rank = shape.rank();
    let (width, time) = (shape[rank - 1], shape[rank - 2]);
    let rows = n / width;
    let (strides, last) = (x.layout().strides(), rank - 1);
    let leading = Layout::from_parts(shape[..last].into(), strides[..last].iter().copied().collect(), x.layout().offset())?;
    // Each batch has its own positions: so many rows share them.
    let batch = if batched { rows / shape[0] } else { 0 };
    kernels::rotate(
        on,
        grid(on, n, y.dtype().size()),
        &y.dst(),
        &x.at(x.layout()),
        View::new(&leading)?,
        strides[last] as i64,
        &Src::new(table, 0),
        rows as i64,
        width as i64,
        half as i64,
        time as i64,
        batch as i64,
        i32::from(interleaved),
    )
}
