//! The methods of `Tensor`, each with random operands and arguments.

use super::{Call, Pick};
use cotangent::ops::{
    AvgPoolOptions, BceWithLogitsOptions, Blocks, ConvOptions, ConvTransposeOptions, CrossEntropyOptions, GridSampleMode,
    GridSampleOptions, GridSamplePadding, InterpolateMode, InterpolateOptions, InterpolateSize, MatrixNorm, MaxPoolOptions, NllLossOptions,
    PadMode, Padding, Reduction, RopeOptions, RopePositions, RopeStyle, ScatterReduce, SdpaOptions, Span, UnfoldOptions,
};
use cotangent::{Device, F32, I64, Result, Tensor, U8};
use std::sync::Arc;

type Made = (Vec<Tensor>, Call);

fn call(f: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static) -> Call {
    Arc::new(f)
}

/// One operand of any dtype and arguments that `make` draws.
fn on<F>(g: &mut Pick, make: impl FnOnce(&mut Pick, &Tensor) -> F) -> Made
where
    F: Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
{
    let (s, d) = (g.extents(), g.dtype());
    let x = g.tensor(&s, d);
    let f = make(g, &x);
    (vec![x], call(move |x| Ok(vec![f(&x[0])?])))
}

fn plain(g: &mut Pick, f: fn(&Tensor) -> Result<Tensor>) -> Made {
    on(g, |_, _| f)
}

/// A number as argument.
fn number(g: &mut Pick, f: fn(&Tensor, f64) -> Result<Tensor>) -> Made {
    on(g, |g, _| {
        let c = g.number();
        move |x| f(x, c)
    })
}

/// An axis as argument.
fn axis(g: &mut Pick, f: fn(&Tensor, isize) -> Result<Tensor>) -> Made {
    on(g, |g, x| {
        let a = g.axis(x.rank());
        move |x| f(x, a)
    })
}

/// Axes as argument, now and then all of them.
fn axes(g: &mut Pick, f: fn(&Tensor, Option<&[isize]>) -> Result<Tensor>) -> Made {
    on(g, |g, x| {
        let a = if g.rarely(4) { None } else { Some(g.axes(x.rank())) };
        move |x| f(x, a.as_deref())
    })
}

macro_rules! reduce {
    ($name:ident) => {
        |g| axes(g, |x, a| a.map_or_else(|| x.$name(..), |a| x.$name(a)))
    };
    ($name:ident, $n:ident) => {
        |g| {
            on(g, |g, x| {
                let ($n, a) = (g.size(), g.axes(x.rank()));
                move |x| x.$name(&a[..], $n)
            })
        }
    };
}

/// Two operands that mostly broadcast.
fn two(g: &mut Pick, f: fn(&Tensor, &Tensor) -> Result<Tensor>) -> Made {
    let (s, d) = (g.extents(), g.dtype());
    let t = g.near(&s);
    let e = if g.rarely(10) { g.dtype() } else { d };
    (vec![g.tensor(&s, d), g.tensor(&t, e)], call(move |x| Ok(vec![f(&x[0], &x[1])?])))
}

/// A mask of the operand's shape.
fn masks(g: &mut Pick, f: fn(&Tensor, &Tensor) -> Result<Tensor>) -> Made {
    let s = g.extents();
    let t = g.near(&s);
    (vec![g.mask(&s), g.mask(&t)], call(move |x| Ok(vec![f(&x[0], &x[1])?])))
}

/// Shapes of a product of matrices.
fn product(g: &mut Pick, f: fn(&Tensor, &Tensor) -> Result<Tensor>, kind: usize) -> Made {
    let (m, k, n) = (g.one(&[0, 1, 2, 5, 9, 33]), g.one(&[0, 1, 3, 8, 40]), g.one(&[0, 1, 2, 7, 16]));
    let lead = if g.rarely(2) { vec![] } else { g.one(&[vec![2], vec![1], vec![2, 3], vec![0], vec![9]]) };
    let other = if g.rarely(3) { vec![] } else { lead.clone() };
    let (a, b) = match kind {
        1 => ([m, k], [n, k]),
        2 => ([k, m], [k, n]),
        _ => ([m, k], [k, n]),
    };
    let d = g.float();
    let (mut a, mut b) = ([&lead[..], &a].concat(), [&other[..], &b].concat());
    if g.rarely(20) {
        (a, b) = (g.extents(), g.extents());
    }
    (vec![g.tensor(&a, d), g.tensor(&b, d)], call(move |x| Ok(vec![f(&x[0], &x[1])?])))
}

/// A convolution, or its transpose: an input and a weight that mostly fit, now and then a bias, and what both kinds of options have.
fn convolution<const D: usize>(g: &mut Pick, transposed: bool) -> (Vec<Tensor>, ConvOptions<D>, [usize; D]) {
    let d = g.float();
    let (groups, each, outputs) = (g.one(&[1, 1, 1, 2, 3]), g.one(&[1, 2, 5, 0]), g.one(&[1, 2, 3, 0]));
    let channels = if transposed { [outputs * groups, each * groups] } else { [each * groups, outputs * groups] };
    let lead = g.one(&[1, 2, 0]);
    let (mut x, mut w) = (vec![lead, channels[0]], if transposed { vec![channels[0], each] } else { vec![channels[1], each] });
    for _ in 0..D {
        x.push(g.one(&[5, 4, 8, 1, 0]));
        w.push(g.one(&[1, 2, 3, 3, 0]));
    }
    if g.rarely(15) {
        x = g.extents();
    }
    if g.rarely(15) {
        w = g.near(&w);
    }
    let mut all = vec![g.tensor(&x, d), g.tensor(&w, d)];
    if g.rarely(2) {
        all.push(g.tensor(&[channels[1]], d));
    }
    let few = |g: &mut Pick| if g.rarely(30) { g.size() } else { g.one(&[1, 1, 2, 3]) };
    let mut list = |least: usize| std::array::from_fn(|_| few(g).wrapping_sub(1 - least));
    let (stride, dilation, more) = (list(1), list(1), list(0));
    let padding = match g.below(4) {
        0 => Padding::Both(std::array::from_fn(|_| g.below(3))),
        1 => Padding::Sides(std::array::from_fn(|_| (g.below(3), if g.rarely(30) { g.size() } else { g.below(3) }))),
        2 => Padding::Same,
        _ => Padding::Valid,
    };
    (all, ConvOptions { stride, padding, dilation, groups: if g.rarely(20) { g.size() } else { groups } }, more)
}

fn conv<const D: usize>(g: &mut Pick, f: fn(&Tensor, &Tensor, Option<&Tensor>, &ConvOptions<D>) -> Result<Tensor>) -> Made {
    let (x, o, _) = convolution(g, false);
    (x, call(move |x| Ok(vec![f(&x[0], &x[1], x.get(2), &o)?])))
}

fn conv_transpose<const D: usize>(
    g: &mut Pick,
    f: fn(&Tensor, &Tensor, Option<&Tensor>, &ConvTransposeOptions<D>) -> Result<Tensor>,
) -> Made {
    let (x, o, output_padding) = convolution(g, true);
    let padding = if let Padding::Both(p) = o.padding { p } else { [0; D] };
    let o = ConvTransposeOptions { stride: o.stride, padding, output_padding, dilation: o.dilation, groups: o.groups };
    (x, call(move |x| Ok(vec![f(&x[0], &x[1], x.get(2), &o)?])))
}

/// What is reduced in windows, the window, and what both kinds of options have: stride, padding, whether the last may reach beyond.
type Windows<const D: usize> = (Tensor, [usize; D], (Option<[usize; D]>, [usize; D], bool));

fn windows<const D: usize>(g: &mut Pick) -> Windows<D> {
    let mut x = vec![g.one(&[1, 2, 0]), g.one(&[1, 3, 0])];
    x.extend((0..D).map(|_| g.one(&[5, 4, 8, 1, 0])));
    let x = if g.rarely(15) { g.extents() } else { x };
    let d = if g.rarely(20) { g.dtype() } else { g.float() };
    let size = |g: &mut Pick| if g.rarely(25) { g.size() } else { g.one(&[1, 2, 2, 3]) };
    let kernel = std::array::from_fn(|_| size(g));
    let stride = if g.rarely(2) { None } else { Some(std::array::from_fn(|_| size(g))) };
    let padding = std::array::from_fn(|_| if g.rarely(25) { g.size() } else { g.one(&[0, 0, 1]) });
    (g.tensor(&x, d), kernel, (stride, padding, g.rarely(2)))
}

fn max_pool<const D: usize>(g: &mut Pick, f: fn(&Tensor, [usize; D], &MaxPoolOptions<D>) -> Result<Tensor>) -> Made {
    let (x, kernel, (stride, padding, ceil)) = windows::<D>(g);
    let o = MaxPoolOptions { stride, padding, dilation: std::array::from_fn(|_| g.one(&[1, 1, 2, 3])), ceil };
    (vec![x], call(move |x| Ok(vec![f(&x[0], kernel, &o)?])))
}

fn max_pool_with_index<const D: usize>(g: &mut Pick, f: fn(&Tensor, [usize; D], &MaxPoolOptions<D>) -> Result<(Tensor, Tensor)>) -> Made {
    let (x, kernel, (stride, padding, ceil)) = windows::<D>(g);
    let o = MaxPoolOptions { stride, padding, dilation: [1; D], ceil };
    (vec![x], call(move |x| f(&x[0], kernel, &o).map(|(y, i)| vec![y, i])))
}

fn avg_pool<const D: usize>(g: &mut Pick, f: fn(&Tensor, [usize; D], &AvgPoolOptions<D>) -> Result<Tensor>) -> Made {
    let (x, kernel, (stride, padding, ceil)) = windows::<D>(g);
    let o = AvgPoolOptions { stride, padding, ceil, count_include_pad: g.rarely(2) };
    (vec![x], call(move |x| Ok(vec![f(&x[0], kernel, &o)?])))
}

/// Columns of windows, or with `back` images of them.
fn columns<const D: usize>(g: &mut Pick, back: bool) -> Made {
    let (x, kernel, w) = windows::<D>(g);
    let dilation = std::array::from_fn(|_| g.one(&[1, 1, 2, 3]));
    let options = UnfoldOptions { dilation, padding: w.1, stride: w.0.unwrap_or([1; D]) };
    if !back {
        return (vec![x], call(move |x| Ok(vec![x[0].unfold(kernel, &options)?])));
    }
    let output: [usize; D] = std::array::from_fn(|a| x.size(2 + a as isize).unwrap_or(3));
    // Mostly such columns as there are of these windows.
    let s = x.unfold(kernel, &options).map_or_else(|_| g.extents(), |y| y.shape().to_vec());
    let x = g.tensor(&s, x.dtype());
    (vec![x], call(move |x| Ok(vec![x[0].fold(output, kernel, &options)?])))
}

fn adaptive<const D: usize>(g: &mut Pick, f: fn(&Tensor, [usize; D]) -> Result<Tensor>) -> Made {
    let (x, _, _) = windows::<D>(g);
    let output = std::array::from_fn(|_| g.one(&[1, 2, 3, 5, 0]));
    (vec![x], call(move |x| Ok(vec![f(&x[0], output)?])))
}

/// Images, and parameters of channels that mostly fit: two statistics, a weight, a bias.
fn channels(g: &mut Pick, f: fn(&[Tensor], f64) -> Result<Tensor>) -> Made {
    let (d, c) = (g.float(), g.one(&[1, 2, 4, 0]));
    let rest = g.one(&[vec![], vec![3], vec![2, 3], vec![0]]);
    let x = if g.rarely(15) { g.extents() } else { [&[g.one(&[2, 3, 1, 0]), c], &rest[..]].concat() };
    let mut all = vec![g.tensor(&x, d)];
    for _ in 0..4 {
        let n = if g.rarely(15) { c + 1 } else { c };
        all.push(g.tensor(&[n], d));
    }
    let eps = if g.rarely(10) { g.number() } else { 1e-3 };
    (all, call(move |x| Ok(vec![f(x, eps)?])))
}

fn reduction(g: &mut Pick) -> Reduction {
    g.one(&[Reduction::Mean, Reduction::Sum, Reduction::None])
}

/// Scores and class targets.
fn classes(g: &mut Pick) -> (Vec<Tensor>, usize) {
    let (lead, classes, d) = (g.one(&[vec![], vec![1], vec![4], vec![2, 3], vec![0]]), g.one(&[0, 1, 2, 5, 17]), g.float());
    let scores = g.tensor(&[&lead[..], &[classes]].concat(), d);
    (vec![scores, g.ids(&lead, classes)], classes)
}

/// Sometimes in the place of class indices.
fn probabilities(g: &mut Pick, x: &mut [Tensor]) {
    if g.rarely(3) {
        let shape = x[0].shape().to_vec();
        x[1] = g.tensor(&shape, x[0].dtype());
    }
}

fn weights(g: &mut Pick, classes: usize, of: &Tensor) -> Option<Tensor> {
    g.rarely(3).then(|| g.tensor(&[classes], of.dtype()))
}

fn cross_entropy(g: &mut Pick, classes: usize, x: &Tensor) -> CrossEntropyOptions {
    CrossEntropyOptions {
        ignore_index: g.one(&[Some(-100), None, Some(0)]),
        label_smoothing: if g.rarely(3) { g.number() } else { 0.1 },
        reduction: reduction(g),
        weights: weights(g, classes, x),
        z_loss: g.one(&[0.0, 0.0, 1e-4, f64::NAN]),
    }
}

fn sdpa(g: &mut Pick) -> SdpaOptions {
    SdpaOptions {
        causal: g.rarely(2),
        window: if g.rarely(3) { Some((g.size(), g.size())) } else { None },
        softcap: if g.rarely(4) { Some(g.number()) } else { None },
        scale: if g.rarely(4) { Some(g.number()) } else { None },
        dropout: if g.rarely(4) { g.one(&[0.2, 1.0, 0.0, -1.0]) } else { 0.0 },
        key: if g.rarely(3) { None } else { Some(g.key()) },
    }
}

/// Queries, keys and values that mostly fit.
fn attention(g: &mut Pick, packed: bool) -> Vec<Tensor> {
    let (b, hk, group) = (g.one(&[1, 2, 0]), g.one(&[1, 2]), g.one(&[1, 1, 2, 3]));
    let (tq, tk) = (g.one(&[0, 1, 3, 9, 20]), g.one(&[0, 1, 3, 9, 40]));
    let (d, dv) = (g.one(&[0, 1, 4, 8]), g.one(&[0, 1, 4, 8]));
    let dtype = g.float();
    let lead = |h: usize| if packed { vec![h] } else { vec![b, h] };
    let mut x = vec![
        g.tensor(&[&lead(hk * group)[..], &[tq, d]].concat(), dtype),
        g.tensor(&[&lead(hk)[..], &[tk, d]].concat(), dtype),
        g.tensor(&[&lead(hk)[..], &[tk, dv]].concat(), dtype),
    ];
    if packed {
        let mut offsets = |t: usize| {
            let cut = g.below(t + 1) as i64;
            let ends = if g.rarely(10) { vec![1, cut, t as i64 + 1] } else { vec![0, cut, t as i64] };
            Tensor::from_vec(ends, [3]).unwrap()
        };
        let (q, k) = (offsets(tq), offsets(tk));
        x.extend([q, k]);
    } else if g.rarely(2) {
        let shape = g.one(&[vec![tq, tk], vec![1, tk], vec![b, 1, tq, tk], vec![hk * group, tq, 1]]);
        let mask = if g.rarely(2) { g.mask(&shape) } else { g.tensor(&shape, dtype) };
        x.push(mask);
    }
    x
}

fn rotary(g: &mut Pick, x: &Tensor) -> RopeOptions {
    let t = if x.rank() > 1 { x.shape()[x.rank() - 2] } else { 3 };
    RopeOptions {
        base: if g.rarely(8) { g.number() } else { 1e4 },
        style: g.one(&[RopeStyle::Half, RopeStyle::Interleaved]),
        positions: if g.rarely(3) && t < 1 << 16 { RopePositions::Given(g.ids(&[t], 100)) } else { RopePositions::From(g.size()) },
        rotary_dim: if g.rarely(3) { Some(g.size()) } else { None },
    }
}

fn heads(g: &mut Pick) -> Tensor {
    let (s, d) = (vec![g.one(&[0, 1, 2]), g.one(&[1, 3]), g.one(&[0, 1, 5]), g.one(&[0, 2, 4, 8])], g.float());
    let s = if g.rarely(10) { g.extents() } else { s };
    g.tensor(&s, d)
}

fn norm(g: &mut Pick) -> (Vec<Tensor>, usize, bool, bool) {
    let (s, d) = (g.extents(), g.float());
    let n = if g.rarely(8) { g.size() } else { 1 };
    let tail = s[s.len().saturating_sub(n)..].to_vec();
    let mut x = vec![g.tensor(&s, d)];
    let (w, b) = (g.rarely(2), g.rarely(2));
    for wanted in [w, b] {
        if wanted {
            x.push(g.tensor(&tail, d));
        }
    }
    (x, n, w, b)
}

fn span(g: &mut Pick, extent: usize) -> Span {
    let end = |g: &mut Pick| if g.rarely(6) { g.whole() } else { g.below(extent + 1) as isize };
    let (a, b) = (end(g), end(g));
    match g.below(4) {
        0 => Span::from(a..),
        1 => Span::from(..b),
        2 => Span::from(..),
        _ => Span::from(a.min(b)..a.max(b)),
    }
}

fn extent(x: &Tensor, axis: isize) -> usize {
    x.size(axis).unwrap_or(3).min(1 << 20)
}

/// Blocks of a quantised matrix: random bytes, whose scales are halves.
fn blocks(g: &mut Pick, rows: usize) -> (Tensor, Blocks, usize) {
    let (kind, n) = (g.one(&[Blocks::Q8_0, Blocks::Q4_0]), g.one(&[0, 1, 2]));
    let bytes = n * kind.bytes() + usize::from(g.rarely(20));
    (g.ids_of(U8, &[rows, bytes], 120), kind, n * 32)
}

fn matrix_norm(g: &mut Pick) -> MatrixNorm {
    g.one(&[MatrixNorm::Frobenius, MatrixNorm::One, MatrixNorm::Infinity, MatrixNorm::MinusOne, MatrixNorm::MinusInfinity])
}

pub(super) const TABLE: &[(&str, fn(&mut Pick) -> Made)] = &[
    ("exp", |g| plain(g, Tensor::exp)),
    ("expm1", |g| plain(g, Tensor::expm1)),
    ("log", |g| plain(g, Tensor::log)),
    ("log1p", |g| plain(g, Tensor::log1p)),
    ("relu", |g| plain(g, Tensor::relu)),
    ("relu_squared", |g| plain(g, Tensor::relu_squared)),
    ("silu", |g| plain(g, Tensor::silu)),
    ("gelu", |g| plain(g, Tensor::gelu)),
    ("gelu_tanh", |g| plain(g, Tensor::gelu_tanh)),
    ("sqrt", |g| plain(g, Tensor::sqrt)),
    ("rsqrt", |g| plain(g, Tensor::rsqrt)),
    ("recip", |g| plain(g, Tensor::recip)),
    ("square", |g| plain(g, Tensor::square)),
    ("tanh", |g| plain(g, Tensor::tanh)),
    ("sigmoid", |g| plain(g, Tensor::sigmoid)),
    ("softplus", |g| plain(g, Tensor::softplus)),
    ("erf", |g| plain(g, Tensor::erf)),
    ("normal_cdf", |g| plain(g, Tensor::normal_cdf)),
    ("neg", |g| plain(g, Tensor::neg)),
    ("abs", |g| plain(g, Tensor::abs)),
    ("sign", |g| plain(g, Tensor::sign)),
    ("floor", |g| plain(g, Tensor::floor)),
    ("ceil", |g| plain(g, Tensor::ceil)),
    ("round", |g| plain(g, Tensor::round)),
    ("round_decimals", |g| {
        on(g, |g, _| {
            let n = g.one(&[0, 1, 2, 7, 38, -1, -38, 39, i32::MAX, i32::MIN]);
            move |x| x.round_decimals(n)
        })
    }),
    ("sin", |g| plain(g, Tensor::sin)),
    ("cos", |g| plain(g, Tensor::cos)),
    ("t", |g| plain(g, Tensor::t)),
    ("contiguous", |g| plain(g, Tensor::contiguous)),
    ("squeeze_all", |g| plain(g, Tensor::squeeze_all)),
    ("zeros_like", |g| plain(g, Tensor::zeros_like)),
    ("ones_like", |g| plain(g, Tensor::ones_like)),
    ("logical_not", |g| {
        let s = g.extents();
        (vec![g.mask(&s)], call(|x| Ok(vec![x[0].logical_not()?])))
    }),
    ("detach", |g| plain(g, |x| Ok(x.detach()))),
    ("stop_gradient", |g| plain(g, |x| Ok(x.stop_gradient()))),
    ("leaky_relu", |g| number(g, Tensor::leaky_relu)),
    ("elu", |g| number(g, Tensor::elu)),
    ("powf", |g| number(g, Tensor::powf)),
    ("add_scalar", |g| number(g, Tensor::add_scalar)),
    ("sub_scalar", |g| number(g, Tensor::sub_scalar)),
    ("rsub_scalar", |g| number(g, Tensor::rsub_scalar)),
    ("mul_scalar", |g| number(g, Tensor::mul_scalar)),
    ("div_scalar", |g| number(g, Tensor::div_scalar)),
    ("rdiv_scalar", |g| number(g, Tensor::rdiv_scalar)),
    ("eq_scalar", |g| number(g, Tensor::eq_scalar)),
    ("ne_scalar", |g| number(g, Tensor::ne_scalar)),
    ("lt_scalar", |g| number(g, Tensor::lt_scalar)),
    ("le_scalar", |g| number(g, Tensor::le_scalar)),
    ("gt_scalar", |g| number(g, Tensor::gt_scalar)),
    ("ge_scalar", |g| number(g, Tensor::ge_scalar)),
    ("powi", |g| {
        on(g, |g, _| {
            let n = g.one(&[0, 1, 2, 3, -1, -2, 100, i32::MAX, i32::MIN]);
            move |x| x.powi(n)
        })
    }),
    ("clamp", |g| {
        on(g, |g, _| {
            let (a, b) = (g.number(), g.number());
            let (a, b) = (if g.rarely(3) { None } else { Some(a.min(b)) }, if g.rarely(3) { None } else { Some(a.max(b)) });
            move |x| x.clamp(a, b)
        })
    }),
    ("softmax", |g| axis(g, |x, a| x.softmax(a))),
    ("log_softmax", |g| axis(g, |x, a| x.log_softmax(a))),
    ("cumsum", |g| axis(g, |x, a| x.cumsum(a))),
    ("argmax", |g| axis(g, |x, a| x.argmax(a))),
    ("argmax_keepdim", |g| axis(g, |x, a| x.argmax_keepdim(a))),
    ("argmin", |g| axis(g, |x, a| x.argmin(a))),
    ("argmin_keepdim", |g| axis(g, |x, a| x.argmin_keepdim(a))),
    ("squeeze", |g| axis(g, |x, a| x.squeeze(a))),
    ("unsqueeze", |g| axis(g, |x, a| x.unsqueeze(a))),
    ("max_with_index", |g| axis(g, |x, a| x.max_with_index(a)?.0.add(&x.max_with_index(a)?.0))),
    ("min_with_index", |g| axis(g, |x, a| Ok(x.min_with_index(a)?.0))),
    ("sum", reduce!(sum)),
    ("sum_keepdim", reduce!(sum_keepdim)),
    ("mean", reduce!(mean)),
    ("mean_keepdim", reduce!(mean_keepdim)),
    ("max", reduce!(max)),
    ("max_keepdim", reduce!(max_keepdim)),
    ("min", reduce!(min)),
    ("min_keepdim", reduce!(min_keepdim)),
    ("prod", reduce!(prod)),
    ("prod_keepdim", reduce!(prod_keepdim)),
    ("norm", reduce!(norm)),
    ("norm_keepdim", reduce!(norm_keepdim)),
    ("logsumexp", reduce!(logsumexp)),
    ("logsumexp_keepdim", reduce!(logsumexp_keepdim)),
    ("flip", reduce!(flip)),
    ("permute", |g| {
        on(g, |g, x| {
            let mut order: Vec<isize> = (0..x.rank() as isize).collect();
            (0..x.rank()).for_each(|i| order.swap(i, g.below(x.rank())));
            if g.rarely(10) {
                order = g.axes(x.rank());
            }
            move |x| x.permute(&order[..])
        })
    }),
    ("var", reduce!(var, n)),
    ("var_keepdim", reduce!(var_keepdim, n)),
    ("std", reduce!(std, n)),
    ("std_keepdim", reduce!(std_keepdim, n)),
    ("matrix_norm", |g| {
        on(g, |g, x| {
            let (kind, a) = (matrix_norm(g), g.axes(x.rank()));
            move |x| x.matrix_norm(kind, &a[..])
        })
    }),
    ("matrix_norm_keepdim", |g| {
        on(g, |g, x| {
            let (kind, a) = (matrix_norm(g), g.axes(x.rank()));
            move |x| x.matrix_norm_keepdim(kind, &a[..])
        })
    }),
    ("any", |g| mask_axes(g, |x, a| x.any(a))),
    ("any_keepdim", |g| mask_axes(g, |x, a| x.any_keepdim(a))),
    ("all", |g| mask_axes(g, |x, a| x.all(a))),
    ("all_keepdim", |g| mask_axes(g, |x, a| x.all_keepdim(a))),
    ("add", |g| two(g, Tensor::add)),
    ("sub", |g| two(g, Tensor::sub)),
    ("mul", |g| two(g, Tensor::mul)),
    ("div", |g| two(g, Tensor::div)),
    ("pow", |g| two(g, Tensor::pow)),
    ("maximum", |g| two(g, Tensor::maximum)),
    ("minimum", |g| two(g, Tensor::minimum)),
    ("eq", |g| two(g, Tensor::eq)),
    ("ne", |g| two(g, Tensor::ne)),
    ("lt", |g| two(g, Tensor::lt)),
    ("le", |g| two(g, Tensor::le)),
    ("gt", |g| two(g, Tensor::gt)),
    ("ge", |g| two(g, Tensor::ge)),
    ("swiglu", |g| two(g, Tensor::swiglu)),
    ("geglu", |g| two(g, Tensor::geglu)),
    ("geglu_tanh", |g| two(g, Tensor::geglu_tanh)),
    ("expand_as", |g| two(g, Tensor::expand_as)),
    ("outer", |g| {
        let d = g.float();
        let (a, b) = (vec![g.one(&[0, 1, 3, 8])], vec![g.one(&[0, 1, 3, 8])]);
        (vec![g.tensor(&a, d), g.tensor(&b, d)], call(|x| Ok(vec![x[0].outer(&x[1])?])))
    }),
    ("dot", |g| {
        let (d, n) = (g.float(), g.one(&[0, 1, 3, 8, 200]));
        (vec![g.tensor(&[n], d), g.tensor(&[n], d)], call(|x| Ok(vec![x[0].dot(&x[1])?])))
    }),
    ("logical_and", |g| masks(g, Tensor::logical_and)),
    ("logical_or", |g| masks(g, Tensor::logical_or)),
    ("matmul", |g| product(g, Tensor::matmul, 0)),
    ("matmul_nt", |g| product(g, Tensor::matmul_nt, 1)),
    ("matmul_tn", |g| product(g, Tensor::matmul_tn, 2)),
    ("linear", |g| {
        let (mut x, _) = product(g, Tensor::matmul_nt, 1);
        x[1] = g.tensor(&[x[1].size(-2).unwrap_or(2).min(99), x[0].size(-1).unwrap_or(2).min(99)], x[0].dtype());
        let bias = g.rarely(2);
        if bias {
            x.push(g.tensor(&[x[1].shape()[0]], x[0].dtype()));
        }
        (x, call(move |x| Ok(vec![x[0].linear(&x[1], x.get(2))?])))
    }),
    ("pad_with", |g| {
        on(g, |g, x| {
            let by: Vec<(usize, usize)> =
                (0..x.rank()).map(|_| (g.one(&[0, 0, 1, 2]), if g.rarely(25) { g.size() } else { g.below(3) })).collect();
            let mode = g.one(&[PadMode::Reflect, PadMode::Replicate, PadMode::Circular]);
            move |x| x.pad_with(&by, mode)
        })
    }),
    ("pixel_shuffle", |g| {
        on(g, |g, _| {
            let r = if g.rarely(4) { g.size() } else { g.one(&[1, 2]) };
            move |x| x.pixel_shuffle(r)
        })
    }),
    ("pixel_unshuffle", |g| {
        on(g, |g, _| {
            let r = if g.rarely(4) { g.size() } else { g.one(&[1, 2]) };
            move |x| x.pixel_unshuffle(r)
        })
    }),
    ("interpolate", |g| {
        on(g, |g, x| {
            let axes = if g.rarely(3) { 1 } else { x.rank().saturating_sub(2) };
            let mut size = || if g.rarely(6) { g.size() } else { g.one(&[1, 2, 3, 5, 8]) };
            let size: Vec<usize> = (0..axes).map(|_| size()).collect();
            let factors: Vec<f64> = (0..axes).map(|_| if g.rarely(6) { g.number() } else { g.one(&[0.5, 1.0, 1.3, 2.0, 3.7]) }).collect();
            let to = if g.rarely(2) { InterpolateSize::Size(size.into()) } else { InterpolateSize::ScaleFactor(factors.into()) };
            use InterpolateMode::*;
            let options = InterpolateOptions {
                mode: g.one(&[Nearest, NearestExact, Linear, Linear, Cubic, Cubic, Area]),
                align_corners: g.rarely(5),
                antialias: g.rarely(5),
                recompute_scale_factor: g.rarely(5),
            };
            move |x| x.interpolate(to.clone(), &options)
        })
    }),
    ("grid_sample", |g| {
        let (d, spatial) = (if g.rarely(20) { g.dtype() } else { g.float() }, g.one(&[2, 2, 3]));
        let n = g.one(&[1, 2, 0]);
        let mut x = vec![n, g.one(&[1, 3, 0])];
        x.extend((0..spatial).map(|_| g.one(&[1, 2, 4, 5, 0])));
        let mut at = vec![if g.rarely(15) { 3 } else { n }];
        at.extend((0..spatial).map(|_| g.one(&[1, 2, 3, 0])));
        at.push(if g.rarely(15) { 1 } else { spatial });
        let at = if g.rarely(15) { g.extents() } else { at };
        let options = GridSampleOptions {
            mode: g.one(&[GridSampleMode::Linear, GridSampleMode::Nearest, GridSampleMode::Cubic]),
            padding: g.one(&[GridSamplePadding::Zeros, GridSamplePadding::Border, GridSamplePadding::Reflection]),
            align_corners: g.rarely(2),
        };
        (vec![g.tensor(&x, d), g.tensor(&at, d)], call(move |x| Ok(vec![x[0].grid_sample(&x[1], &options)?])))
    }),
    ("affine_grid", |g| {
        let d = if g.rarely(20) { g.dtype() } else { g.float() };
        let (n, align, volume) = (g.one(&[1, 2, 0]), g.rarely(2), g.rarely(3));
        let theta = if g.rarely(10) { g.extents() } else { vec![n, 2 + usize::from(volume), 3 + usize::from(volume)] };
        let mut size = || if g.rarely(25) { g.size() } else { g.one(&[1, 2, 5, 0]) };
        let output = [size(), size(), size()];
        let run = move |x: &[Tensor]| match volume {
            true => x[0].affine_grid(output, align),
            false => x[0].affine_grid([output[0], output[1]], align),
        };
        (vec![g.tensor(&theta, d)], call(move |x| Ok(vec![run(x)?])))
    }),
    ("local_response_norm", |g| {
        on(g, |g, _| {
            let size = if g.rarely(8) { g.size() } else { g.one(&[1, 2, 3, 5]) };
            let numbers = if g.rarely(8) { [g.number(), g.number(), g.number()] } else { [1e-4, 0.75, 1.0] };
            move |x| x.local_response_norm(size, numbers[0], numbers[1], numbers[2])
        })
    }),
    ("unfold", |g| match g.below(4) {
        0 => columns::<1>(g, false),
        1 => columns::<3>(g, false),
        _ => columns::<2>(g, false),
    }),
    ("fold", |g| match g.below(4) {
        0 => columns::<1>(g, true),
        1 => columns::<3>(g, true),
        _ => columns::<2>(g, true),
    }),
    ("max_pool1d", |g| max_pool(g, Tensor::max_pool1d)),
    ("max_pool2d", |g| max_pool(g, Tensor::max_pool2d)),
    ("max_pool3d", |g| max_pool(g, Tensor::max_pool3d)),
    ("max_pool1d_with_index", |g| max_pool_with_index(g, Tensor::max_pool1d_with_index)),
    ("max_pool2d_with_index", |g| max_pool_with_index(g, Tensor::max_pool2d_with_index)),
    ("max_pool3d_with_index", |g| max_pool_with_index(g, Tensor::max_pool3d_with_index)),
    ("avg_pool1d", |g| avg_pool(g, Tensor::avg_pool1d)),
    ("avg_pool2d", |g| avg_pool(g, Tensor::avg_pool2d)),
    ("avg_pool3d", |g| avg_pool(g, Tensor::avg_pool3d)),
    ("adaptive_avg_pool1d", |g| adaptive(g, Tensor::adaptive_avg_pool1d)),
    ("adaptive_avg_pool2d", |g| adaptive(g, Tensor::adaptive_avg_pool2d)),
    ("adaptive_avg_pool3d", |g| adaptive(g, Tensor::adaptive_avg_pool3d)),
    ("adaptive_max_pool1d", |g| adaptive(g, Tensor::adaptive_max_pool1d)),
    ("adaptive_max_pool2d", |g| adaptive(g, Tensor::adaptive_max_pool2d)),
    ("adaptive_max_pool3d", |g| adaptive(g, Tensor::adaptive_max_pool3d)),
    ("batch_norm", |g| channels(g, |x, eps| x[0].batch_norm(Some(&x[1]), Some(&x[2]), eps))),
    ("batch_norm_with", |g| channels(g, |x, eps| x[0].batch_norm_with(&x[1], &x[2], Some(&x[3]), Some(&x[4]), eps))),
    ("group_norm", |g| channels(g, |x, eps| x[0].group_norm(2, Some(&x[1]), Some(&x[2]), eps))),
    ("instance_norm", |g| channels(g, |x, eps| x[0].instance_norm(Some(&x[1]), Some(&x[2]), eps))),
    ("conv1d", |g| conv(g, Tensor::conv1d)),
    ("conv2d", |g| conv(g, Tensor::conv2d)),
    ("conv3d", |g| conv(g, Tensor::conv3d)),
    ("conv_transpose1d", |g| conv_transpose(g, Tensor::conv_transpose1d)),
    ("conv_transpose2d", |g| conv_transpose(g, Tensor::conv_transpose2d)),
    ("conv_transpose3d", |g| conv_transpose(g, Tensor::conv_transpose3d)),
    ("einsum", |g| {
        let equation =
            g.one(&["ij,jk->ik", "bij,bjk->bik", "ii->i", "...i,i->...", "ij->ji", "i,i->", "ij,ij->i", "i,j->ij", "a,,->a", "i->ij"]);
        let d = g.float();
        let (i, j, k, b) = (g.below(4), g.below(4), g.below(4), g.below(3));
        let of = |c: char| match c {
            'i' => i,
            'j' => j,
            'k' => k,
            _ => b,
        };
        let left = equation.split("->").next().unwrap();
        let shapes = left.split(',').map(|t| t.chars().filter(|c| c.is_alphabetic()).map(of).collect::<Vec<usize>>());
        let x: Vec<Tensor> = shapes.collect::<Vec<_>>().iter().map(|s| g.tensor(s, d)).collect();
        (x, call(move |x| Ok(vec![Tensor::einsum(equation, &x.iter().collect::<Vec<_>>())?])))
    }),
    ("concat", |g| joined(g, |x, a| Tensor::concat(x, a), true)),
    ("stack", |g| joined(g, |x, a| Tensor::stack(x, a), false)),
    ("split", |g| {
        let (s, d) = (g.extents(), g.dtype());
        let x = g.tensor(&s, d);
        let a = g.axis(x.rank());
        let n = extent(&x, a);
        let cut = g.below(n + 1);
        let sizes = if g.rarely(6) { vec![g.size(), g.size()] } else { vec![cut, n - cut] };
        (vec![x], call(move |x| x[0].split(&sizes, a)))
    }),
    ("chunk", |g| {
        let (s, d) = (g.extents(), g.dtype());
        let x = g.tensor(&s, d);
        let (a, n) = (g.axis(x.rank()), g.size());
        (vec![x], call(move |x| x[0].chunk(n, a)))
    }),
    ("sort", |g| pair(g, |x, a, _| x.sort(a))),
    ("sort_descending", |g| pair(g, |x, a, _| x.sort_descending(a))),
    ("topk", |g| pair(g, |x, a, n| x.topk(n, a))),
    ("bottomk", |g| pair(g, |x, a, n| x.bottomk(n, a))),
    ("unbind", |g| {
        let (s, d) = (g.extents(), g.dtype());
        let x = g.tensor(&s, d);
        let a = g.axis(x.rank());
        (vec![x], call(move |x| x[0].unbind(a)))
    }),
    ("unpack", |g| {
        let (s, d) = (g.extents(), g.dtype());
        let x = g.tensor(&s, d);
        let (a, n) = (g.axis(x.rank()), g.below(4));
        let n = if g.rarely(3) { n } else { extent(&x, a) };
        let f = move |x: &[Tensor]| -> Result<Vec<Tensor>> {
            Ok(match n {
                0 => x[0].unpack::<0>(a)?.into(),
                1 => x[0].unpack::<1>(a)?.into(),
                2 => x[0].unpack::<2>(a)?.into(),
                _ => x[0].unpack::<3>(a)?.into(),
            })
        };
        (vec![x], call(f))
    }),
    ("parts", |g| {
        let (s, d) = (g.extents(), g.dtype());
        let x = g.tensor(&s, d);
        let (a, n) = (g.axis(x.rank()), g.below(4));
        let f = move |x: &[Tensor]| -> Result<Vec<Tensor>> {
            Ok(match n {
                0 => x[0].parts::<0>(a)?.into(),
                1 => x[0].parts::<1>(a)?.into(),
                2 => x[0].parts::<2>(a)?.into(),
                _ => x[0].parts::<3>(a)?.into(),
            })
        };
        (vec![x], call(f))
    }),
    ("nonzero", |g| plain(g, Tensor::nonzero)),
    ("transpose", |g| {
        on(g, |g, x| {
            let (a, b) = (g.axis(x.rank()), g.axis(x.rank()));
            move |x| x.transpose(a, b)
        })
    }),
    ("diagonal", |g| {
        on(g, |g, x| {
            let (a, b) = (g.axis(x.rank()), g.axis(x.rank()));
            move |x| x.diagonal(a, b)
        })
    }),
    ("triu", |g| {
        on(g, |g, _| {
            let k = g.whole();
            move |x| x.triu(k)
        })
    }),
    ("tril", |g| {
        on(g, |g, _| {
            let k = g.whole();
            move |x| x.tril(k)
        })
    }),
    ("slice", |g| {
        on(g, |g, x| {
            let a = g.axis(x.rank());
            let s = span(g, extent(x, a));
            move |x| x.slice(a, s)
        })
    }),
    ("slice_step", |g| {
        on(g, |g, x| {
            let (a, step) = (g.axis(x.rank()), g.size());
            let s = span(g, extent(x, a));
            move |x| x.slice_step(a, s, step)
        })
    }),
    ("narrow", |g| {
        on(g, |g, x| {
            let a = g.axis(x.rank());
            let (start, len) = if g.rarely(4) { (g.size(), g.size()) } else { (0, g.below(extent(x, a) + 1)) };
            move |x| x.narrow(a, start, len)
        })
    }),
    ("select", |g| {
        on(g, |g, x| {
            let a = g.axis(x.rank());
            let i = if g.rarely(4) { g.whole() } else { g.below(extent(x, a)) as isize };
            move |x| x.select(a, i)
        })
    }),
    ("roll", |g| {
        on(g, |g, x| {
            let axes = g.axes(x.rank());
            let shifts: Vec<isize> = axes.iter().map(|_| g.whole()).collect();
            move |x| x.roll(&shifts, &axes[..])
        })
    }),
    ("pad", |g| {
        on(g, |g, x| {
            let by: Vec<(usize, usize)> =
                (0..x.rank()).map(|_| if g.rarely(6) { (g.size(), g.size()) } else { (g.below(3), g.below(3)) }).collect();
            let c = g.number();
            move |x| x.pad(&by, c)
        })
    }),
    ("pad_axis", |g| {
        on(g, |g, x| {
            let (a, b, n, c) = (g.axis(x.rank()), g.size(), g.below(3), g.number());
            move |x| x.pad_axis(a, b, n, c)
        })
    }),
    ("repeat", |g| {
        on(g, |g, x| {
            let counts: Vec<usize> = (0..x.rank() + g.below(2)).map(|_| if g.rarely(8) { g.size() } else { g.below(3) }).collect();
            move |x| x.repeat(&counts[..])
        })
    }),
    ("repeat_interleave", |g| {
        on(g, |g, x| {
            let (n, a) = (g.size(), g.axis(x.rank()));
            let extent = g.one(&[x.shape().first().copied().unwrap_or(1), 1, 3]);
            let counts =
                (0..extent.min(1 << 16)).map(|_| if g.rarely(9) { g.one(&[-1, 1 << 40, i64::MAX]) } else { g.one(&[0, 1, 2, 33]) });
            let counts = Tensor::from_vec(counts.collect(), [extent.min(1 << 16)]).unwrap();
            let each = g.below(2) == 0;
            move |x| if each { x.repeat_interleave(&counts, a) } else { x.repeat_interleave(n, a) }
        })
    }),
    ("reshape", |g| {
        on(g, |g, x| {
            let mut shape: Vec<usize> = x.shape().to_vec();
            match g.below(6) {
                0 => shape = g.extents(),
                1 => shape = vec![g.size(), g.size()],
                2 => shape.reverse(),
                3 => shape = vec![x.numel()],
                _ => shape.insert(g.below(shape.len() + 1), 1),
            }
            move |x| x.reshape(&shape[..])
        })
    }),
    ("expand", |g| {
        on(g, |g, x| {
            let shape: Vec<usize> = x.shape().iter().map(|&d| if d == 1 { g.size() } else { d }).collect();
            let shape = if g.rarely(8) { g.extents() } else { shape };
            move |x| x.expand(&shape[..])
        })
    }),
    ("flatten", |g| {
        on(g, |g, x| {
            let (a, b) = (g.axis(x.rank()), g.axis(x.rank()));
            move |x| x.flatten(a, b)
        })
    }),
    ("cast", |g| {
        on(g, |g, _| {
            let d = g.dtype();
            move |x| x.cast(d)
        })
    }),
    ("to_device", |g| {
        on(g, |g, _| {
            let d = g.one(&[Device::Cpu, Device::Cpu, Device::Cuda(u32::MAX)]);
            move |x| x.to_device(d)
        })
    }),
    ("one_hot", |g| {
        let (s, n, d) = (g.extents(), g.size(), g.dtype());
        (vec![g.ids(&s, n.clamp(1, 9))], call(move |x| Ok(vec![x[0].one_hot(n, d)?])))
    }),
    ("embedding", |g| {
        let (rows, width, d) = (g.one(&[0, 1, 5, 30]), g.one(&[0, 1, 4, 9]), g.float());
        let s = g.extents();
        let padding = if g.rarely(3) { Some(g.size()) } else { None };
        (vec![g.tensor(&[rows, width], d), g.ids(&s, rows)], call(move |x| Ok(vec![x[0].embedding(&x[1], padding)?])))
    }),
    ("index_select", |g| {
        let (s, d) = (g.extents(), g.dtype());
        let x = g.tensor(&s, d);
        let a = g.axis(x.rank());
        let n = g.below(6);
        let ids = g.ids(&[n], extent(&x, a));
        (vec![x, ids], call(move |x| Ok(vec![x[0].index_select(a, &x[1])?])))
    }),
    ("index_add", |g| {
        let (s, d) = (g.extents(), g.dtype());
        let x = g.tensor(&s, d);
        let a = g.axis(x.rank());
        let n = g.below(6);
        let ids = g.ids(&[n], extent(&x, a));
        let mut shape = s.clone();
        if let Some(at) = shape.get_mut(a.rem_euclid(s.len().max(1) as isize) as usize) {
            *at = n;
        }
        let shape = if g.rarely(6) { g.near(&shape) } else { shape };
        let src = g.of_any_size(&shape, d);
        (vec![x, ids, src], call(move |x| Ok(vec![x[0].index_add(a, &x[1], &x[2])?])))
    }),
    ("gather", |g| {
        let (x, ids, a) = indexed(g);
        (vec![x, ids], call(move |x| Ok(vec![x[0].gather(a, &x[1])?])))
    }),
    ("scatter_add", |g| {
        let (x, ids, a) = indexed(g);
        let shape: Vec<usize> = ids.shape().to_vec();
        let src = g.of_any_size(&shape, x.dtype());
        (vec![x, ids, src], call(move |x| Ok(vec![x[0].scatter_add(a, &x[1], &x[2])?])))
    }),
    ("scatter_reduce", |g| {
        let (x, ids, a) = indexed(g);
        let shape: Vec<usize> = ids.shape().to_vec();
        let src = g.of_any_size(&shape, x.dtype());
        let by = g.one(&[ScatterReduce::Sum, ScatterReduce::Mean, ScatterReduce::Prod, ScatterReduce::Max, ScatterReduce::Min]);
        let own = g.below(2) == 0;
        (vec![x, ids, src], call(move |x| Ok(vec![x[0].scatter_reduce(a, &x[1], &x[2], by, own)?])))
    }),
    ("where_cond", |g| {
        let (s, d) = (g.extents(), g.dtype());
        let (t, u) = (g.near(&s), g.near(&s));
        (vec![g.mask(&s), g.tensor(&t, d), g.tensor(&u, d)], call(|x| Ok(vec![x[0].where_cond(&x[1], &x[2])?])))
    }),
    ("masked_fill", |g| {
        let (s, d) = (g.extents(), g.dtype());
        let (t, c) = (g.near(&s), g.number());
        (vec![g.tensor(&s, d), g.mask(&t)], call(move |x| Ok(vec![x[0].masked_fill(&x[1], c)?])))
    }),
    ("nll_loss", |g| {
        let (x, _) = classes(g);
        (x, call(|x| Ok(vec![x[0].nll_loss(&x[1])?])))
    }),
    ("nll_loss_with", |g| {
        let (x, n) = classes(g);
        let o =
            NllLossOptions { ignore_index: g.one(&[Some(-100), None, Some(0)]), reduction: reduction(g), weights: weights(g, n, &x[0]) };
        (x, call(move |x| Ok(vec![x[0].nll_loss_with(&x[1], &o)?])))
    }),
    ("cross_entropy", |g| {
        let (mut x, _) = classes(g);
        probabilities(g, &mut x);
        (x, call(|x| Ok(vec![x[0].cross_entropy(&x[1])?])))
    }),
    ("cross_entropy_with", |g| {
        let (mut x, n) = classes(g);
        let o = cross_entropy(g, n, &x[0]);
        probabilities(g, &mut x);
        (x, call(move |x| Ok(vec![x[0].cross_entropy_with(&x[1], &o)?])))
    }),
    ("linear_cross_entropy", |g| {
        let (mut x, n) = classes(g);
        let (width, lead) = (g.one(&[0, 1, 4]), x[1].shape().to_vec());
        let d = x[0].dtype();
        x[0] = if x[1].numel() < 1 << 16 { g.tensor(&[&lead[..], &[width]].concat(), d) } else { x[0].clone() };
        x.push(g.tensor(&[n, width], d));
        let o = cross_entropy(g, n, &x[0]);
        x.push(g.tensor(&[n], d));
        let biased = g.below(2) == 0;
        if g.rarely(4) && x[1].numel() < 1 << 16 {
            let lead = x[1].shape().to_vec();
            x[1] = g.tensor(&[&lead[..], &[n]].concat(), d);
        }
        (x, call(move |x| Ok(vec![x[0].linear_cross_entropy(&x[2], biased.then_some(&x[3]), &x[1], &o)?])))
    }),
    ("mse_loss", |g| {
        let (x, _) = two(g, Tensor::add);
        (x, call(move |x| Ok(vec![x[0].mse_loss(&x[1])?])))
    }),
    ("mse_loss_with", |g| {
        let r = reduction(g);
        let (x, _) = two(g, Tensor::add);
        (x, call(move |x| Ok(vec![x[0].mse_loss_with(&x[1], r)?])))
    }),
    ("bce_with_logits", |g| {
        let (s, d) = (g.extents(), g.float());
        (vec![g.tensor(&s, d), g.tensor(&s, d)], call(move |x| Ok(vec![x[0].bce_with_logits(&x[1])?])))
    }),
    ("bce_with_logits_with", |g| {
        let (r, s, d) = (reduction(g), g.extents(), g.float());
        let t = g.near(&s);
        (
            vec![g.tensor(&s, d), g.tensor(&s, d), g.tensor(&t, d)],
            call(move |x| {
                let weight = (r == Reduction::Sum).then_some(&x[2]);
                Ok(vec![x[0].bce_with_logits_with(&x[1], &BceWithLogitsOptions { pos_weight: weight.cloned(), reduction: r })?])
            }),
        )
    }),
    ("dropout", |g| {
        on(g, |g, _| {
            let (p, k) = (g.one(&[0.0, 0.1, 0.5, 1.0, -1.0, f64::NAN]), g.key());
            move |x| x.dropout(p, k)
        })
    }),
    ("dropout_add", |g| {
        let (p, k) = (g.one(&[0.0, 0.1, 0.5, 1.0, 2.0]), g.key());
        let (x, _) = two(g, Tensor::add);
        (x, call(move |x| Ok(vec![x[0].dropout_add(&x[1], p, k)?])))
    }),
    ("layer_norm", |g| {
        let (x, n, w, b) = norm(g);
        let eps = g.one(&[1e-5, 0.0, -1.0, f64::NAN, 1e-5]);
        (x, call(move |x| Ok(vec![x[0].layer_norm(n, w.then(|| &x[1]), b.then(|| &x[1 + usize::from(w)]), eps)?])))
    }),
    ("rms_norm", |g| {
        let (x, _, w, _) = norm(g);
        let eps = g.one(&[1e-5, 0.0, -1.0]);
        (x, call(move |x| Ok(vec![x[0].rms_norm(w.then(|| &x[1]), eps)?])))
    }),
    ("add_layer_norm", |g| {
        let (mut x, n, w, b) = norm(g);
        x.push(x[0].detach());
        (
            x,
            call(move |x| {
                let r = x.len() - 1;
                let (y, s) = x[0].add_layer_norm(&x[r], n, w.then(|| &x[1]), b.then(|| &x[1 + usize::from(w)]), 1e-5)?;
                Ok(vec![y, s])
            }),
        )
    }),
    ("add_rms_norm", |g| {
        let (mut x, _, w, _) = norm(g);
        x.push(x[0].detach());
        (
            x,
            call(move |x| {
                let (y, s) = x[0].add_rms_norm(&x[x.len() - 1], w.then(|| &x[1]), 1e-5)?;
                Ok(vec![y, s])
            }),
        )
    }),
    ("scaled_dot_product_attention", |g| {
        let (x, o) = (attention(g, false), sdpa(g));
        (x, call(move |x| Ok(vec![x[0].scaled_dot_product_attention(&x[1], &x[2], x.get(3), &o)?])))
    }),
    ("scaled_dot_product_attention_packed", |g| {
        let (x, o) = (attention(g, true), sdpa(g));
        (x, call(move |x| Ok(vec![x[0].scaled_dot_product_attention_packed(&x[1], &x[2], None, &x[3], &x[4], &o)?])))
    }),
    ("rope", |g| {
        let x = heads(g);
        let r = rotary(g, &x);
        (vec![x], call(move |x| Ok(vec![x[0].rope(&r)?])))
    }),
    ("rope_with_key", |g| {
        let x = heads(g);
        let (r, k) = (rotary(g, &x), if g.rarely(8) { heads(g) } else { x.detach() });
        (
            vec![x, k],
            call(move |x| {
                let (q, k) = x[0].rope_with_key(&x[1], &r)?;
                Ok(vec![q, k])
            }),
        )
    }),
    ("quant_linear", |g| {
        let rows = g.one(&[0, 1, 3]);
        let (w, kind, k) = blocks(g, rows);
        let (n, d) = (g.one(&[0, 1, 2, 40]), g.float());
        (vec![g.tensor(&[n, k], d), w], call(move |x| Ok(vec![x[0].quant_linear(&x[1], kind)?])))
    }),
    ("dequantize", |g| {
        let rows = g.one(&[0, 1, 3]);
        let (w, kind, _) = blocks(g, rows);
        let d = g.float();
        (vec![w], call(move |x| Ok(vec![x[0].dequantize(kind, d)?])))
    }),
    // Constructors.
    ("full", |g| made(g, |s, c, d, _| Tensor::full(s, c, d))),
    ("full_on", |g| made(g, |s, c, d, _| Tensor::full_on(s, c, d, Device::Cpu))),
    ("zeros", |g| made(g, |s, _, d, _| Tensor::zeros(s, d))),
    ("ones", |g| made(g, |s, _, d, _| Tensor::ones(s, d))),
    ("from_vec", |g| {
        made(g, |s, c, _, _| {
            let n = s.iter().fold(1, |n: usize, &d| n.saturating_mul(d));
            Tensor::from_vec(vec![c; if n < 64 { n } else { 6 }], s)
        })
    }),
    ("from_slice", |g| {
        made(g, |s, c, _, _| {
            let n = s.iter().map(|&d| d as f64).product::<f64>();
            // Of three axes and more: usually another number than the shape's.
            Tensor::from_slice(&vec![c; if n < 1e4 && s.len() < 3 { n as usize } else { 6 }], s)
        })
    }),
    ("from_rows", |g| made(g, |s, c, _, _| Tensor::from_rows(&vec![[c, 1.0]; s.len()]))),
    ("scalar", |g| made(g, |_, c, _, _| Tensor::scalar(c))),
    ("eye", |g| made(g, |s, _, d, _| if s.is_empty() { Tensor::eye(3, d) } else { Tensor::eye(s, d) })),
    ("arange", |g| made(g, |s, c, d, _| Tensor::arange(0.0, c * s.len() as f64, if c < 1.0 { 0.25 } else { c }, d))),
    ("linspace", |g| made(g, |s, c, d, _| Tensor::linspace(-c, c, s.first().copied().unwrap_or(3), d))),
    ("rand", |g| made(g, |s, _, d, k| Tensor::rand(s, d, k))),
    ("uniform", |g| made(g, |s, c, d, k| Tensor::uniform(s, -1.0..c, d, k))),
    ("randn_like", |g| {
        on(g, |g, _| {
            let k = g.key();
            move |x| x.randn_like(k)
        })
    }),
    ("randn", |g| made(g, |s, _, d, k| Tensor::randn(s, d, k))),
    ("normal", |g| made(g, |s, c, d, k| Tensor::normal(s, 0.0, c, d, k))),
    ("truncated_normal", |g| made(g, |s, c, d, k| Tensor::truncated_normal(s, 0.0, 1.0, -c.abs()..c.abs(), d, k))),
    ("bernoulli", |g| made(g, |s, c, d, k| Tensor::bernoulli(s, c, d, k))),
    ("randint", |g| made(g, |s, c, d, k| Tensor::randint(s, 0..c as i64, d, k))),
    ("randperm", |g| made(g, |s, _, d, k| Tensor::randperm(s.first().copied().unwrap_or(3), d, k))),
    // What reads.
    ("to_vec", |g| plain(g, |x| x.cast(F32)?.to_vec::<f32>().and_then(|v| Tensor::from_vec(v, x.shape())))),
    ("to_f64_vec", |g| plain(g, |x| x.to_f64_vec().and_then(|v| Tensor::from_vec(v, x.shape())))),
    ("item", |g| plain(g, |x| Tensor::scalar(x.item()?))),
    ("size", |g| axis(g, |x, a| Tensor::scalar(x.size(a)? as f64))),
    ("update", |g| {
        plain(g, |x| {
            let mut y = x.detach().cast(I64)?;
            y.update(|v: &mut [i64]| v.iter_mut().for_each(|v| *v = v.wrapping_add(1)))?;
            Ok(y)
        })
    }),
    ("shape", |g| plain(g, |x| Ok(if x.shape().rank() == x.rank() { x.clone() } else { panic!("ranks differ") }))),
    ("dims", |g| plain(g, |x| x.dims::<2>().and_then(|[a, b]| Tensor::scalar((a + b.min(7)) as f64)))),
    ("rank", |g| plain(g, |x| Tensor::scalar(x.rank() as f64))),
    ("numel", |g| plain(g, |x| Tensor::scalar(x.numel() as f64))),
    ("layout", |g| plain(g, |x| Tensor::scalar(x.layout().offset() as f64))),
    ("is_contiguous", |g| plain(g, |x| Tensor::scalar(f64::from(u8::from(x.is_contiguous()))))),
    ("shares_storage", |g| {
        plain(g, |x| if x.shares_storage(&x.detach()) { Ok(x.clone()) } else { panic!("a value shares its own storage") })
    }),
    ("tap", |g| {
        plain(g, |x| {
            x.tap(|| "here");
            Ok(x.clone())
        })
    }),
];

/// Entries that call more than the method they are about, and what their refusals may be called.
pub(super) const NAMED: &[(&str, &[&str])] = &[("to_vec", &["cast", "from_vec"]), ("to_f64_vec", &["from_vec"]), ("update", &["cast"])];

/// Methods that take nothing that could vary, or are called by every other entry.
pub(super) const ELSEWHERE: &[(&str, &str)] = &[
    ("dtype", "each context"),
    ("device", "no argument"),
    ("is_tracked", "no argument"),
    ("tap_beside", "needs a module: the tracer's tests"),
];

fn mask_axes(g: &mut Pick, f: fn(&Tensor, &[isize]) -> Result<Tensor>) -> Made {
    let s = g.extents();
    let (x, a) = (g.mask(&s), g.axes(s.len()));
    (vec![x], call(move |x| Ok(vec![f(&x[0], &a)?])))
}

fn joined(g: &mut Pick, f: fn(&[&Tensor], isize) -> Result<Tensor>, vary: bool) -> Made {
    let (s, d, n) = (g.extents(), g.dtype(), g.below(4));
    let a = g.axis(s.len() + usize::from(!vary));
    let mut x = Vec::new();
    for _ in 0..n {
        let mut s = s.clone();
        let at = a.rem_euclid(s.len().max(1) as isize) as usize;
        if vary && at < s.len() {
            s[at] = g.below(4);
        }
        if g.rarely(20) {
            s = g.extents();
        }
        x.push(g.tensor(&s, d));
    }
    (x, call(move |x| Ok(vec![f(&x.iter().collect::<Vec<_>>(), a)?])))
}

fn pair(g: &mut Pick, f: fn(&Tensor, isize, usize) -> Result<(Tensor, Tensor)>) -> Made {
    let (s, d) = (g.extents(), g.dtype());
    let x = g.tensor(&s, d);
    let a = g.axis(x.rank());
    let n = if g.rarely(4) { g.size() } else { g.below(extent(&x, a) + 1) };
    (
        vec![x],
        call(move |x| {
            let (v, i) = f(&x[0], a, n)?;
            Ok(vec![v, i])
        }),
    )
}

/// A tensor, indices of its rank into an axis, and the axis.
fn indexed(g: &mut Pick) -> (Tensor, Tensor, isize) {
    let (s, d) = (g.extents(), g.dtype());
    let x = g.tensor(&s, d);
    let a = g.axis(x.rank());
    let mut shape: Vec<usize> = x.shape().iter().map(|&d| g.below(d.min(8) + 1)).collect();
    if !shape.is_empty() {
        let at = a.rem_euclid(shape.len() as isize) as usize;
        shape[at] = g.below(6);
    }
    let ids = g.ids(&shape, extent(&x, a));
    (x, ids, a)
}

fn made(g: &mut Pick, f: fn(&[usize], f64, cotangent::DType, cotangent::Key) -> Result<Tensor>) -> Made {
    let shape = if g.rarely(4) { vec![g.size(), g.size()] } else { g.extents() };
    let (c, d, k) = (g.number(), g.dtype(), g.key());
    (vec![], call(move |_| Ok(vec![f(&shape, c, d, k)?])))
}
