//! Grids of positions that an affine map takes from.

use super::grid_sample::counted;
use crate::error::{Error, ErrorKind, Result, bail};
use crate::op::{Composite, Describe, Math, Outputs, compose1};
use crate::ops::widened;
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// Positions that an affine map takes from; see [`Tensor::affine_grid`].
#[derive(Clone, Debug)]
pub struct AffineGrid {
    /// Spatial extents of the result, two or three.
    pub output: Shape,
    /// Whether −1 and 1 are the middles of the first and the last elements.
    pub align_corners: bool,
}

impl Describe for AffineGrid {
    const NAME: &'static str = "affine_grid";
    const MATH: Math = Math {
        forward: "y[n, p, ·] = θ[n] · (s, 1), where s are the middles of elements p in −1 to 1, the last spatial axis first: (2p + 1)/L − 1, \
                  or 2p/(L − 1) − 1 with align_corners",
        vjp: "θ̄ = Σₚ ȳ[n, p, ·] · (s, 1)ᵀ",
        kinks: "linear",
        cost: "a composition: positions, and a product with them; saves the positions",
        references: "Jaderberg et al., Spatial Transformer Networks, arXiv:1506.02025; torch.nn.functional.affine_grid",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let d = self.output.rank();
        let shape = [&x[0].shape[..1], &self.output[..], &[d]].concat();
        vec![Nd::from_fn(shape, |i| {
            let mut terms = vec![x[0].at(&[i[0], i[d + 1], d])];
            for a in 0..d {
                let (p, n) = (i[1 + a] as f64, self.output[a] as f64);
                let s = match self.align_corners {
                    true if n == 1.0 => S::zero(),
                    true => S::lit(2.0 * p) / S::lit(n - 1.0) - S::one(),
                    false => S::lit(2.0 * p + 1.0) / S::lit(n) - S::one(),
                };
                terms.push(x[0].at(&[i[0], i[d + 1], d - 1 - a]) * s);
            }
            S::sum(&terms)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let of = |output: &[usize], align_corners| AffineGrid { output: output.into(), align_corners };
        let mut out = Vec::new();
        for align in [false, true] {
            out.push(Sample::check(of(&[3, 4], align), [g.normal([2, 2, 3])]));
            out.push(Sample::check(of(&[2, 1, 3], align), [g.normal([2, 3, 4])]).note("volumes, an axis of one element"));
            out.push(Sample::check(of(&[2, 2], align), [g.normal([0, 2, 3])]).note("no maps"));
        }
        for (output, theta, kind) in [
            (&[3, 4][..], &[2, 3, 4][..], ErrorKind::Shape),
            (&[3, 4], &[2, 3], ErrorKind::Shape),
            (&[3, 0], &[1, 2, 3], ErrorKind::Argument),
            (&[3], &[1, 1, 2], ErrorKind::Argument),
        ] {
            out.push(Sample::reject(of(output, false), [g.normal(theta)], kind));
        }
        out.push(Sample::reject(of(&[3, 4], false), [g.below(crate::I64, [1, 2, 3], 3)], ErrorKind::Dtype));
        out.push(Sample::bench(of(&[128, 128], false), [g.normal([16, 2, 3])]));
        out
    }
}

impl Composite for AffineGrid {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let (theta, dtype, d) = (x[0], x[0].dtype(), self.output.rank());
        if !dtype.is_float() {
            bail!(dtype, "expected floats, found {dtype} {}", theta.shape());
        }
        if !(2..=3).contains(&d) || self.output.contains(&0) {
            bail!(argument, "output {} must be two or three extents of at least 1", self.output);
        }
        if theta.rank() != 3 || theta.shape()[1..] != [d, d + 1] {
            bail!(shape, "theta {}: expected [batch, {d}, {}] for an output {}", theta.shape(), d + 1, self.output);
        }
        let wide = widened(theta)?;
        let Some(positions) = self.output.iter().try_fold(1usize, |n, &e| n.checked_mul(e)) else {
            return Err(Error::shape(format!("output {}: more positions than memory can address", self.output)));
        };
        // Before the positions are made, which are as many.
        crate::memory::ensure(positions.saturating_mul(theta.shape()[0].max(1)).saturating_mul((d + 1) * wide.dtype().size()))?;
        let grid: SmallVec<[usize; 3]> = self.output.iter().copied().collect();
        // Rows (s, 1): positions along the last axis first.
        let mut columns = SmallVec::<[Tensor; 4]>::new();
        for a in (0..d).rev() {
            let n = self.output[a] as f64;
            let p = counted(self.output[a], wide.dtype(), wide.device())?;
            let s = match self.align_corners {
                true => p.mul_scalar(2.0)?.sub_scalar(n - 1.0)?.div_scalar((n - 1.0).max(1.0))?,
                false => p.mul_scalar(2.0)?.sub_scalar(n - 1.0)?.div_scalar(n)?,
            };
            let mut shape: SmallVec<[usize; 3]> = smallvec![1; d];
            shape[a] = self.output[a];
            columns.push(s.reshape(&shape[..])?.expand(&grid[..])?.reshape([positions])?);
        }
        columns.push(Tensor::full_on([positions], 1.0, wide.dtype(), wide.device())?);
        let rows = Tensor::stack(&columns, 1)?;
        let result: Shape = [theta.shape()[0]].into_iter().chain(grid).chain([d]).collect();
        let y = rows.unsqueeze(0)?.expand([theta.shape()[0], positions, d + 1])?.matmul(&wide.transpose(1, 2)?)?;
        Ok(smallvec![y.reshape(result)?.cast(dtype)?])
    }
}

impl Tensor {
    /// For each affine map `[2, 3]` of a batch, the position that it takes each element of `[height, width]` from: a grid for
    /// [`Tensor::grid_sample`]. With maps `[3, 4]` and three extents a grid of volumes.
    ///
    /// ```
    /// use cotangent::Tensor;
    /// let stay = Tensor::from_slice(&[1f32, 0., 0., 0., 1., 0.], [1, 2, 3])?;
    /// let grid = stay.affine_grid([1, 2], false)?; // (column, row)
    /// assert_eq!(grid.to_vec::<f32>()?, [-0.5, 0., 0.5, 0.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Shapes
    /// `[batch, height, width, 2]`. The extents are spatial ones; PyTorch's `size` has batch and channels before them.
    ///
    /// # Gradient
    /// `ȳ` times the positions, added up; saves those.
    ///
    /// # Errors
    /// Shape error for other maps; argument error unless there are two or three extents of at least 1; dtype error for integers.
    #[track_caller]
    pub fn affine_grid<const D: usize>(&self, output: [usize; D], align_corners: bool) -> Result<Tensor> {
        compose1(AffineGrid { output: output.into(), align_corners }, &[self])
    }
}
