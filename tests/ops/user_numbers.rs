//! Faults of numbers that users found, each with the right value beside it: PyTorch 2.15's, or the formula's.

use cotangent::ops::CrossEntropyOptions;
use cotangent::*;

fn values(shape: &[usize], k: usize) -> Tensor {
    let n: usize = shape.iter().product();
    let data: Vec<f64> = (0..n).map(|i| ((i * 7 + 3 * k) % 11) as f64 - 5.0).collect();
    Tensor::from_vec(data, shape).unwrap()
}

/// Equation, shapes of the operands, shape of the result, the result, the gradient of each operand.
type Case = (&'static str, &'static [&'static [usize]], &'static [usize], &'static [f64], &'static [&'static [f64]]);

// torch.einsum of operands `values(shape, k)` for k = 0, 1, …; the gradients are those of Σ y·w with w = ((5 i) mod 7) − 3.
#[rustfmt::skip]
const EINSUM: &[Case] = &[
    ("i...->i", &[&[2, 3, 4]], &[2], &[-5., 2.], &[&[-3., -3., -3., -3., -3., -3., -3., -3., -3., -3., -3., -3., 2., 2., 2., 2., 2., 2., 2., 2., 2., 2., 2., 2.]]),
    ("...->", &[&[2, 3, 4]], &[], &[-3.], &[&[-3., -3., -3., -3., -3., -3., -3., -3., -3., -3., -3., -3., -3., -3., -3., -3., -3., -3., -3., -3., -3., -3., -3., -3.]]),
    ("...ij->ij", &[&[2, 3, 4]], &[3, 4], &[-3., 0., 3., 6., -2., 1., 4., -4., -1., 2., -6., -3.], &[&[-3., 2., 0., -2., 3., 1., -1., -3., 2., 0., -2., 3., -3., 2., 0., -2., 3., 1., -1., -3., 2., 0., -2., 3.]]),
    ("...k,...k->", &[&[2, 3, 4], &[2, 3, 4]], &[], &[-24.], &[&[6., -15., -3., 9., -12., 0., 12., -9., 3., 15., -6., 6., -15., -3., 9., -12., 0., 12., -9., 3., 15., -6., 6., -15.], &[15., -6., 6., -15., -3., 9., -12., 0., 12., -9., 3., 15., -6., 6., -15., -3., 9., -12., 0., 12., -9., 3., 15., -6.]]),
    ("ij,...->ij", &[&[4, 2], &[1]], &[4, 2], &[10., -4., 4., -10., -2., 6., -8., 0.], &[&[6., -4., 0., 4., -6., -2., 2., 6.], &[5.]]),
    ("i...j->j", &[&[2, 3, 2]], &[2], &[-7., 2.], &[&[-3., 2., -3., 2., -3., 2., -3., 2., -3., 2., -3., 2.]]),
    ("...,...->", &[&[2, 1], &[1, 3]], &[], &[-12.], &[&[-12., -12.], &[9., 9., 9.]]),
    ("...ij->ji", &[&[2, 1, 2, 3]], &[3, 2], &[-1., 8., 2., 0., -6., -8.], &[&[-3., 0., 3., 2., -2., 1., -3., 0., 3., 2., -2., 1.]]),
    ("...k,...k->k", &[&[2, 3, 2], &[1, 2]], &[2], &[14., 10.], &[&[6., 10., 6., 10., 6., 10., 6., 10., 6., 10., 6., 10.], &[21., 4.]]),
    ("ij,...->ij", &[&[2, 2], &[3, 2]], &[2, 2], &[-25., 10., -10., 25.], &[&[-15., 10., 0., -10.], &[9., 9., 9., 9., 9., 9.]]),
    ("...i,...j->ij", &[&[2, 3, 2], &[3, 2]], &[2, 2], &[-4., 13., -28., -14.], &[&[16., -10., -9., 6., -12., 0., 16., -10., -9., 6., -12., 0.], &[3., -6., 18., -28., 0., 16.]]),
    ("...ii->i", &[&[2, 3, 3]], &[3], &[-2., -1., 0.], &[&[-3., 0., 0., 0., 2., 0., 0., 0., 0., -3., 0., 0., 0., 2., 0., 0., 0., 0.]]),
    ("b...,b...,b...->b", &[&[2, 3], &[2, 1], &[2, 3]], &[2], &[38., -65.], &[&[6., -18., 24., 0., -40., 30.], &[57., -26.], &[-30., 12., -12., 50., 10., -30.]]),
    ("...a,...b,...->ba", &[&[2, 2], &[2, 3], &[3, 2]], &[3, 2], &[10., -4., -25., 10., -5., 2.], &[&[9., -13., 0., 0.], &[19., -4., -13., 0., 0., 0.], &[-71., -88., -71., -88., -71., -88.]]),
    ("i...,...i->", &[&[2, 3], &[3, 2]], &[], &[26.], &[&[6., -3., -12., -15., 9., 0.], &[15., -15., -6., -3., 6., 9.]]),
    ("...i->i...", &[&[2, 3]], &[3, 2], &[-5., 5., 2., 1., -2., -3.], &[&[-3., 0., 3., 2., -2., 1.]]),
    ("...ij,...jk->...ik", &[&[2, 1, 2, 2], &[2, 2, 2]], &[2, 2, 2, 2], &[12., -31., 9., -25., -28., 6., -28., 15., -5., 14., -8., 20., 16., -9., 16., 0.], &[&[28., -18., -14., 1., 0., -5., 7., 7.], &[9., 6., -12., -6., -24., 8., -2., -10.]]),
    ("...ij,...jk->ik", &[&[2, 1, 2, 2], &[2, 2, 2]], &[2, 2], &[-5., -20., -11., 10.], &[&[4., 9., -10., 0., 4., 9., -10., 0.], &[12., -12., 3., -12., 12., -12., 3., -12.]]),
    ("i...,i...", &[&[2, 2], &[2, 1]], &[2], &[0., 21.], &[&[6., -4., -15., 10.], &[19., 16.]]),
    ("...a->", &[&[2, 1, 3]], &[], &[-2.], &[&[-3., -3., -3., -3., -3., -3.]]),
    ("...ab,...bc->ca", &[&[2, 2, 2], &[1, 2, 2]], &[2, 2], &[7., 1., -17., -5.], &[&[6., -3., -14., 8., 6., -3., -14., 8.], &[16., -4., 13., -10.]]),
];

/// An ellipsis that the output leaves out is summed; values and gradients of PyTorch.
#[test]
fn einsum_is_pytorchs() -> Result<()> {
    for &(equation, shapes, shape, want, gradients) in EINSUM {
        let x: Vec<Tensor> = shapes.iter().enumerate().map(|(k, s)| values(s, k)).collect();
        let y = Tensor::einsum(equation, &x.iter().collect::<Vec<_>>())?;
        assert_eq!((y.shape().as_ref(), &y.to_vec::<f64>()?[..]), (shape, want), "{equation}");
        let weights: Vec<f64> = (0..y.numel()).map(|i| (i * 5 % 7) as f64 - 3.0).collect();
        let weights = Tensor::from_vec(weights, shape)?;
        let got = grad(&x, |x| Tensor::einsum(equation, &x.iter().collect::<Vec<_>>())?.mul(&weights)?.sum(..))?;
        for (k, (got, want)) in got.iter().zip(gradients).enumerate() {
            assert_eq!(&got.to_vec::<f64>()?[..], *want, "{equation}: gradient of operand {k}");
        }
    }
    Ok(())
}

/// The equations as they were reported, by PyTorch and by counting: 0 to 23 add up to 276, their squares to 4324.
#[test]
fn an_ellipsis_that_the_output_leaves_out_is_summed() -> Result<()> {
    let x = Tensor::arange(0.0, 24.0, 1.0, F64)?.reshape([2, 3, 4])?;
    let columns: Vec<f64> = (0..12).map(|i| f64::from(2 * i + 12)).collect();
    let cases: [(&str, usize, &[usize], &[f64]); 4] = [
        ("i...->i", 1, &[2], &[66.0, 210.0]),
        ("...->", 1, &[], &[276.0]),
        ("...ij->ij", 1, &[3, 4], &columns),
        ("...k,...k->", 2, &[], &[4324.0]),
    ];
    for (equation, n, shape, want) in cases {
        let operands = vec![x.clone(); n];
        let y = Tensor::einsum(equation, &operands)?;
        assert_eq!((y.shape().as_ref(), &y.to_vec::<f64>()?[..]), (shape, want), "{equation}");
    }
    let (w, s) = (Tensor::arange(0.0, 8.0, 1.0, F64)?.reshape([4, 2])?, f64s(&[3.0]));
    let y = Tensor::einsum("ij,...->ij", &[&w, &s])?;
    assert_eq!((y.shape().as_ref(), y.to_vec::<f64>()?), (&[4, 2][..], w.mul_scalar(3.0)?.to_vec::<f64>()?));
    Ok(())
}

/// Several losses of a row, as `linear_cross_entropy` says when its weight has more axes: the mean of those of each.
#[test]
fn losses_of_several_axes_by_the_advice() -> Result<()> {
    let (x, weight) = (values(&[4, 3], 1), values(&[5, 2, 3], 2).mul_scalar(0.25)?);
    let targets = Tensor::from_slice(&[0i64, 4, 2, 1, 3, 3, 1, 0], [4, 2])?;
    let at_once = |x: &Tensor| x.linear(&weight.flatten(0, -2)?, None)?.reshape([4, 5, 2])?.transpose(1, -1)?.cross_entropy(&targets);
    let each = |x: &Tensor| {
        let one = |d: isize| x.linear_cross_entropy(&weight.select(1, d)?, None, &targets.select(1, d)?, &CrossEntropyOptions::default());
        one(0)?.add(&one(1)?)?.mul_scalar(0.5)
    };
    near(&[at_once(&x)?.item()?], &[each(&x)?.item()?], 1e-14, "value");
    near(&slopes(&x, at_once), &slopes(&x, each), 1e-12, "gradient");
    Ok(())
}

fn f32s(x: &[f32]) -> Tensor {
    Tensor::from_slice(x, [x.len()]).unwrap()
}

fn f64s(x: &[f64]) -> Tensor {
    Tensor::from_slice(x, [x.len()]).unwrap()
}

/// Equal, or both NaN.
fn same(got: &[f64], want: &[f64], what: &str) {
    let equal = got.len() == want.len() && got.iter().zip(want).all(|(a, b)| a == b || (a.is_nan() && b.is_nan()));
    assert!(equal, "{what}: {got:?}, should be {want:?}");
}

/// Within `tolerance` of the value itself.
fn near(got: &[f64], want: &[f64], tolerance: f64, what: &str) {
    let close = got.len() == want.len() && got.iter().zip(want).all(|(a, b)| a == b || (a - b).abs() <= tolerance * b.abs());
    assert!(close, "{what}: {got:?}, should be {want:?}");
}

fn slopes(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Vec<f64> {
    grad(x, |x| f(x)?.sum(..)).unwrap().into_inner().to_f64_vec().unwrap()
}

const INF: f64 = f64::INFINITY;
const NAN: f64 = f64::NAN;

/// The slope of a clamp is 0 at its bounds and at NaN, whichever bounds there are; PyTorch 2.15.
#[test]
fn clamp_at_its_bounds_and_at_nan() -> Result<()> {
    let x = [-1.0, 0.0, 0.5, 1.0, 2.0, NAN, INF, -INF];
    for dtype in DType::FLOATS {
        let x = f64s(&x).cast(dtype)?;
        same(&x.clamp(0.0, 1.0)?.to_f64_vec()?, &[0.0, 0.0, 0.5, 1.0, 1.0, NAN, 1.0, 0.0], "clamp");
        same(&slopes(&x, |x| x.clamp(0.0, 1.0)), &[0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], "clamp");
        same(&slopes(&x, |x| x.clamp(0.0, None)), &[0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0], "from below");
        same(&slopes(&x, |x| x.clamp(None, 1.0)), &[1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0], "from above");
        same(&slopes(&x, |x| x.clamp(-INF, INF)), &[1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0], "infinite bounds are bounds");
        // relu6, and a hinge: at their kinks 0, as their parts.
        same(&slopes(&x.mul_scalar(6.0)?, |x| x.clamp(0.0, 6.0)), &[0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], "relu6");
        same(&slopes(&x, |x| x.rsub_scalar(1.0)?.clamp(0.0, None)), &[-1.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0, -1.0], "hinge");
    }
    Ok(())
}

/// The same for the other kinks: what PyTorch 2.15 gives, but for the NaN of a maximum, which takes the cotangent here (there both do).
#[test]
fn other_kinks_and_their_nan() -> Result<()> {
    let x = f64s(&[0.0, -0.0, NAN, 3.0, -3.0]);
    same(&slopes(&x, |x| x.relu()), &[0.0, 0.0, 1.0, 1.0, 0.0], "relu");
    same(&slopes(&x, |x| x.abs()), &[0.0, 0.0, 0.0, 1.0, -1.0], "abs");
    same(&slopes(&x, |x| x.leaky_relu(0.25)), &[0.25, 0.25, 0.25, 1.0, 0.25], "leaky_relu");
    same(&slopes(&x, |x| x.elu(2.0)), &[2.0, 2.0, NAN, 1.0, 2.0 * (-3f64).exp()], "elu");
    // The second derivative of elu from below, at 0 and where eˣ overflows above.
    let z = f64s(&[0.0, -1.0, 1000.0]);
    same(&slopes(&z, |x| Ok(grad(x, |x| x.elu(2.0)?.sum(..))?.into_inner())), &[2.0, 2.0 * (-1f64).exp(), 0.0], "elu''");
    let (a, b) = (f64s(&[1.0, 1.0, NAN, 2.0]), f64s(&[1.0, NAN, 1.0, 1.0]));
    same(&slopes(&a, |a| a.maximum(&b)), &[0.5, 0.0, 1.0, 1.0], "maximum");
    same(&slopes(&b, |b| a.maximum(b)), &[0.5, 1.0, 0.0, 0.0], "maximum");
    same(&slopes(&a, |a| a.minimum(&b)), &[0.5, 0.0, 1.0, 0.0], "minimum");
    same(&slopes(&f64s(&[1.0, 3.0, 3.0]), |x| x.max(..)), &[0.0, 0.5, 0.5], "max");
    same(&slopes(&f64s(&[1.0, 3.0, 1.0]), |x| x.min(..)), &[0.5, 0.0, 0.5], "min");
    same(&slopes(&f64s(&[1.0, NAN, 3.0, NAN]), |x| x.max(..)), &[0.0, 0.5, 0.0, 0.5], "max of NaN");
    Ok(())
}

/// Standard deviations and variances whose squares leave the range of f32; PyTorch 2.15, or where that gives ∞ the
/// formula (the deviation of [3e38, 3e38, −1] is √3·1e38).
#[test]
fn deviations_outside_the_range_of_squares() -> Result<()> {
    let tiny = f32s(&[1e-30, 3e-30]);
    near(&tiny.std(.., 1)?.to_f64_vec()?, &[2f64.sqrt() * 1e-30], 1e-6, "std of tiny numbers");
    let half = 0.5f64.sqrt();
    near(&slopes(&tiny, |x| x.std(.., 1)), &[-half, half], 1e-6, "and its gradient");
    near(&slopes(&tiny, |x| x.var(.., 1)), &[-2e-30, 2e-30], 1e-6, "the gradient of a variance that is 0");
    let huge = f32s(&[1e30, 3e30]);
    near(&huge.std(.., 1)?.to_f64_vec()?, &[2f64.sqrt() * 1e30], 1e-6, "std of huge numbers");
    near(&slopes(&huge, |x| x.std(.., 1)), &[-half, half], 1e-6, "and its gradient");
    let most = f32s(&[3e38, 3e38, -1.0]);
    same(&most.var(.., 1)?.to_f64_vec()?, &[INF], "a variance beyond f32");
    near(&most.std(.., 1)?.to_f64_vec()?, &[3f64.sqrt() * 1e38], 1e-6, "its root is within");
    let third = (1.0f64 / 12.0).sqrt();
    near(&slopes(&most, |x| x.std(.., 1)), &[third, third, -2.0 * third], 1e-6, "and has a gradient");
    // Siblings: columns, bf16, strided operands, groups of several parts, both ends.
    for (scale, dtype) in [(1e-30, F32), (1e30, F32), (1e-30, BF16), (1e30, BF16), (1.0, F32)] {
        for shape in [[3, 5], [9000, 3], [2, 70_000]] {
            let x = Tensor::randn(shape, F64, Key::new(4))?;
            let scaled = x.mul_scalar(scale)?.cast(dtype)?;
            let exact = scaled.cast(F64)?;
            for axis in [0, 1] {
                let of = |x: &Tensor| x.std(axis, 0)?.to_f64_vec();
                near(&of(&scaled)?, &of(&exact)?, 4.0 * dtype.epsilon(), "std");
                let turned = scaled.transpose(0, 1)?;
                near(&turned.std(1 - axis, 0)?.to_f64_vec()?, &of(&exact)?, 4.0 * dtype.epsilon(), "std of a transposed tensor");
                let (got, want) = (slopes(&scaled, |x| x.std(axis, 0)), slopes(&exact, |x| x.std(axis, 0)));
                let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                let top = want.iter().fold(0f64, |m, v| m.max(v.abs()));
                assert!(worst <= 2.0 * dtype.epsilon() * top, "gradient of std, {dtype} {shape:?} {axis}: {worst}");
            }
        }
    }
    // A constant group stays one, whatever its size and offset.
    for c in [0.0f32, 1e-30, 3e38, 0.1] {
        let x = Tensor::full([3, 70_000], f64::from(c), F32)?;
        for axis in [0, 1] {
            assert!(x.var(axis, 0)?.to_f64_vec()?.iter().all(|&v| v == 0.0), "{c}");
            assert!(slopes(&x, |x| x.std(axis, 0)).iter().all(|&v| v == 0.0), "{c}");
        }
    }
    same(&f32s(&[f32::INFINITY, 1.0]).std(.., 1)?.to_f64_vec()?, &[NAN], "an infinite element");
    // The norm, which says that it loses none, and the mean, whose sum overflows as PyTorch's.
    near(&slopes(&f32s(&[2e38, 2e38]), |x| x.norm(..)), &[half, half], 1e-6, "norm");
    same(&slopes(&f32s(&[3e38, 3e38]), |x| x.mean(..)), &[0.5, 0.5], "mean");
    Ok(())
}

/// 7e-4 in f32, one addition after the other.
#[test]
fn many_equal_additions_lose_no_digits() -> Result<()> {
    const N: usize = 70_000;
    let each = f64::from(0.1f32);
    let close = |got: f64, want: f64, what: &str| assert!((got - want).abs() <= 2e-7 * want, "{what}: {got} instead of {want}");
    for (shape, axis) in [([N, 1], 0), ([N, 3], 0), ([1, N], 1), ([3, N], 1)] {
        for dtype in [F32, BF16] {
            let x = Tensor::full(shape, 0.1, dtype)?;
            let each = x.narrow(0, 0, 1)?.narrow(1, 0, 1)?.item()?;
            let error = if dtype == BF16 { 4e-3 } else { 2e-7 };
            for (k, at) in [(1, 1.0), (10, 10.0), (9_999, 9_999.0), (N, N as f64)] {
                let up = x.cumsum(axis)?.narrow(axis, k - 1, 1)?.to_f64_vec()?;
                // The derivative runs from the other end.
                let down = grad(&x, |x| x.cumsum(axis)?.mul_scalar(each)?.sum(..))?.narrow(axis, N - k, 1)?.to_f64_vec()?;
                for v in up.into_iter().chain(down) {
                    assert!((v - at * each).abs() <= error * at * each, "{dtype} {shape:?}, element {k}: {v}");
                }
            }
        }
    }
    let (zero, ids, x) = (Tensor::zeros([4], F32)?, Tensor::full([N], 2.0, I64)?, Tensor::full([N], 0.1, F32)?);
    let want = N as f64 * each;
    close(zero.scatter_add(0, &ids, &x)?.to_f64_vec()?[2], want, "scatter_add");
    close(grad(&zero, |z| z.gather(0, &ids)?.mul(&x)?.sum(..))?.to_f64_vec()?[2], want, "the cotangent of gather");
    // Pairwise, in f32.
    let pairwise = zero.index_add(0, &ids, &x)?.to_f64_vec()?[2];
    assert!((pairwise - want).abs() <= 2e-6 * want, "index_add: {pairwise}");
    Ok(())
}

/// The product's gradient is the product of the others, also where some are NaN, 0 or infinite.
#[test]
fn gradients_of_products_with_nan() -> Result<()> {
    let cases: [(&[f64], &[f64]); 8] = [
        (&[NAN, 0.0, 3.0], &[0.0, NAN, NAN]),
        (&[NAN, 2.0, 3.0], &[6.0, NAN, NAN]),
        (&[NAN, NAN, 0.0], &[NAN, NAN, NAN]),
        (&[INF, 0.0, 3.0], &[0.0, INF, NAN]),
        (&[INF, -2.0, 3.0], &[-6.0, INF, -INF]),
        (&[-INF, INF, 2.0], &[INF, -INF, -INF]),
        (&[INF, 0.0, 0.0], &[0.0, NAN, NAN]),
        (&[2.0, 0.0, 3.0], &[0.0, 6.0, 0.0]),
    ];
    for (x, want) in cases {
        for dtype in [F64, F32, BF16, F16] {
            let x = f64s(x).cast(dtype)?;
            same(&slopes(&x, |x| x.prod(..)), want, "rows");
            same(
                &slopes(&x.reshape([3, 1])?.expand([3, 2])?, |x| x.prod(0)),
                &want.iter().flat_map(|v| [*v; 2]).collect::<Vec<_>>(),
                "columns",
            );
        }
    }
    Ok(())
}

/// Derivatives of a mean over nothing are sums over nothing, in any order; so those of its relatives.
#[test]
fn second_derivatives_over_nothing() -> Result<()> {
    type Of = fn(&Tensor) -> Result<Tensor>;
    let ops: [(&str, Of); 12] = [
        ("mean", |x| x.mean(-1)),
        ("sum", |x| x.sum(-1)),
        ("var", |x| x.var(-1, 0)),
        ("std", |x| x.std(-1, 0)),
        ("norm", |x| x.norm(-1)),
        ("prod", |x| x.prod(-1)),
        ("logsumexp", |x| x.logsumexp(-1)),
        ("softmax", |x| x.softmax(-1)),
        ("log_softmax", |x| x.log_softmax(-1)),
        ("layer_norm", |x| x.layer_norm(1, None, None, 1e-5)),
        ("rms_norm", |x| x.rms_norm(None, 1e-5)),
        ("mse_loss", |x| x.mse_loss(&x.detach())),
    ];
    for (name, f) in ops {
        let x = Tensor::zeros([2, 0], F64)?;
        let shape = f(&x)?.shape().clone();
        // ∂/∂ȳ of ⟨x̄(x, ȳ), d⟩: 0 in the shape of y.
        let bar = Tensor::ones(&shape, F64)?;
        let with = GradOptions { allow_disconnected: true };
        let (_, g) = value_and_grad_with(&bar, with, |bar| {
            let x_bar = grad(&x, |x| f(x)?.mul(bar)?.sum(..))?.into_inner();
            x_bar.square()?.sum(..)
        })?;
        same(&g.into_inner().to_f64_vec()?, &vec![0.0; shape.numel()], name);
    }
    Ok(())
}

/// 2 (x − t)/n does not overflow where it is representable; squares, and other losses of huge values.
#[test]
fn gradients_of_huge_losses() -> Result<()> {
    let (x, zeros) = (f32s(&[3e38, 1.0]), f32s(&[0.0, 0.0]));
    let g = grad(&x, |x| x.mse_loss(&zeros))?.to_vec::<f32>()?;
    assert_eq!(g, [3e38, 1.0]);
    assert_eq!(grad(&x, |x| x.square()?.mul_scalar(0.25)?.sum(..))?.to_vec::<f32>()?, [1.5e38, 0.5]);
    assert_eq!(grad(&x, |x| x.relu_squared()?.mul_scalar(0.25)?.sum(..))?.to_vec::<f32>()?, [1.5e38, 0.5]);
    assert_eq!(grad(&x, |x| x.powi(2)?.mul_scalar(0.25)?.sum(..))?.to_vec::<f32>()?, [1.5e38, 0.5]);
    assert_eq!(grad(&x, |x| x.powf(2.0)?.mul_scalar(0.25)?.sum(..))?.to_vec::<f32>()?, [1.5e38, 0.5]);
    let (x, t) = (f32s(&[3e38, -3e38]), f32s(&[0.0, 1.0]));
    assert_eq!(grad(&x, |x| x.bce_with_logits(&t))?.to_vec::<f32>()?, [0.5, -0.5]);
    let x = f64s(&[3e4, 6e4]).cast(F16)?;
    assert_eq!(slopes(&x, |x| x.mse_loss(&x.zeros_like()?)), [3e4, 6e4].map(|v| half::f16::from_f64(v).to_f64()));
    Ok(())
}

/// At +∞ a logsumexp has the gradient of its formula, NaN (0 beside it), as PyTorch; only a group of −∞ is at rest.
#[test]
fn gradients_at_infinite_scores() -> Result<()> {
    for dtype in DType::FLOATS {
        for (x, want) in [
            ([INF, 0.0], [NAN, 0.0]),
            ([INF, INF], [NAN, NAN]),
            ([INF, -INF], [NAN, 0.0]),
            ([NAN, 0.0], [NAN, NAN]),
            // PyTorch: NaN. Documented here as 0.
            ([-INF, -INF], [0.0, 0.0]),
            ([-INF, 0.0], [0.0, 1.0]),
        ] {
            let x = f64s(&x).cast(dtype)?;
            same(&slopes(&x, |x| x.logsumexp(..)), &want, "logsumexp");
            let column = x.reshape([2, 1])?;
            same(&slopes(&column, |x| x.logsumexp(0)), &want, "logsumexp of a column");
        }
        // What is made of a softmax: NaN all over at +∞, zeros in a line that is masked.
        for x in [[INF, 0.0], [INF, INF], [NAN, 0.0]] {
            let x = f64s(&x).cast(dtype)?;
            same(&x.softmax(-1)?.to_f64_vec()?, &[NAN; 2], "softmax");
            same(&slopes(&x, |x| x.softmax(-1)?.slice(0, 0..1)), &[NAN; 2], "softmax");
            same(&slopes(&x, |x| x.log_softmax(-1)?.slice(0, 0..1)), &[NAN; 2], "log_softmax");
            for target in [0i64, 1] {
                let t = Tensor::from_slice(&[target], [1])?;
                let loss = |x: &Tensor| x.reshape([1, 2])?.cross_entropy(&t);
                assert!(loss(&x)?.item()?.is_nan());
                same(&slopes(&x, loss), &[NAN; 2], "cross_entropy");
            }
        }
        let masked = f64s(&[-INF, -INF]).cast(dtype)?;
        same(&masked.softmax(-1)?.to_f64_vec()?, &[0.0; 2], "a masked softmax");
        same(&slopes(&masked, |x| x.softmax(-1)), &[0.0; 2], "a masked softmax");
        same(&slopes(&masked, |x| x.log_softmax(-1)), &[0.0; 2], "a masked log_softmax");
    }
    Ok(())
}

/// With a cotangent of 0 NaN comes out at a pole, of these ops and no others; the book lists them.
#[test]
fn a_zero_cotangent_at_a_pole() -> Result<()> {
    type Of = fn(&Tensor) -> Result<Tensor>;
    let poles: [(&str, f64, Of); 11] = [
        ("sqrt", 0.0, |x| x.sqrt()),
        ("rsqrt", 0.0, |x| x.rsqrt()),
        ("recip", 0.0, |x| x.recip()),
        ("log", 0.0, |x| x.log()),
        ("log1p", -1.0, |x| x.log1p()),
        ("powf", 0.0, |x| x.powf(0.5)),
        ("powi", 0.0, |x| x.powi(-2)),
        ("pow", 0.0, |x| x.pow(&Tensor::full([1], 0.5, x.dtype())?)),
        ("div", 0.0, |x| x.ones_like()?.div(x)),
        ("rdiv_scalar", 0.0, |x| x.rdiv_scalar(2.0)),
        ("div", 0.0, |x| x.div(x)),
    ];
    let book = include_str!("../../docs/book/numerics.md");
    let row = book.lines().find(|l| l.starts_with("| a zero cotangent")).unwrap();
    let weighted = |x: &Tensor, f: &Of| grad(x, |x| f(x)?.mul_scalar(0.0)?.sum(..)).unwrap().into_inner().to_f64_vec().unwrap();
    for (name, at, f) in poles {
        for dtype in DType::FLOATS {
            let x = Tensor::full([1], at, dtype)?;
            // A cotangent of exactly 0, not a value times 0.
            let back = vjp(&x, f)?;
            assert!(back.pull(&back.value.zeros_like()?)?.into_inner().item()?.is_nan(), "{name}");
        }
        assert!(row.contains(&format!("`{name}`")), "the book does not list {name}");
    }
    let finite: [(&str, [f64; 2], Of); 17] = [
        ("norm", [0.0, 0.0], |x| x.norm(..)),
        ("std", [2.0, 2.0], |x| x.std(.., 0)),
        ("prod", [0.0, 0.0], |x| x.prod(..)),
        ("abs", [0.0, -0.0], |x| x.abs()),
        ("relu", [0.0, -1.0], |x| x.relu()),
        ("clamp", [0.0, 1.0], |x| x.clamp(0.0, 1.0)),
        ("elu", [0.0, -1e3], |x| x.elu(1.0)),
        ("exp", [-1e3, 0.0], |x| x.exp()),
        ("silu", [-1e3, 1e3], |x| x.silu()),
        ("gelu", [-1e3, 1e3], |x| x.gelu()),
        ("tanh", [-1e3, 1e3], |x| x.tanh()),
        ("softplus", [-1e3, 1e3], |x| x.softplus()),
        ("logsumexp", [-INF, -INF], |x| x.logsumexp(..)),
        ("softmax", [-INF, 0.0], |x| x.softmax(-1)),
        ("log_softmax", [-INF, -INF], |x| x.log_softmax(-1)),
        ("layer_norm", [3.0, 3.0], |x| x.layer_norm(1, None, None, 1e-5)),
        ("rms_norm", [0.0, 0.0], |x| x.rms_norm(None, 1e-5)),
    ];
    for (name, at, f) in finite {
        same(&weighted(&f64s(&at), &f), &[0.0, 0.0], name);
    }
    Ok(())
}

/// The second derivative of a product takes memory that grows with x, not with its square, and knows zeros.
#[test]
fn second_derivatives_of_long_products() -> Result<()> {
    // The definition: Σ over k ≠ i of v_k times the product of all but i and k.
    let exact = |x: &[f64], v: &[f64]| -> Vec<f64> {
        let others = |i: usize, k: usize| (0..x.len()).filter(|&j| j != i && j != k).map(|j| x[j]).product::<f64>();
        (0..x.len()).map(|i| (0..x.len()).filter(|&k| k != i).map(|k| v[k] * others(i, k)).sum()).collect()
    };
    for x in [&[2.0, 3.0, 5.0][..], &[2.0, 0.0, 5.0, -1.0, 0.5], &[0.0, 0.0, 3.0], &[0.0; 3], &[7.0], &[2.0, -3.0], &[1.5; 9]] {
        let v: Vec<f64> = (0..x.len()).map(|i| i as f64 - 1.5).collect();
        let want = exact(x, &v);
        let got = hvp(&f64s(x), &f64s(&v), |x| x.prod(..))?.1.to_f64_vec()?;
        near(&got, &want, 1e-14, &format!("{x:?}"));
        // Over some axes of more: both columns are x.
        let (n, two) = (x.len(), |x: &[f64]| f64s(x).reshape([x.len(), 1])?.expand([x.len(), 2]));
        let got = hvp(&two(x)?, &two(&v)?, |x| x.prod(0)?.sum(..))?.1.transpose(0, 1)?.to_f64_vec()?;
        near(&got[..n], &want, 1e-14, "columns");
        near(&got[n..], &want, 1e-14, "columns");
    }
    let n = 300_000;
    let (x, v) = (Tensor::ones([n], F32)?, Tensor::full([n], 2.0, F32)?);
    let h = hvp(&x, &v, |x| x.prod(..))?.1.to_f64_vec()?;
    assert!(h.iter().all(|&h| h == 2.0 * (n - 1) as f64), "{}", h[0]);
    assert_eq!(hvp(&Tensor::ones([0, 1 << 20], F32)?, &Tensor::ones([0, 1 << 20], F32)?, |x| x.prod(1)?.sum(..))?.1.numel(), 0);
    // The third derivative of abc along ones is that of a polynomial.
    let third = grad(&f64s(&[2.0, 3.0, 5.0]), |x| grad(x, |x| grad(x, |x| x.prod(..))?.sum(..))?.sum(..))?;
    same(&third.to_f64_vec()?, &[2.0, 2.0, 2.0], "third derivative");
    // Factors that meet outside the range of an f32.
    let h = hvp(&f32s(&[1e30, 1e30, 1e-30, 1e-30]), &f32s(&[1e30, 0.0, 0.0, 0.0]), |x| x.prod(..))?.1.to_f64_vec()?;
    near(&h, &[0.0, 1e-30, 1e30, 1e30], 1e-6, "wide factors");
    Ok(())
}

/// Whole numbers beyond 2⁵³ do not go through f64.
#[test]
fn integers_beyond_doubles() -> Result<()> {
    let key = Key::new(3);
    let all = Tensor::randint([1000], i64::MIN..i64::MAX, I64, key)?.to_vec::<i64>()?;
    assert!(all.iter().any(|&v| v < i64::MIN / 2) && all.iter().any(|&v| v > i64::MAX / 2) && all.iter().any(|v| v % 2 != 0));
    let from = 1i64 << 60;
    let few = Tensor::randint([1000], from..from + 10, I64, key)?.to_vec::<i64>()?;
    assert!((from..from + 10).all(|v| few.contains(&v)) && few.iter().all(|v| (from..from + 10).contains(v)));
    assert!(Tensor::randint([1000], 0..1 << 60, I64, key)?.to_vec::<i64>()?.iter().any(|v| v % 2 == 1 && *v > 1 << 53));
    assert_eq!(Tensor::randint([1], i64::MAX - 1..i64::MAX, I64, key)?.to_vec::<i64>()?, [i64::MAX - 1]);
    // The other types end where they did.
    for (range, dtype) in [(0..1i64 << 32, U32), (0..256, U8), (-(1i64 << 53)..1 << 53, F64), (0..(1 << 24) + 1, F32), (0..65_505, U32)] {
        assert!(Tensor::randint([4], range.clone(), dtype, key).is_ok(), "{range:?} {dtype}");
    }
    for (range, dtype) in [(0..(1i64 << 32) + 1, U32), (-1..4, U8), (0..(1 << 53) + 2, F64), (0..(1 << 24) + 2, F32), (0..2050, F16)] {
        assert!(Tensor::randint([4], range.clone(), dtype, key).unwrap_err().is_dtype(), "{range:?} {dtype}");
    }
    // Siblings: ranges, comparisons with a number; and what a cast would saturate is refused.
    let start = 2f64.powi(53);
    let range = Tensor::arange(start, start + 4.0, 1.0, I64)?.to_vec::<i64>()?;
    assert_eq!(range, (0..4).map(|i| (1i64 << 53) + i).collect::<Vec<_>>());
    let down = Tensor::arange(2f64.powi(60), 2f64.powi(60) - 256.0, -3.0, I64)?.to_vec::<i64>()?;
    assert_eq!(down, (0..86).map(|i| (1i64 << 60) - 3 * i).collect::<Vec<_>>());
    assert_eq!(Tensor::arange(0.0, 2.5, 1.0, I64)?.to_vec::<i64>()?, [0, 1, 2]);
    assert_eq!(Tensor::arange(0.0, -2.5, -1.0, I64)?.to_vec::<i64>()?, [0, -1, -2]);
    assert_eq!(Tensor::arange(3.0, 3.0, 1.0, I64)?.numel() + Tensor::arange(3.0, 1.0, 1.0, I64)?.numel(), 0);
    assert!(Tensor::arange(2f64.powi(63), 2f64.powi(63) + 5000.0, 1.0, I64).unwrap_err().is_argument());
    assert!(Tensor::arange(0.0, 1e300, 1.0, I64).is_err());
    let x = Tensor::from_slice(&[(1i64 << 53) + 1, 1 << 53], [2])?;
    assert_eq!(x.eq_scalar(start)?.to_vec::<u8>()?, [0, 1]);
    assert_eq!(x.gt_scalar(start)?.to_vec::<u8>()?, [1, 0]);
    assert_eq!(Tensor::full([1], -(2f64.powi(63)), I64)?.to_vec::<i64>()?, [i64::MIN]);
    assert!(Tensor::full([1], 2f64.powi(63), I64).unwrap_err().is_argument());
    let mask = Tensor::from_slice(&[1u8, 0], [2])?;
    assert!(mask.masked_fill(&mask, 256.0).unwrap_err().is_argument());
    assert!(x.pad(&[(1, 0)], 2f64.powi(63)).unwrap_err().is_argument());
    assert_eq!(x.pad(&[(1, 0)], start + 2.0)?.to_vec::<i64>()?[0], (1 << 53) + 2);
    Ok(())
}

/// Random values lie in their range after rounding, in every type.
#[test]
fn random_values_stay_in_their_range() -> Result<()> {
    let (n, key) = (50_000, Key::new(7));
    for dtype in DType::FLOATS {
        for (lo, hi) in [(-0.3, 0.3), (0.1, 0.11), (-2.0, 2.0), (1e-3, 1.0), (0.0, 1e-6)] {
            let x = Tensor::truncated_normal([n], 0.0, 1.0, lo..hi, dtype, key)?.to_f64_vec()?;
            assert!(x.iter().all(|v| (lo..=hi).contains(v)), "truncated_normal {lo}..{hi} {dtype}");
            let x = Tensor::uniform([n], lo..hi, dtype, key)?.to_f64_vec()?;
            assert!(x.iter().all(|v| (lo..hi).contains(v)), "uniform {lo}..{hi} {dtype}");
            let mean = x.iter().sum::<f64>() / n as f64;
            assert!((mean - (lo + hi) / 2.0).abs() < 0.01 * (hi - lo) + dtype.epsilon() * hi, "uniform {lo}..{hi} {dtype}: {mean}");
        }
        let x = Tensor::rand([n], dtype, key)?.to_f64_vec()?;
        assert!(x.iter().all(|v| (0.0..1.0).contains(v)), "rand {dtype}");
    }
    // Narrower than the steps of the type; before, all were the start.
    let x = Tensor::uniform([n], 0.0..1e-9, F32, key)?.to_f64_vec()?;
    assert!(x.iter().all(|v| (0.0..1e-9).contains(v)) && (x.iter().sum::<f64>() / n as f64 / 5e-10 - 1.0).abs() < 0.02);
    assert!(Tensor::uniform([4], 0.1..0.100_000_1, F16, key).unwrap_err().is_argument());
    assert!(Tensor::truncated_normal([4], 0.0, 1.0, 0.1..0.100_000_1, F16, key).unwrap_err().is_argument());
    // Bounds beyond the type.
    let x = Tensor::truncated_normal([n], 6e4, 1e5, 0.0..1e6, F16, key)?.to_f64_vec()?;
    assert!(x.iter().all(|v| v.is_finite()));
    Ok(())
}

/// Second derivatives on constant rows are 0 in f32, whatever 1/ε magnifies; the same for what is composed likewise.
#[test]
fn second_derivatives_on_constant_rows() -> Result<()> {
    type Of = fn(&Tensor) -> Result<Tensor>;
    let ops: [(&str, Of, f64); 6] = [
        ("layer_norm", |x| x.layer_norm(1, None, None, 1e-5), 1e-7),
        ("softmax", |x| x.softmax(-1), 1e-6),
        ("log_softmax", |x| x.log_softmax(-1), 1e-6),
        ("logsumexp", |x| x.logsumexp(-1), 1e-6),
        ("std", |x| x.std(-1, 0), 1e-6),
        ("var", |x| x.var(-1, 0), 1e-6),
    ];
    for (name, f, tolerance) in ops {
        for c in [2.7, 0.1, 1e3, -1e-3] {
            for n in [3, 7, 100] {
                let x = Tensor::full([2, n], f64::from(c as f32), F64)?;
                let v = Tensor::randn([2, n], F32, Key::new(1))?.cast(F64)?;
                let along = |x: &Tensor, v: &Tensor| -> Result<Vec<f64>> {
                    let y = f(x)?;
                    let w = Tensor::arange(1.0, y.numel() as f64 + 1.0, 1.0, F64)?.reshape(y.shape())?.cast(x.dtype())?;
                    hvp(x, v, |x| f(x)?.mul(&w.square()?)?.sum(..))?.1.to_f64_vec()
                };
                let (got, want) = (along(&x.cast(F32)?, &v.cast(F32)?)?, along(&x, &v)?);
                // The natural scale: the weights' squares, for layer norm over ε.
                let top = ((2 * n) as f64).powi(2) * if name == "layer_norm" { 1e5 } else { 1.0 };
                let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(worst <= tolerance * top, "{name} of {c}, {n} long: off by {worst}");
            }
        }
    }
    // The reported one: exactly the zero of the centred row.
    let x = Tensor::full([1, 7], f64::from(2.7f32), F32)?;
    let w = f32s(&[0.3, -1.0, 0.7, 0.1, -0.5, 0.9, -0.2]);
    let h = hvp(&x, &w.reshape([1, 7])?, |x| x.layer_norm(1, Some(&w), None, 1e-5)?.mul(&w.square()?)?.sum(..))?.1.to_f64_vec()?;
    assert!(h.iter().all(|h| h.abs() < 1e-3), "{h:?}");
    Ok(())
}

/// Derivatives of powers whose factors leave the range of the type; PyTorch 2.15.
#[test]
fn second_derivatives_of_powers() -> Result<()> {
    let second = |a: f64, b: f64, by: [usize; 2], seed: f64, dtype: DType| -> Result<f64> {
        let x = [f64s(&[a]).cast(dtype)?, f64s(&[b]).cast(dtype)?];
        let first = |x: &[Tensor; 2]| -> Result<Tensor> { Ok(grad(x, |x| x[0].pow(&x[1])?.sum(..))?.into_inner()[by[0]].clone()) };
        let g = grad(&x, |x| first(x)?.mul_scalar(seed)?.sum(..))?.into_inner();
        g[by[1]].item()
    };
    let near = |got: f64, want: f64, tolerance: f64| assert!((got - want).abs() <= tolerance * want.abs(), "{got}, should be {want}");
    let seed = f64::from(half::f16::from_f64(0.001));
    near(second(2.0, 12.0, [0, 0], 0.001, F16)?, 12.0 * 11.0 * 1024.0 * seed, 2e-3);
    near(second(2.0, 12.0, [0, 1], 0.001, F16)?, 2048.0 * (1.0 + 12.0 * 2f64.ln()) * seed, 2e-3);
    near(second(2.0, 15.0, [1, 1], 0.001, F16)?, 32768.0 * 2f64.ln().powi(2) * seed, 2e-3);
    for dtype in [F32, F64, BF16] {
        assert_eq!(second(501.0, -1e20, [0, 0], 1.0, dtype)?, 0.0, "{dtype}");
        assert_eq!(second(501.0, -1e20, [0, 1], 1.0, dtype)?, 0.0, "{dtype}");
        assert_eq!(second(501.0, -1e20, [1, 1], 1.0, dtype)?, 0.0, "{dtype}");
        assert_eq!(second(0.5, 1e20, [0, 0], 1.0, dtype)?, 0.0, "{dtype}");
    }
    assert_eq!(second(501.0, -1e200, [0, 0], 1.0, F64)?, 0.0);
    // Ordinary ones are as before, and poles stay poles.
    near(second(1.5, 2.5, [0, 0], 1.0, F32)?, 2.5 * 1.5 * 1.5f64.sqrt(), 1e-6);
    assert!(second(0.0, 0.5, [0, 0], 1.0, F32)?.is_infinite());
    Ok(())
}

/// A constant that an integer dtype does not hold is refused, not cut off or wrapped.
#[test]
fn integers_hold_no_fractions_and_do_not_wrap() -> Result<()> {
    let (n, half) = (300, 0.5);
    let (ids, mask) = (Tensor::zeros([2], I64)?, tensor![0, 1; U8]?);
    let refused = [
        ("full", Tensor::full([2], 1.5, I64)),
        ("masked_fill", ids.masked_fill(&mask, half)),
        ("pad", ids.pad(&[(1, 1)], half)),
        ("arange", Tensor::arange(0.0, 2.0, half, I64)),
        ("arange", Tensor::arange(0.0, 2.4, half, I64)),
        ("linspace", Tensor::linspace(0.0, 1.0, 3, I64)),
        ("tensor", tensor![n; U8]),
        ("tensor", tensor![[-1, 2], [3, 4]; U32]),
    ];
    for (op, result) in refused {
        let e = result.expect_err(op);
        assert!(e.is_argument() && e.op() == Some(op) && e.to_string().contains("does not hold"), "{op}: {e}");
        assert!(e.location().is_some_and(|at| at.file().ends_with("user_numbers.rs")), "{op}: {e}");
    }
    assert_eq!(Tensor::linspace(0.0, 4.0, 3, I64)?.to_vec::<i64>()?, [0, 2, 4]);
    assert_eq!(tensor![[0, 255], [7, 8]; U8]?.to_vec::<u8>()?, [0, 255, 7, 8]);
    assert_eq!(tensor![4_294_967_295u32; U32]?.to_vec::<u32>()?, [u32::MAX]);
    assert_eq!(tensor![true, false; U8]?.to_vec::<u8>()?, [1, 0]);
    Ok(())
}
