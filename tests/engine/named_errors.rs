//! Refusals name the parameters that the op took, or the layer's place in a list, and the caller's line.

use cotangent::nn::{Activation, Embedding, Func, Layer, LayerNorm, Linear, RmsNorm, Sequential};
use cotangent::{Error, F32, F64, I64, Key, Param, Result, Tape, Tensor, module, value_and_grad, vjp};

fn lin(inputs: usize, outputs: usize) -> Linear {
    Linear::new(inputs, outputs, F32, Key::new(1)).unwrap()
}

#[track_caller]
fn says(e: &Error, start: &str, end: &str, line: u32) {
    let text = e.to_string();
    assert!(text.starts_with(start), "{text}");
    assert!(text.ends_with(&format!("{end} (at tests/engine/named_errors.rs:{line})")), "{text}\n  should end with {end} at line {line}");
}

#[derive(Clone)]
struct Net {
    layers: Vec<(Linear, Activation)>,
    head: Linear,
    table: Embedding,
    norm: LayerNorm,
}
module!(Net { layers, head, table, norm });

fn net() -> Net {
    let table = Embedding::normal(7, 4, 1.0, F32, Key::new(2)).unwrap();
    let mut layers = vec![(lin(4, 4), Activation::Relu); 5];
    layers[3].0 = lin(6, 4);
    Net { layers, head: lin(4, 2), table, norm: LayerNorm::new(4, F32).unwrap() }
}

/// With a tape, any op that takes a parameter names it as the model does.
#[test]
fn the_tape_names_the_parameter_of_an_op_that_refuses() -> Result<()> {
    let x = Tensor::zeros([5, 4], F32)?;
    let line = line!() + 1;
    let e = value_and_grad(&net(), |m| m.layers.call(&x, None)?.sum(..)).unwrap_err();
    says(
        &e,
        "linear: inner extents differ: x [5, 4], weight [4, 6]",
        "; with the parameters `layers.3.0.weight` f32[4, 6], `layers.3.0.bias` f32[4]",
        line,
    );
    assert_eq!(e.names(), ["layers.3.0.weight", "layers.3.0.bias"]);
    assert!(e.is_shape());

    // A loop over blocks that share one line; here the user's own.
    let line = line!() + 4;
    let e = value_and_grad(&net(), |m| {
        let mut x = x.clone();
        for (l, _) in &m.layers {
            x = l.forward(&x)?;
        }
        x.sum(..)
    });
    says(&e.unwrap_err(), "linear: inner extents differ", "`layers.3.0.weight` f32[4, 6], `layers.3.0.bias` f32[4]", line);

    // Any op: a sum, an index, a norm, a view, a composition.
    let e = value_and_grad(&net(), |m| x.add(&m.head.weight)?.sum(..)).unwrap_err();
    says(&e, "add: shapes do not broadcast: lhs [5, 4], rhs [2, 4]", "; with the parameter `head.weight` f32[2, 4]", line!() - 1);
    let ids = Tensor::from_slice(&[3i64, 7], [2])?;
    let e = value_and_grad(&net(), |m| m.table.forward(&ids)?.sum(..)).unwrap_err();
    says(&e, "embedding: ", "; with the parameter `table.weight` f32[7, 4]", line!() - 1);
    assert!(e.is_index());
    let e = value_and_grad(&net(), |m| m.norm.forward(&Tensor::zeros([2, 3], F32)?)?.sum(..)).unwrap_err();
    says(&e, "layer_norm: ", "; with the parameters `norm.weight` f32[4], `norm.bias` f32[4]", line!() - 1);
    let e = value_and_grad(&net(), |m| m.head.weight.reshape([3, 5])?.sum(..)).unwrap_err();
    says(&e, "reshape: ", "; with the parameter `head.weight` f32[2, 4]", line!() - 1);
    let e = value_and_grad(&net(), |m| Tensor::einsum("ij,jk->ik", &[&m.head.weight, &m.head.weight])?.sum(..)).unwrap_err();
    says(&e, "einsum: ", "; with the parameter `head.weight` f32[2, 4]", line!() - 1);
    // A cast and transposed parameter is the parameter.
    let e = value_and_grad(&net(), |m| x.matmul(&m.head.weight.cast(F64)?.transpose(0, 1)?)?.sum(..)).unwrap_err();
    says(&e, "matmul: operands have different dtypes: operand 0 is f32", "; with the parameter `head.weight` f64[4, 2]", line!() - 1);
    // Other gradient functions, and a tape by hand.
    let e = vjp(&net(), |m| m.head.forward(&ids)).map(|_| ()).unwrap_err();
    assert_eq!(e.names(), ["head.weight", "head.bias"]);
    let tape = Tape::new();
    let w = tape.watch_named("w", &Tensor::zeros([2], F32)?)?;
    says(&w.mul(&Tensor::zeros([3], F32)?).unwrap_err(), "mul: ", "; with the parameter `w` f32[2]", line!());
    // Values computed from parameters are no parameters.
    let e = value_and_grad(&net(), |m| m.head.weight.exp()?.mul(&x)?.sum(..)).unwrap_err();
    assert!(e.names().is_empty() && !e.to_string().contains("parameter"), "{e}");
    Ok(())
}

/// Without a tape, lists say where, and layers what.
#[test]
fn without_a_tape_lists_say_which_layer() -> Result<()> {
    let x = Tensor::zeros([5, 4], F32)?;
    let wrong = || (lin(4, 4), Activation::Relu, lin(6, 4));
    let end = "; with the parameters `2.weight` f32[4, 6], `2.bias` f32[4]";
    says(&wrong().call(&x, None).unwrap_err(), "linear: inner extents differ: x [5, 4], weight [4, 6]", end, line!());
    let (first, second, third) = wrong();
    let sequential = Sequential::new().push(first).push(second).push(third);
    says(&sequential.call(&x, None).unwrap_err(), "linear: inner extents differ", end, line!());
    says(&vec![lin(4, 4), lin(4, 4), lin(6, 4)].call(&x, None).unwrap_err(), "linear: inner extents differ", end, line!());
    says(&[lin(4, 4), lin(4, 4), lin(6, 4)].call(&x, None).unwrap_err(), "linear: inner extents differ", end, line!());
    let nested = (lin(4, 4), vec![sequential.clone()], lin(4, 4));
    let e = nested.call(&x, None).unwrap_err();
    says(&e, "linear: inner", "; with the parameters `1.0.2.weight` f32[4, 6], `1.0.2.bias` f32[4]", line!() - 1);
    // A layer without parameters has its place; a function its own line.
    let ids = Tensor::zeros([5], I64)?;
    let e = (Func(|x| Ok(x.clone())), (Activation::Relu, Activation::Gelu)).call(&ids, None).unwrap_err();
    says(&e, "relu: ", "; in layer 1.0", line!() - 1);
    let line = line!() + 1;
    let net = vec![Func(|x: &Tensor| x.reshape([3, 3]))];
    says(&net.call(&x, None).unwrap_err(), "reshape: ", "; in layer 0", line);
    // In a model that is watched, too, where no parameter is among the operands.
    let e = value_and_grad(&lin(4, 4), |m| (m.clone(), Func(|x| x.reshape([7]))).call(&x, None)?.sum(..)).unwrap_err();
    says(&e, "reshape: ", "; in layer 1", line!() - 1);
    Ok(())
}

/// F64 data into an f32 layer says which operand is the parameter.
#[test]
fn data_of_another_dtype_says_which_is_the_parameter() -> Result<()> {
    let x = Tensor::zeros([5, 4], F64)?;
    let e = lin(4, 2).forward(&x).unwrap_err();
    says(&e, "linear: operands have different dtypes: operand 0 is f64", "`weight` f32[2, 4], `bias` f32[2]", line!() - 1);
    let e = value_and_grad(&net(), |m| m.head.forward(&x)?.sum(..)).unwrap_err();
    says(&e, "linear: operands have different dtypes: operand 0 is f64", "`head.weight` f32[2, 4], `head.bias` f32[2]", line!() - 1);
    says(&RmsNorm::new(4, 1e-6, F32)?.forward(&x).unwrap_err(), "rms_norm: ", "; with the parameter `weight` f32[4]", line!());
    let scale = Param::new(Tensor::ones([4], F32)?);
    let e = value_and_grad(&scale, |s| x.mul(s)?.sum(..)).unwrap_err();
    assert!(e.is_dtype() && e.to_string().starts_with("mul: operands have different dtypes: operand 0 is f64"), "{e}");
    Ok(())
}
