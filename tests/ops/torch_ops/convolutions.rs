//! The calls of convolutions.

use super::cases::{Case, Options};
use super::reference::{Call, of, one};
use cotangent::op;
use cotangent::ops::conv::{Sliding, conv::Conv};
use cotangent::ops::conv_input::ConvInput;
use cotangent::ops::conv_weight::ConvWeight;
use cotangent::ops::{ConvOptions, ConvTransposeOptions, Padding};
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

pub fn convolutions(c: &Case) -> Option<Call> {
    Some(match (c.op.as_str(), c.inputs.first().map_or(0, |x| x.shape.len())) {
        ("conv", 3) => conv(c, Tensor::conv1d),
        ("conv", 4) => conv(c, Tensor::conv2d),
        ("conv", _) => conv(c, Tensor::conv3d),
        ("conv_input", 3) => transposed(c, Tensor::conv_transpose1d),
        ("conv_input", 4) => transposed(c, Tensor::conv_transpose2d),
        ("conv_input", _) => transposed(c, Tensor::conv_transpose3d),
        ("conv_weight", 3) => weight::<1>(c),
        ("conv_weight", 4) => weight::<2>(c),
        ("conv_weight", _) => weight::<3>(c),
        _ => return None,
    })
}
