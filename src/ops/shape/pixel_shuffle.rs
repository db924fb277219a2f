//! Channels that become positions, and positions that become channels.

use crate::error::{ErrorKind, Result, bail};
use crate::op::{Composite, Describe, Math, Outputs, compose1};
use crate::shape::{Axis, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// `[.., c·r², h, w]` to `[.., c, h·r, w·r]`, or with `BACK` the other way; see [`Tensor::pixel_shuffle`].
#[derive(Clone, Debug)]
pub struct PixelShuffle<const BACK: bool> {
    /// How many times finer the result is along both axes.
    pub factor: usize,
}

impl<const BACK: bool> Describe for PixelShuffle<BACK> {
    const NAME: &'static str = if BACK { "pixel_unshuffle" } else { "pixel_shuffle" };
    const MATH: Math = Math {
        forward: if BACK {
            "y[c·r² + i·r + j, h, w] = x[c, h·r + i, w·r + j] for i, j < r"
        } else {
            "y[c, h·r + i, w·r + j] = x[c·r² + i·r + j, h, w] for i, j < r"
        },
        vjp: if BACK { "x̄ = pixel_shuffle(ȳ)" } else { "x̄ = pixel_unshuffle(ȳ)" },
        kinks: "linear",
        cost: "a composition: reshape, permute, reshape; saves nothing",
        references: "Shi et al., Real-Time Single Image Super-Resolution, arXiv:1609.05158; torch.nn.PixelShuffle",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (r, shape) = (self.factor, &x[0].shape);
        let lead = shape.rank() - 3;
        let [c, h, w] = [shape[lead], shape[lead + 1], shape[lead + 2]];
        let tail = if BACK { [c * r * r, h / r, w / r] } else { [c / (r * r), h * r, w * r] };
        vec![Nd::from_fn([&shape[..lead], &tail].concat(), |i| {
            let [c, h, w] = [i[lead], i[lead + 1], i[lead + 2]];
            let from = if BACK { [c / (r * r), h * r + c / r % r, w * r + c % r] } else { [c * r * r + h % r * r + w % r, h / r, w / r] };
            x[0].at(&[&i[..lead], &from].concat())
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let of = |factor: usize| PixelShuffle { factor };
        let fits = |shape: [usize; 3]| if BACK { [shape[0], shape[1] * 2, shape[2] * 2] } else { [shape[0] * 4, shape[1], shape[2]] };
        let mut out = vec![
            Sample::check(of(2), [g.normal(fits([2, 2, 3]))]),
            Sample::check(of(2), [g.normal([&[2][..], &fits([1, 3, 1])].concat())]).note("images"),
            Sample::check(of(1), [g.normal([2, 3, 2])]).note("nothing changes"),
            Sample::check(of(2), [g.normal(fits([0, 2, 3]))]).note("no channels"),
            Sample::check(of(3), [g.normal(if BACK { [1, 3, 6] } else { [9, 1, 2] })]),
        ];
        out.push(Sample::reject(of(2), [g.normal([3, 3, 2])], ErrorKind::Shape));
        out.push(Sample::reject(of(2), [g.normal([4, 2])], ErrorKind::Shape));
        out.push(Sample::reject(of(0), [g.normal([4, 2, 2])], ErrorKind::Argument));
        out.push(Sample::bench(of(2), [g.normal(fits([64, 128, 128]))]));
        out
    }
}

impl<const BACK: bool> Composite for PixelShuffle<BACK> {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let (x, r) = (x[0], self.factor);
        let Some(r2) = r.checked_mul(r).filter(|_| r > 0) else { bail!(argument, "factor must be from 1 to 2^32 - 1, found {r}") };
        let &[ref lead @ .., c, h, w] = x.shape().dims() else {
            bail!(shape, "expected x [.., channels, height, width], found {}", x.shape())
        };
        if BACK && !(h.is_multiple_of(r) && w.is_multiple_of(r)) {
            bail!(shape, "height and width of x {} are no multiples of the factor {r}", x.shape());
        }
        if !BACK && !c.is_multiple_of(r2) {
            bail!(shape, "the {c} channels of x {} are no multiple of {r2}, the factor's square", x.shape());
        }
        let n = lead.len();
        let with = |tail: &[usize]| lead.iter().chain(tail).copied().collect::<Shape>();
        let (split, order, joined) = if BACK {
            (with(&[c, h / r, r, w / r, r]), [0, 2, 4, 1, 3], with(&[c * r2, h / r, w / r]))
        } else {
            (with(&[c / r2, r, r, h, w]), [0, 3, 1, 4, 2], with(&[c / r2, h * r, w * r]))
        };
        let order: SmallVec<[Axis; 8]> = (0..n).chain(order.into_iter().map(|a| n + a)).map(Axis::from).collect();
        Ok(smallvec![x.reshape(split)?.permute(&order[..])?.reshape(joined)?])
    }
}

impl Tensor {
    /// Channels as positions: `[.., c·r², h, w]` becomes `[.., c, h·r, w·r]`, so that a network widens images by computing more channels.
    ///
    /// # Gradient
    /// [`Tensor::pixel_unshuffle`] of `ȳ`; saves nothing.
    ///
    /// # Errors
    /// Shape error unless the channels are a multiple of `factor²`, or for less than three axes; argument error for a factor of 0.
    #[track_caller]
    pub fn pixel_shuffle(&self, factor: usize) -> Result<Tensor> {
        compose1(PixelShuffle::<false> { factor }, &[self])
    }

    /// Positions as channels, which [`Tensor::pixel_shuffle`] undoes: `[.., c, h·r, w·r]` becomes `[.., c·r², h, w]`.
    ///
    /// # Gradient
    /// [`Tensor::pixel_shuffle`] of `ȳ`; saves nothing.
    ///
    /// # Errors
    /// Shape error unless height and width are multiples of `factor`, or for less than three axes; argument error for a factor of 0.
    #[track_caller]
    pub fn pixel_unshuffle(&self, factor: usize) -> Result<Tensor> {
        compose1(PixelShuffle::<true> { factor }, &[self])
    }
}
