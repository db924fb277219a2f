//! Lost gradients say why: nothing was used, what ended them, what was left out.

use cotangent::nn::Linear;
use cotangent::{Buffer, Error, F32, F64, GradOptions, I64, Key, Module, Param, Result, Tape, Tensor, checkpoint, grad, module};
use cotangent::{value_and_grad, value_and_grad_with};

fn x() -> Tensor {
    Tensor::from_rows(&[[1f64, -2.0, 0.5], [0.25, 3.0, -1.0]]).unwrap()
}

fn net() -> (Linear, Linear) {
    let lin = |k| Linear::no_bias(3, 3, F64, Key::new(k)).unwrap();
    (lin(1), lin(2))
}

fn lost(e: Result<impl Sized>) -> Error {
    let Err(e) = e else { panic!("nothing was lost") };
    assert!(e.is_disconnected(), "{e}");
    e
}

#[track_caller]
fn has(e: &Error, parts: &[&str]) {
    parts.iter().for_each(|p| assert!(e.to_string().contains(p), "{e}\n  should contain: {p}"));
}

/// A closure that uses the captured model instead of its argument is told so.
#[test]
fn a_captured_model_is_asked_for() -> Result<()> {
    let (net, x) = (net(), x());
    let e = lost(value_and_grad(&net, |_| net.1.forward(&net.0.forward(&x)?)?.mean(..)));
    has(
        &e,
        &[
            "the result does not depend on any parameter: none was used",
            "compute with its argument",
            "captured",
            "not `|_| model.forward(&x)`",
        ],
    );
    assert!(!e.to_string().contains("allow_disconnected"), "{e}");
    assert_eq!(e.names(), ["0.weight", "1.weight"]);
    // The same of a single tensor, of grad, and of a function inside another.
    let w = Tensor::ones([3], F64)?;
    has(&lost(grad(&w, |_| w.square()?.sum(..))), &["does not depend on the input: none was used", "captured"]);
    let outer = value_and_grad(&w, |w| grad(&x, |_| w.square()?.sum(..))?.sum(..));
    has(&lost(outer), &["does not depend on the input: none was used"]);
    has(&lost(value_and_grad(&(w.clone(), w.clone()), |_| Tensor::scalar(1f64))), &["any parameter: none was used"]);
    Ok(())
}

/// `argmax`, a cast to integers, `detach`, comparisons and reading back: each is named with its line.
#[test]
fn what_ends_a_gradient_is_named_with_its_line() -> Result<()> {
    let (net, x) = (net(), x());
    let at = |line: u32| format!("(tests/engine/lost_gradients.rs:{line})");
    let all = "the result does not depend on any parameter: its gradient would be lost; what is computed from them ends in";

    let line = line!() + 1;
    let e = lost(value_and_grad(&net.0, |m| m.forward(&x)?.argmax(-1)?.cast(F64)?.mean(..)));
    has(&e, &["does not depend on `weight`", "what is computed from it ends in `argmax`", &at(line)]);
    let line = line!() + 1;
    let e = lost(value_and_grad(&net, |m| m.1.forward(&m.0.forward(&x)?)?.detach().mean(..)));
    has(&e, &[all, "`detach`", &at(line)]);
    assert!(!e.to_string().contains("allow_disconnected") && !e.to_string().contains("captured"), "{e}");
    let line = line!() + 1;
    let e = lost(value_and_grad(&net, |m| m.1.forward(&m.0.forward(&x)?)?.cast(I64)?.cast(F64)?.mean(..)));
    has(&e, &[all, "`cast` to i64", &at(line)]);
    let line = line!() + 1;
    let e = lost(value_and_grad(&net, |m| m.1.forward(&m.0.forward(&x)?)?.gt_scalar(0.0)?.cast(F64)?.mean(..)));
    has(&e, &[all, "`gt_scalar`", &at(line)]);
    let line = line!() + 1;
    let e = lost(value_and_grad(&net, |m| Tensor::scalar(m.1.forward(&m.0.forward(&x)?)?.sum(..)?.item()?)));
    has(&e, &[all, "`item`", &at(line)]);
    let line = line!() + 1;
    let e = lost(value_and_grad(&net, |m| m.1.forward(&m.0.forward(&x)?.stop_gradient())?.mean(..)));
    has(&e, &["does not depend on `0.weight`", "what is computed from it ends in `detach`", &at(line), "allow_disconnected"]);
    // Integers beside floats: the indices of an order, also where the program printed a number of the floats.
    let line = line!() + 1;
    let e = lost(value_and_grad(&net, |m| m.1.forward(&m.0.forward(&x)?)?.topk(2, -1)?.1.cast(F64)?.mean(..)));
    has(&e, &[all, "the i64 results of `topk`", &at(line)]);
    let line = line!() + 2;
    let e = lost(value_and_grad(&net.0, |m| {
        let (_, places) = m.forward(&x)?.sort(-1)?;
        m.weight.sum(..)?.item()?;
        places.cast(F64)?.mean(..)
    }));
    has(&e, &["the i64 results of `sort`", &at(line), "`item`"]);
    let line = line!() + 2;
    let e = lost(value_and_grad(&net.0, |m| {
        let (most, _) = m.forward(&x)?.max_with_index(-1)?;
        most.detach().mean(..)
    }));
    has(&e, &["`detach`", &at(line + 1)]);
    assert!(!e.to_string().contains("max_with_index"), "{e}");
    // Places that have nothing to do with the parameter are not accused.
    let e = lost(value_and_grad(&net, |m| {
        let y = m.1.forward(&x)?;
        let _ = (y.argmax(-1)?, y.mean(..)?.item()?);
        y.detach().add(&y)?.mean(..)
    }));
    has(&e, &["does not depend on `0.weight`", "it was never used"]);
    assert!(!e.to_string().contains("argmax") && !e.to_string().contains("detach"), "{e}");
    Ok(())
}

#[derive(Clone)]
struct Three {
    a: Param,
    b: Param,
    c: Param,
    mean: Buffer,
}
module!(Three { a, b, c, mean });

#[test]
fn one_of_several_parameters_says_what_became_of_it() -> Result<()> {
    let p = || Ok::<Param, Error>(Tensor::ones([3], F64)?.into());
    let m = Three { a: p()?, b: p()?, c: p()?, mean: Tensor::zeros([3], F64)?.into() };
    let line = line!() + 2;
    let e = lost(value_and_grad(&m, |m| {
        let _aside = m.b.exp()?.sum(..)?;
        m.a.mul(&m.c.detach())?.sub(&m.mean)?.sum(..)
    }));
    has(&e, &["does not depend on `b`, `c`: its gradient would be lost; ", "freeze what is meant to be constant"]);
    has(&e, &[&format!("`exp` (tests/engine/lost_gradients.rs:{line}) took `b`, but the result is not computed from that")]);
    has(&e, &[&format!("what is computed from `c` ends in `detach` (tests/engine/lost_gradients.rs:{})", line + 1)]);
    assert_eq!(e.names(), ["b", "c"]);
    // Allowed, it stays a list.
    let options = GradOptions { allow_disconnected: true };
    assert_eq!(value_and_grad_with(&m, options, |m| m.a.sum(..))?.1.disconnected(), ["b", "c"]);
    // Two that share a fate are said once.
    has(&lost(value_and_grad(&m, |m| m.a.sum(..))), &["they were never used"]);
    // Inside a checkpoint the ops are not on the tape: the checkpoint is what took it.
    let e = lost(value_and_grad(&m, |m| {
        let y = checkpoint(&[&m.a, &m.b, &m.c], |x| Ok(vec![x[0].square()?, x[1].square()?]))?;
        y[0].sum(..)?.add(&m.c.sum(..)?)
    }));
    assert_eq!(e.names(), ["b"]);
    assert_eq!(m.buffers().len(), 1);
    Ok(())
}

/// `grads.get(&x)` with the tensor before `watch`.
#[test]
fn a_tape_by_hand_says_which_tensor_to_ask_with() -> Result<()> {
    let tape = Tape::new();
    let plain = Tensor::ones([2], F32)?;
    let x = tape.watch(&plain)?;
    let (unused, cut) = (tape.watch_named("unused", &plain)?, tape.watch_named("cut", &plain)?);
    let line = line!() + 1;
    let y = x.square()?.add(&cut.detach())?.sum(..)?;
    let grads = tape.backward(&y)?;
    assert_eq!(grads.get(&x)?.to_vec::<f32>()?, [2.0, 2.0]);
    let e = grads.get(&plain).unwrap_err();
    assert!(e.is_tape() && e.to_string().contains("use the tensor that `watch` returned"), "{e}");
    let other = Tape::new();
    let e = grads.get(&other.watch(&plain)?).unwrap_err();
    assert!(e.to_string().contains("another tape"), "{e}");
    has(&lost(grads.get(&unused)), &["the result does not depend on `unused`: it was never used (at"]);
    has(&lost(grads.get(&cut)), &[&format!("what is computed from it ends in `detach` (tests/engine/lost_gradients.rs:{line})")]);
    Ok(())
}
