//! The tools of `diagnostics`, each alone; the failures they were made for are in postmortems.rs.

use crate::say;
use cotangent::diagnostics::{
    Alignment, Anomaly, AttentionCheck, AttentionReport, ClipTracker, DepthProfile, HealthHistory, HealthReport, Misalignment, Profiler,
    Trace, Tracer, Verdict, detect_anomaly, observe,
};
use cotangent::nn::{Gpt, GptConfig, Linear};

use cotangent::optim::{AdamW, Clipped};
use cotangent::{
    F32, F64, GradOptions, Key, Module, Observer, Pulled, Ran, Result, Tape, Tensor, checkpoint, grad, module, value_and_grad,
    value_and_grad_with,
};
use std::sync::{Arc, Mutex};

fn gpt() -> (Gpt, Tensor, Tensor) {
    let config = GptConfig { vocabulary: 13, context: 8, layers: 3, heads: 2, width: 16, ..GptConfig::default() };
    let ids = |k: i64| Tensor::from_slice(&(0..16).map(|i| (i * i + k) % 13).collect::<Vec<i64>>(), [2, 8]).unwrap();
    (Gpt::new(&config, F32, Key::new(3)).unwrap(), ids(0), ids(1))
}

/// Trains, and demands that every report of every step is quiet. Returns the history.
fn quiet<M: Module + Clone>(model: &mut M, steps: u64, loss: impl Fn(&M) -> Result<Tensor>) -> Result<HealthHistory> {
    let (mut adam, mut history) = (AdamW { lr: 1e-3, ..AdamW::default() }, HealthHistory::new());
    for step in 0..steps {
        let (value, mut grads) = value_and_grad(model, &loss)?;
        let clipped = grads.clip_global_norm(10.0)?;
        let report = history.record(step, model, &grads, value.item()?, 1e-3, &clipped)?;
        assert!(report.is_healthy(), "step {step}\n{report}");
        let before = model.clone();
        adam.step(model, &grads)?;
        history.updates(&before, model)?;
    }
    assert!(history.warnings().is_empty(), "{history}");
    let (first, last) = (history.steps[0].loss, history.steps[steps as usize - 1].loss);
    assert!(last < first, "{first} -> {last}");
    Ok(history)
}

#[derive(Clone)]
struct Lstm {
    input: Linear,
    state: Linear,
    head: Linear,
}
module!(Lstm { input, state, head });

impl Lstm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut h = Tensor::zeros([x.size(0)?, 12], F32)?;
        let mut c = h.clone();
        for t in 0..x.size(1)? {
            let gates = self.input.forward(&x.select(1, t as isize)?)?.add(&self.state.forward(&h)?)?.chunk(4, -1)?;
            c = gates[1].sigmoid()?.mul(&c)?.add(&gates[0].sigmoid()?.mul(&gates[2].tanh()?)?)?;
            h = gates[3].sigmoid()?.mul(&c.tanh()?)?;
        }
        self.head.forward(&h)
    }
}

#[test]
fn healthy_models_raise_no_alarm() -> Result<()> {
    let (mut gpt, tokens, targets) = gpt();
    let history = quiet(&mut gpt, 30, |m| m.loss(&tokens, &targets, None))?;
    assert_eq!(
        history.layers,
        ["transformer.wte", "transformer.wpe", "transformer.h.0", "transformer.h.1", "transformer.h.2", "transformer.ln_f"]
    );
    assert_eq!(history.last().unwrap().depth().verdict(), Verdict::Healthy);

    let linear = |i, o, k| Linear::new(i, o, F32, Key::new(k)).unwrap();
    let x = Tensor::randn([32, 6], F32, Key::new(5))?;
    let y = x.sum(-1)?.sin()?;
    let mut mlp = vec![linear(6, 24, 1), linear(24, 24, 2), linear(24, 24, 3), linear(24, 1, 4)];
    quiet(&mut mlp, 30, |m| {
        let h = m[..3].iter().try_fold(x.clone(), |h, l| l.forward(&h)?.relu())?;
        m[3].forward(&h)?.squeeze(-1)?.mse_loss(&y)
    })?;

    let mut lstm = Lstm { input: linear(3, 48, 6), state: linear(12, 48, 7), head: linear(12, 1, 8) };
    let x = Tensor::randn([8, 10, 3], F32, Key::new(9))?;
    let y = x.select(2, 0)?.sum(-1)?.tanh()?;
    quiet(&mut lstm, 30, |m| m.forward(&x)?.squeeze(-1)?.mse_loss(&y))?;
    Ok(())
}

#[test]
fn every_verdict_is_reached() -> Result<()> {
    let params = vec![Tensor::randn([8, 8], F64, Key::new(1))?; 4];
    let judge = |scales: [f64; 4]| -> Result<Vec<Verdict>> {
        let g = grad(&params, |p| {
            let mut sum = Tensor::zeros((), F64)?;
            for (p, s) in p.iter().zip(scales) {
                sum = sum.add(&p.mul_scalar(s)?.square()?.sum(..)?)?;
            }
            Ok(sum)
        })?;
        Ok(HealthReport::new(&params, &g)?.rows.iter().map(|r| r.verdict).collect())
    };
    use Verdict::{Dead, Exploding, Healthy, NonFinite, Vanishing};
    assert_eq!(judge([1.0; 4])?, [Healthy; 4]);
    assert_eq!(judge([1.0, 1e-3, 1.0, 1.0])?, [Healthy, Vanishing, Healthy, Healthy]); // beside the others
    assert_eq!(judge([1e-4; 4])?, [Vanishing; 4]); // beside the parameters
    assert_eq!(judge([1.0, 100.0, 1.0, 1.0])?[1], Exploding);
    assert_eq!(judge([1.0, 0.0, 1.0, 1e200])?, [Healthy, Dead, Healthy, NonFinite]);
    let two = (params[0].clone(), params[1].clone());
    let (_, g) = value_and_grad_with(&two, GradOptions { allow_disconnected: true }, |p| p.0.square()?.sum(..))?;
    assert_eq!(HealthReport::new(&two, &g)?.rows[1].verdict, Verdict::Disconnected);
    Ok(())
}

#[test]
fn sparse_tables_and_fresh_biases_are_not_conspicuous() -> Result<()> {
    #[derive(Clone)]
    struct Net {
        wte: Tensor,
        weight: Tensor,
        bias: Tensor,
    }
    module!(Net { wte, weight, bias });
    let net = Net {
        wte: Tensor::randn([5000, 4], F64, Key::new(1))?,
        weight: Tensor::randn([3, 4], F64, Key::new(2))?,
        bias: Tensor::full([3], 1e-7, F64)?, // after a first small step
    };
    let ids = Tensor::from_slice(&[1i64, 2, 3], [3])?;
    let g = grad(&net, |m| m.wte.embedding(&ids, None)?.linear(&m.weight, Some(&m.bias))?.square()?.sum(..))?;
    let report = HealthReport::new(&net, &g)?;
    assert!(report.rows[0].zeros > 0.999 && report.rows[2].ratio > 1e5 && report.is_healthy(), "{report}");
    Ok(())
}

#[test]
fn layers_and_updates_add_up() -> Result<()> {
    let layers = vec![Linear::new(3, 3, F64, Key::new(1))?, Linear::new(3, 3, F64, Key::new(2))?];
    let x = Tensor::randn([4, 3], F64, Key::new(3))?;
    let g = grad(&layers, |m| m[1].forward(&m[0].forward(&x)?.tanh()?)?.square()?.mean(..))?;
    let after = layers.map(|_, t| t.mul_scalar(1.01))?;
    let report = HealthReport::new(&layers, &g)?.with_updates(&layers, &after)?;
    for row in &report.rows {
        assert!((row.update.unwrap() - 0.01).abs() < 1e-12);
    }
    let sums = report.layers();
    assert_eq!(sums.iter().map(|l| (l.name.as_str(), l.count)).collect::<Vec<_>>(), [("0", 12), ("1", 12)]);
    for (l, rows) in sums.iter().zip(report.rows.chunks(2)) {
        assert!((l.norm - rows[0].norm.hypot(rows[1].norm)).abs() < 1e-12 && (l.update.unwrap() - 0.01).abs() < 1e-12);
    }
    Ok(())
}

#[test]
fn the_history_undoes_clipping_and_refuses_another_model() -> Result<()> {
    let w = Tensor::randn([4, 4], F64, Key::new(1))?;
    let (_, mut g) = value_and_grad(&w, |w| w.mul_scalar(40.0)?.square()?.sum(..))?;
    let norm = g.global_norm()?;
    let clipped = g.clip_global_norm(1.0)?;
    assert!(clipped.clipped);
    let mut history = HealthHistory::new();
    assert!(history.html().unwrap_err().is_argument() && history.updates(&w, &w).unwrap_err().is_argument());
    let seen = history.record(0, &w, &g, 1.0, 0.1, &clipped)?.rows[0].clone();
    assert!((seen.norm - norm).abs() < 1e-9 * norm && seen.verdict == Verdict::Exploding, "{seen:?}");
    let other = (w.clone(), w.clone());
    let g = grad(&other, |p| p.0.mul(&p.1)?.sum(..))?;
    assert!(history.record(1, &other, &g, 1.0, 0.1, &clipped).unwrap_err().is_argument());
    Ok(())
}

#[test]
fn the_clip_tracker_counts_a_window() {
    let mut clips = ClipTracker::new(20);
    let step = |norm: f64, clipped| Clipped { norm, finite: norm.is_finite(), clipped };
    for i in 0..19 {
        clips.push(&step(f64::from(i), true));
        assert!(clips.warning().is_none(), "too early"); // large gradients at the start are no sign
    }
    clips.push(&step(19.0, true));
    assert!(clips.warning().is_some() && clips.norm_quantile(1.0) == 19.0 && clips.norm_quantile(0.0) == 0.0);
    for _ in 0..15 {
        clips.push(&step(0.5, false));
    }
    assert_eq!((clips.rate(), clips.total_rate(), clips.steps()), (0.25, 20.0 / 35.0, 35));
    assert!(clips.warning().is_none());
    clips.push(&step(f64::NAN, false));
    assert_eq!(clips.non_finite(), 1);
}

#[test]
fn anomalies_name_op_line_module_and_operands() -> Result<()> {
    // Forward: the logarithm of a negative number, behind a layer.
    let layers = vec![Linear::new(3, 3, F64, Key::new(1))?];
    let x = Tensor::randn([4, 3], F64, Key::new(3))?;
    let anomaly = Anomaly::new();
    let line = std::cell::Cell::new(0);
    let e = value_and_grad(&layers, |m| {
        anomaly.attach(m)?;
        let h = m[0].forward(&x)?.tanh()?.sub_scalar(0.5)?; // of both signs
        line.set(line!() + 1);
        h.log()?.exp()?.sum(..)
    })
    .unwrap_err();
    say(&format!("{e}"));
    assert!(e.is_non_finite() && e.op() == Some("log") && e.location().unwrap().line() == line.get(), "{e}");
    let f = anomaly.finding().unwrap();
    assert!(!f.backward && !f.passed_on && f.after.as_deref() == Some("0") && f.given[0].what == "f64[4, 3]" && f.gave[0].nan > 0, "{f:?}");
    for part in ["NaN", "what it was given is finite", "operand 0: f64[4, 3] in [-", "after module `0`"] {
        assert!(e.to_string().contains(part), "{part}: {e}");
    }
    // Backward: finite values, infinite slope; composed ops name the caller's line too.
    let x = Tensor::from_slice(&[4f64, 0.0], [2])?;
    let e = detect_anomaly(&x, |x| x.sqrt()?.sum(..)).unwrap_err();
    assert!(e.is_non_finite() && e.op() == Some("sqrt") && e.to_string().contains("its derivative gives"), "{e}");
    // A constant brought it in.
    let e = detect_anomaly(&x, |x| x.mul(&Tensor::from_slice(&[1.0, f64::NAN], [2])?)?.sum(..)).unwrap_err();
    assert!(e.to_string().contains("a constant") && e.to_string().contains("operand 1: f64[2]: 1 NaN"), "{e}");
    // A parameter is named before anything runs.
    let bad = (x.clone(), Tensor::from_slice(&[f64::INFINITY], [1])?);
    let e = detect_anomaly(&bad, |p| p.0.sum(..)).unwrap_err();
    assert!(e.is_non_finite() && e.names() == ["1"], "{e}");
    // Inside a checkpoint: found when the sweep computes it again.
    let e = detect_anomaly(&x, |x| checkpoint(&[x], |x| Ok(vec![x[0].sqrt()?]))?[0].sum(..)).unwrap_err();
    assert!(e.op() == Some("sqrt") && e.to_string().contains("its derivative"), "{e}");
    Ok(())
}

#[test]
fn anomaly_mode_is_quiet_and_changes_nothing_on_healthy_models() -> Result<()> {
    let (gpt, tokens, targets) = gpt();
    let (loss, grads) = detect_anomaly(&gpt, |m| m.loss(&tokens, &targets, None))?;
    let (plain, same) = value_and_grad(&gpt, |m| m.loss(&tokens, &targets, None))?;
    assert_eq!(loss.item()?.to_bits(), plain.item()?.to_bits());
    for ((n, a), (_, b)) in grads.named().iter().zip(same.named()) {
        assert_eq!(a.to_vec::<f32>()?, b.to_vec::<f32>()?, "{n}");
    }
    // Masks of minus infinity are allowed when asked for.
    let x = Tensor::randn([2, 3], F64, Key::new(1))?;
    let mask = Tensor::from_slice(&[0.0, f64::NEG_INFINITY, 0.0], [3])?;
    let masked = |m: &Tensor| m.add(&mask)?.softmax(-1)?.square()?.sum(..);
    assert!(detect_anomaly(&x, masked).unwrap_err().is_non_finite());
    value_and_grad(&x, |x| {
        Anomaly::new().allow_infinite().attach(x)?;
        masked(x)
    })?;
    assert!(Anomaly::new().attach(&x).unwrap_err().is_tape());
    Ok(())
}

#[test]
fn a_trace_holds_what_modules_gave_and_their_cotangents() -> Result<()> {
    let (gpt, tokens, targets) = gpt();
    // Not `m.loss`, in which the logits never exist.
    let loss_of = |m: &Gpt| m.forward(&tokens, None)?.cross_entropy(&targets);
    let (loss, grads, trace) = Trace::with_cotangents(&gpt, loss_of)?;
    let plain = value_and_grad(&gpt, loss_of)?;
    assert_eq!((loss.item()?, grads.global_norm()?), (plain.0.item()?, plain.1.global_norm()?));
    let names: Vec<&str> = trace.entries().iter().map(|(n, _)| n.as_str()).collect();
    for want in [
        "transformer.wte",
        "transformer.wpe",
        "transformer.h.0.ln_1",
        "transformer.h.0.attn.c_attn",
        "transformer.h.0.attn.q",
        "transformer.h.1.attn.c_proj:input",
        "transformer.h.2.mlp.c_fc",
        "transformer.h.2",
        "transformer.ln_f",
        "transformer.wte#1",
        "transformer.wte#1:grad",
        "transformer.h.0.mlp.c_proj:grad",
        "transformer.h.0:grad",
    ] {
        assert!(names.contains(&want), "{want} is not in {names:?}");
    }
    // What the trace holds is what the layers give.
    let t = &gpt.transformer;
    let x = t.wte.forward(&tokens)?.add(&t.wpe.weight.narrow(0, 0, 8)?)?;
    assert_eq!(trace.get("transformer.h.0.ln_1").unwrap().to_vec::<f32>()?, t.h[0].ln_1.forward(&x)?.to_vec::<f32>()?);
    assert_eq!(trace.get("transformer.h.0").unwrap().to_vec::<f32>()?, t.h[0].forward(&x, None)?.to_vec::<f32>()?);
    // The cotangent of the logits: (softmax − one-hot) / n.
    let logits = trace.get("transformer.wte#1").unwrap();
    let p = logits.softmax(-1)?.to_f64_vec()?;
    let bar = trace.get("transformer.wte#1:grad").unwrap().to_f64_vec()?;
    for (i, t) in targets.to_vec::<i64>()?.iter().enumerate() {
        for j in 0..13 {
            let want = (p[i * 13 + j] - if j as i64 == *t { 1.0 } else { 0.0 }) / 16.0;
            assert!((bar[i * 13 + j] - want).abs() < 1e-7);
        }
    }
    // Frozen parameters keep their names, mixed precision and untracked runs too.
    let mut frozen = gpt.clone();
    assert!(frozen.freeze(|_| true) > 0);
    let (_, again) = Trace::of(&frozen, |m| m.forward(&tokens, None))?;
    let found = again.compare(&trace, 0.0)?;
    assert!(found.first().is_none() && found.only_here.is_empty(), "{found}");
    let (_, half) = Trace::of(&gpt, |m| m.cast(cotangent::BF16)?.forward(&tokens, None))?;
    let found = half.compare(&trace, 5e-2)?;
    assert!(found.first().is_none() && found.only_here.is_empty() && found.rows.iter().any(|r| r.error > 1e-4), "{found}");
    Ok(())
}

#[test]
fn a_wrong_cotangent_is_told_from_a_wrong_value() -> Result<()> {
    let layers: Vec<Linear> = (0..3).map(|k| Linear::no_bias(4, 4, F64, Key::new(k)).unwrap()).collect();
    let x = Tensor::randn([5, 4], F64, Key::new(9))?;
    let run = |wrong: bool| {
        Trace::with_cotangents(&layers, |m| {
            let h = m[1].forward(&m[0].forward(&x)?.tanh()?)?;
            // The same value; half of the gradient is lost.
            let h = if wrong { h.mul_scalar(0.5)?.add(&h.mul_scalar(0.5)?.detach())? } else { h };
            m[2].forward(&h)?.square()?.sum(..)
        })
    };
    let found = run(true)?.2.compare(&run(false)?.2, 1e-9)?;
    let verdict = found.verdict().unwrap();
    assert!(verdict.contains("cotangent of `1` differs") && verdict.contains("0.5000 times the reference"), "{verdict}");
    let other = Trace::from_values([("x".to_owned(), x.clone())])?;
    assert!(other.compare(&run(false)?.2, 1e-9).unwrap_err().is_argument());
    let apart = Trace::from_values([("x".to_owned(), x.narrow(0, 0, 3)?)])?.compare(&other, 1e-9)?;
    assert!(apart.verdict().unwrap().contains("shapes differ"));
    Ok(())
}

#[test]
fn traces_survive_a_file_and_bad_files_are_refused() -> Result<()> {
    let (gpt, tokens, _) = gpt();
    let (_, trace) = Trace::of(&gpt, |m| m.forward(&tokens, None))?;
    let file = std::env::temp_dir().join(format!("cotangent-diagnostics-{}.safetensors", std::process::id()));
    trace.save(&file)?;
    let back = Trace::load(&file)?;
    let names = |t: &Trace| t.entries().iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
    assert_eq!(names(&back), names(&trace));
    assert!(trace.compare(&back, 0.0)?.first().is_none());
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    assert!(Trace::load(&file).unwrap_err().is_corrupt_file());
    std::fs::remove_file(&file).unwrap();
    assert!(Trace::load(&file).unwrap_err().is_io());
    Ok(())
}

#[test]
fn observers_work_on_a_tape_made_by_hand() -> Result<()> {
    let tape = Tape::new();
    let x = tape.watch_named("x.weight", &Tensor::from_slice(&[2f64], [1])?)?;
    let tracer = Tracer::new();
    tape.observe(std::sync::Arc::new(tracer.clone()));
    let y = x.square()?;
    y.tap(|| "y");
    tape.backward(&y.exp()?.sum(..)?)?;
    let trace = tracer.finish();
    assert_eq!(trace.get("x").unwrap().item()?, 4.0); // named by its parameter
    assert_eq!(trace.get("y:grad").unwrap().item()?, 4f64.exp());
    // Nobody listens: the name is not even made.
    Tensor::zeros([1], F64)?.tap(|| -> String { unreachable!() });
    Ok(())
}

#[test]
fn alignment_finds_what_goes_wrong_with_batches() -> Result<()> {
    let decode = |ids: &[i64]| format!("{ids:?}");
    let t = |v: &[i64]| Tensor::from_slice(v, [2, v.len() / 2]).unwrap();
    let x = t(&[5, 3, 8, 1, 2, 9, 4, 7, 6, 0]);
    let check = |a: Alignment, y: &[i64]| a.check(&x, &t(y), decode);
    let plain = Alignment::default();
    let right = [3, 8, 1, 2, 7, 4, 7, 6, 0, 1];
    assert!(check(plain, &right)?.is_aligned());
    assert_eq!(check(plain, &[3, 8, 1, 2, 5, 4, 7, 6, 0, 9])?.findings, [Misalignment::Wrapped]);
    assert!(matches!(check(plain, &[0, 5, 3, 8, 1, 0, 9, 4, 7, 6])?.findings[..], [Misalignment::Shifted { by: -1, .. }]));
    assert!(matches!(check(plain, &[7; 10])?.findings[..], [Misalignment::Unrelated { .. }]));
    let mut one = right;
    one[6] = 2;
    assert!(matches!(check(plain, &one)?.findings[..], [Misalignment::Partly { first: (1, 1), .. }]));
    // Padding: right when ignored, an error when it counts.
    let masked = Alignment { ignore: Some(-100), padding: Some(0), vocabulary: Some(10) };
    assert!(check(masked, &[3, 8, 1, 2, -100, 4, 7, 6, -100, -100])?.is_aligned());
    let padded = check(masked, &[3, 8, 1, 2, -100, 4, 7, 6, 0, 0])?;
    assert_eq!(padded.findings, [Misalignment::UnmaskedPadding { count: 2, first: (1, 3) }]);
    assert_eq!(check(masked, &[-100; 10])?.findings, [Misalignment::NothingCounts]);
    let outside = Alignment { vocabulary: Some(9), ..plain };
    assert_eq!(check(outside, &right)?.findings, [Misalignment::OutsideVocabulary { id: 9, at: (1, 0), target: false }]);
    assert!(plain.check(&x, &t(&[1, 2]), decode).unwrap_err().is_shape());
    assert!(plain.check(&x.cast(F32)?, &x, decode).unwrap_err().is_dtype());
    // The same token everywhere fits every shift.
    assert_eq!(plain.check(&t(&[4; 10]), &t(&[4; 10]), decode)?.findings, [Misalignment::CannotTell]);
    Ok(())
}

#[test]
fn depth_profiles_measure_decades() {
    let p = |f: fn(i32) -> f64| DepthProfile::new((0..9).map(|i| (i.to_string(), f(i)))).unwrap();
    assert_eq!(p(|_| 0.3).verdict(), Verdict::Healthy);
    assert_eq!(p(|i| 10f64.powi(-i)).verdict(), Verdict::Exploding);
    assert_eq!(p(|i| if i < 4 { 0.0 } else { 1.0 }).verdict(), Verdict::Vanishing);
    assert_eq!(p(|i| if i == 2 { f64::NAN } else { 1.0 }).verdict(), Verdict::NonFinite);
    assert!(p(|i| 10f64.powi(i)).to_string().contains("8.0 decades"));
}

#[test]
fn attention_statistics_match_the_weights() -> Result<()> {
    // Two query heads read one key head; against the weights that softmax gives.
    let q = Tensor::randn([2, 2, 3, 4], F64, Key::new(1))?;
    let k = Tensor::randn([2, 1, 5, 4], F64, Key::new(2))?;
    let weights = q.matmul(&k.transpose(-1, -2)?)?.mul_scalar(0.5)?.softmax(-1)?;
    assert!(AttentionReport::rows_sum_to_one(&weights, 1e-12)? < 1e-12);
    assert!(AttentionReport::rows_sum_to_one(&weights.mul_scalar(1.01)?, 1e-6).unwrap_err().to_string().contains("sums to 1.01"));
    let report = AttentionCheck::default().run(&q, &k, None)?;
    let w = weights.to_f64_vec()?;
    for (h, s) in report.heads.iter().enumerate() {
        let rows: Vec<&[f64]> = w.chunks(5).enumerate().filter(|(r, _)| r / 3 % 2 == h).map(|(_, r)| r).collect();
        let entropy = |r: &[f64]| -> f64 { r.iter().map(|p| -p * p.ln()).sum::<f64>() / 5f64.ln() };
        assert!((s.entropy - rows.iter().map(|r| entropy(r)).sum::<f64>() / 6.0).abs() < 1e-12);
        // Row i is query i + 2 of five: later keys are those beyond it.
        let later: f64 = rows.iter().enumerate().map(|(i, r)| r[i % 3 + 3..].iter().sum::<f64>()).sum();
        assert!((s.future - later / 6.0).abs() < 1e-12);
        assert!(s.saturated == 0.0 && s.blind == 0 && s.sum_error < 1e-12);
    }
    assert_eq!(AttentionCheck::causal().run(&q, &k, None)?.heads[1].future, 0.0);
    // A mask: 0 hides. A row that sees nothing is blind; one that sees one key has no entropy to speak of.
    let mask = Tensor::from_slice(&[0u8, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1], [3, 5])?;
    let masked = AttentionCheck::default().run(&q, &k, Some(&mask))?;
    assert!(masked.heads[0].blind == 2 && masked.warnings()[0].contains("see no key"), "{masked}");
    let added = mask.cast(F64)?.log()?; // 0 and minus infinity
    assert_eq!(AttentionCheck::default().run(&q, &k, Some(&added))?.heads, masked.heads);
    // As in the first post-mortem: scores of 1e4.
    let large = AttentionCheck::default().run(&q.mul_scalar(1e4)?, &k, None)?;
    assert!(large.heads.iter().all(|h| h.saturated == 1.0 && h.largest_score > 1e3) && large.warnings().len() == 2, "{large}");
    assert!(AttentionCheck::default().run(&q, &k.narrow(3, 0, 3)?, None).unwrap_err().is_shape());
    // From a trace of a model.
    let (gpt, tokens, _) = gpt();
    let (_, trace) = Trace::of(&gpt, |m| m.forward(&tokens, None))?;
    let of = |n: &str| trace.get(&format!("transformer.h.1.attn.{n}")).unwrap();
    let report = AttentionCheck::causal().run(of("q"), of("k"), None)?;
    assert!(report.heads.len() == 2 && report.warnings().is_empty() && report.heads[0].entropy > 0.99, "{report}");
    Ok(())
}

#[test]
fn the_profile_accounts_for_every_op_and_module() -> Result<()> {
    let (gpt, tokens, targets) = gpt();
    let profiler = Profiler::new();
    let began = std::time::Instant::now();
    value_and_grad(&gpt, |m| {
        profiler.attach(m)?;
        m.loss(&tokens, &targets, None)
    })?;
    let took = began.elapsed();
    let profile = profiler.finish();
    say(&format!("{profile}"));
    let (ops, modules) = (profile.by_op(), profile.by_module());
    assert_eq!((ops["linear"].calls, ops["scaled_dot_product_attention"].calls, ops["linear_cross_entropy"].calls), (12, 3, 1));
    let all = &modules[""];
    assert_eq!(all.calls, profile.ops.len());
    assert!(all.forward + all.backward <= took && all.backward.as_nanos() > 0);
    // What the tape says of itself.
    let tape = Tape::new();
    let watched = gpt.watch(&tape)?;
    watched.loss(&tokens, &targets, None)?;
    assert_eq!(all.saved, tape.saved_bytes());
    assert!(profile.ops.iter().filter(|o| o.op != "linear" || o.saved > 0).all(|o| o.back_began.is_some()), "an op without a derivative");
    // Attention has no parameters; it is placed between the layers around it.
    let attention: Vec<&str> = profile.ops.iter().filter(|o| o.op == "scaled_dot_product_attention").map(|o| o.module.as_str()).collect();
    assert_eq!(attention, ["transformer.h.0.attn", "transformer.h.1.attn", "transformer.h.2.attn"]);
    assert!(profile.ops.iter().any(|o| o.op == "gelu" && o.module == "transformer.h.1.mlp"));
    assert_eq!(modules["transformer.h.1"].saved, modules["transformer.h.2"].saved);
    // The trace is JSON with a span for each op, forward and backward, and for modules.
    let trace: serde_json::Value = serde_json::from_str(&profile.chrome_trace()?).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let count = |tid: u32, cat: &str| events.iter().filter(|e| e["ph"] == "X" && e["tid"] == tid && e["cat"] == cat).count();
    assert_eq!(
        (count(1, "forward"), count(1, "backward")),
        (profile.ops.len(), profile.ops.iter().filter(|o| o.back_began.is_some()).count())
    );
    assert!(events.iter().any(|e| e["tid"] == 2 && e["cat"] == "backward" && e["name"] == "transformer.h.0.mlp.c_fc"));
    assert!(events.iter().filter(|e| e["ph"] == "X").all(|e| e["dur"].as_f64().unwrap() >= 0.0));
    assert!(profiler.finish().ops.is_empty());
    Ok(())
}

/// A run with a warm-up, clipping at the start and a layer that dies, as a page to look at.
#[test]
fn the_report_is_one_readable_page() -> Result<()> {
    let (mut gpt, tokens, targets) = gpt();
    let mut adam = AdamW::default();
    let mut history = HealthHistory::new();
    for step in 0..60u64 {
        adam.lr = 1e-2 * ((step + 1) as f64 / 15.0).min(1.0);
        let (loss, mut grads) = value_and_grad(&gpt, |m| m.loss(&tokens, &targets, None))?;
        grads.update(|name, g| {
            if step >= 25 && name.contains("h.1.") {
                *g = g.zeros_like()?;
            }
            Ok(())
        })?;
        let clipped = grads.clip_global_norm(0.5)?;
        history.record(step, &gpt, &grads, loss.item()?, adam.lr, &clipped)?;
        let before = gpt.clone();
        adam.step(&mut gpt, &grads)?;
        history.updates(&before, &gpt)?;
    }
    assert_eq!(history.verdict(3), Verdict::Dead);
    assert!(!history.html()?.contains("validation"));
    // Evaluated also after the last recorded step: the picture reaches to there.
    history.validation = vec![(0, 4.5), (30, 4.0), (75, f64::NAN), (90, 3.9)];
    let page = history.html()?;
    assert!(page.contains("validation") && page.contains("90"));
    if let Some(path) = std::env::var_os("COTANGENT_REPORT") {
        history.write_html(path)?;
    }
    assert_eq!(page.matches("<svg").count(), 6);
    assert!(page.matches("</svg>").count() == 6 && !page.contains("<script") && !page.contains("src="));
    for text in [
        "transformer.h.1: DEAD",
        "Gradient norm by layer and step",
        "Loss",
        "Learning rate",
        "Clip rate",
        "log",
        "step",
        "largest layer",
        "transformer.h.0.attn.c_attn.weight",
    ] {
        assert!(page.contains(text), "{text} is missing");
    }
    Ok(())
}

/// tests/fixtures/trace/make.py: PyTorch's modules, recorded by the hook of the book.
#[test]
fn a_trace_agrees_with_a_dump_of_pytorch() -> Result<()> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/trace");
    let config = GptConfig { vocabulary: 13, context: 8, layers: 2, heads: 2, width: 16, bias: true, ..GptConfig::default() };
    let mut gpt = Gpt::new(&config, F32, Key::new(1))?;
    gpt.load_named(&Trace::load(folder.join("weights.safetensors"))?.entries().iter().cloned().collect())?;
    let reference = Trace::load(folder.join("reference.safetensors"))?;
    let tokens = Tensor::from_slice(&(0..16).map(|i| (i * i + 3) % 13).collect::<Vec<i64>>(), [2, 8])?;
    let (_, trace) = Trace::of(&gpt, |m| m.forward(&tokens, None))?;
    let found = trace.compare(&reference, 1e-5)?;
    say(&format!("{found}"));
    assert!(found.first().is_none() && found.rows.len() == 28, "{found}");
    assert_eq!(found.only_there, ["lm_head", "lm_head:input"]); // here the table's second use
    // The classic: a loader that forgets to transpose.
    let wrong = gpt.map(|name, t| if name.ends_with("h.1.attn.c_proj.weight") { t.transpose(0, 1) } else { Ok(t.clone()) })?;
    let found = Trace::of(&wrong, |m| m.forward(&tokens, None))?.1.compare(&reference, 1e-5)?;
    assert_eq!(found.first().unwrap().name, "transformer.h.1.attn.c_proj", "{found}");
    Ok(())
}

/// Inside one another, gradient functions share a tape: tools see it, and change nothing.
#[test]
fn tools_survive_gradients_inside_gradients() -> Result<()> {
    let w = vec![Linear::new(3, 3, F64, Key::new(1))?];
    let x = Tensor::randn([4, 3], F64, Key::new(2))?;
    let penalty = |m: &Vec<Linear>| grad(&x, |x| m[0].forward(x)?.tanh()?.sum(..))?.into_inner().square()?.sum(..);
    let (plain, same) = value_and_grad(&w, penalty)?;
    let (tracer, profiler) = (Tracer::new(), Profiler::new());
    let (value, grads) = value_and_grad(&w, |m| {
        tracer.attach(m)?;
        profiler.attach(m)?;
        Anomaly::new().attach(m)?;
        penalty(m)
    })?;
    assert_eq!((value.item()?, grads.global_norm()?), (plain.item()?, same.global_norm()?));
    assert!(tracer.finish().get("0").is_some() && profiler.finish().by_op().contains_key("tanh"));
    Ok(())
}

/// Where the derivatives of a sweep say that they come from.
#[derive(Default)]
struct Lines(Mutex<Vec<(&'static str, u32)>>);

impl Observer for Lines {
    fn ran(&self, _: &Ran<'_>) -> Result<()> {
        Ok(())
    }
    fn pulled(&self, op: &Pulled<'_>) -> Result<()> {
        self.0.lock().unwrap().push((op.at.file(), op.at.line()));
        Ok(())
    }
    fn tapped(&self, _: &str, _: &Tensor) {}
}

/// A composed op's parts are recorded inside the crate; reports name the line of the program.
#[test]
fn composed_ops_are_reported_at_the_callers_line() -> Result<()> {
    let (x, zero) = (Tensor::full([1, 2], 3.0, F64)?, Tensor::zeros([1, 2], F64)?);
    let (lines, line) = (Arc::new(Lines::default()), std::cell::Cell::new(0));
    let run = |x: &Tensor, anomaly: bool| {
        value_and_grad(x, |x| {
            observe(x, lines.clone())?;
            if anomaly {
                Anomaly::new().attach(x)?;
            }
            line.set(line!() + 1);
            x.mse_loss(&zero)
        })
    };
    run(&x, false)?;
    let seen = std::mem::take(&mut *lines.0.lock().unwrap());
    assert!(seen.len() > 1 && seen.iter().all(|s| *s == (file!(), line.get())), "{seen:?}");
    let e = run(&Tensor::full([1, 2], 1e200, F64)?, true).unwrap_err();
    assert!(e.is_non_finite() && e.op() == Some("mse_loss") && e.location().unwrap().line() == line.get(), "{e}");
    assert!(seen.iter().all(|s| s.0 == file!()) && e.location().unwrap().file() == file!());
    Ok(())
}
