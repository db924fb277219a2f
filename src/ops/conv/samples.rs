//! What the three ops are checked on: the same geometries for each.

use super::sliding::{Sliding, Window};
use crate::shape::Shape;
use crate::testing::{Gen, Input, Sample};

/// Shapes of x and weight, then stride, padding before and after, and dilation for each axis, and groups.
pub(super) type Geometry = (&'static [usize], &'static [usize], &'static [(usize, (isize, isize), usize)], usize, &'static str);

pub(super) const PLAIN: (usize, (isize, isize), usize) = (1, (0, 0), 1);

pub(super) const CHECKED: &[Geometry] = &[
    (&[2, 3, 7], &[4, 3, 3], &[PLAIN], 1, ""),
    (&[1, 2, 8], &[2, 2, 2], &[(3, (1, 0), 1)], 1, "no remainder of the stride"),
    (&[1, 2, 9], &[2, 2, 2], &[(3, (1, 0), 1)], 1, "the kernel leaves out one position"),
    (&[1, 2, 10], &[2, 2, 2], &[(3, (1, 0), 1)], 1, "the kernel leaves out two positions"),
    (&[1, 1, 11], &[1, 1, 4], &[(4, (0, 0), 1)], 1, "the kernel leaves out three of four [E2]"),
    (&[2, 2, 4, 5], &[3, 2, 3, 2], &[(2, (1, 0), 1), (1, (0, 2), 2)], 1, "everything distinct on each axis [E1, E4]"),
    (&[1, 4, 4, 3], &[6, 2, 2, 2], &[(1, (1, 1), 2), (2, (0, 1), 1)], 2, "groups of 2 inputs and 3 outputs [E3]"),
    (&[1, 3, 3, 4], &[6, 1, 2, 3], &[(1, (1, 0), 1), (2, (1, 1), 1)], 3, "depthwise, two outputs for each channel [E3]"),
    (&[2, 5, 4, 3], &[6, 5, 2, 2], &[(1, (0, 0), 1), (2, (1, 0), 1)], 1, "enough channels for products of matrices"),
    (&[1, 10, 5], &[12, 5, 2], &[(1, (1, 1), 2)], 2, "groups with enough channels"),
    (&[1, 2, 3, 4, 3], &[2, 2, 2, 1, 3], &[(2, (0, 1), 1), (1, (1, 0), 1), (1, (2, 1), 2)], 1, "three axes"),
    (&[0, 2, 4], &[3, 2, 2], &[PLAIN], 1, "no images: the gradients of weight and bias are 0"),
    (&[2, 2, 3, 3], &[2, 2, 3, 3], &[PLAIN, PLAIN], 1, "a kernel as large as the input"),
    (&[3, 3, 3], &[3, 3, 3], &[(1, (1, 1), 1)], 1, "as many images, channels, positions and elements of the kernel [E6]"),
    (&[2, 6, 1, 1], &[5, 6, 1, 1], &[PLAIN, PLAIN], 1, "one position, and one element of the kernel [E5]"),
    (&[1, 5, 4, 8], &[6, 5, 1, 1], &[PLAIN, PLAIN], 1, "a product of matrices as it stands [E5]"),
    (&[2, 10, 5, 7], &[10, 5, 1, 1], &[PLAIN, PLAIN], 2, "one for each group"),
    (&[1, 5, 4, 5], &[5, 5, 1, 1], &[(2, (0, 0), 1), (3, (1, 0), 1)], 1, "one element of the kernel, but not every position"),
    (&[2, 0, 3], &[2, 0, 2], &[PLAIN], 1, "no channels: the bias alone"),
    (&[1, 2, 3], &[0, 2, 2], &[PLAIN], 1, "no outputs"),
    (&[1, 1, 2], &[1, 1, 2], &[(1, (3, 2), 1)], 1, "positions that see padding alone"),
    (&[1, 1, 6], &[1, 1, 2], &[(2, (0, -1), 2)], 1, "the end of the input is not looked at"),
];

/// Those that have most options at once.
const MIXED: std::ops::Range<usize> = 5..9;
/// The limit of sizes from which on only those are checked again.
pub(super) const SMALLEST: usize = 3;

const VALUES: &[Geometry] = &[
    (&[10, 5, 4, 3], &[5, 5, 3, 2], &[(1, (1, 1), 1), (1, (0, 1), 1)], 1, "tiles of several images, and a rest"),
    (&[1, 5, 200], &[5, 5, 2], &[(1, (1, 1), 1)], 1, "pieces of one image, and a rest"),
    (&[1, 1, 700], &[1, 1, 3], &[(2, (1, 1), 1)], 1, "pieces of one channel"),
    (&[1, 5, 262], &[5, 5, 260], &[PLAIN], 1, "so long a kernel that channels are taken in blocks"),
];

const TIMED: &[Geometry] = &[
    (&[4, 64, 56, 56], &[64, 64, 3, 3], &[(1, (1, 1), 1), (1, (1, 1), 1)], 1, ""),
    (&[32, 3, 32, 32], &[64, 3, 3, 3], &[(1, (1, 1), 1), (1, (1, 1), 1)], 1, ""),
    (&[4, 96, 56, 56], &[96, 1, 3, 3], &[(1, (1, 1), 1), (1, (1, 1), 1)], 96, ""),
    (&[4, 256, 28, 28], &[128, 256, 1, 1], &[PLAIN, PLAIN], 1, ""),
];

pub(super) fn sliding(&(x, w, axes, groups, _): &Geometry) -> Sliding {
    let axes = axes.iter().map(|&(stride, padding, dilation)| Window { stride, dilation, padding }).collect();
    Sliding { axes, groups, input: x[2..].into(), kernel: w[2..].into() }
}

/// The shape of the convolution's result.
pub(super) fn result(of: &Geometry) -> Shape {
    let spatial = sliding(of).output().unwrap_or(Shape::scalar());
    [of.0[0], of.1[0]].into_iter().chain(spatial.iter().copied()).collect()
}

/// The checks of an op with these inputs.
pub(super) fn all<O>(g: &mut Gen, op: fn(Sliding) -> O, inputs: fn(&mut Gen, &Geometry) -> Vec<Input>) -> Vec<Sample<O>> {
    let mut out = Vec::new();
    // Sizes do not depend on the limit: other values in all of them find nothing new.
    let whole = g.limit() <= SMALLEST;
    for of in if whole { CHECKED } else { &CHECKED[MIXED] } {
        out.push(Sample::check(op(sliding(of)), inputs(g, of)).note(of.4));
    }
    for of in if whole { VALUES } else { &[] } {
        out.push(Sample::value(op(sliding(of)), inputs(g, of)).note(of.4));
    }
    for of in TIMED {
        out.push(Sample::bench(op(sliding(of)), inputs(g, of)));
    }
    out
}

/// Shapes of images and windows, then stride, padding and dilation of each axis.
type Columns = (&'static [usize], &'static [usize], &'static [(usize, (isize, isize), usize)], &'static str);

pub(super) const COLUMNS: &[Columns] = &[
    (&[2, 2, 6], &[2], &[(2, (0, 0), 1)], "windows side by side"),
    (&[2, 1, 7], &[3], &[(1, (1, 1), 1)], "windows that overlap, with padding"),
    (&[1, 2, 9], &[2], &[(3, (0, 0), 1)], "windows with gaps, a rest that none reaches [E9]"),
    (&[1, 2, 5, 6], &[2, 3], &[(1, (1, 1), 2), (2, (2, 2), 1)], "everything distinct on each axis [E4]"),
    (&[1, 1, 3, 4, 3], &[2, 1, 3], &[(1, (0, 0), 1), (2, (0, 0), 1), (1, (1, 1), 1)], "three axes"),
    (&[1, 1, 4], &[4], &[(1, (0, 0), 1)], "a window as large as the image"),
    (&[3, 3, 3, 3], &[3, 3], &[(3, (0, 0), 1), (3, (0, 0), 1)], "as many images, channels and positions [E6]"),
    (&[1, 1, 2], &[2], &[(1, (3, 3), 1)], "windows in the padding alone"),
    (&[0, 2, 4], &[2], &[(2, (0, 0), 1)], "no images"),
    (&[1, 0, 4], &[2], &[(2, (0, 0), 1)], "no channels"),
    (&[1, 2, 0], &[2], &[(1, (1, 1), 1)], "images of padding alone"),
];

/// Windows over an image `x`.
pub(super) fn windows_of(x: &[usize], kernel: &[usize], axes: &[(usize, (isize, isize), usize)]) -> Sliding {
    let axes = axes.iter().map(|&(stride, padding, dilation)| Window { stride, dilation, padding }).collect();
    Sliding { axes, groups: 1, input: x[2..].into(), kernel: kernel.into() }
}

/// The shape of the columns of an image `x`, for samples.
pub(super) fn columns(x: &[usize], windows: &Sliding) -> Vec<usize> {
    let count = |s: &Shape| s.iter().product::<usize>();
    vec![x[0], x[1] * count(&windows.kernel), windows.output().map_or(0, |y| count(&y))]
}
