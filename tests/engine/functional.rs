//! The functional door: values, gradients, products and higher orders over trees.

use super::{near, values};
use cotangent::nn::{Gpt, GptConfig};
use cotangent::{
    BF16, F16, F32, F64, GradOptions, Key, Module, Param, Result, Tape, Tensor, checkpoint, grad, hvp, jacobian, jvp, module,
    value_and_grad, value_and_grad_with, value_and_grad_with_aux, vjp,
};

fn t(v: &[f64]) -> Tensor {
    Tensor::from_slice(v, [v.len()]).unwrap()
}

/// f(x) = Σ x³ · e^{−x}, with derivatives by hand.
fn f(x: &Tensor) -> Result<Tensor> {
    x.powi(3)?.mul(&x.neg()?.exp()?)?.sum(..)
}
fn df(x: f64) -> f64 {
    (3.0 * x * x - x * x * x) * (-x).exp()
}
fn d2f(x: f64) -> f64 {
    (6.0 * x - 6.0 * x * x + x * x * x) * (-x).exp()
}
fn d3f(x: f64) -> f64 {
    (6.0 - 18.0 * x + 9.0 * x * x - x * x * x) * (-x).exp()
}

#[test]
fn gradients_nest_to_any_order() {
    let x = t(&[0.5, -1.25, 2.0]);
    let xs = values(&x);
    let second = grad(&x, |x| grad(x, f)?.sum(..)).unwrap();
    near(&values(&second), &xs.iter().map(|&x| d2f(x)).collect::<Vec<_>>(), 1e-12);
    let third = grad(&x, |x| grad(x, |x| grad(x, f)?.sum(..))?.sum(..)).unwrap();
    near(&values(&third), &xs.iter().map(|&x| d3f(x)).collect::<Vec<_>>(), 1e-12);
}

#[test]
fn an_inner_gradient_may_use_what_the_outer_one_tracks() {
    // d/da of d/dx (a² x³) at x = 2: 2a · 3x².
    let (a, x) = (t(&[3.0]), t(&[2.0]));
    let g = grad(&a, |a| {
        let inner = grad(&x.add(&a.mul_scalar(0.0)?)?, |x| a.square()?.mul(&x.powi(3)?)?.sum(..))?;
        inner.sum(..)
    });
    near(&values(&g.unwrap()), &[2.0 * 3.0 * 3.0 * 4.0], 1e-12);
}

#[test]
fn hessian_products_and_jacobians_agree() {
    let x = t(&[0.5, -1.25, 2.0]);
    let u = t(&[1.0, -2.0, 0.5]);
    let (g, hv) = hvp(&x, &u, f).unwrap();
    near(&values(&g), &values(&x).iter().map(|&x| df(x)).collect::<Vec<_>>(), 1e-12);
    near(&values(&hv), &values(&x).iter().zip(values(&u)).map(|(&x, u)| d2f(x) * u).collect::<Vec<_>>(), 1e-12);
    // A function that couples the elements: y = softmax-like x_i · Σ x.
    let h = |x: &Tensor| x.mul(&x.sum_keepdim(..)?);
    let j = jacobian(&x, h).unwrap();
    assert_eq!(j.shape(), &[3, 3]);
    let jv = values(&j);
    let (y, y_dot) = jvp(&x, &u, h).unwrap();
    near(&values(&y), &values(&h(&x).unwrap()), 1e-12);
    let by_hand: Vec<f64> = (0..3).map(|i| (0..3).map(|k| jv[3 * i + k] * values(&u)[k]).sum()).collect();
    near(&values(&y_dot), &by_hand, 1e-12);
    let back = vjp(&x, h).unwrap();
    let by_hand: Vec<f64> = (0..3).map(|k| (0..3).map(|i| jv[3 * i + k] * values(&u)[i]).sum()).collect();
    for _ in 0..2 {
        near(&values(&back.pull(&u).unwrap()), &by_hand, 1e-12);
    }
}

#[test]
fn trees_of_several_inputs_and_outputs() {
    let at = (t(&[1.0, 2.0]), t(&[3.0, 4.0]));
    let back = vjp(&at, |(a, b)| Ok((a.mul(b)?, a.sum(..)?))).unwrap();
    let g = back.pull(&(t(&[1.0, 10.0]), Tensor::scalar(100.0f64).unwrap())).unwrap();
    near(&values(&g.0), &[103.0, 140.0], 1e-12);
    near(&values(&g.1), &[1.0, 20.0], 1e-12);
    let j = jacobian(&at, |(a, b)| a.mul(b)?.reshape([1, 2])).unwrap();
    assert_eq!((j.0.shape().to_vec(), j.1.shape().to_vec()), (vec![1, 2, 2], vec![1, 2, 2]));
    near(&values(&j.1.reshape([4]).unwrap()), &[1.0, 0.0, 0.0, 2.0], 1e-12);
}

#[derive(Clone, Debug)]
struct Two {
    used: Param,
    forgotten: Param,
}
module!(Two { used, forgotten });

/// The second post-mortem: parameters that the loss never reached stayed at their random start, and nothing said so.
#[test]
fn a_parameter_that_the_loss_never_reached_is_an_error_that_names_it() {
    let m = Two { used: t(&[1.0]).into(), forgotten: t(&[2.0]).into() };
    let e = value_and_grad(&m, |m| m.used.square()?.sum(..)).unwrap_err();
    assert!(e.is_disconnected() && e.names() == ["forgotten"], "{e}");
    assert!(e.to_string().contains("`forgotten`") && e.to_string().contains("functional.rs"), "{e}");
    let (_, g) = value_and_grad_with(&m, GradOptions { allow_disconnected: true }, |m| m.used.square()?.sum(..)).unwrap();
    assert_eq!(g.disconnected(), ["forgotten"]);
    near(&values(&g.forgotten), &[0.0], 1e-12);
    let e = value_and_grad(&m, |_| Tensor::scalar(1.0f64)).unwrap_err();
    assert!(e.is_disconnected() && e.names().len() == 2, "{e}");
    // stop_gradient cuts on purpose, and is reported all the same.
    assert!(value_and_grad(&m, |m| m.used.mul(&m.forgotten.stop_gradient())?.sum(..)).unwrap_err().is_disconnected());
}

#[test]
fn frozen_parameters_have_no_gradient_and_are_not_stepped() {
    let mut m = Two { used: t(&[1.0]).into(), forgotten: t(&[2.0]).into() };
    assert_eq!(m.freeze(|name| name == "forgotten"), 1);
    let (_, g) = value_and_grad(&m, |m| m.used.mul(&m.forgotten)?.sum(..)).unwrap();
    assert_eq!(g.named().len(), 1);
    let mut sgd = cotangent::optim::Sgd::new(0.5);
    sgd.step(&mut m, &g).unwrap();
    near(&values(&m.used), &[0.0], 1e-12);
    near(&values(&m.forgotten), &[2.0], 1e-12);
}

#[test]
fn mixed_precision_gives_gradients_in_the_masters_dtype() {
    let config = GptConfig { vocabulary: 7, context: 4, layers: 1, heads: 2, width: 8, ..GptConfig::default() };
    let gpt = Gpt::new(&config, F32, Key::new(3)).unwrap();
    let x = Tensor::from_slice(&[1i64, 2, 3, 4], [1, 4]).unwrap();
    let y = Tensor::from_slice(&[2i64, 3, 4, 5], [1, 4]).unwrap();
    let (full, g) = value_and_grad(&gpt, |m| m.loss(&x, &y, None)).unwrap();
    let (half, h) = value_and_grad(&gpt, |m| m.cast(BF16)?.loss(&x, &y, None)).unwrap();
    assert!((full.item().unwrap() - half.item().unwrap()).abs() < 0.05);
    for ((name, a), (_, b)) in g.named().into_iter().zip(h.named()) {
        assert_eq!(b.dtype(), F32, "{name}");
        let (a, b) = (a.to_f64_vec().unwrap(), b.to_f64_vec().unwrap());
        let norm = a.iter().map(|x| x * x).sum::<f64>().sqrt();
        let diff = a.iter().zip(&b).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt();
        assert!(diff < 0.1 * norm, "{name}: {diff} of {norm}");
    }
}

/// Dropout inside a checkpoint draws the same mask in the second run [D26].
#[test]
fn checkpoints_recompute_the_same_dropout_and_nest() {
    let x = t(&(0..64).map(|i| f64::from(i) / 10.0 - 3.0).collect::<Vec<_>>());
    let key = Key::new(5);
    let body = move |x: &Tensor| x.dropout(0.5, key)?.exp()?.dropout(0.25, key.fold(1))?.square();
    let plain = grad(&x, |x| body(x)?.sum(..)).unwrap();
    let once = grad(&x, |x| checkpoint(&[x], move |x| Ok(vec![body(&x[0])?]))?[0].sum(..)).unwrap();
    let nested = grad(&x, |x| checkpoint(&[x], move |x| checkpoint(&[&x[0]], move |x| Ok(vec![body(&x[0])?])))?[0].sum(..)).unwrap();
    assert_eq!(values(&plain), values(&once));
    assert_eq!(values(&plain), values(&nested));
    let second = |g: &dyn Fn(&Tensor) -> Result<Tensor>| grad(&x, |x| grad(x, |x| g(x)?.sum(..))?.square()?.sum(..)).unwrap();
    let a = second(&|x| body(x));
    let b = second(&|x| Ok(checkpoint(&[x], move |x| Ok(vec![body(&x[0])?]))?.remove(0)));
    near(&values(&a), &values(&b), 1e-12);
}

#[test]
fn extra_values_come_back_untracked() {
    let x = t(&[1.0, 2.0]);
    let (y, aux, g) = value_and_grad_with_aux(&x, GradOptions::default(), |x| Ok((x.square()?.sum(..)?, x.exp()?))).unwrap();
    assert!(!y.is_tracked() && !aux.is_tracked() && !g.is_tracked());
    near(&values(&aux), &[1f64.exp(), 2f64.exp()], 1e-12);
}

#[test]
fn a_model_loads_by_name_or_says_what_does_not_fit() {
    let mut m = Two { used: t(&[1.0]).into(), forgotten: t(&[2.0]).into() };
    let mut file: std::collections::BTreeMap<String, Tensor> = [("used".to_owned(), t(&[5.0])), ("extra".to_owned(), t(&[0.0]))].into();
    let e = m.load_named(&file).unwrap_err().to_string();
    assert!(e.contains("missing [forgotten]") && e.contains("unexpected [extra]"), "{e}");
    file.remove("extra");
    file.insert("forgotten".into(), t(&[1.0, 2.0]));
    assert!(m.load_named(&file).unwrap_err().is_shape());
    near(&values(&m.used), &[1.0], 1e-12);
    file.insert("forgotten".into(), Tensor::from_slice(&[7f32], [1]).unwrap());
    m.load_named(&file).unwrap();
    near(&values(&m.used), &[5.0], 1e-12);
    assert_eq!(m.forgotten.dtype(), F64);
}

/// After a step nothing holds on to the parameters, so the optimizer writes in place and allocates nothing new. Counted in a
/// process of its own, since other tests run beside this one, and on one thread, since how many pieces of scratch memory are
/// in use at a time depends on the threads' timing.
#[test]
fn a_steady_loop_asks_the_system_for_no_memory() {
    const CHILD: &str = "COTANGENT_STEADY_LOOP";
    if std::env::var_os(CHILD).is_none() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "engine::functional::a_steady_loop_asks_the_system_for_no_memory", "--nocapture"])
            .envs([(CHILD, "1"), ("RAYON_NUM_THREADS", "1")])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&child.stderr));
        return;
    }
    let config = GptConfig { vocabulary: 11, context: 16, layers: 2, heads: 2, width: 32, ..GptConfig::default() };
    let mut gpt = Gpt::new(&config, F32, Key::new(1)).unwrap();
    let x = Tensor::from_slice(&(0..32).map(|i| i % 11).collect::<Vec<i64>>(), [2, 16]).unwrap();
    let mut adam = cotangent::optim::AdamW::default();
    let mut step = || {
        let (_, g) = value_and_grad(&gpt, |m| m.loss(&x, &x, None)).unwrap();
        adam.step(&mut gpt, &g).unwrap();
    };
    (0..3).for_each(|_| step());
    let before = cotangent::backend::cpu::memory_stats();
    (3..20).for_each(|_| step());
    let after = cotangent::backend::cpu::memory_stats();
    assert_eq!(after.fresh_blocks, before.fresh_blocks, "{before:?} {after:?}");
}

#[test]
fn tapes_do_not_mix() {
    let (a, b) = (Tape::new(), Tape::new());
    let (x, y) = (a.watch(&t(&[1.0])).unwrap(), b.watch(&t(&[1.0])).unwrap());
    let e = x.add(&y).unwrap_err();
    assert!(e.is_tape() && e.to_string().contains("functional.rs"), "{e}");
    a.backward(&x).unwrap();
    assert!(x.exp().unwrap_err().is_tape());
}

/// What a Jacobian does not depend on is named; zeros alone could be a derivative.
#[test]
fn a_jacobian_names_what_it_does_not_depend_on() {
    let pair = (t(&[1.0, 2.0]), t(&[3.0]));
    let j = jacobian(&pair, |(a, _)| a.square()).unwrap();
    assert_eq!((j.disconnected(), values(&j.0), values(&j.1)), (&["1".to_owned()][..], vec![2.0, 0.0, 0.0, 4.0], vec![0.0, 0.0]));
    assert!(jacobian(&pair, |(a, b)| a.mul(b)).unwrap().disconnected().is_empty());
    // One element is reached by one of the rows alone.
    assert!(jacobian(&pair, |(a, b)| Tensor::concat(&[a, b], 0)).unwrap().disconnected().is_empty());
    assert!(jacobian(&pair, |(a, _)| a.slice(0, 0..0)).unwrap().disconnected().is_empty(), "no row says anything");
}

/// A weight of a half type that is used thousands of times: its cotangents are added in f32, and rounded once.
#[test]
fn cotangents_of_half_types_add_up() {
    for (dtype, bound) in [(BF16, 1.0 / 256.0), (F16, 1.0 / 2048.0)] {
        let one = Tensor::ones([1], dtype).unwrap();
        let close = |g: &Tensor, right: f64| {
            let found = g.cast(F64).unwrap().item().unwrap();
            assert!(g.dtype() == dtype && (found - right).abs() <= bound * right, "{dtype}: {found}, right is {right}");
        };
        for uses in [1usize, 2, 3, 4, 1000, 4000] {
            let sum = |w: &Tensor| (1..uses).try_fold(w.mul_scalar(0.5)?, |s, _| s.add(&w.mul_scalar(0.5)?))?.sum(..);
            close(&grad(&one, sum).unwrap(), 0.5 * uses as f64);
            // Of a value on the way, not of the leaf; and of the same part each time.
            close(&grad(&one, |w| sum(&w.mul_scalar(2.0)?)).unwrap(), uses as f64);
            let parts = |w: &Tensor| {
                let w = w.expand([3])?.mul_scalar(1.0)?;
                (1..uses).try_fold(w.slice(0, 1..2)?, |s, _| s.add(&w.slice(0, 1..2)?))?.sum(..)
            };
            close(&grad(&one, parts).unwrap(), uses as f64);
        }
        // Of all sizes and signs, against the same sum in f64.
        let (w, x) = (Tensor::randn([7], dtype, Key::new(3)).unwrap(), Tensor::randn([600, 7], dtype, Key::new(4)).unwrap());
        let loss = |w: &Tensor| {
            let terms = (0..600).map(|i| w.mul(&x.select(0, i)?.cast(w.dtype())?)?.mul(w));
            terms.reduce(|a, b| a?.add(&b?)).unwrap()?.cast(F64)?.mul(&Tensor::linspace(-1.0, 2.0, 7, F64)?)?.sum(..)
        };
        let (half, exact) = (grad(&w, loss).unwrap(), grad(&w.cast(F64).unwrap(), loss).unwrap());
        let size = exact.square().unwrap().mean(..).unwrap().sqrt().unwrap().item().unwrap();
        // Each of the 1200 cotangents is rounded to the half type before it is added: of independent ones √1200 units, and the sum's own.
        let largest = half.cast(F64).unwrap().sub(&exact).unwrap().abs().unwrap().max(..).unwrap().item().unwrap();
        assert!(largest <= 4.0 * bound * size, "{dtype}: {largest} of {size}");
        // Recorded: the sum has a derivative of its own.
        let cubes = |w: &Tensor| (1..6).try_fold(w.powi(3)?, |s, _| s.add(&w.powi(3)?))?.sum(..);
        close(&grad(&one, |w| grad(w, cubes)?.sum(..)).unwrap(), 36.0);
    }
}
