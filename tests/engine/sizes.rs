//! Sizes, steps, positions and capacities near the ends of their types: each is an error or saturates, none overflows, aborts or
//! hangs. Tests are built with overflow checks.

use cotangent::diagnostics::HealthHistory;
use cotangent::io::{RopeConfig, RopeScaling, save_safetensors};
use cotangent::models::Cache;
use cotangent::nn::{AttentionConfig, Fans, Gpt, GptConfig, Init, KvCache, Layer, Linear, MultiHeadAttention, Residual, Sequential};
use cotangent::ops::{RopeOptions, RopePositions};
use cotangent::optim::{Clipped, Decay, LossScaler, Schedule, Sgd, Warmup, WarmupCosine};
use cotangent::train::{Batches, Prefetch, Trainer, document_mask};
use cotangent::{DType, F32, F64, Grads, I64, Key, Layout, Module, Shape, Tensor, hvp, value_and_grad};

const BIG: usize = 1 << 40;
const MAX: usize = usize::MAX;

fn out_of_memory<T>(what: &str, r: cotangent::Result<T>) {
    match r {
        Ok(_) => panic!("{what}: no error"),
        Err(e) => assert!(e.is_out_of_memory(), "{what}: {e}"),
    }
}

#[test]
fn masks_of_documents_that_fit_no_memory_are_errors() {
    let tokens = Tensor::zeros([1, 1 << 21], I64).unwrap();
    let e = document_mask(&tokens, 0).unwrap_err();
    assert!(e.is_out_of_memory() && e.to_string().starts_with("document_mask"), "{e}");
    let e = document_mask(&Tensor::zeros([MAX / 16, 0], I64).unwrap(), 0);
    assert!(e.is_ok_and(|m| m.numel() == 0));
}

#[test]
fn second_derivatives_of_products_take_no_quadratic_memory() {
    // 90 GB for a mask of pairs once; no elements, but 2⁴⁰ pairs.
    for shape in [vec![20_000], vec![0, 1 << 20]] {
        let x = Tensor::ones(shape.clone(), F32).unwrap();
        let r = hvp(&x, &x, |x| x.prod(..)?.sum(..));
        assert!(r.as_ref().map_or_else(|e| e.is_out_of_memory(), |_| true), "{shape:?}: {:?}", r.err());
    }
}

#[test]
fn targets_and_positions_without_memory_are_errors_or_nothing() {
    let (scores, targets) = (Tensor::zeros([BIG, 2], F32).unwrap(), Tensor::zeros([BIG], I64).unwrap());
    out_of_memory("nll_loss", scores.nll_loss(&targets));
    out_of_memory("cross_entropy", scores.cross_entropy(&targets));
    out_of_memory("one_hot", targets.one_hot(2, F32));
    // No elements beside a large extent: nothing is computed.
    let none = Tensor::zeros([0, BIG, 4], F32).unwrap();
    assert_eq!(none.rope(&RopeOptions::default()).unwrap().shape(), none.shape());
    out_of_memory("rope", Tensor::zeros([BIG, 4], F32).unwrap().rope(&RopeOptions::default()));
    out_of_memory("to_vec", Tensor::zeros([BIG], F32).unwrap().to_vec::<f32>());
    out_of_memory("to_f64_vec", Tensor::zeros([BIG], F32).unwrap().to_f64_vec());
    out_of_memory("sort", Tensor::zeros([BIG, 2], F32).unwrap().sort(-1));
    out_of_memory("cumsum", Tensor::zeros([3, BIG], F32).unwrap().cumsum(-1));
}

#[test]
fn c_one_count_for_positions_without_memory_lists_none_of_them() {
    let x = Tensor::full([BIG, 2], 3.0, F32).unwrap();
    let by = |n: i64| x.repeat_interleave(&Tensor::from_slice(&[n], [1]).unwrap(), 0);
    assert_eq!(by(0).unwrap().shape(), &[0, 2]);
    assert_eq!(by(1).unwrap().narrow(0, BIG - 1, 1).unwrap().to_vec::<f32>().unwrap(), [3.0, 3.0]);
    assert!(by(-1).unwrap_err().is_argument());
    assert!(by(i64::MAX).unwrap_err().is_out_of_memory());
    // As a number does, and with its gradient.
    let x = Tensor::from_slice(&[1.0, -2.0, 4.0], [3]).unwrap();
    let weights = Tensor::from_slice(&[1.0, 2.0, 3.0, 5.0, 7.0, 11.0], [6]).unwrap();
    let count = Tensor::from_slice(&[2i64], [1]).unwrap();
    let (y, bar) = value_and_grad(&x, |x| x.repeat_interleave(&count, 0)?.mul(&weights)?.sum(..)).unwrap();
    assert_eq!(y.item().unwrap(), 3.0 - 16.0 + 72.0);
    assert_eq!(bar.to_vec::<f64>().unwrap(), [3.0, 8.0, 18.0]);
}

#[test]
fn prefetching_takes_memory_for_what_is_there() {
    for ahead in [BIG, MAX] {
        let data = Prefetch::new(|i: u64| if i < 50 { Ok(i) } else { Err(cotangent::Error::argument("the end")) }, ahead);
        for i in 0..50 {
            assert_eq!(data.batch(i).unwrap(), i);
        }
        assert!(data.batch(50).unwrap_err().to_string().contains("the end"));
        assert_eq!(data.batch(3).unwrap(), 3);
    }
    // Nothing comes after the last position, which can be asked for again.
    for ahead in [0, 1, 5] {
        let data = Prefetch::new(|i: u64| Ok(i), ahead);
        for i in [u64::MAX - 2, u64::MAX - 1, u64::MAX, u64::MAX, 0, 1] {
            assert_eq!(data.batch(i).unwrap(), i);
        }
    }
    // None ahead: one is in the making.
    let data = Prefetch::new(|i: u64| Ok(i + 1), 0);
    assert_eq!((data.batch(7).unwrap(), data.batch(8).unwrap()), (8, 9));
}

#[test]
fn caches_and_frequencies_of_absurd_sizes_are_errors() {
    let rope = RopeConfig { theta: 1e4, scaling: RopeScaling::None };
    out_of_memory("frequencies", rope.frequencies(1 << 50, 16));
    out_of_memory("layers", Cache::new(MAX, 1));
    let k = Tensor::ones([1, 1, 2, 4], F32).unwrap();
    for positions in [MAX, MAX - 200, BIG] {
        let mut cache = KvCache::with_capacity(positions);
        let e = cache.append(k.clone(), k.clone()).unwrap_err();
        assert!(e.is_out_of_memory() && e.op() == Some("kv_cache"), "{e}");
        assert!(e.to_string().contains("engine/sizes.rs"), "names the caller's line: {e}");
        assert!(cache.is_empty());
    }
}

#[test]
fn c_layouts_are_errors_where_they_cannot_be() {
    let three = Layout::contiguous([3]);
    assert!(three.slice(5, 0, 1, 1).unwrap_err().is_shape());
    assert!(three.reshape(&Shape::from([4])).is_none());
    assert!(three.reshape(&Shape::from([3, MAX, MAX])).is_none());
    let huge = Layout::contiguous([3, MAX, 3]);
    assert_eq!((huge.numel(), huge.end()), (MAX, None));
    assert!(!huge.is_contiguous() || huge.end().is_none());
    assert_eq!(huge.indices().take(4).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(huge.reshape(&Shape::from([9])).is_none());
    for (shape, strides, offset) in
        [(vec![2, 2], vec![MAX, 1], 0), (vec![2], vec![1], MAX), (vec![3, MAX], vec![0, 0], 0), (vec![3], vec![MAX / 2 + 1], 0)]
    {
        let made = Layout::from_parts(shape.clone().into(), strides.clone().into(), offset);
        assert!(made.is_err(), "{shape:?} {strides:?} {offset}");
    }
    assert!(Layout::from_parts([2, 0].into(), vec![MAX, MAX].into(), 7).is_ok(), "nothing is read");
    assert!(three.expand(&Shape::from([MAX, 3])).unwrap_err().is_out_of_memory());
    assert_eq!((Shape::from([MAX, 2]).numel(), Shape::from([MAX, 2, 0]).numel()), (MAX, 0));
}

#[test]
fn c_positions_of_rope_are_counted_or_refused() {
    let x = Tensor::ones([3, 4], F64).unwrap();
    let at = |start| x.rope(&RopeOptions { positions: RopePositions::From(start), ..RopeOptions::default() });
    for start in [MAX, MAX - 1, MAX - 2] {
        assert!(at(start).unwrap_err().is_argument(), "{start}");
        let key = x.rope_with_key(&x, &RopeOptions { positions: RopePositions::From(start), ..RopeOptions::default() });
        assert!(key.unwrap_err().is_argument(), "{start}");
    }
    assert!(at(1 << 40).is_ok());
}

#[test]
fn c_schedules_reach_the_last_step() {
    let constant = Warmup { peak: 1e-3, warmup: MAX, decay: Decay::Constant };
    assert!(constant.check().is_ok());
    assert!(constant.at(0) > 0.0 && constant.at(0) < 1e-20);
    assert!((constant.at(MAX - 1) / 1e-3 - 1.0).abs() < 1e-12);
    let root = Warmup { peak: 1.0, warmup: 3, decay: Decay::InverseSqrt };
    assert!((root.at(MAX) / (4.0 / MAX as f64).sqrt() - 1.0).abs() < 1e-12);
    let cosine = WarmupCosine { peak: 1.0, floor: 0.1, warmup: MAX, end: MAX };
    assert!(cosine.at(MAX - 1) <= 1.0 && cosine.at(MAX) == 0.1);
    let wsd = Warmup { peak: 1.0, warmup: 0, decay: Decay::Wsd { from: 0, end: MAX, floor: 0.0 } };
    assert!((wsd.at(MAX / 2) - 0.5).abs() < 1e-12);
    // Small steps as ever.
    assert_eq!(Warmup { peak: 1.0, warmup: 3, decay: Decay::Constant }.at(1), 0.5);
}

#[test]
fn c_initialisations_are_out_of_memory_not_overflow() {
    assert_eq!(Fans::of(&[2, MAX, 3].into()).unwrap(), Fans { fan_in: MAX, fan_out: 6 });
    assert_eq!(Fans::of(&[2, 3, MAX, MAX].into()).unwrap(), Fans { fan_in: MAX, fan_out: MAX });
    for init in [Init::xavier(), Init::he(), Init::Torch, Init::gpt2(), Init::Zeros] {
        out_of_memory("init", init.tensor([2, MAX, 3], F32, Key::new(1)));
    }
    let fans = Fans { fan_in: MAX, fan_out: MAX };
    assert!(Init::xavier().tensor_with(fans, [2, 2], F32, Key::new(1)).unwrap().to_f64_vec().unwrap().iter().all(|v| v.is_finite()));
}

#[test]
fn c_layers_and_models_of_absurd_sizes_are_errors() {
    let attention = |heads, head| AttentionConfig { width: 8, heads, kv_heads: heads, head, ..AttentionConfig::default() };
    for (heads, head) in [(MAX, 1), (MAX, 2), (2, MAX), (1 << 40, 1 << 40)] {
        out_of_memory("attention", MultiHeadAttention::new(&attention(heads, head), F32, Key::new(1)));
    }
    let config = GptConfig { vocabulary: 3, context: 4, layers: 1, heads: 1, width: 2, ..GptConfig::default() };
    for config in [
        GptConfig { width: MAX, ..config.clone() },
        GptConfig { width: MAX / 4 + 1, ..config.clone() },
        GptConfig { layers: BIG, ..config.clone() },
        GptConfig { layers: MAX, ..config.clone() },
        GptConfig { vocabulary: MAX, ..config.clone() },
        GptConfig { context: MAX, ..config.clone() },
    ] {
        out_of_memory(&format!("{config:?}"), Gpt::new(&config, F32, Key::new(1)));
    }
}

#[test]
fn c_files_and_counts_of_tensors_without_memory_are_errors_or_saturate() {
    let huge = Tensor::zeros([1 << 62], F64).unwrap();
    let path = std::env::temp_dir().join(format!("cotangent_sizes_{}.safetensors", std::process::id()));
    for tensors in [vec![("a", &huge)], vec![("a", &huge), ("b", &huge), ("c", &huge)]] {
        let e = save_safetensors(&path, tensors, &[]).unwrap_err();
        assert!(e.is_out_of_memory() || e.is_argument(), "{e}");
        assert!(!path.exists());
    }
    let four = [huge.clone(), huge.clone(), huge.clone(), huge];
    assert_eq!(four.num_params(), MAX, "2⁶⁴ parameters");
}

#[test]
fn c_counters_of_a_loss_scaler_saturate() {
    let w = Tensor::ones([2], F32).unwrap();
    let grads = |v: f64| value_and_grad(&w, |w| w.mul_scalar(v)?.sum(..)).unwrap().1;
    let mut scaler = LossScaler { good: u64::MAX, skipped: u64::MAX, ..LossScaler::default() };
    assert!(scaler.unscale(&mut grads(1.0)).unwrap());
    assert_eq!(scaler.good, 0, "past the interval the scale grows");
    assert!(!scaler.unscale(&mut grads(f64::INFINITY)).unwrap());
    assert_eq!(scaler.skipped, u64::MAX);
}

#[test]
fn c_counters_of_a_trainer_saturate() {
    let trainer = || {
        let mut t = Trainer::new(Tensor::ones([2], F32).unwrap(), Sgd::new(0.1));
        (t.options.steps, t.options.clip, t.options.quiet) = (2, Some(0.1), true);
        t
    };
    let mut snapshot = trainer().snapshot().unwrap();
    for counter in ["clipped", "skipped", "skipped_in_a_row"] {
        assert_eq!(snapshot.numbers.insert(counter.to_owned(), 1e30), Some(0.0));
    }
    let mut t = trainer();
    t.restore(&snapshot).unwrap();
    // A step that is clipped, then one that is left out.
    let factor = |i: u64| Ok(if i == 0 { 1.0 } else { f64::NAN });
    let out = t.run(&factor, |w: &Tensor, f, _| w.mul_scalar(*f)?.sum(..)).unwrap();
    assert_eq!((out.steps, out.clipped, out.skipped), (2, MAX, MAX));
}

#[test]
fn c_the_last_position_of_a_trainer_is_an_error() {
    let trainer = || Trainer::new(Tensor::ones([2], F32).unwrap(), Sgd::default());
    let mut snapshot = trainer().snapshot().unwrap();
    snapshot.position = u64::MAX;
    let mut t = trainer();
    t.restore(&snapshot).unwrap();
    let before = t.snapshot().unwrap();
    let e = t.run(&|_: u64| Ok(()), |w: &Tensor, (), _| w.square()?.sum(..)).map(drop).unwrap_err();
    assert!(e.is_argument() && e.to_string().contains("18446744073709551615"), "{e}");
    assert_eq!(t.snapshot().unwrap().step, before.step);
}

/// A history of two layers' worth of numbers.
fn history(rows: &[(u64, f64, f64, bool)]) -> HealthHistory {
    let layer = Linear::new(2, 2, F32, Key::new(1)).unwrap();
    let x = Tensor::ones([3, 2], F32).unwrap();
    let mut h = HealthHistory::new();
    for &(step, loss, norm, clipped) in rows {
        let (_, grads): (_, Grads<Linear>) = value_and_grad(&layer, |l| l.forward(&x)?.square()?.mean(..)).unwrap();
        let clip = Clipped { norm: 1.0, clipped: false, ..grads.clone().clip_global_norm(1e9).unwrap() };
        h.record(step, &layer, &grads, loss, 1e-3, &clip).unwrap();
        let last = h.steps.last_mut().unwrap();
        (last.norm, last.clipped) = (norm, clipped);
    }
    h
}

#[test]
fn c_pages_of_extreme_numbers_are_drawn() {
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    for rows in [
        vec![(0, 1e308, 1.0, false), (1, -1e308, 1.0, false)],
        vec![(0, 3e38, 1.0, false), (1, -3e38, 1.0, false)],
        vec![(0, 1.0, 1.0, true), (1, 1.0, inf, true), (2, 1.0, nan, true), (3, 1.0, 0.0, true)],
        vec![(0, 1.0, 0.0, true), (1, 1.0, 0.0, true)],
        vec![(0, 1.0, f64::MIN_POSITIVE, true), (1, 1.0, f64::MAX, true)],
        vec![(u64::MAX, 1.0, 1.0, false)],
        vec![(0, 1.0, 1.0, false), (u64::MAX, 1.0, 1.0, false)],
        vec![(u64::MAX - 1, 1.0, 1.0, false), (u64::MAX, 2.0, 1.0, false)],
        vec![(5, nan, nan, false), (5, inf, -inf, true)],
        vec![(9, 1.0, 1.0, false), (3, 2.0, 1.0, false)],
    ] {
        let page = history(&rows).html().unwrap();
        assert!(page.contains("</html>") && page.matches("<svg").count() >= 4, "{rows:?}");
    }
}

#[test]
fn c_layers_in_layers_end_at_a_depth() {
    let linear = Linear::no_bias(2, 2, F32, Key::new(1)).unwrap();
    let x = Tensor::ones([1, 2], F32).unwrap();
    let mut net = Sequential::new().push(linear.clone());
    for _ in 0..900 {
        net = Sequential::new().push(net);
    }
    assert!(net.call(&x, None).is_ok());
    assert_eq!(net.names().len(), 1);
    drop(net);
    // Too deep for any stack: dropped as it grows, and calls say why.
    let mut net = Sequential::new().push(linear.clone());
    for _ in 0..200_000 {
        net = Sequential::new().push(net);
    }
    assert!(net.call(&x, None).unwrap_err().to_string().contains("deep"));
    assert!(net.clone().call(&x, None).is_err());
    let mut net = Sequential::new().push(linear);
    for _ in 0..200_000 {
        net = Sequential::new().push(Residual { inner: Box::new(net) });
    }
    assert!(net.call(&x, None).is_err());
}

#[test]
fn d_rates_without_time_are_zero() {
    let none = cotangent::models::Speed::default();
    assert_eq!((none.prefill_rate(), none.decode_rate()), (0.0, 0.0));
    let second = std::time::Duration::from_secs(2);
    let some = cotangent::models::Speed { prompt: 10, prefill: second, tokens: 4, decode: second };
    assert_eq!((some.prefill_rate(), some.decode_rate()), (5.0, 2.0));
}

#[test]
fn ends_of_types_are_errors_in_every_constructor() {
    for dtype in DType::ALL {
        for n in [MAX, MAX / 2 + 1, isize::MAX as usize] {
            out_of_memory("eye", Tensor::eye(n, dtype));
            assert!(Tensor::linspace(0.0, 1.0, n, dtype).is_err());
            assert!(Tensor::rand([n, 2], dtype, Key::new(1)).is_err());
            assert!(Tensor::randperm(n, dtype, Key::new(1)).is_err());
        }
    }
}
