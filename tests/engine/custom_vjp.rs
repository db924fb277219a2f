//! Functions with a derivative of their own.

use super::{near, values};
use cotangent::nn::{Init, Linear, LinearOptions};
use cotangent::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, Specs, apply1, once_differentiable};
use cotangent::testing::{Gen, Nd, Sample, Scalar};
use cotangent::{
    Error, F32, F64, Key, Module, Result, Tape, Tensor, checkpoint, custom_vjp, custom_vjp_module, custom_vjp_once, grad, hvp, jacobian,
    jvp, tensor, value_and_grad, vjp,
};

/// JAX's example: log(1 + eˣ) whose derivative as a composition is ∞/∞ for large x.
fn log1pexp(x: &Tensor) -> Result<Tensor> {
    let y = custom_vjp(
        &[x],
        |x| Ok(vec![x[0].exp()?.add_scalar(1.0)?.log()?]),
        |x, _, y_bar| {
            // 1 − 1/(1 + eˣ)
            let slope = x[0].exp()?.add_scalar(1.0)?.recip()?.rsub_scalar(1.0)?;
            Ok(vec![Some(y_bar[0].mul(&slope)?)])
        },
    )?;
    Ok(y[0].clone())
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[test]
fn every_gradient_function_asks_the_closure() {
    let x = tensor![-1.5, 0.0, 0.75; F64].unwrap();
    let xs = values(&x);
    let slope: Vec<f64> = xs.iter().map(|&x| sigmoid(x)).collect();
    let curve: Vec<f64> = xs.iter().map(|&x| sigmoid(x) * (1.0 - sigmoid(x))).collect();
    let (y, g) = value_and_grad(&x, |x| log1pexp(x)?.sum(..)).unwrap();
    near(&values(&g), &slope, 1e-14);
    near(&[y.item().unwrap()], &[xs.iter().map(|x| x.exp().ln_1p()).sum()], 1e-14);
    let back = vjp(&x, log1pexp).unwrap();
    near(&values(&back.pull(&tensor![2, 0, -1; F64].unwrap()).unwrap()), &[2.0 * slope[0], 0.0, -slope[2]], 1e-14);
    let (_, dot) = jvp(&x, &tensor![1, 2, 3; F64].unwrap(), log1pexp).unwrap();
    near(&values(&dot), &[slope[0], 2.0 * slope[1], 3.0 * slope[2]], 1e-14);
    let (_, hv) = hvp(&x, &x.ones_like().unwrap(), |x| log1pexp(x)?.sum(..)).unwrap();
    near(&values(&hv), &curve, 1e-14);
    let second = grad(&x, |x| grad(x, |x| log1pexp(x)?.sum(..))?.sum(..)).unwrap();
    near(&values(&second), &curve, 1e-14);
    let j = jacobian(&x, log1pexp).unwrap();
    near(&values(&j.diagonal(0, 1).unwrap()), &slope, 1e-14);
    // And what it is for: PyTorch's and JAX's composition gives NaN here in f32.
    let large = tensor![100].unwrap();
    assert_eq!(values(&grad(&large, |x| log1pexp(x)?.sum(..)).unwrap()), [1.0]);
    // Nothing is recorded where nothing is watched.
    assert!(!log1pexp(&x).unwrap().is_tracked());
}

/// A straight-through estimator, a gradient reversal, a gradient that is clipped: three siblings of "another derivative".
#[test]
fn the_derivative_need_not_be_the_functions() {
    let x = tensor![0.2, 1.7, -0.6].unwrap();
    let through = |x: &Tensor| custom_vjp(&[x], |x| Ok(vec![x[0].round()?]), |_, _, g| Ok(vec![Some(g[0].clone())]));
    let g = grad(&x, |x| through(x)?[0].square()?.sum(..)).unwrap();
    assert_eq!(values(&g), [0.0, 4.0, -2.0]);
    let reversed = |x: &Tensor| custom_vjp(&[x], |x| Ok(vec![x[0].clone()]), |_, _, g| Ok(vec![Some(g[0].mul_scalar(-0.5)?)]));
    let g = grad(&x, |x| reversed(x)?[0].mul_scalar(3.0)?.sum(..)).unwrap();
    assert_eq!(values(&g), [-1.5; 3]);
    let clipped = |x: &Tensor| custom_vjp(&[x], |x| Ok(vec![x[0].clone()]), |_, _, g| Ok(vec![Some(g[0].clamp(-1.0, 1.0)?)]));
    let g = grad(&x, |x| clipped(x)?[0].mul(&tensor![5, -7, 0.5]?)?.sum(..)).unwrap();
    assert_eq!(values(&g), [1.0, -1.0, 0.5]);
}

/// Two inputs, two outputs, one of them unused, one input without a derivative.
#[test]
fn unused_outputs_have_zero_cotangents_and_none_is_zero() {
    let a = tensor![1, 2; F64].unwrap();
    let b = tensor![3, 5; F64].unwrap();
    let f = |a: &Tensor, b: &Tensor| {
        custom_vjp(
            &[a, b],
            |x| Ok(vec![x[0].mul(&x[1])?, x[0].sum(..)?]),
            |x, y, g| {
                assert_eq!((x.len(), y.len(), g.len()), (2, 2, 2));
                assert_eq!(g[1].shape(), &[] as &[usize]);
                Ok(vec![Some(g[0].mul(&x[1])?.add(&g[1])?), None])
            },
        )
    };
    let both = (a.clone(), b.clone());
    let g = grad(&both, |(a, b)| f(a, b)?[0].sum(..)?.add(&b.sum(..)?)).unwrap();
    assert_eq!((values(&g.0), values(&g.1)), (vec![3.0, 5.0], vec![1.0, 1.0]));
    let g = grad(&both, |(a, b)| f(a, b)?[1].mul_scalar(2.0)?.add(&b.sum(..)?)).unwrap();
    assert_eq!(values(&g.0), [2.0, 2.0]);
}

/// z = tanh(W z + x) by iteration, and its implicit derivative: the solver is not recorded.
fn fixed_point(w: &Tensor, x: &Tensor, once: bool) -> Result<Tensor> {
    fn step(w: &Tensor, x: &Tensor, z: &Tensor) -> Result<Tensor> {
        w.matmul(&z.unsqueeze(-1)?)?.squeeze(-1)?.add(x)?.tanh()
    }
    let solve = |x: &[Tensor]| {
        let mut z = x[1].zeros_like()?;
        for _ in 0..200 {
            z = step(&x[0], &x[1], &z)?;
        }
        Ok(vec![z])
    };
    // u = z̄ + Jᵀu, then x̄ and w̄ by one pull from u.
    let backward = |x: &[Tensor], z: &[Tensor], z_bar: &[Tensor]| {
        let at = (x[0].clone(), x[1].clone(), z[0].clone());
        let back = vjp(&at, |(w, x, z)| step(w, x, z))?;
        let mut u = z_bar[0].clone();
        for _ in 0..200 {
            u = z_bar[0].add(&back.pull(&u)?.2)?;
        }
        let g = back.pull(&u)?;
        Ok(vec![Some(g.0.clone()), Some(g.1.clone())])
    };
    let y = if once { custom_vjp_once(&[w, x], solve, backward)? } else { custom_vjp(&[w, x], solve, backward)? };
    Ok(y[0].clone())
}

/// The second derivative of an implicit layer is right, or refused.
#[test]
fn an_implicit_layer_has_both_derivatives_or_says_so() {
    let w = Tensor::normal([3, 3], 0.0, 0.2, F64, Key::new(4)).unwrap();
    let x = tensor![0.3, -0.8, 0.5; F64].unwrap();
    let c = tensor![1.0, -0.5, 2.0; F64].unwrap();
    let at = (w, x);
    let unrolled = |(w, x): &(Tensor, Tensor)| {
        let mut z = x.zeros_like()?;
        for _ in 0..200 {
            z = w.matmul(&z.unsqueeze(-1)?)?.squeeze(-1)?.add(x)?.tanh()?;
        }
        z.square()?.mul(&c)?.sum(..)
    };
    let implicit = |once: bool| {
        let c = c.clone();
        move |at: &(Tensor, Tensor)| fixed_point(&at.0, &at.1, once)?.square()?.mul(&c)?.sum(..)
    };
    let want = grad(&at, unrolled).unwrap();
    for once in [false, true] {
        let g = grad(&at, implicit(once)).unwrap();
        near(&values(&g.0), &values(&want.0), 1e-12);
        near(&values(&g.1), &values(&want.1), 1e-12);
    }
    let direction = (Tensor::randn([3, 3], F64, Key::new(5)).unwrap(), tensor![1, 2, -1; F64].unwrap());
    let (_, want) = hvp(&at, &direction, unrolled).unwrap();
    let (_, h) = hvp(&at, &direction, implicit(false)).unwrap();
    near(&values(&h.0), &values(&want.0), 1e-10);
    near(&values(&h.1), &values(&want.1), 1e-10);
    let e = hvp(&at, &direction, implicit(true)).unwrap_err();
    assert!(e.is_tape() && e.to_string().contains("custom_vjp_once can be differentiated once"), "{e}");
    assert!(e.to_string().contains("custom_vjp.rs"), "the line of the call: {e}");
}

/// A recorded first derivative alone is allowed; only a sweep through it is not.
#[test]
fn once_differentiable_refuses_the_second_sweep_and_nothing_before() {
    let cube = |x: &Tensor| {
        let slope = x.detach().square()?.mul_scalar(3.0)?;
        Ok(custom_vjp_once(&[x], |x| Ok(vec![x[0].powi(3)?]), move |_, _, g| Ok(vec![Some(g[0].mul(&slope)?)]))?.remove(0))
    };
    let x = tensor![2, -1; F64].unwrap();
    let tape = Tape::new();
    let tracked = tape.watch(&x).unwrap();
    let y = cube(&tracked).unwrap().sum(..).unwrap();
    let g = tape.cotangents_recorded(&[(&y, y.ones_like().unwrap())], &[&tracked]).unwrap().remove(0).unwrap();
    assert_eq!(values(&g), [12.0, 3.0]);
    let s = g.sum(..).unwrap();
    let e = tape.cotangents(&[(&s, s.ones_like().unwrap())], &[&tracked]).unwrap_err();
    assert!(e.is_tape() && e.to_string().contains("custom_vjp_once"), "{e}");
    for e in [
        grad(&x, |x| grad(x, |x| cube(x)?.sum(..))?.sum(..)).unwrap_err(),
        hvp(&x, &x, |x| cube(x)?.sum(..)).unwrap_err(),
        // As in PyTorch: forward mode is a second sweep.
        jvp(&x, &x, cube).unwrap_err(),
    ] {
        assert!(e.is_tape() && e.to_string().contains("differentiated once"), "{e}");
    }
    // The derivative of something else that passes by is untouched.
    let second = grad(&x, |x| grad(x, |x| cube(&x.detach())?.mul(x)?.add(&x.powi(3)?)?.sum(..))?.sum(..)).unwrap();
    assert_eq!(values(&second), [12.0, -6.0]);
}

#[test]
fn it_works_inside_and_around_checkpoints() {
    let x = tensor![-0.5, 1.25; F64].unwrap();
    let plain = |x: &Tensor| log1pexp(&x.sin()?)?.square()?.sum(..);
    let inside = |x: &Tensor| checkpoint(&[x], |x| Ok(vec![log1pexp(&x[0].sin()?)?.square()?]))?[0].sum(..);
    assert_eq!(values(&grad(&x, plain).unwrap()), values(&grad(&x, inside).unwrap()));
    let (_, a) = hvp(&x, &x, plain).unwrap();
    let (_, b) = hvp(&x, &x, inside).unwrap();
    near(&values(&a), &values(&b), 1e-14);
    // A checkpoint in the derivative.
    let around = |x: &Tensor| {
        let y = custom_vjp(
            &[x],
            |x| Ok(vec![x[0].square()?]),
            |x, _, g| {
                let slope = checkpoint(&[&x[0]], |x| Ok(vec![x[0].mul_scalar(2.0)?]))?.remove(0);
                Ok(vec![Some(g[0].mul(&slope)?)])
            },
        )?;
        y[0].sum(..)
    };
    let (g, h) = hvp(&x, &x.ones_like().unwrap(), around).unwrap();
    assert_eq!((values(&g), values(&h)), (vec![-1.0, 2.5], vec![2.0, 2.0]));
}

#[test]
fn what_does_not_fit_is_named() {
    let x = tensor![1, 2; F64].unwrap();
    let w = tensor![3; F64].unwrap();
    let message = |back: fn(&[Tensor]) -> Result<Vec<Option<Tensor>>>| {
        let f = |(x, w): &(Tensor, Tensor)| custom_vjp(&[x, w], |x| Ok(vec![x[0].mul(&x[1])?]), move |_, _, g| back(g))?[0].sum(..);
        grad(&(x.clone(), w.clone()), f).unwrap_err()
    };
    let e = message(|g| Ok(vec![Some(g[0].clone())]));
    assert!(e.is_argument() && e.to_string().contains("custom_vjp: the derivative returned 1 cotangents for 2 inputs"), "{e}");
    let e = message(|g| Ok(vec![Some(g[0].clone()), Some(g[0].clone())]));
    assert!(e.is_shape() && e.to_string().contains("the cotangent of input 1 has shape [2], the input [1]"), "{e}");
    let e = message(|g| Ok(vec![Some(g[0].cast(F32)?), None]));
    assert!(e.is_dtype() && e.to_string().contains("the cotangent of input 0 is f32, the input f64"), "{e}");
    let e = message(|_| Err(Error::argument("on purpose")));
    assert!(e.to_string().contains("on purpose") && e.to_string().contains("custom_vjp.rs"), "{e}");
    let e = custom_vjp(&[&x], |x| x[0].matmul(&x[0]).map(|y| vec![y]), |_, _, _| Ok(vec![])).map(|_| ()).err();
    assert!(e.is_none_or(|e| e.to_string().contains("matmul")));
}

/// What a closure captures would lose its gradient without a word.
#[test]
fn captured_tracked_tensors_are_refused() {
    let both = (tensor![1, 2; F64].unwrap(), tensor![3, 4; F64].unwrap());
    let forward =
        |(x, w): &(Tensor, Tensor)| custom_vjp(&[x], |x| Ok(vec![x[0].mul(w)?]), |_, _, g| Ok(vec![Some(g[0].clone())]))?[0].sum(..);
    let e = grad(&both, forward).unwrap_err();
    assert!(e.is_tape() && e.to_string().contains("captured"), "{e}");
    // Also where no input is tracked, and where the captured tensor is the result.
    let constant = |(x, w): &(Tensor, Tensor)| {
        let y = custom_vjp(&[&x.detach()], |x| Ok(vec![x[0].mul(w)?]), |_, _, g| Ok(vec![Some(g[0].clone())]))?;
        y[0].sum(..)
    };
    let e = grad(&both, constant).unwrap_err();
    assert!(e.is_tape() && e.to_string().contains("captured"), "{e}");
    let returned =
        |(x, w): &(Tensor, Tensor)| custom_vjp(&[x], |_| Ok(vec![w.clone()]), |_, _, g| Ok(vec![Some(g[0].clone())]))?[0].sum(..);
    assert!(grad(&both, returned).unwrap_err().is_tape());
    // In the derivative.
    for once in [false, true] {
        let backward = |(x, w): &(Tensor, Tensor)| {
            let w = w.clone();
            let rule = move |_: &[Tensor], _: &[Tensor], g: &[Tensor]| Ok(vec![Some(g[0].mul(&w)?)]);
            let forward = |x: &[Tensor]| Ok(vec![x[0].clone()]);
            let y = if once { custom_vjp_once(&[x], forward, rule)? } else { custom_vjp(&[x], forward, rule)? };
            y[0].sum(..)
        };
        let e = grad(&both, backward).unwrap_err();
        assert!(e.is_tape() && e.to_string().contains("captured"), "{once}: {e}");
    }
}

/// An op whose vjp calls what has no derivative of its own.
#[derive(Clone, Debug)]
struct Cube;

impl Describe for Cube {
    const NAME: &'static str = "cube_once";
    const MATH: Math = Math { forward: "y = x³", vjp: "x̄ = 3x²ȳ", kinks: "smooth", cost: "one pass", references: "none" };
    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        vec![x[0].map(|x| x * x * x)]
    }
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        vec![Sample::check(Cube, [g.normal([3])])]
    }
}

impl Op for Cube {
    const AUX: usize = 0;
    fn infer(&self, x: &[Spec]) -> Result<Specs> {
        Ok(Specs::from_iter([x[0].clone()]))
    }
    fn cpu(&self, x: &[cotangent::backend::cpu::In<'_>], y: &mut [cotangent::backend::cpu::Out<'_>]) -> Result<()> {
        let x = x[0].contiguous::<f64>()?;
        y[0].slice::<f64>().iter_mut().zip(x.iter()).for_each(|(y, x)| *y = x * x * x);
        Ok(())
    }
    fn cuda(&self, _: &[cotangent::backend::cuda::In<'_>], _: &mut [cotangent::backend::cuda::Out<'_>]) -> Result<()> {
        Err(cotangent::backend::cuda::no_kernel(Self::NAME))
    }
    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(x[0])])
    }
    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        once_differentiable(Self::NAME, saved, y_bar, |saved, y_bar| {
            let x = saved.get(0)?.to_vec::<f64>()?; // leaves the tensors: nothing of this could be recorded
            let slope: Vec<f64> = x.iter().map(|x| 3.0 * x * x).collect();
            let y_bar = y_bar.only()?;
            Ok(InputCotangents::from_iter([Some(Tensor::from_slice(&slope, y_bar.shape())?.mul(y_bar)?)]))
        })
    }
}

/// The same for authors of ops.
#[test]
fn an_op_can_say_that_it_is_differentiable_once() {
    let x = tensor![2, -1; F64].unwrap();
    let f = |x: &Tensor| apply1(Cube, &[x])?.sum(..);
    assert_eq!(values(&grad(&x, f).unwrap()), [12.0, 3.0]);
    let e = hvp(&x, &x, f).unwrap_err();
    assert!(e.is_tape() && e.to_string().contains("cube_once can be differentiated once"), "{e}");
}

/// A derivative of a module is a tree: the whole of an implicit layer, to second order, with a frozen part and integers beside it.
#[test]
fn modules_and_trees_have_derivatives_of_their_own() -> Result<()> {
    let step = |l: &Linear, z: &Tensor, x: &Tensor| l.forward(z)?.add(x)?.tanh();
    let implicit = move |l: &Linear, x: &Tensor, ids: &Tensor| {
        let solve = move |l: &Linear, (x, _): &(Tensor, Tensor)| {
            let z = (0..100).try_fold(x.zeros_like()?, |z, _| step(l, &z, x))?;
            Ok((z.clone(), Some(z.square()?)))
        };
        let back = move |l: &Linear, (x, ids): &(Tensor, Tensor), y: &(Tensor, Option<Tensor>), bar: &(Tensor, Option<Tensor>)| {
            let square = bar.1.clone().map_or_else(|| bar.0.zeros_like(), Ok)?;
            let z_bar = bar.0.add(&square.mul(&y.0)?.mul_scalar(2.0)?)?;
            let back = vjp(&(l.clone(), x.clone(), y.0.clone()), |(l, x, z)| step(l, z, x))?;
            let u = (0..100).try_fold(z_bar.clone(), |u, _| z_bar.add(&back.pull(&u)?.2))?;
            let (l, x, _) = back.pull(&u)?.into_inner();
            Ok((l, (x, ids.zeros_like()?)))
        };
        let (z, square) = custom_vjp_module(l, (x, ids), solve, back)?;
        z.add(&square.ok_or_else(|| Error::argument("no square"))?)?.sin()?.sum(..)
    };
    let unrolled = |l: &Linear, x: &Tensor| {
        let z = (0..100).try_fold(x.zeros_like()?, |z, _| step(l, &z, x))?;
        z.add(&z.square()?)?.sin()?.sum(..)
    };
    let mut layer = Linear::with(3, 3, F64, Key::new(1), &LinearOptions { bias: true, init: Init::Normal { std: 0.2 } })?;
    let (x, ids) = (Tensor::randn([2, 3], F64, Key::new(2))?, tensor![1, 2; I64]?);
    for frozen in [false, true] {
        assert_eq!(layer.freeze(|name| frozen && name == "bias"), usize::from(frozen));
        let both = (layer.clone(), x.clone());
        let (a, b) = (grad(&both, |(l, x)| implicit(l, x, &ids))?, grad(&both, |(l, x)| unrolled(l, x))?);
        for ((name, a), (_, b)) in a.named().iter().zip(b.named()) {
            near(&values(a), &values(&b), 1e-12);
            assert!(!a.is_tracked(), "{name}");
        }
        let second = |f: &dyn Fn(&Linear, &Tensor) -> Result<Tensor>| {
            grad(&layer, |l| grad(&x, |x| f(l, x))?.square()?.sum(..)).map(|g| values(&g.weight))
        };
        near(&second(&|l, x| implicit(l, x, &ids))?, &second(&unrolled)?, 1e-11);
    }
    Ok(())
}

#[test]
fn a_tree_of_cotangents_that_does_not_fit_is_named() -> Result<()> {
    let (layer, x) =
        (Linear::with(3, 2, F64, Key::new(1), &LinearOptions { bias: true, init: Init::Normal { std: 0.2 } })?, Tensor::ones([2, 3], F64)?);
    let refused = |bars: fn(&Linear, &Tensor) -> Result<(Linear, Tensor)>| {
        let f = |l: &Linear| custom_vjp_module(l, &x, |l, x| l.forward(x), move |l, x, _, _| bars(l, x))?.sum(..);
        grad(&layer, f).unwrap_err()
    };
    let e = refused(|l, x| Ok((l.map(|n, w| if n == "bias" { w.unsqueeze(0) } else { Ok(w.clone()) })?, x.clone())));
    assert!(e.is_shape() && e.to_string().contains("`bias` has shape [1, 2], the tensor [2]"), "{e}");
    let e = refused(|l, x| Ok((l.clone(), x.cast(F32)?)));
    assert!(e.is_dtype() && e.to_string().contains("the input is f32, the tensor f64"), "{e}");
    let e = refused(|l, x| Ok((Linear { weight: l.weight.clone(), bias: None }, x.clone())));
    assert!(e.is_argument() && e.to_string().contains("[weight] for one with [weight, bias]"), "{e}");
    // Without a gradient nothing is asked, and what is captured is refused as in a list.
    assert_eq!(custom_vjp_module(&layer, &x, |l, x| l.forward(x), |_, _, _, _| unreachable!())?.shape(), &[2, 2]);
    let e = grad(&x, |x| custom_vjp_module(&layer, x, |l, _| l.forward(x), |l, x, _, _| Ok((l.clone(), x.clone())))?.sum(..)).unwrap_err();
    assert!(e.is_tape() && e.to_string().contains("captured"), "{e}");
    Ok(())
}
