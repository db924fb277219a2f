//! Sorting along an axis.

use super::{THREADS, gathered, scattered};
use crate::backend::cuda::abi::Grid;
use crate::backend::cuda::device::{Context, Dst, Src};
use crate::backend::cuda::launch::kernels::sort as kernels;
use crate::backend::cuda::launch::{In, Out};
use crate::dtype::{I64, U32};
use crate::error::{Result, bail};
use crate::layout::Layout;
use crate::shape::Dims;

/// Elements that a block sorts in shared memory: `SORT_TILE` of kernels/reduce/sort.cu.
const TILE: usize = 2048;

/// The first `k` elements of every line along `axis` in sorted order (stable, NaN above everything) and their indices.
pub(crate) fn sort(x: &In<'_>, axis: usize, k: usize, descending: bool, values: &mut Out<'_>, indices: &mut Out<'_>) -> Result<()> {
    let (on, n, rank) = (x.context(), x.shape()[axis], x.shape().rank());
    if u32::try_from(n).is_err() {
        bail!(argument, "cannot sort lines of {n} elements: at most 2³² − 1");
    }
    if values.numel() == 0 {
        return Ok(());
    }
    let order: Dims = (0..rank).filter(|&i| i != axis).chain([axis]).collect();
    let moved = x.layout().permute(&order)?;
    let data = gathered(x, &moved)?;
    let rows = x.numel() / n;
    if axis + 1 == rank {
        return sort_rows(on, &data.src(), [rows, n, k], descending, &values.dst(), &indices.dst());
    }
    let (mut v, mut i) = (on.alloc(x.dtype(), rows * k)?, on.alloc(I64, rows * k)?);
    sort_rows(on, &data.src(), [rows, n, k], descending, &Dst::new(&mut v), &Dst::new(&mut i))?;
    let kept = Layout::contiguous(moved.shape().with_dim(rank - 1, k));
    scattered(on, &v, &kept, &order, values)?;
    scattered(on, &i, &kept, &order, indices)
}

fn sort_rows(
    on: &'static Context,
    x: &Src<'_>,
    [rows, n, k]: [usize; 3],
    descending: bool,
    values: &Dst<'_>,
    indices: &Dst<'_>,
) -> Result<()> {
    let (r, c, kept, down) = (rows as i64, n as i64, k as i64, i32::from(descending));
    if n <= TILE {
        let grid = Grid::rows(rows, THREADS, on.grid_cap());
        return kernels::rows(on, grid, values, indices, x, r, c, kept, n.next_power_of_two() as i32, down);
    }
    // Keys and places, twice: a merge reads one pair and writes the other.
    let count = rows * n;
    let (mut keys, mut places) = (on.alloc(I64, count)?, on.alloc(U32, count)?);
    let (mut next_keys, mut next_places) = (on.alloc(I64, count)?, on.alloc(U32, count)?);
    let tiles = Grid::rows(rows * n.div_ceil(TILE), THREADS, on.grid_cap());
    kernels::tiles(on, tiles, &Dst::new(&mut keys), &Dst::new(&mut places), x, r, c, down)?;
    let grid = Grid::over(count, THREADS, on.grid_cap());
    let mut run = TILE;
    while run < n {
        let (to_keys, to_places) = (Dst::new(&mut next_keys), Dst::new(&mut next_places));
        kernels::merge(on, grid, &to_keys, &to_places, &Src::new(&keys, 0), &Src::new(&places, 0), r, c, run as i64)?;
        std::mem::swap(&mut keys, &mut next_keys);
        std::mem::swap(&mut places, &mut next_places);
        run *= 2;
    }
    let grid = Grid::over(rows * k, THREADS, on.grid_cap());
    kernels::take(on, grid, values, indices, x, &Src::new(&places, 0), r, c, kept)
}
