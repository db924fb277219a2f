//! Borders that continue a tensor.

use crate::error::{ErrorKind, Result, bail};
use crate::memory;
use crate::op::{Composite, Describe, Math, Outputs, compose1};
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// What stands beyond the ends of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PadMode {
    /// The tensor in a mirror that stands at its last element, which is not repeated: `c b | a b c | b a`.
    Reflect,
    /// The last element again and again: `a a | a b c | c c`.
    Replicate,
    /// The tensor again: `b c | a b c | a b`.
    Circular,
}

/// A border that continues a tensor; see [`Tensor::pad_with`].
#[derive(Clone, Debug)]
pub struct PadWith {
    /// Positions before and after, for every axis.
    pub by: SmallVec<[(usize, usize); 4]>,
    /// What they hold.
    pub mode: PadMode,
}

impl Describe for PadWith {
    const NAME: &'static str = "pad_with";
    const MATH: Math = Math {
        forward: "y = x with its own elements before and after it along every axis: mirrored, the last ones, or from its other end",
        vjp: "x̄ = the sum of ȳ over the positions that show an element",
        kinks: "linear",
        cost: "a composition: along one axis after the other a concatenation of parts; saves nothing",
        references: "torch.nn.functional.pad, modes reflect, replicate, circular",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let shape: Vec<usize> = x[0].shape.iter().zip(&self.by).map(|(d, (before, after))| before + d + after).collect();
        vec![Nd::from_fn(shape, |i| {
            let from = |a: usize| {
                let (n, at) = (x[0].shape[a] as isize, i[a] as isize - self.by[a].0 as isize);
                match self.mode {
                    PadMode::Circular => (at + n) % n,
                    PadMode::Replicate => at.max(0).min(n - 1),
                    PadMode::Reflect if at < 0 => -at,
                    PadMode::Reflect if at >= n => 2 * (n - 1) - at,
                    PadMode::Reflect => at,
                }
            };
            let at: Vec<usize> = (0..i.len()).map(|a| from(a) as usize).collect();
            x[0].at(&at)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for mode in [PadMode::Reflect, PadMode::Replicate, PadMode::Circular] {
            let of = |by: &[(usize, usize)]| PadWith { by: by.into(), mode };
            out.push(Sample::check(of(&[(1, 2), (0, 1)]), [g.normal([3, 4])]));
            out.push(Sample::check(of(&[(0, 0), (2, 0), (1, 1)]), [g.normal([2, 3, 2])]));
            out.push(Sample::check(of(&[(0, 0), (0, 0)]), [g.normal([2, 3])]).note("nothing added"));
            out.push(Sample::check(of(&[(0, 0), (1, 1)]), [g.normal([0, 3])]).note("no elements"));
            out.push(Sample::reject(of(&[(1, 1)]), [g.normal([2, 3])], ErrorKind::Shape));
            out.push(Sample::reject(of(&[(0, 1), (0, 0)]), [g.normal([0, 3])], ErrorKind::Shape));
        }
        let of = |by: &[(usize, usize)], mode| PadWith { by: by.into(), mode };
        out.push(Sample::check(of(&[(2, 2)], PadMode::Reflect), [g.normal([3])]).note("as many as there can be"));
        out.push(Sample::check(of(&[(3, 3)], PadMode::Circular), [g.normal([3])]).note("as many as there can be"));
        out.push(Sample::check(of(&[(5, 4)], PadMode::Replicate), [g.normal([1])]).note("one element"));
        out.push(Sample::reject(of(&[(3, 0)], PadMode::Reflect), [g.normal([3])], ErrorKind::Shape));
        out.push(Sample::reject(of(&[(0, 4)], PadMode::Circular), [g.normal([3])], ErrorKind::Shape));
        out.push(Sample::bench(of(&[(0, 0), (1, 1), (1, 1)], PadMode::Reflect), [g.normal([64, 128, 128])]));
        out
    }
}

impl Composite for PadWith {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let (x, by) = (x[0], &self.by);
        if by.len() != x.rank() {
            bail!(shape, "{} pairs of widths were given for the {} axes of {}", by.len(), x.rank(), x.shape());
        }
        let mut y = x.clone();
        for (axis, &(before, after)) in by.iter().enumerate().filter(|(_, by)| **by != (0, 0)) {
            let n = y.shape()[axis];
            let most = match self.mode {
                PadMode::Reflect => n.saturating_sub(1),
                PadMode::Circular => n,
                PadMode::Replicate => {
                    if n == 0 {
                        0
                    } else {
                        usize::MAX
                    }
                }
            };
            if before.max(after) > most {
                bail!(shape, "axis {axis} of {} has too few elements for a border of {before} and {after} by {:?}", x.shape(), self.mode);
            }
            let repeated = |at: usize, n: usize| {
                let shape: SmallVec<[usize; 6]> = y.shape().iter().enumerate().map(|(a, &d)| if a == axis { n } else { d }).collect();
                y.narrow(axis, at, 1)?.expand(&shape[..])
            };
            let [low, high] = match self.mode {
                PadMode::Reflect => [y.narrow(axis, 1, before)?.flip(axis)?, y.narrow(axis, n - 1 - after, after)?.flip(axis)?],
                PadMode::Circular => [y.narrow(axis, n - before, before)?, y.narrow(axis, 0, after)?],
                PadMode::Replicate => [repeated(0, before)?, repeated(n - 1, after)?],
            };
            let mut parts = memory::room(3)?;
            parts.extend([(before, &low), (1, &y), (after, &high)].into_iter().filter_map(|(n, t)| (n > 0).then_some(t)));
            y = Tensor::concat(&parts, axis)?;
        }
        Ok(smallvec![y])
    }
}

impl Tensor {
    /// Surrounds the tensor with its own elements: one pair `(before, after)` for every axis, outermost first. A constant border:
    /// [`Tensor::pad`].
    ///
    /// ```
    /// use cotangent::{Tensor, ops::PadMode};
    /// let x = Tensor::from_slice(&[1f32, 2., 3.], [3])?;
    /// assert_eq!(x.pad_with(&[(2, 1)], PadMode::Reflect)?.to_vec::<f32>()?, [3., 2., 1., 2., 3., 2.]);
    /// assert_eq!(x.pad_with(&[(2, 1)], PadMode::Replicate)?.to_vec::<f32>()?, [1., 1., 1., 2., 3., 3.]);
    /// assert_eq!(x.pad_with(&[(2, 1)], PadMode::Circular)?.to_vec::<f32>()?, [2., 3., 1., 2., 3., 1.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// `ȳ` of all the positions that show an element, added up; saves nothing.
    ///
    /// # Errors
    /// Shape error when the number of pairs is not the rank, or an axis has too few elements: more than the border to reflect them, as many
    /// to go round, one to repeat it.
    #[doc(alias("reflection_pad", "replication_pad", "circular_pad"))]
    #[track_caller]
    pub fn pad_with(&self, by: &[(usize, usize)], mode: PadMode) -> Result<Tensor> {
        compose1(PadWith { by: by.into(), mode }, &[self])
    }
}
