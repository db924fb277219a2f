//! The calls of convolutions, pooling, norms of channels and resampling.

use super::cases::{Case, Options};
use super::reference::{Call, of, one};
use cotangent::op;
use cotangent::ops::conv::{Resampling, Sliding, conv::Conv};
use cotangent::ops::conv_input::ConvInput;
use cotangent::ops::conv_weight::ConvWeight;
use cotangent::ops::{
    AvgPoolOptions, ConvOptions, ConvTransposeOptions, GridSampleMode, GridSampleOptions, GridSamplePadding, InterpolateMode,
    InterpolateOptions, InterpolateSize, MaxPoolOptions, Padding, UnfoldOptions,
    adaptive_pool::AdaptivePool,
    affine_grid::AffineGrid,
    avg_pool::AvgPool,
    batch_norm::{BatchNorm, BatchNormWith},
    grid_sample::GridSample,
    group_norm::GroupNorm,
    interpolate::Interpolate,
    local_response_norm::LocalResponseNorm,
    max_pool::MaxPool,
    resample::Resample,
    unfold::{Fold, Unfold},
};
use cotangent::{Result, Shape, Tensor};

type Method<O> = fn(&Tensor, &Tensor, Option<&Tensor>, &O) -> Result<Tensor>;

fn list<const D: usize>(o: &Options, name: &str) -> [usize; D] {
    let list: Vec<usize> = o.ints(name).into_iter().map(|n| n as usize).collect();
    list.try_into().unwrap_or_else(|l| panic!("{name} {l:?}"))
}

fn options<const D: usize>(o: &Options) -> ConvOptions<D> {
    let padding = match (o.text("padding"), o.ints("padding")) {
        (Some("same"), _) => Padding::Same,
        (Some(_), _) => Padding::Valid,
        (None, n) if n.len() == D => Padding::Both(list(o, "padding")),
        (None, n) => Padding::Sides(std::array::from_fn(|a| (n[2 * a] as usize, n[2 * a + 1] as usize))),
    };
    ConvOptions { stride: list(o, "stride"), padding, dilation: list(o, "dilation"), groups: o.int("groups").unwrap() as usize }
}

fn shape(c: &Case, i: usize) -> Shape {
    Shape::from(&c.inputs[i].shape[..])
}

fn conv<const D: usize>(c: &Case, method: Method<ConvOptions<D>>) -> Call {
    let options = options::<D>(&c.options);
    let op = Conv(Sliding::conv(&shape(c, 0), &shape(c, 1), &options).unwrap());
    one(op, move |x| method(&x[0], &x[1], x.get(2), &options))
}

fn transposed<const D: usize>(c: &Case, method: Method<ConvTransposeOptions<D>>) -> Call {
    let o = &c.options;
    let options = ConvTransposeOptions {
        stride: list(o, "stride"),
        padding: list(o, "padding"),
        output_padding: list(o, "output_padding"),
        dilation: list(o, "dilation"),
        groups: o.int("groups").unwrap() as usize,
    };
    let op = ConvInput(Sliding::transposed(&shape(c, 0), &shape(c, 1), &options).unwrap());
    one(op, move |x| method(&x[0], &x[1], x.get(2), &options))
}

/// No method of its own: a step of the others' derivatives.
fn weight<const D: usize>(c: &Case) -> Call {
    let w: Shape = [1, 1].into_iter().chain(c.options.ints("kernel").into_iter().map(|k| k as usize)).collect();
    let op = ConvWeight(Sliding::conv(&shape(c, 0), &w, &options::<D>(&c.options)).unwrap());
    of(op.clone(), move |x| Ok(op::apply(op.clone(), &x.iter().collect::<Vec<_>>())?.into_vec()))
}

type Pool<const D: usize, O, Y> = fn(&Tensor, [usize; D], &O) -> Result<Y>;

fn max_pool<const D: usize>(c: &Case, one: Pool<D, MaxPoolOptions<D>, Tensor>, both: Pool<D, MaxPoolOptions<D>, (Tensor, Tensor)>) -> Call {
    let o = &c.options;
    let kernel = list::<D>(o, "kernel");
    let stride = (!o.ints("stride").is_empty()).then(|| list(o, "stride"));
    let options = MaxPoolOptions { stride, padding: list(o, "padding"), dilation: list(o, "dilation"), ceil: o.flag("ceil") };
    let windows = Sliding::pool(&shape(c, 0), &kernel, stride, options.padding, options.dilation, options.ceil).unwrap();
    of(MaxPool { windows, of: shape(c, 0) }, move |x| {
        let (y, at) = both(&x[0], kernel, &options)?;
        assert_eq!(one(&x[0], kernel, &options)?.to_f64_vec()?.len(), y.numel());
        Ok(vec![y, at])
    })
}

fn avg_pool<const D: usize>(c: &Case, method: Pool<D, AvgPoolOptions<D>, Tensor>) -> Call {
    let o = &c.options;
    let (kernel, padding, include) = (list::<D>(o, "kernel"), list::<D>(o, "padding"), o.flag("include"));
    let stride = (!o.ints("stride").is_empty()).then(|| list(o, "stride"));
    let options = AvgPoolOptions { stride, padding, ceil: o.flag("ceil"), count_include_pad: include };
    let windows = Sliding::pool(&shape(c, 0), &kernel, stride, padding, [1; D], options.ceil).unwrap();
    let counted = if include { padding } else { [0; D] };
    one(AvgPool { windows, counted: counted.into() }, move |x| method(&x[0], kernel, &options))
}

fn adaptive<const D: usize, const MAX: bool>(c: &Case, method: fn(&Tensor, [usize; D]) -> Result<Tensor>) -> Call {
    let output = list::<D>(&c.options, "output");
    one(AdaptivePool::<MAX> { output: output.into() }, move |x| method(&x[0], output))
}

fn pooling(c: &Case) -> Option<Call> {
    Some(match (c.op.as_str(), c.inputs.first().map_or(0, |x| x.shape.len())) {
        ("max_pool", 3) => max_pool(c, |x, k, o| x.max_pool1d(k, o), Tensor::max_pool1d_with_index),
        ("max_pool", 4) => max_pool(c, |x, k, o| x.max_pool2d(k, o), Tensor::max_pool2d_with_index),
        ("max_pool", _) => max_pool(c, |x, k, o| x.max_pool3d(k, o), Tensor::max_pool3d_with_index),
        ("avg_pool", 3) => avg_pool(c, Tensor::avg_pool1d),
        ("avg_pool", 4) => avg_pool(c, Tensor::avg_pool2d),
        ("avg_pool", _) => avg_pool(c, Tensor::avg_pool3d),
        ("adaptive_avg_pool", 3) => adaptive::<1, false>(c, Tensor::adaptive_avg_pool1d),
        ("adaptive_avg_pool", 4) => adaptive::<2, false>(c, Tensor::adaptive_avg_pool2d),
        ("adaptive_avg_pool", _) => adaptive::<3, false>(c, Tensor::adaptive_avg_pool3d),
        ("adaptive_max_pool", 3) => adaptive::<1, true>(c, Tensor::adaptive_max_pool1d),
        ("adaptive_max_pool", 4) => adaptive::<2, true>(c, Tensor::adaptive_max_pool2d),
        ("adaptive_max_pool", _) => adaptive::<3, true>(c, Tensor::adaptive_max_pool3d),
        _ => return None,
    })
}

fn channels(c: &Case) -> Option<Call> {
    let o = &c.options;
    let (eps, weight, bias) = (o.number("eps").unwrap_or(0.0), o.flag("weight"), o.flag("bias"));
    Some(match c.op.as_str() {
        "batch_norm" => {
            one(BatchNorm { eps, weight, bias }, move |x| x[0].batch_norm(weight.then(|| &x[1]), bias.then(|| &x[x.len() - 1]), eps))
        }
        "batch_norm_with" => one(BatchNormWith { eps, weight, bias }, move |x| {
            x[0].batch_norm_with(&x[1], &x[2], weight.then(|| &x[3]), bias.then(|| &x[x.len() - 1]), eps)
        }),
        "group_norm" => {
            let groups = o.int("groups")? as usize;
            let each = groups == c.inputs[0].shape[1];
            one(GroupNorm { groups, eps, weight, bias }, move |x| {
                let (w, b) = (weight.then(|| &x[1]), bias.then(|| &x[x.len() - 1]));
                if each { x[0].instance_norm(w, b, eps) } else { x[0].group_norm(groups, w, b, eps) }
            })
        }
        _ => return None,
    })
}

fn columns<const D: usize>(c: &Case) -> Call {
    let o = &c.options;
    let kernel = list::<D>(o, "kernel");
    let options = UnfoldOptions { dilation: list(o, "dilation"), padding: list(o, "padding"), stride: list(o, "stride") };
    if c.op == "unfold" {
        let windows = Sliding::columns(&c.inputs[0].shape[2..], &kernel, &options).unwrap();
        return one(Unfold(windows), move |x| x[0].unfold(kernel, &options));
    }
    let output = list::<D>(o, "output");
    let windows = Sliding::columns(&output, &kernel, &options).unwrap();
    one(Fold(windows), move |x| x[0].fold(output, kernel, &options))
}

fn resampling(c: &Case) -> Option<Call> {
    let o = &c.options;
    let mode = || match o.text("mode") {
        Some("nearest") => InterpolateMode::Nearest,
        Some("nearest-exact") => InterpolateMode::NearestExact,
        Some("linear") => InterpolateMode::Linear,
        Some("cubic") => InterpolateMode::Cubic,
        Some("area") => InterpolateMode::Area,
        other => panic!("mode {other:?}"),
    };
    let (align_corners, antialias) = (o.flag("align"), o.flag("antialias"));
    Some(match c.op.as_str() {
        "interpolate" => {
            let options = InterpolateOptions { mode: mode(), align_corners, antialias, recompute_scale_factor: o.flag("recompute") };
            let by = o.numbers("factor");
            let to = if by.is_empty() { InterpolateSize::Size(o.shape("size")) } else { InterpolateSize::ScaleFactor(by.into()) };
            one(Interpolate { to: to.clone(), options }, move |x| x[0].interpolate(to.clone(), &options))
        }
        // No method of its own: a step of interpolate.
        "resample" => {
            let (axis, to) = (o.int("axis")? as usize, o.int("to")? as usize);
            let of = Resampling { mode: mode(), from: shape(c, 0)[axis], to, factor: o.number("factor"), align_corners, antialias };
            let op = Resample::<false> { axis, of };
            one(op.clone(), move |x| op::apply1(op.clone(), &[&x[0]]))
        }
        _ => return None,
    })
}

fn positions(c: &Case) -> Option<Call> {
    let o = &c.options;
    let align_corners = o.flag("align");
    Some(match c.op.as_str() {
        "grid_sample" => {
            let mode = match o.text("mode")? {
                "linear" => GridSampleMode::Linear,
                "nearest" => GridSampleMode::Nearest,
                _ => GridSampleMode::Cubic,
            };
            let padding = match o.text("padding")? {
                "zeros" => GridSamplePadding::Zeros,
                "border" => GridSamplePadding::Border,
                _ => GridSamplePadding::Reflection,
            };
            let options = GridSampleOptions { mode, padding, align_corners };
            one(GridSample(options), move |x| x[0].grid_sample(&x[1], &options))
        }
        "affine_grid" => {
            let (output, volume) = (o.shape("output"), o.shape("output").rank() == 3);
            let op = AffineGrid { output: output.clone(), align_corners };
            one(op, move |x| match volume {
                true => x[0].affine_grid([output[0], output[1], output[2]], align_corners),
                false => x[0].affine_grid([output[0], output[1]], align_corners),
            })
        }
        "local_response_norm" => {
            let (size, alpha, beta, k) = (o.int("size")? as usize, o.number("alpha")?, o.number("beta")?, o.number("k")?);
            one(LocalResponseNorm { size, alpha, beta, k }, move |x| x[0].local_response_norm(size, alpha, beta, k))
        }
        _ => return None,
    })
}

pub fn convolutions(c: &Case) -> Option<Call> {
    Some(match (c.op.as_str(), c.inputs.first().map_or(0, |x| x.shape.len())) {
        ("conv", 3) => conv(c, Tensor::conv1d),
        ("conv", 4) => conv(c, Tensor::conv2d),
        ("conv", _) => conv(c, Tensor::conv3d),
        ("conv_input", 3) => transposed(c, Tensor::conv_transpose1d),
        ("conv_input", 4) => transposed(c, Tensor::conv_transpose2d),
        ("conv_input", _) => transposed(c, Tensor::conv_transpose3d),
        ("unfold" | "fold", _) if c.options.ints("kernel").len() == 1 => columns::<1>(c),
        ("unfold" | "fold", _) => columns::<2>(c),
        ("conv_weight", 3) => weight::<1>(c),
        ("conv_weight", 4) => weight::<2>(c),
        ("conv_weight", _) => weight::<3>(c),
        _ => return pooling(c).or_else(|| channels(c)).or_else(|| resampling(c)).or_else(|| positions(c)),
    })
}
