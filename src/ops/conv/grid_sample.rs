//! Images read at positions that another tensor holds.

use super::define;
use super::options::{GridSampleMode, GridSampleOptions, GridSamplePadding};
use super::samples::SMALLEST;
use crate::backend::Device;
use crate::dtype::DType;
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Composite, Describe, Math, Outputs, compose1};
use crate::ops::widened;
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// An image read at the positions of a grid; see [`Tensor::grid_sample`]. Inputs: x, grid.
#[derive(Clone, Debug)]
pub struct GridSample(pub GridSampleOptions);

/// What is read along one axis, `[batch, taps, positions]`: places as whole numbers, and weights; no weights where there is one tap.
struct Taps {
    at: Tensor,
    by: Option<Tensor>,
}

impl GridSample {
    /// A position where the image lies, by the rule of the padding. All elementwise, so that gradients follow.
    fn padded(&self, p: &Tensor, n: usize) -> Result<Tensor> {
        let last = n as f64 - 1.0;
        let inside = match self.0.padding {
            GridSamplePadding::Zeros => return Ok(p.clone()),
            GridSamplePadding::Border => p.clone(),
            GridSamplePadding::Reflection => {
                let (low, span) = if self.0.align_corners { (0.0, last) } else { (-0.5, n as f64) };
                if span == 0.0 {
                    return p.zeros_like();
                }
                let far = p.sub_scalar(low)?.abs()?;
                let turns = far.detach().div_scalar(span)?.floor()?;
                // 1 where the last turn leads back.
                let odd = turns.sub(&turns.mul_scalar(0.5)?.floor()?.mul_scalar(2.0)?)?;
                let rest = far.sub(&turns.mul_scalar(span)?)?;
                let way = odd.mul_scalar(-2.0)?.add_scalar(1.0)?;
                rest.mul(&way)?.add(&odd.mul_scalar(span)?)?.add_scalar(low)?
            }
        };
        inside.clamp(0.0, last)
    }

    /// What the positions `p`, `[batch, positions]`, read of an axis of `n`.
    fn taps(&self, p: &Tensor, n: usize) -> Result<Taps> {
        match self.0.mode {
            GridSampleMode::Nearest => Ok(Taps { at: self.padded(&p.detach(), n)?.round()?.unsqueeze(1)?, by: None }),
            GridSampleMode::Linear => {
                let p = self.padded(p, n)?;
                let below = p.detach().floor()?;
                let t = p.sub(&below)?;
                let by = Tensor::stack(&[&t.rsub_scalar(1.0)?, &t], 1)?;
                Ok(Taps { at: Tensor::stack(&[&below, &below.add_scalar(1.0)?], 1)?, by: Some(by) })
            }
            GridSampleMode::Cubic => {
                let below = p.detach().floor()?;
                let t = p.sub(&below)?;
                let (mut at, mut by) = (SmallVec::<[Tensor; 4]>::new(), SmallVec::<[Tensor; 4]>::new());
                for k in -1..3 {
                    at.push(self.padded(&below.add_scalar(f64::from(k))?, n)?);
                    by.push(cubic(&t, f64::from(k))?);
                }
                Ok(Taps { at: Tensor::stack(&at, 1)?, by: Some(Tensor::stack(&by, 1)?) })
            }
        }
    }
}

/// Keys's cubic of the distance `|t − k|` for `k` from −1 to 2, where `t` is from 0 to 1.
fn cubic(t: &Tensor, k: f64) -> Result<Tensor> {
    const A: f64 = -0.75;
    let far = !(0.0..=1.0).contains(&k);
    let x = if k > 0.0 { t.rsub_scalar(k)? } else { t.sub_scalar(k)? };
    let (a, b, c, d) = if far { (A, -5.0 * A, 8.0 * A, -4.0 * A) } else { (A + 2.0, -(A + 3.0), 0.0, 1.0) };
    x.mul_scalar(a)?.add_scalar(b)?.mul(&x)?.add_scalar(c)?.mul(&x)?.add_scalar(d)
}

/// 0, 1, 2 … on a device, without a copy from the host.
pub(super) fn counted(n: usize, dtype: DType, device: Device) -> Result<Tensor> {
    Tensor::full_on([n], 1.0, dtype, device)?.cumsum(0)?.sub_scalar(1.0)
}

impl Describe for GridSample {
    const NAME: &'static str = "grid_sample";
    const MATH: Math = Math {
        forward: "y[n, c, p] = Σ Πₐ w(qₐ − sₐ) · x[n, c, q] over the elements q around s = ((g + 1)·L − 1)/2, or (g + 1)·(L − 1)/2 with align_corners, \
                  for g = grid[n, p, ·], whose last axis names the last spatial axis first; w is a hat or Keys's cubic",
        vjp: "x̄ = ȳ by the same weights, added up; ḡ through the weights' slopes; places have none",
        kinks: "at whole positions the slope is that to the next element; where padding holds a position at a border it is 0",
        cost: "a composition: x as rows of channels, one row read for each tap (2 or 4 along each axis, multiplied), weighted and added: outputs·taps \
               numbers are held, and saved for the derivatives; x̄ adds rows by sorted places; on a device it waits for the check of places",
        references: "Jaderberg et al., Spatial Transformer Networks, arXiv:1506.02025; torch.nn.functional.grid_sample",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (x, grid, o) = (&x[0], &x[1], &self.0);
        let d = grid.shape.rank() - 2;
        let shape = [&x.shape[..2], &grid.shape[1..=d]].concat();
        vec![Nd::from_fn(shape, |i| {
            let mut terms = vec![(i[..2].to_vec(), S::one())];
            for a in 0..d {
                // The last axis is named first.
                let g = grid.at(&[&i[..1], &i[2..], &[d - 1 - a]].concat());
                let taps = define::read_at(o, g, x.shape[2 + a]);
                let part = |(at, w): &(Vec<usize>, S)| taps.iter().map(|&(j, v)| ([&at[..], &[j]].concat(), *w * v)).collect::<Vec<_>>();
                terms = terms.iter().flat_map(part).collect();
            }
            let terms: Vec<S> = terms.iter().map(|(at, w)| x.at(at) * *w).collect();
            S::sum(&terms)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        use GridSampleMode::*;
        use GridSamplePadding::*;
        // Positions apart from kinks: whole and half ones, and borders.
        let grid = |g: &mut Gen, shape: &[usize], wide: f64| {
            let mut input = g.uniform(shape, -wide, wide);
            let values: Vec<f64> = input.to_vec().iter().map(|v| (v * 64.0).round() / 64.0 + 1.0 / 256.0).collect();
            input = Input::values(shape, values);
            input
        };
        let mut out = Vec::new();
        // Sizes do not depend on the limit: other values in all of them find nothing new.
        let whole = g.limit() <= SMALLEST;
        for mode in [Linear, Nearest, Cubic] {
            for padding in [Zeros, Border, Reflection] {
                for align_corners in [false, true].into_iter().filter(|align| whole || (mode == Linear && *align)) {
                    let op = GridSample(GridSampleOptions { mode, padding, align_corners });
                    let x = g.normal([2, 1, 2, 3]);
                    let at = grid(g, &[2, 1, 2, 2], 1.5);
                    let sample = Sample::check(op.clone(), [x, at]);
                    out.push(if mode == Nearest { sample.no_grad(&[1]) } else { sample });
                    if mode != Cubic && !align_corners {
                        let sample = Sample::check(op, [g.normal([1, 1, 2, 3, 2]), grid(g, &[1, 1, 1, 2, 3], 1.3)]).note("volumes");
                        out.push(if mode == Nearest { sample.no_grad(&[1]) } else { sample });
                    }
                }
            }
        }
        let of = |mode, padding| GridSample(GridSampleOptions { mode, padding, align_corners: true });
        let one = grid(g, &[1, 2, 2, 2], 1.2);
        out.push(Sample::check(of(Linear, Reflection), [g.normal([1, 2, 1, 4]), one.clone()]).note("an axis of one element, reflected"));
        out.push(Sample::check(of(Linear, Zeros), [g.normal([0, 2, 3, 4]), g.normal([0, 2, 2, 2])]).note("no images"));
        out.push(Sample::check(of(Linear, Zeros), [g.normal([1, 2, 3, 4]), g.normal([1, 0, 2, 2])]).note("no positions"));
        out.push(Sample::check(of(Linear, Zeros), [g.normal([1, 0, 3, 4]), one.clone()]).note("no channels"));
        let far = Input::values([1, 1, 3, 2], [7e3, 0.1, 7.3, -3e4, -4.1, 0.3]);
        out.push(Sample::value(of(Linear, Zeros), [g.normal([1, 2, 3, 4]), far.clone()]).note("far away: nothing"));
        out.push(Sample::value(of(Cubic, Border), [g.normal([1, 2, 3, 4]), far]).note("far away: the border"));
        for (x, at, kind) in [
            (&[1, 2, 3][..], &[1, 2, 2, 2][..], ErrorKind::Shape),
            (&[1, 2, 3, 4], &[1, 2, 2, 3], ErrorKind::Shape),
            (&[1, 2, 3, 4], &[2, 2, 2, 2], ErrorKind::Shape),
            (&[1, 2, 3, 4], &[1, 2, 2], ErrorKind::Shape),
            (&[1, 2, 0, 4], &[1, 2, 2, 2], ErrorKind::Shape),
        ] {
            out.push(Sample::reject(of(Linear, Zeros), [g.normal(x), g.normal(at)], kind));
        }
        out.push(Sample::reject(of(Cubic, Zeros), [g.normal([1, 2, 2, 3, 4]), g.normal([1, 2, 2, 2, 3])], ErrorKind::Argument));
        out.push(Sample::reject(of(Linear, Zeros), [g.normal([1, 2, 3, 4]), one.clone().of_dtype(crate::F64)], ErrorKind::Dtype));
        out.push(Sample::reject(of(Linear, Zeros), [g.below(crate::I64, [1, 2, 3, 4], 3), one], ErrorKind::Dtype));
        out.push(Sample::bench(of(Linear, Zeros), [g.normal([8, 16, 64, 64]), g.uniform([8, 64, 64, 2], -1.1, 1.1)]));
        out
    }
}

impl Composite for GridSample {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let (x, grid, dtype) = (x[0], x[1], x[0].dtype());
        if !dtype.is_float() || grid.dtype() != dtype {
            bail!(dtype, "x is {dtype}, the grid {}: both must have one float type; cast one", grid.dtype());
        }
        let (xs, gs, d) = (x.shape(), grid.shape(), x.rank().saturating_sub(2));
        if !(2..=3).contains(&d) || gs.rank() != d + 2 || gs[d + 1] != d || gs[0] != xs[0] {
            let last = if xs.rank() == 5 { "[batch, .., .., .., 3]" } else { "[batch, .., .., 2]" };
            bail!(
                shape,
                "x {xs}, grid {gs}: expected x [batch, channels, height, width] or [batch, channels, depth, height, width], grid {last}"
            );
        }
        if xs[2..].contains(&0) {
            bail!(shape, "x {xs}: a spatial axis is empty");
        }
        if self.0.mode == GridSampleMode::Cubic && d != 2 {
            bail!(argument, "GridSampleMode::Cubic is for planes, found x {xs}");
        }
        let (images, channels, plane) = (xs[0], xs[1], xs[2..].iter().product::<usize>());
        let positions: usize = gs[1..=d].iter().product();
        let spatial = xs[2..].iter().copied();
        let result: Shape = [images, channels].into_iter().chain(gs[1..=d].iter().copied()).collect();
        if result.numel() == 0 {
            // Nothing is read, but what is tracked stays so.
            let zero = x.sum(..)?.add(&grid.sum(..)?)?.mul_scalar(0.0)?;
            return Ok(smallvec![zero.expand(result)?]);
        }
        let (x, grid) = (widened(x)?, widened(grid)?);
        // Where each tap stands among all elements, and its weight: [batch, taps of the first axis, .., positions].
        let (mut place, mut outside, mut weight): (Option<Tensor>, Option<Tensor>, Option<Tensor>) = (None, None, None);
        for (a, n) in spatial.enumerate() {
            let g = grid.select(-1, (d - 1 - a) as isize)?.reshape([images, positions])?;
            let p = match self.0.align_corners {
                true => g.add_scalar(1.0)?.mul_scalar((n as f64 - 1.0) / 2.0)?,
                false => g.add_scalar(1.0)?.mul_scalar(n as f64)?.sub_scalar(1.0)?.mul_scalar(0.5)?,
            };
            let taps = self.taps(&p, n)?;
            let mut shape: SmallVec<[usize; 5]> = smallvec![1; d + 2];
            (shape[0], shape[1 + a], shape[d + 1]) = (images, taps.at.shape()[1], positions);
            let at = taps.at.detach().cast(DType::F64)?.reshape(&shape[..])?;
            let beside = at.ge_scalar(0.0)?.logical_and(&at.le_scalar(n as f64 - 1.0)?)?.logical_not()?;
            place = Some(match place {
                None => at,
                Some(p) => p.mul_scalar(n as f64)?.add(&at)?,
            });
            outside = Some(outside.map_or(Ok(beside.clone()), |o| o.logical_or(&beside))?);
            if let Some(by) = taps.by {
                let by = by.reshape(&shape[..])?;
                weight = Some(weight.map_or(Ok(by.clone()), |w| w.mul(&by))?);
            }
        }
        let (Some(place), Some(outside)) = (place, outside) else { bail!(internal, "no axes") };
        // A row of zeros comes after all others: what is outside.
        let first = counted(images, DType::F64, x.device())?.mul_scalar(plane as f64)?;
        let first = first.reshape(Shape::from_iter(std::iter::once(images).chain(std::iter::repeat_n(1, d + 1))))?;
        let rows = place.add(&first)?.masked_fill(&outside, (images * plane) as f64)?;
        let taps = rows.numel() / (images * positions);
        let table =
            x.reshape([images, channels, plane])?.transpose(1, 2)?.reshape([images * plane, channels])?.pad(&[(0, 1), (0, 0)], 0.0)?;
        let read = table.index_select(0, &rows.cast(DType::I64)?.reshape([images * taps * positions])?)?;
        let y = match weight {
            None => read.reshape([images, positions, channels])?,
            Some(w) => read.reshape([images, taps, positions, channels])?.mul(&w.reshape([images, taps, positions, 1])?)?.sum(1)?,
        };
        Ok(smallvec![y.transpose(1, 2)?.reshape(result)?.cast(dtype)?])
    }
}

impl Tensor {
    /// Reads images at the positions of a grid: `[batch, channels, height, width]` by `[batch, rows, columns, 2]`, or volumes by positions of
    /// three numbers. With [`Tensor::affine_grid`] it is a spatial transformer.
    ///
    /// ```
    /// use cotangent::{Tensor, ops::GridSampleOptions};
    /// let x = Tensor::from_slice(&[1f32, 2., 3., 4.], [1, 1, 2, 2])?;
    /// let grid = Tensor::from_slice(&[0f32, 0., -0.5, -0.5, 0.5, -0.5], [1, 1, 3, 2])?; // (column, row) from −1 to 1
    /// assert_eq!(x.grid_sample(&grid, &GridSampleOptions::default())?.to_vec::<f32>()?, [2.5, 1., 2.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Shapes
    /// The last axis of the grid holds positions along width, height (and depth), in this order: −1 and 1 are the borders of the image, or with
    /// `align_corners` the middles of its first and last elements. The result is `[batch, channels, rows, columns]`.
    ///
    /// # Gradient
    /// `x̄`: `ȳ` by the weights of each position, added up. `ḡ`: through the slopes of the weights; 0 for the nearest element, and where the
    /// padding holds a position at a border. Saves what was read: 4 numbers for each of the result in a plane, 8 in a volume, 16 of cubics.
    ///
    /// # Numerics
    /// Half types are computed in f32 and rounded once. A position that is NaN or infinite gives NaN; the nearest element of it is 0.
    ///
    /// # Errors
    /// Shape error when the axes do not fit each other, or one of the image is empty; argument error for cubics of volumes; dtype error
    /// unless both have the same float type.
    #[track_caller]
    pub fn grid_sample(&self, grid: &Tensor, options: &GridSampleOptions) -> Result<Tensor> {
        compose1(GridSample(*options), &[self, grid])
    }
}
