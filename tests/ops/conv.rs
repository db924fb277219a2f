//! Convolutions beyond single samples: random geometries, layers after each other, and what refusals say.

use cotangent::ops::conv::{Sliding, Window, conv::Conv};
use cotangent::ops::conv_input::ConvInput;
use cotangent::ops::conv_weight::ConvWeight;
use cotangent::ops::{
    AvgPool2dOptions, Conv1dOptions, Conv2dOptions, ConvTranspose1dOptions, ConvTranspose2dOptions, InterpolateMode, InterpolateOptions,
    MaxPool2dOptions, Padding, UnfoldOptions,
};
use cotangent::testing::gradcheck;
use cotangent::{F32, F64, Key, Result, Shape, Tensor, op, value_and_grad};

fn randn(shape: &[usize], k: u64) -> Tensor {
    Tensor::randn(shape, F64, Key::new(k)).unwrap()
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    a.mul(b).unwrap().sum(..).unwrap().item().unwrap()
}

/// `Σ ȳ · w · x` over everything that meets, by the plainest loop.
fn form(s: &Sliding, x: &Tensor, w: &Tensor, y: &Tensor) -> f64 {
    let (xs, ws, ys) = (x.shape(), w.shape(), y.shape());
    let (xv, wv, yv) = (x.to_f64_vec().unwrap(), w.to_f64_vec().unwrap(), y.to_f64_vec().unwrap());
    let (d, outputs) = (s.axes.len(), ws[0] / s.groups);
    let count = |e: &[usize]| e.iter().product::<usize>();
    let coordinate = |mut i: usize, e: &[usize], a: usize| {
        for &n in e[a + 1..].iter().rev() {
            i /= n;
        }
        i % e[a]
    };
    let mut sum = 0.0;
    for p in 0..count(&ys[2..]) {
        for k in 0..count(&ws[2..]) {
            let mut at = Some(0);
            for a in 0..d {
                let window = s.axes[a];
                let q = coordinate(p, &ys[2..], a) * window.stride + coordinate(k, &ws[2..], a) * window.dilation;
                let q = q as isize - window.padding.0;
                at = at.filter(|_| (0..xs[2 + a] as isize).contains(&q)).map(|at| at * xs[2 + a] + q as usize);
            }
            let Some(at) = at else { continue };
            for n in 0..xs[0] {
                for o in 0..ws[0] {
                    for c in 0..ws[1] {
                        let channel = o / outputs * ws[1] + c;
                        sum += yv[(n * ys[1] + o) * count(&ys[2..]) + p]
                            * wv[(o * ws[1] + c) * count(&ws[2..]) + k]
                            * xv[(n * xs[1] + channel) * count(&xs[2..]) + at];
                    }
                }
            }
        }
    }
    sum
}

/// Random sizes, among them such that tiles have rests, several images, or a part of one: each op's inner product with the operand
/// that it is the derivative by is the same number.
#[test]
fn the_three_ops_are_derivatives_of_one_form() -> Result<()> {
    let (mut checked, mut tried) = (0, 0);
    while checked < 120 {
        tried += 1;
        let key = Key::new(tried);
        let pick = |i: u64, of: &[usize]| of[key.below(i, of.len() as u64) as usize];
        let d = pick(0, &[1, 1, 2, 2, 3]);
        let groups = pick(1, &[1, 1, 2, 3]);
        let (inputs, outputs) = (pick(2, &[1, 2, 4, 5, 9]), pick(3, &[1, 2, 4, 6, 17]));
        let extents: &[usize] = [&[3, 64, 65, 300, 77][..], &[1, 5, 8, 17], &[2, 3, 5]][d - 1];
        let axes = (0..d as u64)
            .map(|a| Window {
                stride: pick(10 + a, &[1, 1, 2, 3]),
                dilation: pick(20 + a, &[1, 1, 2]),
                padding: (pick(30 + a, &[0, 1, 2, 3]) as isize, pick(40 + a, &[0, 1, 2]) as isize),
            })
            .collect();
        let input: Shape = (0..d as u64).map(|a| pick(50 + a, extents)).collect();
        let kernel: Shape = (0..d as u64).map(|a| pick(60 + a, &[1, 2, 3, 4])).collect();
        let s = Sliding { axes, groups, input, kernel };
        let Ok(output) = s.output() else { continue };
        let images = pick(4, &[1, 2, 3, 11]);
        let of = |lead: [usize; 2], rest: &Shape| lead.into_iter().chain(rest.iter().copied()).collect::<Vec<usize>>();
        let x = randn(&of([images, groups * inputs], &s.input), 1);
        let w = randn(&of([groups * outputs, inputs], &s.kernel), 2);
        let y = randn(&of([images, groups * outputs], &output), 3);
        if x.numel() * y.numel() > 4_000_000 {
            continue;
        }
        checked += 1;
        let want = form(&s, &x, &w, &y);
        let near = |what: &str, got: f64| assert!((got - want).abs() < 1e-9 * (1.0 + want.abs()), "{what} of {s:?}: {got}, not {want}");
        near("conv", dot(&op::apply1(Conv(s.clone()), &[&x, &w])?, &y));
        near("conv_input", dot(&op::apply1(ConvInput(s.clone()), &[&y, &w])?, &x));
        near("conv_weight", dot(&op::apply1(ConvWeight(s.clone()), &[&x, &y])?, &w));
    }
    Ok(())
}

/// Many channels of their own: lines shorter and longer than those that are summed side by side, kernels of each length, rests.
#[test]
fn depthwise_kernels_are_derivatives_of_one_form() -> Result<()> {
    let (mut checked, mut tried) = (0, 0);
    while checked < 60 {
        tried += 1;
        let key = Key::new(tried);
        let pick = |i: u64, of: &[usize]| of[key.below(i, of.len() as u64) as usize];
        let window = |a: u64| Window {
            stride: pick(10 + a, &[1, 1, 1, 2]),
            dilation: pick(20 + a, &[1, 1, 2]),
            padding: (pick(30 + a, &[0, 1, 2, 4]) as isize, pick(40 + a, &[0, 1, 3]) as isize),
        };
        let (input, kernel) = ([pick(0, &[1, 2, 5]), pick(1, &[1, 5, 15, 16, 17, 37])], [pick(2, &[1, 2, 3]), pick(3, &[1, 2, 3, 4, 5])]);
        let s = Sliding {
            axes: [window(0), window(1)].into_iter().collect(),
            groups: pick(4, &[8, 11]),
            input: input.into(),
            kernel: kernel.into(),
        };
        let Ok(output) = s.output() else { continue };
        let (images, outputs) = (pick(5, &[1, 3]), pick(6, &[1, 1, 2]));
        let x = randn(&[images, s.groups, input[0], input[1]], 1);
        let w = randn(&[s.groups * outputs, 1, kernel[0], kernel[1]], 2);
        let y = randn(&[images, s.groups * outputs, output[0], output[1]], 3);
        checked += 1;
        let want = form(&s, &x, &w, &y);
        let near = |what: &str, got: f64| assert!((got - want).abs() < 1e-10 * (1.0 + want.abs()), "{what} of {s:?}: {got}, not {want}");
        near("conv", dot(&op::apply1(Conv(s.clone()), &[&x, &w])?, &y));
        near("conv_input", dot(&op::apply1(ConvInput(s.clone()), &[&y, &w])?, &x));
        near("conv_weight", dot(&op::apply1(ConvWeight(s.clone()), &[&x, &y])?, &w));
    }
    // Zeros of the padding meet a cotangent that is not finite, and make NaN of it.
    let s = Sliding {
        axes: [Window { stride: 1, dilation: 1, padding: (1, 1) }].into_iter().collect(),
        groups: 8,
        input: [4].into(),
        kernel: [3].into(),
    };
    let y = Tensor::from_slice(&[f64::INFINITY, 1.0, 1.0, 1.0], [1, 1, 4])?.expand([1, 8, 4])?;
    let w = op::apply1(ConvWeight(s), &[&Tensor::ones([1, 8, 4], F64)?, &y])?.to_f64_vec()?;
    assert!(w.chunks(3).all(|w| w[0].is_nan() && w[1] == f64::INFINITY && w[2] == f64::INFINITY), "{w:?}");
    Ok(())
}

/// What no memory holds is refused before tables of its axes are made.
#[test]
fn images_beyond_memory_are_refused_at_once() {
    let x = Tensor::zeros([1, 1, 2, 2], F32).unwrap();
    let map = Tensor::zeros([1, 2, 3], F32).unwrap();
    for side in [1 << 24, 1 << 30] {
        assert!(map.affine_grid([side, side], false).unwrap_err().is_out_of_memory());
        assert!(x.interpolate([side, side], &InterpolateOptions::default()).unwrap_err().is_out_of_memory());
    }
}

/// Tiles of several images, products that share their work or do not, channels as tasks: the number of threads changes no bit.
#[test]
fn threads_change_no_bit() -> Result<()> {
    let cases = [([9, 96, 7, 7], 1, 1), ([5, 96, 14, 14], 1, 2), ([3, 24, 9, 40], 24, 1), ([2, 12, 30, 21], 3, 1)];
    for (shape, groups, stride) in cases {
        let x = randn(&shape, 1).cast(F32)?;
        let w = randn(&[shape[1], shape[1] / groups, 3, 3], 2).cast(F32)?;
        let options = Conv2dOptions { padding: 1.into(), groups, stride: [stride; 2], ..Conv2dOptions::default() };
        let run = |threads: usize| -> Result<Vec<Vec<f32>>> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (y, grads) = value_and_grad(&(x.clone(), w.clone()), |(x, w)| x.conv2d(w, None, &options)?.square()?.sum(..))?;
                Ok(vec![y.to_vec()?, grads.0.to_vec()?, grads.1.to_vec()?])
            })
        };
        let one = run(1)?;
        for threads in [2, 3, 16] {
            assert!(run(threads)? == one, "{shape:?} in {groups} groups on {threads} threads");
        }
    }
    Ok(())
}

/// The first layer's input seldom needs a gradient, and hides one that is wrong: the second's does.
#[test]
fn layers_after_each_other_have_gradients_for_every_remainder() -> Result<()> {
    let thirds = Conv1dOptions { stride: [3], padding: Padding::Sides([(1, 0)]), ..Conv1dOptions::default() };
    let back = ConvTranspose1dOptions { stride: [2], output_padding: [1], ..ConvTranspose1dOptions::default() };
    for length in 17..=22 {
        let layers = |t: &[Tensor]| {
            let y = t[0].conv1d(&t[1], None, &thirds)?.tanh()?.conv1d(&t[2], None, &thirds)?.tanh()?;
            y.conv_transpose1d(&t[3], None, &back)
        };
        let inputs = [&[1, 2, length][..], &[3, 2, 2], &[2, 3, 2], &[2, 1, 3]];
        let inputs: Vec<Tensor> = inputs.iter().enumerate().map(|(i, s)| randn(s, i as u64)).collect();
        gradcheck(layers, &inputs).unwrap_or_else(|e| panic!("length {length}: {e}"));
    }
    Ok(())
}

/// A transposed convolution with the convolution's options gives its input's shape back, whatever the stride left out.
#[test]
fn a_transpose_undoes_the_shape() -> Result<()> {
    for length in 5..15 {
        for (stride, padding, dilation) in [(1, 0, 1), (2, 1, 1), (3, 2, 2), (4, 0, 1)] {
            let (x, w) = (randn(&[1, 2, length], 1), randn(&[3, 2, 3], 2));
            let options = Conv1dOptions { stride: [stride], padding: padding.into(), dilation: [dilation], groups: 1 };
            let Ok(y) = x.conv1d(&w, None, &options) else { continue };
            let rest = (length + 2 * padding - dilation * 2 - 1) % stride;
            let back =
                ConvTranspose1dOptions { stride: [stride], padding: [padding], output_padding: [rest], dilation: [dilation], groups: 1 };
            assert_eq!(y.conv_transpose1d(&w, None, &back)?.shape(), x.shape());
        }
    }
    Ok(())
}

#[test]
fn same_padding_keeps_extents() -> Result<()> {
    for (kernel, dilation) in [([1, 2], [1, 1]), ([3, 4], [2, 3]), ([5, 2], [1, 4])] {
        let (x, w) = (randn(&[1, 2, 6, 7], 1), randn(&[2, 2, kernel[0], kernel[1]], 2));
        let options = Conv2dOptions { padding: Padding::Same, dilation, ..Conv2dOptions::default() };
        assert_eq!(x.conv2d(&w, None, &options)?.shape(), x.shape());
    }
    Ok(())
}

/// Refusals name the method, the shapes and what to do.
#[test]
fn refusals_say_what_to_do() {
    let (x, w) = (Tensor::zeros([2, 8, 9, 3], F32).unwrap(), Tensor::zeros([4, 3, 3, 3], F32).unwrap());
    let plain = Conv2dOptions::default();
    let says = |e: Result<Tensor>, parts: &[&str]| {
        let text = e.unwrap_err().to_string();
        assert!(parts.iter().all(|p| text.contains(p)), "{text}");
    };
    says(x.conv2d(&w, None, &plain), &["conv2d: ", "[2, 8, 9, 3]", "[4, 3, 3, 3]", "permute it to the second place"]);
    let right = x.permute([0, 3, 1, 2]).unwrap();
    assert_eq!(right.conv2d(&w, None, &plain).unwrap().shape(), &[2, 4, 6, 7]);
    says(right.select(0, 0).unwrap().select(0, 0).unwrap().conv2d(&w, None, &plain), &["conv2d: ", "[batch, channels, height, width]"]);
    says(right.conv1d(&w, None, &Conv1dOptions::default()), &["conv1d: ", "[batch, channels, length]"]);
    says(right.conv2d(&w, None, &Conv2dOptions { groups: 2, ..plain }), &["2 groups"]);
    says(right.narrow(2, 0, 2).unwrap().conv2d(&w, None, &plain), &["kernel [3, 3]", "[2, 9] along spatial axis 0", "add padding"]);
    let same = Conv2dOptions { padding: Padding::Same, stride: [2, 2], ..plain };
    says(right.conv2d(&w, None, &same), &["conv2d: ", "Same", "[2, 2]", "in numbers"]);
    let more = ConvTranspose2dOptions { output_padding: [1, 0], ..ConvTranspose2dOptions::default() };
    let y = Tensor::zeros([2, 4, 6, 7], F32).unwrap();
    says(y.conv_transpose2d(&w, None, &more), &["conv_transpose2d: ", "output_padding [1, 0]", "stride [1, 1]"]);
    let none = ConvTranspose2dOptions { padding: [5, 0], ..ConvTranspose2dOptions::default() };
    says(y.conv_transpose2d(&w, None, &none), &["nothing of axis 2 is left", "[2, 4, 6, 7]"]);
}

/// An image without a batch axis is a batch of one, for values, places, gradients, and the line that a refusal names.
#[test]
fn images_alone_are_batches_of_one() -> Result<()> {
    type Of = fn(&Tensor, &Tensor) -> Result<Tensor>;
    let calls: [(&str, Of); 9] = [
        ("conv2d", |x, w| x.conv2d(w, None, &Conv2dOptions { padding: 1.into(), ..Conv2dOptions::default() })),
        ("conv_transpose2d", |x, w| {
            x.conv_transpose2d(w, None, &ConvTranspose2dOptions { stride: [2, 1], ..ConvTranspose2dOptions::default() })
        }),
        ("max_pool2d", |x, _| x.max_pool2d([2, 2], &MaxPool2dOptions::default())),
        ("max_pool2d_with_index", |x, _| Ok(x.max_pool2d_with_index([2, 2], &MaxPool2dOptions::default())?.0)),
        ("avg_pool2d", |x, _| x.avg_pool2d([3, 2], &AvgPool2dOptions { padding: [1, 1], ..AvgPool2dOptions::default() })),
        ("adaptive_avg_pool2d", |x, _| x.adaptive_avg_pool2d([2, 3])),
        ("adaptive_max_pool2d", |x, _| x.adaptive_max_pool2d([2, 3])),
        ("unfold", |x, _| x.unfold([2, 3], &UnfoldOptions::default())),
        ("fold", |x, _| {
            let columns = x.unfold([2, 3], &UnfoldOptions::default())?;
            columns.fold([5, 6], [2, 3], &UnfoldOptions::default())
        }),
    ];
    let (x, w) = (randn(&[3, 5, 6], 1), randn(&[3, 3, 2, 2], 2));
    for (name, f) in calls {
        let (one, many) = (f(&x, &w)?, f(&x.unsqueeze(0)?, &w)?);
        assert_eq!(one.shape()[..], many.shape()[1..], "{name}");
        assert_eq!(one.to_vec::<f64>()?, many.to_vec::<f64>()?, "{name}");
        let loss = |x: &Tensor| f(x, &w)?.square()?.sum(..);
        let (alone, batch) = (cotangent::grad(&x, loss)?, cotangent::grad(&x.unsqueeze(0)?, loss)?);
        assert_eq!(alone.shape(), x.shape(), "{name}");
        assert_eq!(alone.to_vec::<f64>()?, batch.to_vec::<f64>()?, "{name}");
    }
    let places = x.max_pool2d_with_index([2, 2], &MaxPool2dOptions::default())?.1;
    assert_eq!(places.shape(), &[3, 2, 3]);
    let (e, line) = (x.conv2d(&randn(&[4, 2, 2, 2], 3), None, &Conv2dOptions::default()).unwrap_err(), line!());
    assert!(e.to_string().contains("has 3 channels, but weight [4, 2, 2, 2] takes 2"), "{e}");
    assert_eq!(e.location().unwrap().line(), line);
    Ok(())
}

/// What is enlarged and used elsewhere, too, gets both gradients, by factors that differ and are no whole numbers [E11].
#[test]
fn an_image_that_is_also_used_elsewhere_gets_both_gradients() -> Result<()> {
    let x = randn(&[1, 2, 3, 4], 5);
    for mode in [InterpolateMode::Nearest, InterpolateMode::Linear] {
        let larger = |x: &Tensor| x.interpolate([1.5, 2.25], &InterpolateOptions { mode, ..InterpolateOptions::default() });
        assert_eq!(larger(&x)?.shape(), &[1, 2, 4, 9]);
        let both = cotangent::grad(&x, |x| x.square()?.sum(..)?.add(&larger(x)?.square()?.sum(..)?))?;
        let one = cotangent::grad(&x, |x| x.square()?.sum(..))?;
        let other = cotangent::grad(&x, |x| larger(x)?.square()?.sum(..))?;
        let sum = one.add(&other)?.to_vec::<f64>()?;
        assert!(both.to_vec::<f64>()?.iter().zip(&sum).all(|(a, b)| (a - b).abs() < 1e-12 * (1.0 + b.abs())), "{mode:?}");
        gradcheck(|x| larger(&x[0])?.square()?.mul(&x[0].sum(..)?), std::slice::from_ref(&x))?;
    }
    Ok(())
}
