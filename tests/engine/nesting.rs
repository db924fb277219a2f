//! Gradient functions inside one another, parameters computed from parameters, and trees that do not fit.

use cotangent::nn::Linear;
use cotangent::optim::AdamW;
use cotangent::{F64, Key, Module, Param, Result, Tape, Tensor, checkpoint, grad, gradcheck_module, hvp, jvp, module, value_and_grad};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

fn scalar(x: f64) -> Tensor {
    Tensor::scalar(x).unwrap()
}

/// The gradient penalty ‖∂f/∂x‖²: the inner variable is new, the weights are the outer function's.
#[test]
fn an_inner_gradient_by_a_new_variable_passes_through_outer_weights() {
    let x = Tensor::randn([4, 3], F64, Key::new(1)).unwrap();
    let net = (Linear::new(3, 5, F64, Key::new(2)).unwrap(), Linear::no_bias(5, 1, F64, Key::new(3)).unwrap());
    let f = |m: &(Linear, Linear), x: &Tensor| m.1.forward(&m.0.forward(x)?.tanh()?)?.sum(..);
    let penalty = |m: &(Linear, Linear)| {
        let gx = grad(&x, |x| f(m, x))?;
        gx.square()?.sum(..)
    };
    let report = gradcheck_module(&net, penalty).unwrap();
    assert_eq!(report.inputs.len(), 3);
    // The same by one function of both.
    let direct = grad(&net, |m| {
        let both = grad(&(x.clone(), m.clone()), |(x, m)| f(m, x))?;
        both.0.square()?.sum(..)
    })
    .unwrap();
    let nested = grad(&net, penalty).unwrap();
    for ((n, a), (_, b)) in nested.named().into_iter().zip(direct.named()) {
        assert_eq!(a.to_vec::<f64>().unwrap(), b.to_vec::<f64>().unwrap(), "{n}");
    }
    // And to third order: d/ds of d/dy (s y)³ at y = 2 is 3·3 s² y², at s = 1.5.
    let g = grad(&scalar(1.5), |s| Ok(grad(&scalar(2.0), |y| s.mul(y)?.powi(3))?.into_inner())).unwrap();
    assert!((g.item().unwrap() - 9.0 * 1.5f64.powi(2) * 4.0).abs() < 1e-12);
    let h = grad(&scalar(1.5), |s| Ok(hvp(&scalar(2.0), &scalar(1.0), |y| s.mul(y)?.powi(3))?.1.into_inner())).unwrap();
    assert!((h.item().unwrap() - 18.0 * 1.5f64.powi(2) * 2.0).abs() < 1e-12);
    let d = grad(&scalar(1.5), |s| Ok(jvp(&scalar(2.0), &scalar(1.0), |y| s.mul(y)?.powi(3))?.1)).unwrap();
    assert!((d.item().unwrap() - 9.0 * 1.5f64.powi(2) * 4.0).abs() < 1e-12);
}

#[test]
fn an_inner_gradient_inside_a_tape_is_recorded_on_it() {
    let tape = Tape::new();
    let s = tape.watch(&scalar(3.0)).unwrap();
    let g = grad(&scalar(2.0), |y| s.mul(y)?.square()).unwrap().into_inner(); // 2 s² y
    assert_eq!(g.item().unwrap(), 36.0);
    assert_eq!(tape.backward(&g).unwrap().get(&s).unwrap().item().unwrap(), 24.0); // 4 s y
}

#[test]
fn a_value_of_the_outer_function_only_is_disconnected_in_the_inner_one() {
    let e = grad(&scalar(1.0), |s| grad(&scalar(2.0), |_| s.square()).map(|g| g.into_inner())).unwrap_err();
    assert!(e.is_disconnected(), "{e}");
}

#[derive(Clone)]
struct Scale {
    g: Param,
}
module!(Scale { g });

/// A parameter computed from other tensors passes its gradient on.
#[test]
fn parameters_computed_from_parameters_stay_tracked() {
    let g = grad(&scalar(2.0), |x| {
        let p: Param = x.square()?.into();
        assert!(p.is_tracked());
        p.mul(x)
    })
    .unwrap();
    assert_eq!(g.item().unwrap(), 12.0);
    // One inner step of training, differentiated: with loss (g − 1)², g₁ = g − 0.1 · 2 (g − 1).
    let outer = |m: &Scale| {
        let loss = |m: &Scale| m.g.add_scalar(-1.0)?.square();
        let inner = grad(m, loss)?;
        let stepped = Scale { g: m.g.sub(&inner.g.mul_scalar(0.1)?)?.into() };
        loss(&stepped)
    };
    let g = grad(&Scale { g: scalar(3.0).into() }, outer).unwrap();
    assert!((g.g.item().unwrap() - 2.0 * 0.64 * 2.0).abs() < 1e-12);
    // Loading inside a function keeps the history too.
    let g = grad(&scalar(2.0), |x| {
        let mut s = Scale { g: scalar(0.0).into() };
        s.load_named(&[("g".to_owned(), x.square()?)].into())?;
        s.g.mul(x)
    })
    .unwrap();
    assert_eq!(g.item().unwrap(), 12.0);
}

#[test]
fn a_checkpointed_function_that_changes_its_shapes_is_refused() {
    let x = Tensor::ones([5, 3], F64).unwrap();
    let calls = std::sync::Arc::new(AtomicUsize::new(0));
    let e = grad(&x, |x| {
        let calls = calls.clone();
        let y = checkpoint(&[x], move |x| {
            let y = x[0].exp()?;
            Ok(vec![if calls.fetch_add(1, SeqCst) == 0 { y } else { y.sum(0)? }])
        })?;
        y[0].sum(..)
    })
    .unwrap_err();
    assert!(e.is_tape() && e.to_string().contains("[5, 3]"), "{e}");
}

#[derive(Clone)]
struct Twins {
    p: Param,
    q: Param,
}
module!(Twins { p as "w", q as "w" });

#[test]
fn two_parameters_of_one_name_are_refused() -> Result<()> {
    let mut m = Twins { p: scalar(1.0).into(), q: scalar(2.0).into() };
    let e = value_and_grad(&m, |m| m.p.mul(&m.q)).unwrap_err();
    assert!(e.is_argument() && e.to_string().contains("`w`"), "{e}");
    let grads = grad(&(scalar(1.0), scalar(2.0)), |(a, b)| a.mul(b))?;
    let _ = grads.into_inner();
    assert!(m.freeze(|_| true) > 0);
    let e = grad(&Scale { g: Param::new(scalar(1.0)) }, |s| s.g.square()).and_then(|_| grad(&m, |m| m.p.square())).unwrap_err();
    assert!(e.is_argument(), "{e}");
    Ok(())
}

#[test]
fn trees_that_differ_are_refused() -> Result<()> {
    let of = |shape: &[usize]| grad(&Tensor::ones(shape, F64)?, |x| x.square()?.sum(..));
    let mut a = of(&[5, 3])?;
    let before = a.to_vec::<f64>()?;
    assert!(a.accumulate(&of(&[])?).unwrap_err().is_shape());
    assert!(of(&[])?.accumulate(&a).unwrap_err().is_shape());
    let vec = |n: usize| grad(&vec![scalar(1.0); n], |x| x.iter().skip(1).try_fold(x[0].square()?, |s, x| s.add(&x.square()?)));
    assert!(vec(1)?.accumulate(&vec(2)?).unwrap_err().is_shape());
    assert!(vec(2)?.accumulate(&vec(1)?).unwrap_err().is_shape());
    a.accumulate(&of(&[5, 3])?)?;
    assert!(a.to_vec::<f64>()?.iter().zip(before).all(|(a, b)| *a == 2.0 * b));
    let (one, two) = (vec![scalar(1.0)], vec![scalar(1.0), scalar(1.0)]);
    assert!(hvp(&one, &two, |x| x[0].square()).unwrap_err().is_argument());
    assert!(jvp(&one, &two, |x| x[0].square()).unwrap_err().is_argument());
    let e = hvp(&scalar(1.0), &Tensor::scalar(1f32)?, |x| x.square()).unwrap_err();
    assert!(e.is_dtype() && e.to_string().contains("the input") && e.to_string().contains("nesting.rs"), "{e}");
    Ok(())
}

#[test]
fn a_model_with_nothing_to_train_is_refused() -> Result<()> {
    let mut m = Scale { g: scalar(1.0).into() };
    let grads = grad(&m, |m| m.g.square())?;
    assert!(m.freeze(|_| true) > 0);
    let e = grad(&m, |m| m.g.square()).unwrap_err();
    assert!(e.is_argument() && e.to_string().contains("nothing to differentiate"), "{e}");
    assert!(AdamW::default().step(&mut m, &grads).is_err());
    Ok(())
}

#[test]
fn gradients_of_computed_values_say_how_to_get_them() -> Result<()> {
    let tape = Tape::new();
    let x = tape.watch(&scalar(3.0))?;
    let y = x.square()?;
    let g = tape.backward(&y.square()?)?;
    let e = g.get(&y).unwrap_err();
    assert!(e.is_tape() && e.to_string().contains("Tape::cotangents"), "{e}");
    Ok(())
}
