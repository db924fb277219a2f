//! The textbook's walk over positions, for the definitions alone.

use super::sliding::Window;
use crate::testing::{Nd, Scalar};

/// All indices below some extents, in row-major order.
fn places(extents: &[usize]) -> Vec<Vec<usize>> {
    let mut out = vec![Vec::new()];
    for &extent in extents {
        out = out.iter().flat_map(|i| (0..extent).map(move |j| [&i[..], &[j]].concat())).collect();
    }
    out
}

/// For each position of the output, and each element of the kernel in turn, which position of the input they meet: none in the
/// padding. Positions and elements are counted in row-major order.
pub(super) fn meetings(axes: &[Window], input: &[usize], output: &[usize], kernel: &[usize]) -> Vec<Vec<Option<usize>>> {
    let meet = |p: &[usize], k: &[usize]| {
        let mut place = 0;
        for (a, window) in axes.iter().enumerate() {
            let at = (p[a] * window.stride + k[a] * window.dilation) as isize - window.padding.0;
            if at < 0 || at >= input[a] as isize {
                return None;
            }
            place = place * input[a] + at as usize;
        }
        Some(place)
    };
    let taps = places(kernel);
    places(output).iter().map(|p| taps.iter().map(|k| meet(p, k)).collect()).collect()
}

/// The input at a meeting in some channel of some image; the padding is 0.
pub(super) fn read<S: Scalar>(x: &Nd<S>, image: usize, channel: usize, at: Option<usize>) -> S {
    let plane: usize = x.shape[2..].iter().product();
    at.map_or(S::zero(), |at| x.data[(image * x.shape[1] + channel) * plane + at])
}
