//! Small methods of tensors and trees that users looked for.

use super::{near, values};
use cotangent::nn::Linear;
use cotangent::{
    BF16, F32, F64, I64, Key, Module, Observer, Param, Pulled, Ran, Result, Tape, Tensor, U8, checkpoint, checkpoint_module, grad, hvp,
    module, tensor,
};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// `{:?}` used to print pointers.
#[test]
fn debug_prints_values_names_and_shapes() {
    let x = tensor![[1, 2], [3, 4]].unwrap();
    assert_eq!(format!("{x:?}"), x.to_string());
    let tape = Tape::new();
    assert_eq!(format!("{:?}", tape.watch(&x).unwrap()), x.to_string());
    let mut layer = Linear::new(3, 2, F32, Key::new(1)).unwrap();
    layer.bias = Some(tensor![0.5, -1].unwrap().into());
    let text = format!("{layer:?}");
    assert!(text.contains("weight: Param(tensor(f32, shape [2, 3]))"), "{text}");
    assert!(text.contains("bias: Some(Param(tensor([ 0.5000, -1.0000], shape [2], f32)))"), "{text}");
    assert_eq!(layer.freeze(|n| n == "weight"), 1);
    assert!(format!("{:?}", layer.weight).ends_with(", frozen)"));
    assert_eq!(layer.thaw(|_| true), 2);
    let g = grad(&layer, |l| l.forward(&tensor![[1, 2, 3]]?)?.sum(..)).unwrap();
    let text = format!("{g:?}");
    assert!(text.contains("\"weight\": tensor(f32, shape [2, 3])") && text.contains("\"bias\": tensor([1., 1.]"), "{text}");
    let g = grad(&x, |x| x.square()?.sum(..)).unwrap();
    assert_eq!(format!("{g:?}"), g.to_string());
    let mut adam = cotangent::optim::AdamW::default();
    adam.step(&mut x.clone(), &g).unwrap();
    for text in [format!("{x:?} {layer:?} {g:?} {:?}", adam.memory), format!("{x:#?} {layer:#?} {g:#?} {:#?}", adam.memory)] {
        assert!(!text.contains("0x") && !text.contains("Storage") && !text.contains("Buffer"), "{text}");
    }
}

/// Counts what a sweep computes.
#[derive(Default)]
struct Count {
    ran: AtomicUsize,
    names: Mutex<Vec<&'static str>>,
}

impl Observer for Count {
    fn ran(&self, op: &Ran<'_>) -> Result<()> {
        self.ran.fetch_add(1, Relaxed);
        self.names.lock().unwrap().push(op.name);
        Ok(())
    }
    fn pulled(&self, _: &Pulled<'_>) -> Result<()> {
        Ok(())
    }
    fn tapped(&self, _: &str, _: &Tensor) {}
}

/// The gradient of a loop over positions does not write a tensor of the whole size for each: `unbind`, select, slice, narrow.
#[test]
fn cotangents_of_parts_are_put_side_by_side() {
    let x = Tensor::randn([3, 40, 5], F64, Key::new(1)).unwrap();
    let loops: [(&str, fn(&Tensor) -> Result<Vec<Tensor>>); 4] = [
        ("select", |x| (0..40).map(|t| x.select(1, t)).collect()),
        ("slice", |x| (0..40).map(|t| x.slice(1, t..t + 1)?.squeeze(1)).collect()),
        ("narrow", |x| (0..20).map(|t| x.narrow(1, 2 * t as usize, 2)).collect()),
        ("unbind", |x| x.unbind(1)),
    ];
    for (name, parts) in loops {
        let f = move |x: &Tensor| {
            let mut sum = Tensor::zeros((), F64)?;
            for (k, p) in parts(x)?.iter().enumerate() {
                sum = sum.add(&p.powi(3)?.mul_scalar(k as f64 + 1.0)?.sum(..)?)?;
            }
            Ok(sum)
        };
        let width = if name == "narrow" { 2 } else { 1 };
        let weight: Vec<f64> = (0..x.numel()).map(|i| (i / 5 % 40 / width + 1) as f64).collect();
        let slope: Vec<f64> = values(&x).iter().zip(&weight).map(|(x, w)| 3.0 * w * x * x).collect();
        let curve: Vec<f64> = values(&x).iter().zip(&weight).map(|(x, w)| 6.0 * w * x).collect();
        near(&values(&grad(&x, f).unwrap()), &slope, 1e-13);
        let (g, h) = hvp(&x, &x.ones_like().unwrap(), f).unwrap();
        near(&values(&g), &slope, 1e-13);
        near(&values(&h), &curve, 1e-13);
        // Twice the same bits, and those of a checkpoint.
        let again = grad(&x, f).unwrap();
        assert_eq!(values(&again), values(&grad(&x, f).unwrap()));
        let kept = grad(&x, |x| checkpoint(&[x], move |x| Ok(vec![f(&x[0])?]))?[0].sum(..)).unwrap();
        assert_eq!(values(&again), values(&kept), "{name}");
        // A recorded derivative has a handful of nodes of the whole size, not one per part.
        let (tape, count) = (Tape::new(), Arc::new(Count::default()));
        let tracked = tape.watch(&x).unwrap();
        let y = f(&tracked).unwrap();
        tape.observe(count.clone());
        tape.cotangents_recorded(&[(&y, y.ones_like().unwrap())], &[&tracked]).unwrap();
        let names = count.names.lock().unwrap();
        let whole = names.iter().filter(|n| ["slice_vjp", "concat"].contains(n)).count();
        assert_eq!(whole, 1, "{name}: {names:?}");
    }
}

#[test]
fn parts_that_overlap_or_repeat_or_leave_gaps_are_added() {
    let x = Tensor::randn([4, 9, 3], F64, Key::new(2)).unwrap();
    // By hand: every part adds its weight to the positions it covers.
    let check = |parts: &[(i32, usize, usize, usize)], dense: bool| {
        let f = |x: &Tensor| {
            let mut sum = if dense { x.square()?.sum(..)? } else { Tensor::zeros((), F64)? };
            for (k, &(axis, start, end, step)) in parts.iter().enumerate() {
                sum = sum.add(&x.slice_step(axis, start as isize..end as isize, step)?.square()?.mul_scalar(k as f64 + 2.0)?.sum(..)?)?;
            }
            Ok(sum)
        };
        let mut weight = vec![if dense { 1.0 } else { 0.0 }; x.numel()];
        for (k, &(axis, start, end, step)) in parts.iter().enumerate() {
            for (i, w) in weight.iter_mut().enumerate() {
                let at = [i / 27, i / 3 % 9, i % 3][axis as usize];
                if at >= start && at < end && (at - start) % step == 0 {
                    *w += k as f64 + 2.0;
                }
            }
        }
        let want: Vec<f64> = values(&x).iter().zip(&weight).map(|(x, w)| 2.0 * w * x).collect();
        near(&values(&grad(&x, f).unwrap()), &want, 1e-13);
        let (_, h) = hvp(&x, &x, f).unwrap();
        near(&values(&h), &want, 1e-13);
    };
    for dense in [false, true] {
        check(&[(1, 0, 3, 1), (1, 2, 5, 1), (1, 4, 9, 1)], dense); // windows
        check(&[(1, 0, 9, 1), (1, 0, 9, 1), (1, 0, 9, 1)], dense); // the whole, three times
        check(&[(1, 5, 7, 1), (1, 2, 3, 1)], dense); // gaps, out of order
        check(&[(1, 3, 4, 1); 30], dense); // one position again and again: more elements than the value has
        check(&[(1, 0, 9, 2), (1, 1, 9, 2), (1, 0, 9, 3)], dense); // steps
        check(&[(0, 1, 3, 1), (1, 2, 8, 1), (2, 0, 1, 1), (0, 0, 4, 1)], dense); // several axes
        check(&[(1, 4, 4, 1), (1, 4, 6, 1), (1, 6, 6, 1)], dense); // nothing in between
        check(&[(1, 4, 4, 1), (1, 6, 6, 1)], true); // nothing at all
    }
    // Parts of parts, and parts of a value that is used below the function's inputs.
    let nested = grad(&x, |x| {
        let mut sum = Tensor::zeros((), F64)?;
        for t in 0..9 {
            let row = x.select(1, t)?;
            for k in 0..4 {
                sum = sum.add(&row.select(0, k)?.square()?.sum(..)?)?;
            }
        }
        Ok(sum)
    });
    near(&values(&nested.unwrap()), &values(&x.mul_scalar(2.0).unwrap()), 1e-14);
    // Half precision, and a loop whose parts are not all used.
    let y = x.cast(BF16).unwrap();
    let g = grad(&y, |y| {
        let parts: Vec<Tensor> = (0..9).map(|t| y.select(1, t)).collect::<Result<_>>()?;
        parts[2].sum(..)?.add(&parts[7].sum(..)?)
    });
    let want: Vec<f64> = (0..y.numel()).map(|i| f64::from(u8::from([2, 7].contains(&(i / 3 % 9))))).collect();
    assert_eq!(values(&g.unwrap()), want);
}

#[test]
fn unbind_gives_views_and_refuses_what_split_refuses() {
    let x = Tensor::arange(0.0, 24.0, 1.0, I64).unwrap().reshape([2, 3, 4]).unwrap();
    let parts = x.unbind(-1).unwrap();
    assert_eq!((parts.len(), parts[1].to_vec::<i64>().unwrap()), (4, vec![1, 5, 9, 13, 17, 21]));
    assert!(parts[3].shares_storage(&x));
    assert_eq!(Tensor::zeros([3, 0], F32).unwrap().unbind(1).unwrap().len(), 0);
    let e = x.unbind(3).unwrap_err();
    assert!(e.is_shape() && e.to_string().starts_with("unbind:"), "{e}");
    assert!(Tensor::scalar(1f32).unwrap().unbind(0).unwrap_err().is_shape());
    assert!(Tensor::zeros([1 << 25, 0], F32).unwrap().unbind(0).unwrap_err().is_out_of_memory());
}

#[derive(Clone)]
struct Cell {
    inner: Linear,
    gain: Param,
}
module!(Cell { inner, gain });

impl Cell {
    fn new(key: Key) -> Self {
        Cell { inner: Linear::new(4, 4, F64, key).unwrap(), gain: tensor![1.5; F64].unwrap().into() }
    }
    fn forward(&self, x: &Tensor, state: &Tensor, key: Key) -> Result<(Tensor, Tensor)> {
        let state = self.inner.forward(&x.add(state)?)?.tanh()?.dropout(0.25, key)?;
        Ok((state.mul(&self.gain)?, state))
    }
}

/// `checkpoint_module` takes a module whole: nobody takes it apart into a list of tensors.
#[test]
fn a_checkpointed_module_is_the_module() {
    let cells = vec![Cell::new(Key::new(1)), Cell::new(Key::new(2))];
    let x = Tensor::randn([3, 4], F64, Key::new(3)).unwrap();
    let run = |kept: bool| {
        let x = x.clone();
        move |cells: &Vec<Cell>| {
            let (mut y, mut state) = (x.clone(), x.zeros_like()?);
            for (i, cell) in cells.iter().enumerate() {
                let key = Key::new(9).fold(i as u64);
                (y, state) = if kept {
                    checkpoint_module(cell, (&y, &state), move |cell, (y, state)| cell.forward(y, state, key))?
                } else {
                    cell.forward(&y, &state, key)?
                };
            }
            y.square()?.sum(..)?.add(&state.sum(..)?)
        }
    };
    let (a, b) = (grad(&cells, run(false)).unwrap(), grad(&cells, run(true)).unwrap());
    for ((name, a), (_, b)) in a.named().iter().zip(&b.named()) {
        assert_eq!(values(a), values(b), "{name}");
    }
    let (_, h) = hvp(&cells, &cells, run(false)).unwrap();
    let (_, k) = hvp(&cells, &cells, run(true)).unwrap();
    for ((name, a), (_, b)) in h.named().iter().zip(&k.named()) {
        near(&values(a), &values(b), 1e-12);
        assert!(values(a).iter().any(|v| *v != 0.0), "{name}");
    }
    // Untracked: just the function.
    assert_eq!(values(&run(true)(&cells).unwrap()), values(&run(false)(&cells).unwrap()));
    // Frozen parameters are taken along and get nothing; a single input needs no tuple.
    let mut cell = Cell::new(Key::new(1));
    assert_eq!(cell.freeze(|n| n.starts_with("inner")), 2);
    let g = grad(&cell, |c| checkpoint_module(c, &x, |c, x| c.forward(x, x, Key::new(4)))?.0.sum(..)).unwrap();
    let plain = grad(&cell, |c| c.forward(&x, &x, Key::new(4))?.0.sum(..)).unwrap();
    assert_eq!((g.named().len(), values(&g.gain)), (1, values(&plain.gain)));
    // Less is kept.
    let kept = |on: bool| {
        let tape = Tape::new();
        let tracked = cells.watch(&tape).unwrap();
        let long = |c: &Cell, x: &Tensor| c.inner.forward(x)?.tanh()?.sin()?.exp()?.square()?.sigmoid();
        let cell = &tracked[0];
        if on { checkpoint_module(cell, &x, long) } else { long(cell, &x) }.unwrap();
        tape.saved_bytes()
    };
    assert!(kept(true) < kept(false), "{} {}", kept(true), kept(false));
    // What is captured would lose its gradient.
    let e = grad(&(cells[0].clone(), x.clone()), |(cell, x)| {
        let captured = x.clone();
        checkpoint_module(cell, &Tensor::zeros([3, 4], F64)?, move |c, s| c.forward(&captured, s, Key::new(4)))?.0.sum(..)
    });
    assert!(e.unwrap_err().is_tape());
}

/// The gradient of a tensor is used as a tensor; it used to be `expected Tensor, found Grads<Tensor>`.
#[test]
fn the_gradient_of_a_tensor_is_a_tensor() {
    let x = tensor![1, -2; F64].unwrap();
    let f = |x: &Tensor| x.square()?.sum(..);
    assert_eq!(values(&(&x - grad(&x, f).unwrap() * 0.25)), [0.5, -1.0]);
    assert_eq!(values(&(&x - &grad(&x, f).unwrap())), [-1.0, 2.0]);
    assert_eq!(values(&(0.5 * grad(&x, f).unwrap())), [1.0, -2.0]);
    assert_eq!(values(&-grad(&x, f).unwrap()), [-2.0, 4.0]);
    let g: Tensor = grad(&x, f).unwrap().into();
    assert_eq!(values(&g), [2.0, -4.0]);
    let p = Param::new(x.clone());
    assert_eq!(values(&(&p * 2 + &x - &p)), [2.0, -4.0]);
    assert_eq!(values(&(1.0 - &p)), [0.0, 3.0]);
}

/// `Grads::norm` hid `Tensor::norm`, and a gradient penalty had no gradient.
#[test]
fn the_norm_of_a_gradient_is_differentiable() {
    let x = tensor![[3, 4], [6, 8]; F64].unwrap();
    let half_square = |x: &Tensor| x.square()?.sum(..)?.mul_scalar(0.5);
    let penalty = |x: &Tensor| grad(x, half_square)?.norm(1)?.sub_scalar(1.0)?.square()?.sum(..);
    let g = grad(&x, penalty).unwrap(); // 2 (‖x‖ − 1) x/‖x‖
    near(&values(&g), &[8.0 * 0.6, 8.0 * 0.8, 18.0 * 0.6, 18.0 * 0.8], 1e-14);
    assert!((grad(&x, half_square).unwrap().global_norm().unwrap() - 125f64.sqrt()).abs() < 1e-12);
}

#[test]
fn operators_take_numbers_of_all_types_and_results() -> Result<()> {
    let x = tensor![1, 4]?;
    assert_eq!(values(&(&x * 2)), [2.0, 8.0]);
    assert_eq!(values(&(x.clone() + 1u8 - 3usize)), [-1.0, 2.0]);
    assert_eq!(values(&(&x / 2.0f32 + cotangent::bf16::ONE)), [1.5, 3.0]);
    assert_eq!(values(&(2 * &x - 1)), [1.0, 7.0]);
    assert_eq!(values(&(1.0 - &x)), [0.0, -3.0]);
    assert_eq!(values(&(4 / &x)), [4.0, 1.0]);
    // The type of the result is known without that of the literal.
    assert_eq!(values(&(&x * 4).sqrt()?), [2.0, 4.0]);
    assert_eq!(values(&(1.0 - &x).abs()?), [0.0, 3.0]);
    assert_eq!(values(&(2 * x.clone()).sum(..)?), [10.0]);
    // One question mark for the expression.
    assert_eq!(values(&(x.sqrt() + &x)?), [2.0, 6.0]);
    assert_eq!(values(&(&x * x.sqrt())?), [1.0, 8.0]);
    assert_eq!(values(&((x.sqrt()? + x.square()) / x.clone())?), [2.0, 4.5]);
    let e = (x.sqrt() + &tensor![1, 2, 3]?).unwrap_err();
    assert!(e.is_shape() && e.to_string().starts_with("add:") && e.to_string().contains("small_methods.rs"), "{e}");
    let e = (x.reshape([5]) * &x).unwrap_err();
    assert!(e.to_string().starts_with("reshape:"), "{e}");
    Ok(())
}

#[test]
fn literals_are_f32_and_shapes_come_as_arrays() -> Result<()> {
    let x = tensor![1.0, 2.0]?;
    assert_eq!((x.dtype(), x.shape().to_vec()), (F32, vec![2]));
    let n = 3;
    let x = tensor![[[1, 2], [n, -4]], [[5, 6], [7, n * 2 + 2]], [[0, 0], [0, 0.5]]]?;
    assert_eq!((x.dtype(), x.dims::<3>()?), (F32, [3, 2, 2]));
    assert_eq!(values(&x)[..8], [1.0, 2.0, 3.0, -4.0, 5.0, 6.0, 7.0, 8.0]);
    assert_eq!(tensor![[[[1]]]; F64]?.dims::<4>()?, [1; 4]);
    let large = tensor![(1i64 << 53) + 1, -1; I64]?;
    assert_eq!(large.to_vec::<i64>()?, [(1 << 53) + 1, -1]);
    assert_eq!((tensor![1, 0; U8]?.dtype(), tensor![1.5; BF16]?.dtype()), (U8, BF16));
    assert_eq!(tensor![]?.dims::<1>()?, [0]);
    assert_eq!(tensor![[1, 2], [3, 4],]?.dims::<2>()?, [2, 2]);
    let [rows, columns] = tensor![[1, 2, 3]]?.dims()?;
    assert_eq!((rows, columns), (1, 3));
    let e = x.dims::<2>().unwrap_err();
    assert!(e.is_shape() && e.to_string().starts_with("dims: expected 2 axes, found 3: [3, 2, 2] (at"), "{e}");
    assert_eq!(Tensor::scalar(1f32)?.dims::<0>()?, [0usize; 0]);
    Ok(())
}
