//! The public gradient checks.

use cotangent::testing::{GradCheck, gradcheck, gradgradcheck};
use cotangent::{Result, Tensor};

fn x() -> Tensor {
    Tensor::from_slice(&[0.3f64, -1.2, 0.7, 2.0, -0.4, 1.1], [2, 3]).unwrap()
}

fn f(x: &[Tensor]) -> Result<Tensor> {
    x[0].mul(&x[1])?.exp()?.sum(-1)?.square()
}

fn bias() -> Tensor {
    Tensor::from_slice(&[0.5f64, -0.25, 0.125], [3]).unwrap()
}

#[test]
fn right_functions_pass() -> Result<()> {
    let r = gradcheck(f, &[x(), bias()])?;
    assert_eq!((r.inputs.len(), r.compared), (2, 9));
    gradgradcheck(f, &[x(), bias()])?;
    let few = GradCheck { elements: 2, ..GradCheck::default() }.run(f, &[x(), bias()])?;
    assert_eq!(few.compared, 6);
    Ok(())
}

#[test]
fn lost_and_scaled_gradients_are_caught_with_their_place() {
    let e = gradcheck(|t| t[0].mul(&t[1].detach()), &[x(), bias()]).unwrap_err();
    assert!(e.is_gradcheck() && e.names() == ["input 1"], "{e}");
    assert!(e.to_string().contains("does not connect") && e.to_string().contains("ends in `detach` (tests/ops/gradcheck.rs:"), "{e}");
    // Half of the gradient of one element only.
    let weights = Tensor::from_slice(&[0f64, 0., 0., 0., 1., 0.], [2, 3]).unwrap();
    let named = [("w".to_string(), x())];
    let wrong = |t: &[Tensor]| t[0].add(&t[0].detach().mul(&weights)?);
    let e = GradCheck::default().run_named(wrong, &named).unwrap_err();
    assert!(e.names() == ["w"] && e.to_string().contains("[1, 1]"), "{e}");
}

#[test]
fn a_wrong_second_derivative_is_caught() {
    // The first gradient is right (x² through x·x with a detached factor counted twice), the second is not.
    let f = |t: &[Tensor]| -> Result<Tensor> {
        let d = t[0].detach();
        let linear = d.mul(&t[0])?;
        linear.add(&linear)?.add(&d.mul(&d)?.mul(&Tensor::from_slice(&[-1f64], [1])?)?)
    };
    assert!(gradcheck(f, &[x()]).is_ok());
    assert!(gradgradcheck(f, &[x()]).unwrap_err().is_gradcheck());
}

/// `ok` for a function that is flat at the inputs says little: the report must say so.
#[test]
fn derivatives_that_are_all_zero_are_pointed_out() -> Result<()> {
    let negative = Tensor::from_slice(&[-1f64, -2.0], [2])?;
    let r = gradcheck(|t| t[0].relu()?.mul(&t[1]), &[negative, Tensor::from_slice(&[3f64, 4.0], [2])?])?;
    assert!(r.inputs[0].ok && r.inputs[0].flat && r.inputs[1].flat);
    assert_eq!(r.to_string().matches("all derivatives are zero here: nothing was tested").count(), 2, "{r}");
    let r = gradcheck(|t| t[0].relu(), &[Tensor::from_slice(&[-1f64, 2.0], [2])?])?;
    assert!(!r.inputs[0].flat && !r.to_string().contains("zero here"), "{r}");
    Ok(())
}

/// It was `ok` with a remark: of a tensor that the function captured, differences are zero too.
#[test]
fn a_function_of_something_else_is_an_error() -> Result<()> {
    let (x, b) = (x(), bias());
    let e = gradcheck(|_| x.square(), std::slice::from_ref(&x)).unwrap_err();
    assert!(e.is_disconnected() && e.names() == ["input 0"], "{e}");
    assert!(e.to_string().starts_with("gradcheck: the result does not depend on input 0: none was used."), "{e}");
    assert!(e.to_string().contains("captured") && e.to_string().ends_with(&format!("(at tests/ops/gradcheck.rs:{})", line!() - 3)), "{e}");
    let e = gradgradcheck(|_| x.square(), std::slice::from_ref(&x)).unwrap_err();
    assert!(e.is_disconnected() && e.to_string().starts_with("gradgradcheck: the result does not depend on input 0"), "{e}");
    // One of two, and one that ops without a derivative took.
    let e = gradcheck(|t| t[0].square(), &[x.clone(), b.clone()]).unwrap_err();
    assert!(e.names() == ["input 1"] && e.to_string().contains("it was never used; leave it out of the inputs, or allow it"), "{e}");
    let e = gradcheck(|t| t[0].square()?.add(&t[1].argmax(-1)?.cast(cotangent::F64)?), &[x.clone(), b.clone()]).unwrap_err();
    assert!(e.is_disconnected() && e.to_string().contains("ends in `argmax`"), "{e}");
    let allowed = GradCheck { allow_disconnected: true, ..GradCheck::default() };
    let r = allowed.run(|t| t[0].square(), &[x.clone(), b.clone()])?;
    assert!(r.inputs[0].connected && !r.inputs[1].connected && r.inputs[1].ok);
    allowed.second(|t| t[0].square(), &[x.clone(), b])?;
    // A linear function has a gradient; that the second derivative is zero is an answer.
    gradgradcheck(|t| t[0].mul_scalar(3.0), &[x])?;
    Ok(())
}

#[test]
fn unsuitable_inputs_are_refused() {
    let single = Tensor::from_slice(&[1f32], [1]).unwrap();
    let e = gradcheck(|t| t[0].square(), &[single]).unwrap_err();
    assert!(e.is_dtype() && e.to_string().contains("f64"), "{e}");
    let calls = std::cell::Cell::new(0.0);
    let e = gradcheck(
        |t| {
            calls.set(calls.get() + 1.0);
            t[0].mul(&Tensor::from_slice(&[calls.get()], [1])?)
        },
        &[x()],
    )
    .unwrap_err();
    assert!(e.is_argument(), "{e}");
}
