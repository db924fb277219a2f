//! The tape and the sweep. Each test names the bug of another system that it guards against.

use cotangent::{Result, Tape, Tensor, checkpoint};
use std::sync::{Arc, Mutex};
use std::time::Instant;

fn vector(v: &[f64]) -> Tensor {
    Tensor::from_slice(v, [v.len()]).unwrap()
}

fn matrix(rows: usize, v: &[f64]) -> Tensor {
    Tensor::from_slice(v, [rows, v.len() / rows]).unwrap()
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_vec::<f64>().unwrap()
}

/// Runs `f` on a thread with a 2 MB stack, the default of spawned threads.
fn on_small_stack(f: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(2 << 20).spawn(f).unwrap().join().unwrap();
}

/// A tensor used together with its own transpose [D8].
#[test]
fn a_tensor_with_its_own_transpose() -> Result<()> {
    let x = matrix(2, &[1., 2., 3., 4.]);
    let tape = Tape::new();
    let t = tape.watch(&x)?;
    // Σ x ∘ xᵀ has the gradient 2 xᵀ.
    let y = t.mul(&t.t()?)?.sum(..)?;
    assert_eq!(values(tape.backward(&y)?.get(&t)?), [2., 6., 4., 8.]);
    Ok(())
}

/// A million ops, swept and dropped on a small stack [D19].
#[test]
fn a_chain_of_a_million_ops() {
    on_small_stack(|| {
        let tape = Tape::new();
        let x = tape.watch(&vector(&[1.0])).unwrap();
        let zero = vector(&[0.0]);
        let mut y = x.clone();
        for _ in 0..1_000_000 {
            y = y.add(&zero).unwrap();
        }
        assert_eq!(tape.len(), 1_000_001);
        let grads = tape.backward(&y).unwrap();
        assert_eq!(values(grads.get(&x).unwrap()), [1.0]);
    });
    on_small_stack(|| {
        // Dropped without a sweep.
        let tape = Tape::new();
        let mut y = tape.watch(&vector(&[1.0])).unwrap();
        for _ in 0..1_000_000 {
            y = y.square().unwrap();
        }
        drop(tape);
        drop(y);
    });
}

/// Stacked diamonds have 2³⁰ paths, but 60 nodes [D20].
#[test]
fn diamonds_take_linear_time() -> Result<()> {
    let start = Instant::now();
    let tape = Tape::new();
    let x = tape.watch(&vector(&[1.0]))?;
    let mut y = x.clone();
    for _ in 0..30 {
        y = y.add(&y)?;
    }
    assert_eq!(values(tape.backward(&y)?.get(&x)?), [f64::from(1 << 30)]);
    assert!(start.elapsed().as_secs() < 5);
    Ok(())
}

/// No second backward over a tape that is used up [D21]: `backward` takes the tape, so a second one does not
/// compile; what the consumed tape tracked is refused.
#[test]
fn a_consumed_tape_is_an_error() -> Result<()> {
    let tape = Tape::new();
    let x = tape.watch(&vector(&[2.0]))?;
    let y = x.square()?;
    tape.backward(&y)?;
    let e = y.add(&x).unwrap_err();
    assert!(e.is_tape() && e.to_string().contains("consumed"), "{e}");
    assert_eq!(values(&y.detach().add(&x.detach())?), [6.0]);
    Ok(())
}

/// A weight used twice receives the sum of both paths [D22].
#[test]
fn tied_leaves_sum_both_paths() -> Result<()> {
    let tape = Tape::new();
    let w = tape.watch(&vector(&[3.0]))?;
    let y = w.square()?.add(&w.exp()?.mul(&w)?)?;
    let e3 = 3f64.exp();
    let g = values(tape.backward(&y)?.get(&w)?)[0];
    assert!((g - (6.0 + 4.0 * e3)).abs() < 1e-12);
    Ok(())
}

/// A gradient that was handed out is not reused for the next one [D24].
#[test]
fn returned_gradients_are_not_overwritten() -> Result<()> {
    let tape = Tape::new();
    let x = tape.watch(&vector(&[1.0, 2.0]))?;
    let y = x.square()?.add(&x)?;
    let seed = vector(&[1.0, 1.0]);
    let first = tape.cotangents(&[(&y, seed.clone())], &[&x])?.remove(0).unwrap();
    let before = values(&first);
    let second = tape.cotangents(&[(&y, vector(&[10.0, 10.0]))], &[&x])?.remove(0).unwrap();
    assert!(!first.shares_storage(&second) && values(&first) == before);
    assert_eq!(values(&second), [30.0, 50.0]);
    assert_eq!(values(&seed), [1.0, 1.0]);
    Ok(())
}

/// Nothing is added in place [D25]: accumulating into the first cotangent must not write into the one the user gave, nor into a
/// value that two consumers share.
#[test]
fn cotangents_are_unchanged_by_accumulation() -> Result<()> {
    let tape = Tape::new();
    let x = tape.watch(&vector(&[1.0, 2.0]))?;
    // `add` hands the same cotangent to both operands; both are x, so they accumulate.
    let (a, b) = (x.add(&x)?, x.add(&x)?);
    let seed = vector(&[5.0, 7.0]);
    let g = tape.cotangents(&[(&a, seed.clone()), (&b, seed.clone())], &[&x])?.remove(0).unwrap();
    assert_eq!((values(&g), values(&seed)), (vec![20.0, 28.0], vec![5.0, 7.0]));
    Ok(())
}

/// A parameter that the loss never reached is an error that names it (post-mortem: attention without backward).
#[test]
fn disconnected_leaves_are_errors_with_names() -> Result<()> {
    let tape = Tape::new();
    let x = tape.watch_named("blocks.0.wq", &vector(&[1.0]))?;
    let z = tape.watch_named("blocks.0.wk", &vector(&[1.0]))?;
    let unnamed = tape.watch(&vector(&[1.0, 2.0]))?;
    let y = x.square()?;
    let grads = tape.backward(&y)?;
    let e = grads.get(&z).unwrap_err();
    assert!(e.is_disconnected() && e.to_string().contains("blocks.0.wk") && e.names().len() == 1, "{e}");
    let e = grads.get(&unnamed).unwrap_err();
    assert!(e.to_string().contains("tests/engine/tape.rs"), "an unnamed leaf is named by its line: {e}");
    assert!(grads.maybe(&z).is_none() && grads.maybe(&x).is_some());
    Ok(())
}

#[test]
fn operands_of_different_tapes_are_refused() -> Result<()> {
    let (a, b) = (Tape::new(), Tape::new());
    let (x, y) = (a.watch(&vector(&[1.0]))?, b.watch(&vector(&[1.0]))?);
    let e = x.add(&y).unwrap_err();
    assert!(e.is_tape() && e.to_string().starts_with("add: operands are tracked by different tapes"), "{e}");
    assert!(a.watch(&y).unwrap_err().is_tape());
    assert!(a.cotangents(&[(&y, vector(&[1.0]))], &[&x]).unwrap_err().is_tape());
    Ok(())
}

#[test]
fn seeds_must_fit_their_value() -> Result<()> {
    let tape = Tape::new();
    let x = tape.watch(&vector(&[1.0, 2.0]))?;
    let y = x.square()?;
    assert!(tape.cotangents(&[(&y, vector(&[1.0]))], &[&x]).unwrap_err().is_shape());
    let single = Tensor::from_slice(&[1f32, 1.0], [2])?;
    assert!(tape.cotangents(&[(&y, single)], &[&x]).unwrap_err().is_dtype());
    let e = tape.backward(&y).unwrap_err();
    assert!(e.is_shape() && e.to_string().contains("[2]"), "a result that is no scalar: {e}");
    Ok(())
}

#[test]
fn integers_have_no_gradient() {
    let ids = Tensor::from_slice(&[1i64, 2], [2]).unwrap();
    assert!(Tape::new().watch(&ids).unwrap_err().is_dtype());
}

#[test]
fn paused_computation_is_not_recorded() -> Result<()> {
    let tape = Tape::new();
    let x = tape.watch(&vector(&[3.0]))?;
    let c = tape.pause(|| x.square())?;
    assert!(!c.is_tracked() && tape.len() == 1);
    let y = c.mul(&x)?;
    assert_eq!(values(tape.backward(&y)?.get(&x)?), [9.0]);
    Ok(())
}

#[test]
fn hooks_see_complete_cotangents() -> Result<()> {
    let tape = Tape::new();
    let x = tape.watch(&vector(&[3.0]))?;
    let h = x.square()?;
    let seen = Arc::new(Mutex::new(Vec::new()));
    for t in [&x, &h] {
        let seen = Arc::clone(&seen);
        tape.register_hook(t, move |bar| seen.lock().unwrap().push(bar.to_vec::<f64>().unwrap()[0]))?;
    }
    // h is used twice: the hook runs once, with the sum.
    let y = h.add(&h)?.add(&x)?;
    tape.backward(&y)?;
    assert_eq!(*seen.lock().unwrap(), [2.0, 13.0]);
    Ok(())
}

/// Values in the middle of the graph can be asked for, and the tape can be swept again.
#[test]
fn cotangents_keep_the_tape() -> Result<()> {
    let tape = Tape::new();
    let x = tape.watch(&vector(&[2.0]))?;
    let h = x.square()?;
    let y = h.exp()?;
    for _ in 0..2 {
        let found = tape.cotangents(&[(&y, vector(&[1.0]))], &[&x, &h, &y])?;
        let e4 = 4f64.exp();
        let got: Vec<f64> = found.iter().map(|g| values(g.as_ref().unwrap())[0]).collect();
        assert_eq!(got, [4.0 * e4, e4, 1.0]);
    }
    Ok(())
}

#[test]
fn third_derivatives() -> Result<()> {
    // x⁴ as (x²)², and e^x: derivatives of all orders on one tape.
    let tape = Tape::new();
    let x = tape.watch(&vector(&[1.5]))?;
    let y = x.square()?.square()?.add(&x.exp()?)?;
    let one = || vector(&[1.0]);
    let mut d = y;
    let mut all = Vec::new();
    for _ in 0..4 {
        d = tape.cotangents_recorded(&[(&d, one())], &[&x])?.remove(0).unwrap();
        all.push(values(&d)[0]);
    }
    let (x, e) = (1.5f64, 1.5f64.exp());
    for (got, want) in all.iter().zip([4.0 * x.powi(3) + e, 12.0 * x * x + e, 24.0 * x + e, 24.0 + e]) {
        assert!((got - want).abs() < 1e-11, "{got} {want}");
    }
    Ok(())
}

/// An output that nothing used has no cotangent; the op must still give that of its input.
#[test]
fn unused_outputs_of_an_op() -> Result<()> {
    let tape = Tape::new();
    let x = tape.watch(&vector(&[1., 2., 3., 4., 5., 6.]))?;
    let parts = x.split(&[2, 3, 1], 0)?;
    let y = parts[1].square()?.sum(..)?;
    assert_eq!(values(tape.backward(&y)?.get(&x)?), [0., 0., 6., 8., 10., 0.]);
    Ok(())
}

#[test]
fn checkpoints_give_the_same_bits() -> Result<()> {
    let x = matrix(2, &[0.1, -0.7, 1.3, 0.9, -0.2, 0.4]);
    fn f(x: &Tensor) -> Result<Tensor> {
        x.softmax(-1)?.mul(&x.exp()?)?.square()
    }
    let gradient = |levels: usize| -> Result<(Vec<f64>, usize)> {
        let tape = Tape::new();
        let t = tape.watch(&x)?;
        let y = match levels {
            0 => f(&t)?,
            1 => checkpoint(&[&t], |x| Ok(vec![f(&x[0])?]))?.remove(0),
            _ => checkpoint(&[&t], |x| checkpoint(&[&x[0]], |x| Ok(vec![f(&x[0])?])))?.remove(0),
        };
        let saved = tape.saved_bytes();
        let y = y.sum(..)?;
        Ok((values(tape.backward(&y)?.get(&t)?), saved))
    };
    let (plain, all) = gradient(0)?;
    for levels in [1, 2] {
        let (g, saved) = gradient(levels)?;
        assert_eq!(g, plain);
        assert!(saved < all, "a checkpoint keeps {saved} bytes instead of {all}");
    }
    Ok(())
}

#[test]
fn checkpoints_have_second_derivatives() -> Result<()> {
    let second = |wrapped: bool| -> Result<Vec<f64>> {
        let tape = Tape::new();
        let x = tape.watch(&vector(&[0.5, -1.0]))?;
        let f = |x: &Tensor| x.exp()?.mul(x)?.square();
        let y = if wrapped { checkpoint(&[&x], move |x| Ok(vec![f(&x[0])?]))?.remove(0) } else { f(&x)? };
        let ones = vector(&[1.0, 1.0]);
        let g = tape.cotangents_recorded(&[(&y, ones.clone())], &[&x])?.remove(0).unwrap();
        Ok(values(tape.cotangents(&[(&g, ones)], &[&x])?.remove(0).as_ref().unwrap()))
    };
    assert_eq!(second(true)?, second(false)?);
    Ok(())
}

/// A tracked tensor that the function captured would lose its gradient: refused.
#[test]
fn checkpoints_refuse_captured_tracked_tensors() -> Result<()> {
    let tape = Tape::new();
    let x = tape.watch(&vector(&[1.0]))?;
    let w = tape.watch(&vector(&[2.0]))?;
    let captured = w.clone();
    let e = checkpoint(&[&x], move |x| Ok(vec![x[0].mul(&captured)?])).unwrap_err();
    assert!(e.is_tape() && e.to_string().contains("captured"), "{e}");
    // The tape is usable afterwards.
    assert!(x.mul(&w).is_ok());
    Ok(())
}

/// A tape keeps no reference to itself: its memory goes when it goes.
#[test]
fn nothing_outlives_the_tape() -> Result<()> {
    let seen = Arc::new(());
    let weak = Arc::downgrade(&seen);
    let tape = Tape::new();
    let x = tape.watch(&vector(&[1.0]))?;
    let y = x.exp()?;
    tape.register_hook(&x, move |_| {
        let _ = &seen;
    })?;
    drop(tape);
    assert!(weak.upgrade().is_none(), "the tape is still alive");
    drop(y);
    Ok(())
}

/// Printing went through f64, which has no 2⁵³ + 1.
#[test]
fn large_integers_are_printed_exactly() -> Result<()> {
    let x = Tensor::from_slice(&[(1i64 << 53) + 1, i64::MIN, i64::MAX, -7], [4])?;
    let text = x.to_string();
    for n in ["9007199254740993", "-9223372036854775808", "9223372036854775807", " -7"] {
        assert!(text.contains(n), "{text}");
    }
    Ok(())
}
