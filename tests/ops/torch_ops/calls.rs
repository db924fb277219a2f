//! What each case calls: the public method under test, and the op whose definition gives the error bounds.

use super::cases::{Case, Options};
use super::reference::{Call, of, one};
use cotangent::op::{self, Describe, Op};
use cotangent::ops::cross_entropy::CrossEntropyLoss;
use cotangent::ops::elementwise::{self as el, Map};
use cotangent::ops::group::{self, Reduce};
use cotangent::ops::norm::{LayerNorm, RmsNorm};
use cotangent::ops::rope::{Rope, RopePair};
use cotangent::ops::sdpa::SdpaOp;
use cotangent::ops::slice::{self, Span};
use cotangent::ops::{
    self, Blocks, CrossEntropyOptions, MatrixNorm, NllLossOptions, PadMode, Reduction, RopeOptions, RopePositions, RopeStyle,
    ScatterReduce, SdpaOptions, binary, compare::Relation, embedding::Padding,
};
use cotangent::{DType, Key, Result, Shape, Tensor};
use smallvec::SmallVec;

fn two((a, b): (Tensor, Tensor)) -> Vec<Tensor> {
    vec![a, b]
}

fn shapes(c: &Case) -> Vec<Shape> {
    c.inputs.iter().map(|x| Shape::from(&x.shape[..])).collect()
}

fn unary<U: el::Unary>(u: U, f: fn(&Tensor) -> Result<Tensor>) -> Call {
    one(Map(u), move |x| f(&x[0]))
}

fn zip<B: binary::Binary>(b: B, f: fn(&Tensor, &Tensor) -> Result<Tensor>) -> Call {
    one(binary::Zip(b), move |x| f(&x[0], &x[1]))
}

/// A reduction: with and without the axes kept.
fn reduce<G: group::Group>(g: G, o: &Options, f: [impl Fn(&Tensor, cotangent::Axes) -> Result<Tensor> + Send + Sync + 'static; 2]) -> Call {
    let (axes, keep) = (o.axes("axes"), o.flag("keep"));
    let [plain, kept] = f;
    one(Reduce { of: g, axes: axes.clone(), keep }, move |x| if keep { kept(&x[0], axes.clone()) } else { plain(&x[0], axes.clone()) })
}

type Reducer = Box<dyn Fn(&Tensor, cotangent::Axes) -> Result<Tensor> + Send + Sync>;

fn pair(plain: fn(&Tensor, cotangent::Axes) -> Result<Tensor>, kept: fn(&Tensor, cotangent::Axes) -> Result<Tensor>) -> [Reducer; 2] {
    [Box::new(plain), Box::new(kept)]
}

fn elementwise(c: &Case) -> Option<Call> {
    let o = &c.options;
    let v = o.number("value").unwrap_or(0.0);
    Some(match c.op.as_str() {
        "abs" => unary(el::Abs, Tensor::abs),
        "ceil" => unary(el::Ceil, Tensor::ceil),
        "cos" => unary(el::Cos, Tensor::cos),
        "erf" => unary(el::Erf, Tensor::erf),
        "exp" => unary(el::Exp, Tensor::exp),
        "expm1" => unary(el::Expm1, Tensor::expm1),
        "floor" => unary(el::Floor, Tensor::floor),
        "gelu" => unary(el::Gelu, Tensor::gelu),
        "gelu_tanh" => unary(el::GeluTanh, Tensor::gelu_tanh),
        "log" => unary(el::Log, Tensor::log),
        "log1p" => unary(el::Log1p, Tensor::log1p),
        "neg" => unary(el::Neg, Tensor::neg),
        "normal_cdf" => unary(el::NormalCdf, Tensor::normal_cdf),
        "recip" => unary(el::Recip, Tensor::recip),
        "relu" => unary(el::Relu, Tensor::relu),
        "relu_squared" => unary(el::ReluSquared, Tensor::relu_squared),
        "round" => unary(el::Round, Tensor::round),
        "round_decimals" => {
            let decimals = o.int("decimals")? as i32;
            one(Map(el::RoundDecimals { decimals }), move |x| x[0].round_decimals(decimals))
        }
        "rsqrt" => unary(el::Rsqrt, Tensor::rsqrt),
        "sigmoid" => unary(el::Sigmoid, Tensor::sigmoid),
        "sign" => unary(el::Sign, Tensor::sign),
        "silu" => unary(el::Silu, Tensor::silu),
        "sin" => unary(el::Sin, Tensor::sin),
        "softplus" => unary(el::Softplus, Tensor::softplus),
        "sqrt" => unary(el::Sqrt, Tensor::sqrt),
        "square" => unary(el::Square, Tensor::square),
        "tanh" => unary(el::Tanh, Tensor::tanh),
        "elu" => {
            let alpha = o.number("alpha")?;
            one(Map(el::Elu { alpha }), move |x| x[0].elu(alpha))
        }
        "leaky_relu" => {
            let slope = o.number("slope")?;
            one(Map(el::LeakyRelu { slope }), move |x| x[0].leaky_relu(slope))
        }
        "powf" => {
            let p = o.number("p")?;
            one(Map(el::Powf { p }), move |x| x[0].powf(p))
        }
        "powi" => {
            let n = o.int("n")? as i32;
            one(Map(el::Powi { n }), move |x| x[0].powi(n))
        }
        "clamp" => {
            let (min, max) = (o.number("min"), o.number("max"));
            one(Map(el::Clamp { min, max }), move |x| x[0].clamp(min, max))
        }
        "add_scalar" => one(Map(el::AddScalar(v)), move |x| x[0].add_scalar(v)),
        "sub_scalar" => one(Map(el::SubScalar(v)), move |x| x[0].sub_scalar(v)),
        "rsub_scalar" => one(Map(el::RsubScalar(v)), move |x| x[0].rsub_scalar(v)),
        "mul_scalar" => one(Map(el::MulScalar(v)), move |x| x[0].mul_scalar(v)),
        "div_scalar" => one(Map(el::DivScalar(v)), move |x| x[0].div_scalar(v)),
        "rdiv_scalar" => one(Map(el::RdivScalar(v)), move |x| x[0].rdiv_scalar(v)),
        _ => return None,
    })
}

fn two_operands(c: &Case) -> Option<Call> {
    let o = &c.options;
    let relation = || match o.text("relation").unwrap() {
        "Equal" => Relation::Equal,
        "NotEqual" => Relation::NotEqual,
        "Less" => Relation::Less,
        "AtMost" => Relation::AtMost,
        "Greater" => Relation::Greater,
        "AtLeast" => Relation::AtLeast,
        r => panic!("relation {r}"),
    };
    Some(match c.op.as_str() {
        "add" => zip(binary::Add, Tensor::add),
        "sub" => zip(binary::Sub, Tensor::sub),
        "mul" => zip(binary::Mul, Tensor::mul),
        "div" => zip(binary::Div, Tensor::div),
        "maximum" => zip(binary::Maximum, Tensor::maximum),
        "minimum" => zip(binary::Minimum, Tensor::minimum),
        "pow" => zip(binary::Pow { by_base: 0, by_exponent: 0 }, Tensor::pow),
        // No method of its own: a step of other ops' derivatives.
        "neg_mul" => direct(binary::Zip(binary::NegMul)),
        "compare" => {
            let r = relation();
            one(ops::compare::Compare(r), move |x| match r {
                Relation::Equal => x[0].eq(&x[1]),
                Relation::NotEqual => x[0].ne(&x[1]),
                Relation::Less => x[0].lt(&x[1]),
                Relation::AtMost => x[0].le(&x[1]),
                Relation::Greater => x[0].gt(&x[1]),
                _ => x[0].ge(&x[1]),
            })
        }
        "compare_scalar" => {
            let (r, v) = (relation(), o.number("value")?);
            one(ops::compare::CompareScalar(r, v), move |x| match r {
                Relation::Equal => x[0].eq_scalar(v),
                Relation::NotEqual => x[0].ne_scalar(v),
                Relation::Less => x[0].lt_scalar(v),
                Relation::AtMost => x[0].le_scalar(v),
                Relation::Greater => x[0].gt_scalar(v),
                _ => x[0].ge_scalar(v),
            })
        }
        "logical" => {
            let and = o.flag("and");
            one(ops::logical::Logical { and }, move |x| if and { x[0].logical_and(&x[1]) } else { x[0].logical_or(&x[1]) })
        }
        "logical_not" => one(ops::logical::LogicalNot, |x| x[0].logical_not()),
        _ => return None,
    })
}

/// The op itself, where it has no method.
fn direct<O: Op>(op: O) -> Call {
    of(op.clone(), move |x| Ok(op::apply(op.clone(), &x.iter().collect::<Vec<_>>())?.into_vec()))
}

fn reductions(c: &Case) -> Option<Call> {
    let o = &c.options;
    let axis = o.int("axis").map_or(0, |a| a as isize);
    let keep = o.flag("keep");
    Some(match c.op.as_str() {
        "sum" => {
            let axes = o.axes("axes");
            let op = ops::sum::Sum { axes: axes.clone(), keep, of: shapes(c)[0].clone() };
            one(op, move |x| if keep { x[0].sum_keepdim(axes.clone()) } else { x[0].sum(axes.clone()) })
        }
        "mean" => {
            let axes = o.axes("axes");
            let op = ops::mean::Mean { axes: axes.clone(), keep, of: shapes(c)[0].clone() };
            one(op, move |x| if keep { x[0].mean_keepdim(axes.clone()) } else { x[0].mean(axes.clone()) })
        }
        "logsumexp" => reduce(group::LogSumExp, o, pair(|x, a| x.logsumexp(a), |x, a| x.logsumexp_keepdim(a))),
        "max" => reduce(group::Max, o, pair(|x, a| x.max(a), |x, a| x.max_keepdim(a))),
        "min" => reduce(group::Min, o, pair(|x, a| x.min(a), |x, a| x.min_keepdim(a))),
        "norm" => reduce(group::Norm, o, pair(|x, a| x.norm(a), |x, a| x.norm_keepdim(a))),
        "prod" => reduce(group::Prod, o, pair(|x, a| x.prod(a), |x, a| x.prod_keepdim(a))),
        "var" => {
            let correction = o.number("correction")?;
            let f: [Reducer; 2] = [Box::new(move |x, a| x.var(a, correction)), Box::new(move |x, a| x.var_keepdim(a, correction))];
            reduce(group::Var { correction }, o, f)
        }
        "std" => {
            let correction = o.number("correction")?;
            let f: [Reducer; 2] = [Box::new(move |x, a| x.std(a, correction)), Box::new(move |x, a| x.std_keepdim(a, correction))];
            reduce(group::Std { correction }, o, f)
        }
        "matrix_norm" => {
            let kind = match o.text("kind")? {
                "Frobenius" => MatrixNorm::Frobenius,
                "One" => MatrixNorm::One,
                "Infinity" => MatrixNorm::Infinity,
                "MinusOne" => MatrixNorm::MinusOne,
                _ => MatrixNorm::MinusInfinity,
            };
            let axes = o.axes("axes");
            one(ops::matrix_norm::MatrixNormOp { kind, axes: axes.clone(), keep }, move |x| {
                if keep { x[0].matrix_norm_keepdim(kind, axes.clone()) } else { x[0].matrix_norm(kind, axes.clone()) }
            })
        }
        "any_all" => {
            let (all, axes) = (o.flag("all"), o.axes("axes"));
            one(ops::any_all::AnyAll { all, axes: axes.clone(), keep }, move |x| match (all, keep) {
                (false, false) => x[0].any(axes.clone()),
                (false, true) => x[0].any_keepdim(axes.clone()),
                (true, false) => x[0].all(axes.clone()),
                (true, true) => x[0].all_keepdim(axes.clone()),
            })
        }
        "argmax" => {
            let largest = o.flag("largest");
            one(ops::argmax::Arg { largest, axis: axis.into(), keep }, move |x| match (largest, keep) {
                (true, false) => x[0].argmax(axis),
                (true, true) => x[0].argmax_keepdim(axis),
                (false, false) => x[0].argmin(axis),
                (false, true) => x[0].argmin_keepdim(axis),
            })
        }
        "max_with_index" => {
            let largest = o.flag("largest");
            let op = ops::argmax::WithIndex { largest, axis: axis.into(), keep, of: shapes(c)[0].clone() };
            of(op, move |x| Ok(two(if largest { x[0].max_with_index(axis)? } else { x[0].min_with_index(axis)? })))
        }
        "cumsum" => one(ops::cumsum::Cumsum { axis: axis.into(), reverse: false }, move |x| x[0].cumsum(axis)),
        "sort" => {
            let descending = o.flag("descending");
            let op = ops::sort::Sort::<false> { axis: axis.into(), descending, k: 0, of: shapes(c)[0].clone() };
            of(op, move |x| Ok(two(if descending { x[0].sort_descending(axis)? } else { x[0].sort(axis)? })))
        }
        "topk" => {
            let (largest, k) = (o.flag("descending"), o.int("k")? as usize);
            let op = ops::sort::Sort::<true> { axis: axis.into(), descending: largest, k, of: shapes(c)[0].clone() };
            of(op, move |x| Ok(two(if largest { x[0].topk(k, axis)? } else { x[0].bottomk(k, axis)? })))
        }
        "softmax" => one(ops::softmax::Softmax { axis: axis.into() }, move |x| x[0].softmax(axis)),
        "log_softmax" => one(ops::log_softmax::LogSoftmax { axis: axis.into() }, move |x| x[0].log_softmax(axis)),
        _ => return None,
    })
}

fn moves(c: &Case) -> Option<Call> {
    let o = &c.options;
    let axis = o.int("axis").map_or(0, |a| a as isize);
    let place = |name: &str| o.int(name).map_or(0, |a| a as isize);
    Some(match c.op.as_str() {
        "concat" => {
            let a = if axis < 0 { axis + c.inputs[0].shape.len() as isize } else { axis } as usize;
            let sizes = c.inputs.iter().map(|x| x.shape[a]).collect();
            one(ops::concat::Concat { axis: axis.into(), sizes }, move |x| Tensor::concat(&x.iter().collect::<Vec<_>>(), axis))
        }
        "stack" => one(ops::concat::Stack(axis.into()), move |x| Tensor::stack(&x.iter().collect::<Vec<_>>(), axis)),
        "flip" => {
            let axes = o.axes("axes");
            one(ops::flip::Flip(axes.clone()), move |x| x[0].flip(axes.clone()))
        }
        "roll" => {
            let (shifts, axes) = (o.ints("shifts"), o.axes("axes"));
            let shifts: Vec<isize> = shifts.into_iter().map(|s| s as isize).collect();
            let op = ops::flip::Roll { shifts: SmallVec::from_slice(&shifts), axes: axes.clone() };
            one(op, move |x| x[0].roll(&shifts, axes.clone()))
        }
        "pad" => {
            let (flat, value) = (o.ints("by"), o.number("value")?);
            let by: Vec<(usize, usize)> = flat.chunks(2).map(|p| (p[0] as usize, p[1] as usize)).collect();
            // Where one axis is padded, by the method for one axis.
            let padded: Vec<usize> = (0..by.len()).filter(|&i| by[i] != (0, 0)).collect();
            one(ops::pad::Pad { by: SmallVec::from_slice(&by), value }, move |x| match padded[..] {
                [a] => x[0].pad_axis(a, by[a].0, by[a].1, value),
                _ => x[0].pad(&by, value),
            })
        }
        "pad_with" => {
            let by: Vec<(usize, usize)> = o.ints("by").chunks(2).map(|p| (p[0] as usize, p[1] as usize)).collect();
            let mode = match o.text("mode")? {
                "reflect" => PadMode::Reflect,
                "replicate" => PadMode::Replicate,
                _ => PadMode::Circular,
            };
            one(ops::pad_with::PadWith { by: SmallVec::from_slice(&by), mode }, move |x| x[0].pad_with(&by, mode))
        }
        "pixel_shuffle" => {
            let factor = o.int("factor")? as usize;
            one(ops::pixel_shuffle::PixelShuffle::<false> { factor }, move |x| x[0].pixel_shuffle(factor))
        }
        "pixel_unshuffle" => {
            let factor = o.int("factor")? as usize;
            one(ops::pixel_shuffle::PixelShuffle::<true> { factor }, move |x| x[0].pixel_unshuffle(factor))
        }
        "permute" => {
            let order = o.axes("order");
            one(ops::permute::Permute(order.clone()), move |x| x[0].permute(order.clone()))
        }
        "transpose" => {
            let (a, b) = (place("a"), place("b"));
            let plain = c.inputs[0].shape.len() == 2;
            one(ops::permute::Transpose { a: a.into(), b: b.into() }, move |x| if plain { x[0].t() } else { x[0].transpose(a, b) })
        }
        "slice" => {
            let (start, end) = (o.int("start").map(|i| i as isize), o.int("end").map(|i| i as isize));
            let step = o.int("step")? as usize;
            let span = Span { start, end };
            one(slice::Slice { axis: axis.into(), span, step }, move |x| match (step, start, end) {
                (1, Some(a), Some(b)) if a >= 0 && b >= a => x[0].narrow(axis, a as usize, (b - a) as usize),
                (1, Some(a), Some(b)) => x[0].slice(axis, a..b),
                (1, Some(a), None) => x[0].slice(axis, a..),
                (1, None, Some(b)) => x[0].slice(axis, ..b),
                (1, None, None) => x[0].slice(axis, ..),
                _ => x[0].slice_step(axis, span, step),
            })
        }
        "select" => {
            let index = place("index");
            one(slice::Select { axis: axis.into(), index }, move |x| x[0].select(axis, index))
        }
        "squeeze" => one(ops::squeeze::Squeeze(axis.into()), move |x| x[0].squeeze(axis)),
        "squeeze_all" => one(ops::squeeze::SqueezeAll, |x| x[0].squeeze_all()),
        "unsqueeze" => one(ops::squeeze::Unsqueeze(axis.into()), move |x| x[0].unsqueeze(axis)),
        "expand" => {
            let shape = o.shape("shape");
            one(ops::views::Expand(shape.clone()), move |x| x[0].expand(shape.clone()))
        }
        "reshape" => {
            let shape = o.shape("shape");
            one(ops::views::Reshape(shape.clone()), move |x| x[0].reshape(shape.clone()))
        }
        "flatten" => {
            let (from, to) = (place("from"), place("to"));
            one(ops::views::Flatten { from: from.into(), to: to.into() }, move |x| x[0].flatten(from, to))
        }
        "diagonal" => {
            let (a, b) = (place("a"), place("b"));
            one(ops::diagonal::Diagonal { a: a.into(), b: b.into() }, move |x| x[0].diagonal(a, b))
        }
        "repeat" => {
            let counts = o.shape("counts");
            one(ops::repeat::Repeat(counts.clone()), move |x| x[0].repeat(counts.clone()))
        }
        "repeat_interleave" => {
            let count = o.int("count")? as usize;
            one(ops::repeat::RepeatInterleave { count, axis: axis.into() }, move |x| x[0].repeat_interleave(count, axis))
        }
        "repeat_interleave_by" => one(ops::repeat::RepeatInterleaveBy(axis.into()), move |x| x[0].repeat_interleave(&x[1], axis)),
        "chunk" => {
            let parts = o.int("parts")? as usize;
            of(ops::split::Chunk { parts, axis: axis.into() }, move |x| match (parts, x[0].size(axis)? % parts) {
                (3, 0) => {
                    let [a, b, c] = x[0].parts(axis)?;
                    Ok(vec![a, b, c])
                }
                _ => x[0].chunk(parts, axis),
            })
        }
        "unbind" => of(ops::unbind::Unbind(axis.into()), move |x| match x[0].size(axis)? {
            3 => {
                let [a, b, c] = x[0].unpack(axis)?;
                Ok(vec![a, b, c])
            }
            _ => x[0].unbind(axis),
        }),
        "split" => {
            let sizes: Vec<usize> = o.ints("sizes").into_iter().map(|s| s as usize).collect();
            let op = ops::split::Split { sizes: SmallVec::from_slice(&sizes), axis: axis.into() };
            of(op, move |x| x[0].split(&sizes, axis))
        }
        "contiguous" => one(ops::views::Contiguous, |x| x[0].contiguous()),
        "tril" => {
            let k = place("k");
            one(ops::triangle::Tril { k }, move |x| x[0].tril(k))
        }
        "triu" => {
            let k = place("k");
            one(ops::triangle::Triu { k }, move |x| x[0].triu(k))
        }
        "cast" => {
            let to = o.dtype("to")?;
            one(ops::cast::Cast { to }, move |x| x[0].cast(to))
        }
        "one_hot" => {
            let (classes, dtype) = (o.int("classes")? as usize, o.dtype("to")?);
            one(ops::embedding::OneHot { classes, dtype }, move |x| x[0].one_hot(classes, dtype))
        }
        "masked_fill" => {
            let value = o.number("value")?;
            one(ops::select::MaskedFill(value), move |x| x[0].masked_fill(&x[1], value))
        }
        "where_cond" => one(ops::select::WhereCond, |x| x[0].where_cond(&x[1], &x[2])),
        "embedding" => {
            let padding = o.int("padding").map(|p| p as usize);
            let op = ops::embedding::Embedding { padding: padding.map_or(Padding::None, Padding::Row), rows: c.inputs[0].shape[0] };
            one(op, move |x| x[0].embedding(&x[1], padding))
        }
        "index_select" => {
            let a = if axis < 0 { axis + c.inputs[0].shape.len() as isize } else { axis } as usize;
            let op = ops::index_select::IndexSelect { axis: axis.into(), extent: c.inputs[0].shape[a] };
            one(op, move |x| x[0].index_select(axis, &x[1]))
        }
        "index_add" => one(ops::index_select::IndexAdd(axis.into()), move |x| x[0].index_add(axis, &x[1], &x[2])),
        "gather" => one(ops::gather::Gather { axis: axis.into(), of: shapes(c)[0].clone() }, move |x| x[0].gather(axis, &x[1])),
        "scatter_fold" | "scatter_reduce" => {
            let by = match o.text("by")? {
                "Sum" => ScatterReduce::Sum,
                "Mean" => ScatterReduce::Mean,
                "Prod" => ScatterReduce::Prod,
                "Max" => ScatterReduce::Max,
                _ => ScatterReduce::Min,
            };
            let include_self = o.flag("include_self");
            let run = move |x: &[Tensor]| x[0].scatter_reduce(axis, &x[1], &x[2], by, include_self);
            if c.op == "scatter_fold" {
                one(ops::scatter_reduce::ScatterFold { axis: axis.into(), by }, run)
            } else {
                one(ops::scatter_reduce::ScatterReduceOp { axis: axis.into(), by, include_self }, run)
            }
        }
        "scatter_add" => one(ops::gather::ScatterAdd(axis.into()), move |x| x[0].scatter_add(axis, &x[1], &x[2])),
        _ => return None,
    })
}

fn kind(o: &Options) -> Blocks {
    if o.text("kind") == Some("Q8_0") { Blocks::Q8_0 } else { Blocks::Q4_0 }
}

fn products(c: &Case) -> Option<Call> {
    let o = &c.options;
    let s = shapes(c);
    Some(match c.op.as_str() {
        "matmul" => {
            let form = o.text("form")?.to_string();
            let op = ops::matmul::MatMul::new(&s[0], &s[1], form == "tn", form == "nt");
            one(op, move |x| match form.as_str() {
                "nt" => x[0].matmul_nt(&x[1]),
                "tn" => x[0].matmul_tn(&x[1]),
                _ => x[0].matmul(&x[1]),
            })
        }
        "dot" => one(ops::matmul::Dot, |x| x[0].dot(&x[1])),
        "outer" => one(ops::matmul::Outer, |x| x[0].outer(&x[1])),
        "linear" => one(ops::linear::Linear, |x| x[0].linear(&x[1], x.get(2))),
        "einsum" => {
            let equation = o.text("equation")?.to_string();
            one(ops::einsum::Einsum(equation.clone()), move |x| Tensor::einsum(&equation, &x.iter().collect::<Vec<_>>()))
        }
        "quant_linear" => {
            let kind = kind(o);
            one(ops::quant_linear::QuantLinear { kind }, move |x| x[0].quant_linear(&x[1], kind))
        }
        "dequantize" => {
            let (kind, to) = (kind(o), o.dtype("to")?);
            one(ops::quant_linear::Dequantize { kind, to }, move |x| x[0].dequantize(kind, to))
        }
        _ => return None,
    })
}

fn norms(c: &Case) -> Option<Call> {
    let o = &c.options;
    let (axes, eps, weight, bias) = (o.int("axes").unwrap_or(0) as usize, o.number("eps").unwrap_or(0.0), o.flag("weight"), o.flag("bias"));
    // Weight and bias among the operands from the `n`-th on.
    let parts = move |x: &[Tensor], n: usize| {
        let w = weight.then(|| x[n].clone());
        (w, bias.then(|| x[n + usize::from(weight)].clone()))
    };
    let centred = LayerNorm { axes, eps, weight, bias };
    let scaled = RmsNorm { axes, eps, weight, bias };
    let dropout = || Some(ops::dropout::Dropout { p: o.number("p")?, key: Key::new(o.int("seed")? as u64) });
    Some(match c.op.as_str() {
        "layer_norm" => one(centred, move |x| {
            let (w, b) = parts(x, 1);
            x[0].layer_norm(axes, w.as_ref(), b.as_ref(), eps)
        }),
        "rms_norm" => one(scaled, move |x| x[0].rms_norm(parts(x, 1).0.as_ref(), eps)),
        "add_layer_norm" => of(ops::add_norm::AddNorm { norm: centred }, move |x| {
            let (w, b) = parts(x, 2);
            Ok(two(x[0].add_layer_norm(&x[1], axes, w.as_ref(), b.as_ref(), eps)?))
        }),
        "add_rms_norm" => {
            of(ops::add_norm::AddNorm { norm: scaled }, move |x| Ok(two(x[0].add_rms_norm(&x[1], parts(x, 2).0.as_ref(), eps)?)))
        }
        "swiglu" => one(ops::gated::Gated(el::Silu), |x| x[0].swiglu(&x[1])),
        "geglu" => one(ops::gated::Gated(el::Gelu), |x| x[0].geglu(&x[1])),
        "geglu_tanh" => one(ops::gated::Gated(el::GeluTanh), |x| x[0].geglu_tanh(&x[1])),
        "dropout" => {
            let d = dropout()?;
            one(d.clone(), move |x| x[0].dropout(d.p, d.key))
        }
        "dropout_add" => {
            let d = dropout()?;
            one(ops::dropout::DropoutAdd(d.clone()), move |x| x[0].dropout_add(&x[1], d.p, d.key))
        }
        _ => return None,
    })
}

fn losses(c: &Case) -> Option<Call> {
    let o = &c.options;
    let reduction = match o.text("reduction") {
        Some("Sum") => Reduction::Sum,
        Some("None") => Reduction::None,
        _ => Reduction::Mean,
    };
    let (weighted, bias) = (o.flag("weighted"), o.flag("bias"));
    let ignore_index = o.int("ignore");
    let (label_smoothing, z_loss) = (o.number("smoothing").unwrap_or(0.0), o.number("z").unwrap_or(0.0));
    let loss = CrossEntropyLoss { ignore_index, label_smoothing, reduction, weighted, z_loss };
    let options = move |w: Option<&Tensor>| CrossEntropyOptions { ignore_index, label_smoothing, reduction, weights: w.cloned(), z_loss };
    Some(match c.op.as_str() {
        // The method without options where they are the default ones.
        "cross_entropy" => one(loss.clone(), move |x| match x.get(2) {
            None if ignore_index == Some(-100) && label_smoothing + z_loss == 0.0 && reduction == Reduction::Mean => {
                x[0].cross_entropy(&x[1])
            }
            w => x[0].cross_entropy_with(&x[1], &options(w)),
        }),
        "soft_cross_entropy" => one(ops::soft_cross_entropy::SoftCrossEntropy { of: loss }, move |x| match x.get(2) {
            None if ignore_index == Some(-100) && label_smoothing + z_loss == 0.0 && reduction == Reduction::Mean => {
                x[0].cross_entropy(&x[1])
            }
            w => x[0].cross_entropy_with(&x[1], &options(w)),
        }),
        "linear_cross_entropy" => {
            let op = ops::linear_cross_entropy::LinearCrossEntropy { of: loss, rows: 128, bias, keep: [true, true, bias] };
            one(op, move |x| {
                let (weights, bias) = (weighted.then(|| &x[3]), bias.then(|| &x[x.len() - 1]));
                x[0].linear_cross_entropy(&x[1], bias, &x[2], &options(weights))
            })
        }
        "nll_loss" => one(ops::nll_loss::NllLoss { ignore_index, reduction, weighted }, move |x| match x.get(2) {
            None if ignore_index == Some(-100) && reduction == Reduction::Mean => x[0].nll_loss(&x[1]),
            w => x[0].nll_loss_with(&x[1], &NllLossOptions { ignore_index, reduction, weights: w.cloned() }),
        }),
        "bce_with_logits" => one(ops::bce_with_logits::BceWithLogits { reduction, weighted }, move |x| match x.get(2) {
            None if reduction == Reduction::Mean => x[0].bce_with_logits(&x[1]),
            w => x[0].bce_with_logits_with(&x[1], &ops::BceWithLogitsOptions { pos_weight: w.cloned(), reduction }),
        }),
        "mse_loss" => one(ops::mse_loss::MseLoss { reduction }, move |x| match reduction {
            Reduction::Mean => x[0].mse_loss(&x[1]),
            _ => x[0].mse_loss_with(&x[1], reduction),
        }),
        _ => return None,
    })
}

fn attention(c: &Case) -> Option<Call> {
    let o = &c.options;
    let style = if o.text("style") == Some("Half") { RopeStyle::Half } else { RopeStyle::Interleaved };
    let (start, given) = (o.int("start").unwrap_or(0) as usize, o.flag("given"));
    let (base, rotary_dim) = (o.number("base").unwrap_or(0.0), o.int("rotary_dim").map(|d| d as usize));
    let rope = Rope { base, style, start, given, rotary_dim, inverse: false };
    let rotary = move |p: Option<&Tensor>| RopeOptions {
        base,
        style,
        positions: p.map_or(RopePositions::From(start), |p| RopePositions::Given(p.clone())),
        rotary_dim,
    };
    Some(match c.op.as_str() {
        "scaled_dot_product_attention" => {
            let window = o.ints("window");
            let options = SdpaOptions {
                causal: o.flag("causal"),
                window: (!window.is_empty()).then(|| (window[0] as usize, window[1] as usize)),
                softcap: o.number("softcap"),
                scale: o.number("scale"),
                dropout: o.number("dropout").unwrap_or(0.0),
                key: o.int("seed").map(|s| Key::new(s as u64)),
            };
            let packed = o.flag("packed");
            let op = SdpaOp { options: options.clone(), boolean: o.text("mask") == Some("bool"), packed };
            one(op, move |x| {
                if packed {
                    x[0].scaled_dot_product_attention_packed(&x[1], &x[2], None, &x[3], &x[4], &options)
                } else {
                    x[0].scaled_dot_product_attention(&x[1], &x[2], x.get(3), &options)
                }
            })
        }
        "rope" => one(rope, move |x| x[0].rope(&rotary(x.get(1)))),
        "rope_with_key" => of(RopePair(rope), move |x| Ok(two(x[0].rope_with_key(&x[1], &rotary(x.get(2)))?))),
        _ => return None,
    })
}

/// Constructors: not in the registry, but with options of their own.
fn constructors(c: &Case) -> Option<Call> {
    let o = &c.options;
    let number = |name: &str| o.number(name);
    Some(match c.op.as_str() {
        "arange" => {
            let (a, b, s) = (number("start")?, number("end")?, number("step")?);
            Call::bare("arange", move |dtype| Tensor::arange(a, b, s, dtype))
        }
        "linspace" => {
            let (a, b, n) = (number("start")?, number("end")?, o.int("n")? as usize);
            Call::bare("linspace", move |dtype| Tensor::linspace(a, b, n, dtype))
        }
        "eye" => {
            let shape = o.shape("shape");
            Call::bare("eye", move |dtype| Tensor::eye(shape.clone(), dtype))
        }
        _ => return None,
    })
}

/// The call of a case.
pub fn call(c: &Case) -> Call {
    [elementwise, two_operands, reductions, moves, products, norms, losses, attention, super::convolutions::convolutions, constructors]
        .iter()
        .find_map(|f| f(c))
        .unwrap_or_else(|| panic!("{}: no such op: add it to tests/ops/torch_ops/calls.rs", c.id()))
}

/// Names of types are part of what the calls say.
pub fn dtype(name: &str) -> Option<DType> {
    [DType::F64, DType::F32, DType::BF16, DType::F16, DType::I64, DType::U32, DType::U8].into_iter().find(|d| d.name() == name)
}

/// An op as Rust prints it, for the test of options.
pub fn shown<O: Describe>(op: &O) -> String {
    format!("{op:?}")
}
