//! Layer norm and RMS norm over rows.

use super::reduce::{THREADS, holds, team, team_block, teams_grid};
use crate::backend::cuda::abi::Grid;
use crate::backend::cuda::device::{Buffer, Dst, Src};
use crate::backend::cuda::launch::kernels::norm as kernels;
use crate::backend::cuda::launch::{Dense, In, Out};
use crate::dtype::DType;
use crate::error::Result;

/// Threads of the derivative on a multiprocessor: as many as its registers allow, which kernels/norm/norm.cu bounds for one block of
/// so many. Blocks beyond what fits at once would be a second wave.
const RESIDENT: usize = 512;

/// Blocks of the derivative, whose teams keep partial sums of their own for the parameters. So these sums are grouped by shapes and by
/// the number of multiprocessors: another kind of GPU gives other bits.
fn blocks(rows: usize, team: usize, multiprocessors: u32) -> usize {
    let block = team_block(team);
    rows.div_ceil(block / team).min(multiprocessors as usize * RESIDENT / block).max(1)
}

/// Most partial sums of a column where rows are too long for a team.
const CHUNKS: usize = 256;

/// Columns that norm_columns takes side by side, in packs: the rest of a block takes rows.
const LANES: usize = 8;

fn accumulator(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// y, and mean and 1/σ of each of `rows` rows of `n` elements. With `added`, the rows are those of the sum, which is written too.
#[expect(clippy::too_many_arguments)]
pub(crate) fn forward(
    (rows, n): (usize, usize),
    centred: bool,
    eps: f64,
    x: &In<'_>,
    added: Option<(&In<'_>, &mut Out<'_>)>,
    [w, b]: [Option<&In<'_>>; 2],
    y: &mut Out<'_>,
    stats: &mut Out<'_>,
) -> Result<()> {
    let on = x.context();
    if n == 0 {
        return stats.zero(on);
    }
    if rows == 0 {
        return Ok(());
    }
    let (x, w, b) = (x.contiguous()?, w.map(In::contiguous).transpose()?, b.map(In::contiguous).transpose()?);
    let (w, b) = (w.as_ref().map(Dense::src), b.as_ref().map(Dense::src));
    let (r, mut sum) = added.unzip();
    let r_dense = r.map(In::contiguous).transpose()?;
    let (r, sum) = (r_dense.as_ref().map(Dense::src), sum.as_mut().map(|s| s.dst()));
    let team = team(rows, n, y.dtype(), 1);
    let grid = teams_grid(on, rows, team);
    let (m, c, t, centred) = (rows as i64, n as i64, team as i32, i32::from(centred));
    let (y, stats, x) = (y.dst(), stats.dst(), x.src());
    kernels::fwd(on, grid, Some(&y), &stats, &x, r.as_ref(), sum.as_ref(), w.as_ref(), b.as_ref(), m, c, t, centred, eps)
}

/// Those of x̄, w̄, b̄ that are asked for; `added` is added to x̄.
#[expect(clippy::too_many_arguments)]
pub(crate) fn backward(
    (rows, n): (usize, usize),
    centred: bool,
    eps: f64,
    x: &In<'_>,
    w: Option<&In<'_>>,
    g: &In<'_>,
    added: Option<&In<'_>>,
    stats: Option<&In<'_>>,
    outputs: [Option<&mut Out<'_>>; 3],
) -> Result<()> {
    let (on, dtype) = (x.context(), x.dtype());
    let [dx, dw, db] = outputs;
    if rows == 0 || n == 0 {
        for d in [dw, db].into_iter().flatten() {
            d.zero(on)?;
        }
        return Ok(());
    }
    let (r, c, centred) = (rows as i64, n as i64, i32::from(centred));
    let (x, g, w) = (x.contiguous()?, g.contiguous()?, w.map(In::contiguous).transpose()?);
    let added = added.map(In::contiguous).transpose()?;
    let added = added.as_ref().map(Dense::src);
    let (x, g, w) = (x.src(), g.src(), w.as_ref().map(Dense::src));
    let w = w.as_ref();
    let mut own;
    let given;
    let stats = match stats {
        Some(s) => {
            given = s.contiguous()?;
            given.src()
        }
        None => {
            own = on.alloc(accumulator(dtype), rows * 2)?;
            let t = team(rows, n, dtype, 1);
            kernels::fwd(on, teams_grid(on, rows, t), None, &Dst::new(&mut own), &x, None, None, None, None, r, c, t as i32, centred, eps)?;
            Src::new(&own, 0)
        }
    };
    let t = team(rows, n, dtype, 2);
    // Every team, or every chunk of rows, sums the parameters' derivatives by itself.
    let fits = holds(t, n, dtype, 2);
    let block = team_block(t);
    let blocks = blocks(rows, t, on.properties().multiprocessors);
    let chunk = rows.div_ceil(CHUNKS).max(16);
    let count = if fits { blocks * (block / t) } else { rows.div_ceil(chunk) };
    let part = |wanted: bool| wanted.then(|| on.alloc(accumulator(dtype), count * n)).transpose();
    let (mut parts_w, mut parts_b) = (part(dw.is_some())?, part(db.is_some())?);
    {
        let (pw, pb) = (parts_w.as_mut().map(Dst::new), parts_b.as_mut().map(Dst::new));
        let (pw, pb) = (pw.as_ref(), pb.as_ref());
        if fits {
            let grid = Grid { blocks: [blocks as u32, 1, 1], threads: block as u32, shared: 0 };
            let dx = dx.map(|d| d.dst());
            kernels::vjp(on, grid, dx.as_ref(), pw, pb, &x, w, &g, added.as_ref(), &stats, r, c, t as i32, centred)?;
        } else {
            if let Some(dx) = dx {
                kernels::long_vjp(on, teams_grid(on, rows, t), &dx.dst(), &x, w, &g, added.as_ref(), &stats, r, c, t as i32, centred)?;
            }
            if pw.is_some() || pb.is_some() {
                let grid = Grid::rows(n.div_ceil(THREADS as usize) * count, THREADS, on.grid_cap());
                kernels::parameters(on, grid, pw, pb, &x, &g, &stats, r, c, chunk as i64)?;
            }
        }
    }
    let finish = |d: Option<&mut Out<'_>>, parts: &Option<Buffer>| -> Result<()> {
        let (Some(d), Some(parts)) = (d, parts) else { return Ok(()) };
        let lanes = if n == 1 { THREADS as usize } else { n.next_power_of_two().min(LANES) };
        let grid = Grid::rows(n.div_ceil(lanes), THREADS, on.grid_cap());
        kernels::columns(on, grid, &d.dst(), &Src::new(parts, 0), count as i64, c, lanes as i32)
    };
    finish(dw, &parts_w)?;
    finish(db, &parts_b)
}

#[cfg(test)]
mod tests {
    use super::{RESIDENT, blocks, team_block};

    #[test]
    fn the_derivative_runs_in_one_wave() {
        // A100, H100 PCIe, H100 SXM, a small card.
        for multiprocessors in [108, 114, 132, 4] {
            for team in [1, 8, 32, 64, 256, 512] {
                let at_once = multiprocessors as usize * (RESIDENT / team_block(team));
                assert_eq!(blocks(1 << 20, team, multiprocessors), at_once, "{team} threads a row on {multiprocessors} multiprocessors");
                assert_eq!(blocks(1, team, multiprocessors), 1);
            }
        }
    }
}
