//! The textbook's walk over positions, for the definitions alone.

use super::options::{GridSampleMode, GridSampleOptions, GridSamplePadding};
use super::sliding::Window;
use crate::backend::resample::{InterpolateMode, Resampling};
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

/// How many steps a kernel takes along each axis: as many as its last element stays within the padded input for.
pub(super) fn positions(axes: &[Window], input: &[usize], kernel: &[usize]) -> Vec<usize> {
    let steps = |(window, (&n, &k)): (&Window, (&usize, &usize))| {
        let last = ((k - 1) * window.dilation) as isize - window.padding.0;
        (0..).find(|p| (p * window.stride) as isize + last >= n as isize + window.padding.1).unwrap_or(0)
    };
    axes.iter().zip(input.iter().zip(kernel)).map(steps).collect()
}

/// The input at a meeting in some channel of some image; the padding is 0.
pub(super) fn read<S: Scalar>(x: &Nd<S>, image: usize, channel: usize, at: Option<usize>) -> S {
    let plane: usize = x.shape[2..].iter().product();
    at.map_or(S::zero(), |at| x.data[(image * x.shape[1] + channel) * plane + at])
}

/// What output `i` of a resampled axis is made of: elements and their weights.
pub(super) fn made_of<S: Scalar>(r: &Resampling, i: usize) -> Vec<(usize, S)> {
    let (n, m) = (r.from, r.to);
    let (zero, one, half, lit) = (S::zero(), S::one(), S::lit(0.5), |k: usize| S::lit(k as f64));
    let step = match r.factor {
        _ if r.align_corners && m == 1 => zero,
        _ if r.align_corners => lit(n - 1) / lit(m - 1),
        Some(f) => one / S::lit(f),
        None => lit(n) / lit(m),
    };
    let hat = |x: S| if x.re().abs() < 1.0 { one - x.abs() } else { zero };
    let keys = |x: S, a: f64| {
        let (x, a) = (x.abs(), S::lit(a));
        let (square, cube) = (x * x, x * x * x);
        match x.re() {
            d if d < 1.0 => (a + S::lit(2.0)) * cube - (a + S::lit(3.0)) * square + one,
            d if d < 2.0 => a * (cube - S::lit(5.0) * square + S::lit(8.0) * x - S::lit(4.0)),
            _ => zero,
        }
    };
    let bump = |x: S| match (r.mode, r.antialias) {
        (InterpolateMode::Linear, _) => hat(x),
        (_, antialias) => keys(x, if antialias { -0.5 } else { -0.75 }),
    };
    // Elements lie at whole numbers.
    let middle = (lit(i) + half) * step - half;
    match r.mode {
        InterpolateMode::Nearest | InterpolateMode::NearestExact => {
            // Twice the position, in parts of `m`.
            let twice = 2 * i + usize::from(r.mode == InterpolateMode::NearestExact);
            let reached = |j: &usize| match r.factor {
                None => 2 * j * m <= twice * n,
                // The quotient is not exact: what is as good as reached is.
                Some(f) => *j as f64 <= twice as f64 / 2.0 * (1.0 / f) * (1.0 + 2f64.powi(-40)),
            };
            vec![((0..n).rev().find(reached).unwrap_or(0), one)]
        }
        InterpolateMode::Area => {
            let touched: Vec<usize> = (0..n).filter(|j| (j + 1) * m > i * n && j * m < (i + 1) * n).collect();
            touched.iter().map(|&j| (j, one / lit(touched.len()))).collect()
        }
        InterpolateMode::Linear if n == m => vec![(i, one)],
        InterpolateMode::Cubic if n == m && r.antialias => vec![(i, one)],
        _ if r.antialias => {
            let wide = if step.re() > 1.0 { step } else { one };
            let w: Vec<S> = (0..n).map(|j| bump((lit(j) - middle) / wide)).collect();
            let all = S::sum(&w);
            w.into_iter().enumerate().filter(|(_, w)| w.re() != 0.0).map(|(j, w)| (j, w / all)).collect()
        }
        mode => {
            let mut at = if r.align_corners { lit(i) * step } else { middle };
            // Lines end at the first and the last element; what a cubic sees outside is the element at the border.
            if mode == InterpolateMode::Linear {
                at = if at.re() < 0.0 { zero } else { at };
                at = if at.re() > n as f64 - 1.0 { lit(n - 1) } else { at };
            }
            let mut w = vec![zero; n];
            for j in -3..n as isize + 3 {
                let place = j.max(0).min(n as isize - 1) as usize;
                w[place] = w[place] + bump(S::lit(j as f64) - at);
            }
            // Beside a position on an element a rounding error may give its neighbour a little.
            w.into_iter().enumerate().filter(|(j, w)| w.re() != 0.0 || (*j as f64 - at.re()).abs() < 1.5).collect()
        }
    }
}

/// A weighted element; one of weight 0 takes no part, whatever it is.
pub(super) fn weighted<S: Scalar>(w: S, x: S) -> S {
    if w.re() == 0.0 && !x.re().is_finite() { S::zero() } else { w * x }
}

/// What position `g` of a grid reads of an axis of `n`: elements and their weights.
pub(super) fn read_at<S: Scalar>(o: &GridSampleOptions, g: S, n: usize) -> Vec<(usize, S)> {
    let (one, half, size) = (S::one(), S::lit(0.5), S::lit(n as f64));
    let last = n as f64 - 1.0;
    let place = if o.align_corners { (g + one) * (size - one) * half } else { ((g + one) * size - one) * half };
    // Where a position goes: into the image, by going round between its ends, and then to the border.
    let inside = |mut p: S| {
        let (low, high) = if o.align_corners { (0.0, last) } else { (-0.5, last + 0.5) };
        match o.padding {
            GridSamplePadding::Zeros => return p,
            GridSamplePadding::Reflection if low == high => return S::zero(),
            GridSamplePadding::Reflection => {
                while p.re() < low || p.re() > high {
                    p = S::lit(2.0 * if p.re() < low { low } else { high }) - p;
                }
            }
            GridSamplePadding::Border => {}
        }
        if p.re() <= 0.0 {
            S::zero()
        } else if p.re() >= last {
            S::lit(last)
        } else {
            p
        }
    };
    let keys = |x: S, far: bool| {
        let a = S::lit(-0.75);
        match far {
            true => a * (x * x * x - S::lit(5.0) * x * x + S::lit(8.0) * x - S::lit(4.0)),
            false => (a + S::lit(2.0)) * x * x * x - (a + S::lit(3.0)) * x * x + one,
        }
    };
    let taps = match o.mode {
        GridSampleMode::Nearest => {
            let (p, low) = (inside(place).re(), inside(place).re().floor());
            let up = p - low > 0.5 || (p - low == 0.5 && low % 2.0 != 0.0);
            vec![(low + f64::from(up), one)]
        }
        GridSampleMode::Linear => {
            let p = inside(place);
            let low = p.re().floor();
            let t = p - S::lit(low);
            vec![(low, one - t), (low + 1.0, t)]
        }
        GridSampleMode::Cubic => {
            let low = place.re().floor();
            let t = place - S::lit(low);
            let tap = |k: f64, distance: S, far: bool| (inside(S::lit(low + k)).re(), keys(distance, far));
            vec![tap(-1.0, one + t, true), tap(0.0, t, false), tap(1.0, one - t, false), tap(2.0, S::lit(2.0) - t, true)]
        }
    };
    taps.into_iter().filter(|(at, _)| *at >= 0.0 && *at <= last).map(|(at, w)| (at as usize, w)).collect()
}
