//! Optimizer steps in one pass over their four arrays.

use super::math::Real;
use super::par::*;
use super::simd;

const PIECE: usize = 16 * 1024;

/// The scalars of one Adam step, computed in `f64`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamStep {
    /// `1 − lr·weight_decay`.
    pub(crate) shrink: f64,
    /// `lr / (1 − β₁ᵗ)`.
    pub(crate) rate: f64,
    /// `√(1 − β₂ᵗ)`.
    pub(crate) root: f64,
    pub(crate) b1: f64,
    pub(crate) b2: f64,
    pub(crate) eps: f64,
}

/// Updates parameters `p` and moments `m`, `v` (and the largest `v` so far) from gradients `g`.
pub(crate) fn adam_update<T: Real>(p: &mut [T], g: &[T], m: &mut [T], v: &mut [T], largest: Option<&mut [T]>, s: AdamStep) {
    let c = |x: f64| T::from_f64(x);
    // Division by the root is folded into one factor: 1/root is exact enough in f64 before rounding once.
    let (shrink, rate, root, eps) = (c(s.shrink), c(s.rate), c(s.root), c(s.eps));
    let (w1, b2, w2) = (c(1.0 - s.b1), c(s.b2), c(1.0 - s.b2));
    let piece = |p: &mut [T], g: &[T], m: &mut [T], v: &mut [T], mut l: Option<&mut [T]>| {
        simd::dispatch(
            #[inline(always)]
            || match &mut l {
                None => {
                    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m.iter_mut()).zip(v.iter_mut()) {
                        *m = (g - *m).mul_add(w1, *m);
                        *v = (g * w2).mul_add(g, *v * b2);
                        *p = *p * shrink - rate * *m / (v.sqrt() / root + eps);
                    }
                }
                Some(l) => {
                    for ((((p, &g), m), v), l) in p.iter_mut().zip(g).zip(m.iter_mut()).zip(v.iter_mut()).zip(l.iter_mut()) {
                        *m = (g - *m).mul_add(w1, *m);
                        *v = (g * w2).mul_add(g, *v * b2);
                        *l = l.max_nan(*v);
                        *p = *p * shrink - rate * *m / (l.sqrt() / root + eps);
                    }
                }
            },
        );
    };
    match largest {
        None if p.len() <= PIECE => piece(p, g, m, v, None),
        None => p
            .par_chunks_mut(PIECE)
            .zip(g.par_chunks(PIECE))
            .zip(m.par_chunks_mut(PIECE).zip(v.par_chunks_mut(PIECE)))
            .for_each(|((p, g), (m, v))| piece(p, g, m, v, None)),
        Some(l) => p
            .par_chunks_mut(PIECE)
            .zip(g.par_chunks(PIECE))
            .zip(m.par_chunks_mut(PIECE).zip(v.par_chunks_mut(PIECE)))
            .zip(l.par_chunks_mut(PIECE))
            .for_each(|(((p, g), (m, v)), l)| piece(p, g, m, v, Some(l))),
    }
}
