//! Five training systems failed because their backward pass was written by hand. Each failure is planted here, and found.
//! The story is told in docs/book/postmortems.md.

use crate::say;
use cotangent::backend::{cpu, cuda};
use cotangent::diagnostics::{Alignment, ClipTracker, DepthProfile, HealthReport, Misalignment, Trace, Tracer, Verdict};
use cotangent::nn::{Embedding, Init, Linear, LinearOptions};
use cotangent::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, Specs, apply1};
use cotangent::ops::{RopeOptions, RopePositions, SdpaOptions};
use cotangent::optim::Sgd;
use cotangent::testing::{Gen, Nd, Sample, Scalar, gradcheck};
use cotangent::{F64, Key, Param, Result, Tensor, gradcheck_module, module, value_and_grad};
use std::cell::RefCell;

fn normal(shape: &[usize], std: f64, seed: u64) -> Tensor {
    Tensor::randn(shape, F64, Key::new(seed)).unwrap().mul_scalar(std).unwrap()
}

// 1. Scores are clipped in the forward pass, and the backward pass does not know.

#[derive(Clone)]
struct Attention {
    wq: Param,
    wk: Param,
    wv: Param,
}
module!(Attention { wq, wk, wv });

#[derive(Clone, Copy, PartialEq)]
enum Clip {
    /// An op like any other.
    Derived,
    /// The factor is taken for a constant.
    FactorDetached,
    /// As it happened: the forward pass uses clipped scores, the backward pass those before clipping.
    Forgotten,
}

impl Attention {
    fn new(width: usize, std: f64) -> Self {
        let w = |k| Param::from(normal(&[width, width], std, k));
        Attention { wq: w(1), wk: w(2), wv: w(3) }
    }

    fn forward(&self, x: &Tensor, limit: f64, clip: Clip) -> Result<Tensor> {
        let (q, k, v) = (x.linear(&self.wq, None)?, x.linear(&self.wk, None)?, x.linear(&self.wv, None)?);
        let scores = q.matmul(&k.transpose(0, 1)?)?.mul_scalar(1.0 / (x.size(1)? as f64).sqrt())?;
        let factor = scores.square()?.sum_keepdim(-1)?.sqrt()?.rdiv_scalar(limit)?.clamp(None, 1.0)?;
        let weights = match clip {
            Clip::Derived => scores.mul(&factor)?.softmax(-1)?,
            Clip::FactorDetached => scores.mul(&factor.detach())?.softmax(-1)?,
            Clip::Forgotten => {
                let (seen, believed) = (scores.mul(&factor)?.softmax(-1)?, scores.softmax(-1)?);
                believed.add(&seen.sub(&believed)?.detach())?
            }
        };
        weights.matmul(&v)
    }
}

#[test]
fn clipped_scores_have_their_own_derivative() -> Result<()> {
    // Small: the derivative is right on both sides of the limit, and detaching the factor is found.
    let (small, x) = (Attention::new(5, 0.8), normal(&[4, 5], 1.0, 9));
    gradcheck_module(&small, |m| m.forward(&x, 1.0, Clip::Derived))?;
    for wrong in [Clip::FactorDetached, Clip::Forgotten] {
        let e = gradcheck_module(&small, |m| m.forward(&x, 1.0, wrong)).unwrap_err();
        assert_eq!(e.names(), ["wq", "wk"], "{e}");
    }
    // As large as it was: embeddings of norm 1825, queries and keys of norm 650.
    let (width, rows) = (64, 16);
    let x = normal(&[rows, width], 1825.0 / (width as f64).sqrt(), 10);
    let model = Attention::new(width, 650.0 / (1825.0 * (width as f64).sqrt()));
    let row_norm = |t: &Tensor| -> Result<f64> { t.square()?.sum(-1)?.sqrt()?.mean(..)?.item() };
    let (embedding, query) = (row_norm(&x)?, row_norm(&x.linear(&model.wq, None)?)?);
    let (target, limit) = (normal(&[rows, width], 1.0, 11), 20.0);
    let report = |clip| -> Result<HealthReport> {
        let (_, g) = value_and_grad(&model, |m| m.forward(&x, limit, clip)?.mul(&target)?.mean(..))?;
        HealthReport::new(&model, &g)
    };
    let (right, forgotten) = (report(Clip::Derived)?, report(Clip::Forgotten)?);
    let norms = |r: &HealthReport| ["wq", "wk", "wv"].map(|n| r.row(n).unwrap().norm);
    say(&format!(
        "embedding norm {embedding:.0}, query norm {query:.0}; gradients of wq, wk, wv: derived {:?}, forgotten {:?}",
        norms(&right).map(|v| format!("{v:.3e}")),
        norms(&forgotten).map(|v| format!("{v:.3e}"))
    ));
    assert!((embedding - 1825.0).abs() < 100.0 && (query - 650.0).abs() < 60.0);
    let [q, k, v] = norms(&right);
    assert!(q > v / 10.0 && q < v * 10.0 && k > v / 10.0 && k < v * 10.0, "{right}");
    assert!(right.is_healthy(), "{right}");
    let verdict = |n| forgotten.row(n).unwrap().verdict;
    assert_eq!(["wq", "wk", "wv"].map(verdict), [Verdict::Vanishing, Verdict::Vanishing, Verdict::Healthy], "{forgotten}");
    Ok(())
}

// 2. The backward pass skips attention altogether.

#[test]
fn attention_that_nothing_reaches_is_an_error_that_names_it() {
    let (model, x) = ((Attention::new(6, 0.4), Linear::new(6, 3, F64, Key::new(4)).unwrap()), normal(&[4, 6], 1.0, 5));
    let e = value_and_grad(&model, |(attention, head)| {
        let mixed = attention.forward(&x, 10.0, Clip::Derived)?;
        // The result of attention is thrown away: the residual stream goes on without it.
        assert!(mixed.is_tracked());
        head.forward(&x)?.square()?.mean(..)
    })
    .unwrap_err();
    assert!(e.is_disconnected(), "{e}");
    assert_eq!(e.names(), ["0.wq", "0.wk", "0.wv"]);
    for name in ["wq", "wk", "wv"] {
        assert!(e.to_string().contains(&format!("`0.{name}`")), "{e}");
    }
}

// 3. The missing derivative is "approximated".

const TOLD_ELSEWHERE: Math =
    Math { forward: "as the test says", vjp: "planted", kinks: "none", cost: "does not matter", references: "docs/book/postmortems.md" };

/// Writes what an op of the crate would give: the planted ops differ from it in their derivative only.
fn copy_out(from: &Tensor, y: &mut cpu::Out<'_>) -> Result<()> {
    y.slice::<f64>().copy_from_slice(&from.to_vec::<f64>()?);
    Ok(())
}

fn operand(x: &cpu::In<'_>) -> Result<Tensor> {
    Tensor::from_slice(&x.contiguous::<f64>()?, x.shape().clone())
}

/// `softmax(q kᵀ) v` with an outer product of averages for a derivative.
#[derive(Clone, Debug)]
struct Approximate;

impl Describe for Approximate {
    const NAME: &'static str = "approximate_attention";
    const MATH: Math = TOLD_ELSEWHERE;
    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        x.to_vec()
    }
    fn samples(_: &mut Gen) -> Vec<Sample<Self>> {
        Vec::new()
    }
}

impl Op for Approximate {
    const AUX: usize = 0;
    fn infer(&self, x: &[Spec]) -> Result<Specs> {
        Ok(Specs::from_iter([x[2].clone()]))
    }
    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let [q, k, v] = [operand(&x[0])?, operand(&x[1])?, operand(&x[2])?];
        copy_out(&q.matmul(&k.transpose(0, 1)?)?.softmax(-1)?.matmul(&v)?, &mut y[0])
    }
    fn cuda(&self, _: &[cuda::In<'_>], _: &mut [cuda::Out<'_>]) -> Result<()> {
        Err(cuda::no_kernel(Self::NAME))
    }
    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::list(x.iter().map(|&t| Some(t.clone())))
    }
    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        let (q, k, v, bar) = (saved.get(0)?, saved.get(1)?, saved.get(2)?, y_bar.only()?);
        let weights = q.matmul(&k.transpose(0, 1)?)?.softmax(-1)?;
        let size = bar.mean_keepdim(-1)?;
        let outer = |other: &Tensor| size.mul(&other.mean_keepdim(0)?);
        Ok(InputCotangents::from_iter([
            Some(outer(k)?),
            Some(outer(q)?),
            Some(weights.transpose(0, 1)?.matmul(bar)?.add(&v.mul_scalar(0.0)?)?),
        ]))
    }
}

#[test]
fn an_approximate_derivative_is_caught_with_its_place() {
    let x = [6, 7, 8].map(|seed| normal(&[4, 3], 0.7, seed));
    let e = gradcheck(|t| apply1(Approximate, &[&t[0], &t[1], &t[2]]), &x).unwrap_err();
    say(&format!("{e}"));
    assert_eq!(e.names(), ["input 0", "input 1"], "{e}"); // v's derivative is the right one
    let text = e.to_string();
    assert!(text.contains("WRONG, worst at [") && text.contains("tape") && text.contains("differences"), "{text}");
}

// 4. The gradient of the loss is wrong for vocabularies over 1024.

/// Mean cross-entropy whose derivative, beyond 1024 columns, normalises each block of 1024 by itself and forgets the mean.
#[derive(Clone, Debug)]
struct WrongLoss(Vec<i64>);

impl Describe for WrongLoss {
    const NAME: &'static str = "wrong_loss";
    const MATH: Math = TOLD_ELSEWHERE;
    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        x.to_vec()
    }
    fn samples(_: &mut Gen) -> Vec<Sample<Self>> {
        Vec::new()
    }
}

impl Op for WrongLoss {
    const AUX: usize = 0;
    fn infer(&self, x: &[Spec]) -> Result<Specs> {
        Ok(Specs::from_iter([Spec::new((), x[0].dtype)]))
    }
    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let targets = Tensor::from_slice(&self.0, [self.0.len()])?;
        copy_out(&operand(&x[0])?.cross_entropy(&targets)?, &mut y[0])
    }
    fn cuda(&self, _: &[cuda::In<'_>], _: &mut [cuda::Out<'_>]) -> Result<()> {
        Err(cuda::no_kernel(Self::NAME))
    }
    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(x[0])])
    }
    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        let x = saved.get(0)?;
        let (n, v) = (x.size(0)?, x.size(1)?);
        let blocks: Vec<Tensor> = (0..v).step_by(1024).map(|j| x.narrow(1, j, (v - j).min(1024))?.softmax(-1)).collect::<Result<_>>()?;
        let p = Tensor::concat(&blocks.iter().collect::<Vec<_>>(), 1)?;
        let mut one = vec![0f64; n * v];
        self.0.iter().enumerate().for_each(|(i, &t)| one[i * v + t as usize] = 1.0);
        let g = p.sub(&Tensor::from_vec(one, [n, v])?)?.mul_scalar(if v > 1024 { 1.0 } else { 1.0 / n as f64 })?;
        Ok(InputCotangents::from_iter([Some(g.mul(y_bar.only()?)?)]))
    }
}

#[test]
fn a_wrong_loss_gradient_for_large_vocabularies_is_found() -> Result<()> {
    let targets = |n: usize, v: usize| -> Vec<i64> { (0..n).map(|i| (i * 389 % v) as i64).collect() };
    let check = |v: usize| {
        let x = normal(&[3, v], 1.0, 12);
        gradcheck(|t| apply1(WrongLoss(targets(3, v)), &[&t[0]]), std::slice::from_ref(&x))
    };
    assert!(check(1024)?.inputs[0].ok);
    let e = check(1100).unwrap_err();
    say(&format!("{e}"));
    assert!(e.is_gradcheck() && e.to_string().contains("WRONG"), "{e}");
    // The same mistake while training: the head's gradient never shrinks, and every step is clipped.
    let (v, width, n) = (3000, 8, 48);
    let x = normal(&[n, width], 1.0, 13);
    let train = |wrong: bool| -> Result<(ClipTracker, f64, f64)> {
        let mut head = Linear::with(width, v, F64, Key::new(14), &LinearOptions { bias: true, init: Init::Normal { std: 0.02 } })?;
        let (mut sgd, mut clips, mut losses) = (Sgd { lr: 2.0, ..Sgd::default() }, ClipTracker::new(30), Vec::new());
        let ids = Tensor::from_slice(&targets(n, v), [n])?;
        for _ in 0..60 {
            let (loss, mut g) = value_and_grad(&head, |h| {
                let logits = h.forward(&x)?;
                if wrong { apply1(WrongLoss(targets(n, v)), &[&logits]) } else { logits.cross_entropy(&ids) }
            })?;
            clips.push(&g.clip_global_norm(1.0)?);
            sgd.step(&mut head, &g)?;
            losses.push(loss.item()?);
        }
        Ok((clips, losses[0], losses[59]))
    };
    let ((wrong, w0, w1), (right, r0, r1)) = (train(true)?, train(false)?);
    say(&format!("wrong loss {w0:.3} -> {w1:.3}: {wrong}\nright loss {r0:.3} -> {r1:.3}: {right}"));
    assert_eq!(wrong.rate(), 1.0);
    assert!(wrong.warning().is_some_and(|w| w.contains("100 %")));
    assert!(right.rate() < 0.1 && right.warning().is_none());
    // The loss falls all the same, so it tells nothing; the gradient that should fall with it does not.
    assert!(w1 < w0 - 1.0 && r1 < r0 - 1.0 && w1 > r1);
    assert!(wrong.norm_quantile(0.5) > 20.0 * right.norm_quantile(0.5));
    Ok(())
}

#[test]
fn misaligned_targets_are_found() -> Result<()> {
    let text: Vec<i64> = "The gradient of a tape is derived, not written. ".bytes().map(i64::from).collect();
    let batch = |shift: usize| Tensor::from_slice(&[&text[shift..shift + 12], &text[20 + shift..32 + shift]].concat(), [2, 12]);
    let decode = |ids: &[i64]| ids.iter().map(|&c| char::from(u8::try_from(c).unwrap_or(b'?'))).collect::<String>();
    let found = |by: usize| Alignment::default().check(&batch(0)?, &batch(by)?, decode);
    assert!(found(1)?.is_aligned());
    let twice = found(2)?;
    say(&format!("{twice}"));
    assert!(matches!(twice.findings[..], [Misalignment::Shifted { by: 2, share }] if share == 1.0), "{twice}");
    assert!(twice.to_string().contains("off by 1") && twice.to_string().contains("\"e gradient o\""), "{twice}");
    assert!(matches!(found(0)?.findings[..], [Misalignment::Shifted { by: 0, .. }]));
    Ok(())
}

// 5. A decoder with grouped queries, rotary positions, a cache and biases runs, and prints garbage.

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    None,
    RopeBase,
    CacheSlice,
    NoQkvBias,
    Transposed,
}

#[derive(Clone)]
struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
}
module!(SelfAttention { q_proj, k_proj, v_proj, o_proj });

#[derive(Clone)]
struct FeedForward {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}
module!(FeedForward { gate_proj, up_proj, down_proj });

#[derive(Clone)]
struct RmsNorm {
    weight: Param,
}
module!(RmsNorm { weight });

#[derive(Clone)]
struct Layer {
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    mlp: FeedForward,
}
module!(Layer { input_layernorm, self_attn, post_attention_layernorm, mlp });

#[derive(Clone)]
struct Decoder {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    lm_head: Linear,
    mistake: Mistake,
}
module!(Decoder { embed_tokens, layers, norm, lm_head } skip { mistake });

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const WIDTH: usize = 16;
const HEAD: usize = WIDTH / HEADS;

type Cache = RefCell<Vec<Option<(Tensor, Tensor)>>>;

impl RmsNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.rms_norm(Some(&self.weight), 1e-6)
    }
}

impl Decoder {
    fn new(mistake: Mistake) -> Result<Self> {
        let linear = |i, o, bias, k: u64| Linear::with(i, o, F64, Key::new(100 + k), &LinearOptions { bias, ..LinearOptions::default() });
        let norm = |k| -> Result<RmsNorm> { Ok(RmsNorm { weight: normal(&[WIDTH], 0.2, k).add_scalar(1.0)?.into() }) };
        let mut layers = Vec::new();
        for l in 0..2 {
            let k = 20 * l;
            layers.push(Layer {
                input_layernorm: norm(k)?,
                self_attn: SelfAttention {
                    q_proj: linear(WIDTH, WIDTH, true, k)?,
                    k_proj: linear(WIDTH, KV_HEADS * HEAD, true, k + 1)?,
                    v_proj: linear(WIDTH, KV_HEADS * HEAD, true, k + 2)?,
                    o_proj: linear(WIDTH, WIDTH, false, k + 3)?,
                },
                post_attention_layernorm: norm(k + 7)?,
                mlp: FeedForward {
                    gate_proj: linear(WIDTH, 24, false, k + 4)?,
                    up_proj: linear(WIDTH, 24, false, k + 5)?,
                    down_proj: linear(24, WIDTH, false, k + 6)?,
                },
            });
        }
        let mut model = Decoder {
            embed_tokens: Embedding::normal(19, WIDTH, 1.0, F64, Key::new(90))?,
            layers,
            norm: norm(91)?,
            lm_head: linear(WIDTH, 19, false, 92)?,
            mistake,
        };
        // Mistakes of a loader: the second layer's weights.
        let attention = &mut model.layers[1].self_attn;
        match mistake {
            Mistake::Transposed => attention.q_proj.weight = attention.q_proj.weight.transpose(0, 1)?.into(),
            Mistake::NoQkvBias => attention.k_proj.bias = None,
            _ => {}
        }
        Ok(model)
    }

    /// Logits of tokens that follow what the cache holds.
    fn forward(&self, tokens: &Tensor, start: usize, cache: &Cache) -> Result<Tensor> {
        let time = tokens.size(1)?;
        let mut x = self.embed_tokens.forward(tokens)?;
        for (i, l) in self.layers.iter().enumerate() {
            let h = l.input_layernorm.forward(&x)?;
            let heads = |t: Tensor, n: usize| t.reshape([1, time, n, HEAD])?.permute([0, 2, 1, 3]);
            let base = if self.mistake == Mistake::RopeBase && i == 1 { 10_000.0 } else { 1_000_000.0 };
            let rotary = RopeOptions { base, positions: RopePositions::From(start), ..RopeOptions::default() };
            let q = heads(l.self_attn.q_proj.forward(&h)?, HEADS)?.rope(&rotary)?;
            let mut k = heads(l.self_attn.k_proj.forward(&h)?, KV_HEADS)?.rope(&rotary)?;
            let mut v = heads(l.self_attn.v_proj.forward(&h)?, KV_HEADS)?;
            if let Some((old_k, old_v)) = &cache.borrow()[i] {
                // The mistake: the last cached position is left out.
                let keep = old_k.size(2)? - usize::from(self.mistake == Mistake::CacheSlice && i == 1);
                k = Tensor::concat(&[&old_k.narrow(2, 0, keep)?, &k], 2)?;
                v = Tensor::concat(&[&old_v.narrow(2, 0, keep)?, &v], 2)?;
            }
            cache.borrow_mut()[i] = Some((k.clone(), v.clone()));
            let y = q.scaled_dot_product_attention(&k, &v, None, &SdpaOptions::causal())?;
            x = x.add(&l.self_attn.o_proj.forward(&y.permute([0, 2, 1, 3])?.reshape([1, time, WIDTH])?)?)?;
            x.tap(|| format!("layers.{i}.middle"));
            let h = l.post_attention_layernorm.forward(&x)?;
            let gated = l.mlp.gate_proj.forward(&h)?.silu()?.mul(&l.mlp.up_proj.forward(&h)?)?;
            x = x.add(&l.mlp.down_proj.forward(&gated)?)?;
            x.tap(|| format!("layers.{i}"));
        }
        self.lm_head.forward(&self.norm.forward(&x)?)
    }

    /// Five tokens at once, then one more from the cache.
    fn run(&self) -> Result<Tensor> {
        let cache = RefCell::new(vec![None; self.layers.len()]);
        self.forward(&Tensor::from_slice(&[3i64, 14, 1, 5, 9], [1, 5])?, 0, &cache)?;
        self.forward(&Tensor::from_slice(&[2i64], [1, 1])?, 5, &cache)
    }
}

#[test]
fn a_trace_names_the_first_wrong_layer_of_a_decoder() -> Result<()> {
    let file = std::env::temp_dir().join(format!("cotangent-trace-{}.safetensors", std::process::id()));
    let (reference_logits, trace) = Trace::of(&Decoder::new(Mistake::None)?, Decoder::run)?;
    trace.save(&file)?;
    let reference = Trace::load(&file)?;
    std::fs::remove_file(&file).unwrap();
    let compare = |mistake| -> Result<_> {
        let (logits, trace) = Trace::of(&Decoder::new(mistake)?, Decoder::run)?;
        let found = trace.compare(&reference, 1e-9)?;
        say(&format!("{mistake:?}: {}", found.verdict().unwrap_or_else(|| "agrees".into())));
        Ok((logits.sub(&reference_logits)?.abs()?.max(..)?.item()?, found))
    };
    let (apart, found) = compare(Mistake::None)?;
    assert!(apart == 0.0 && found.first().is_none() && found.rows.len() > 60 && found.only_there.is_empty(), "{found}");
    for (mistake, name, words) in [
        (Mistake::RopeBase, "layers.1.self_attn.o_proj:input", "between `layers.1.self_attn.v_proj` and `layers.1.self_attn.o_proj`"),
        (Mistake::CacheSlice, "layers.1.self_attn.o_proj#1:input", "`layers.1.self_attn.v_proj#1`"),
        (Mistake::NoQkvBias, "layers.1.self_attn.k_proj", "a bias is missing or wrong"),
        (Mistake::Transposed, "layers.1.self_attn.q_proj", "is given the same input and gives another output"),
    ] {
        let (apart, found) = compare(mistake)?;
        assert!(apart > 1e-3, "{mistake:?} does not show in the logits: {apart}");
        assert_eq!(found.first().unwrap().name, name, "{found}");
        assert!(found.verdict().unwrap().contains(words), "{found}");
    }
    Ok(())
}

// Depth: gradients that vanish by the model's own doing.

#[test]
fn gradients_vanish_over_a_thousand_steps_of_a_plain_recurrence() -> Result<()> {
    const STEPS: usize = 1000;
    let (w, u) = (normal(&[16, 16], 0.9 / 4.0, 31), normal(&[16, 4], 0.5, 32));
    let x = normal(&[STEPS, 1, 4], 1.0, 33);
    let tracer = Tracer::new();
    value_and_grad(&(w, u), |m| {
        tracer.attach(m)?;
        let mut h = Tensor::zeros([1, 16], F64)?;
        for t in 0..STEPS {
            h = h.linear(&m.0, None)?.add(&x.select(0, t as isize)?.linear(&m.1, None)?)?.tanh()?;
            h.tap(|| format!("h.{t}"));
        }
        h.square()?.sum(..)
    })?;
    let trace = tracer.finish();
    let norm = |t: usize| -> Result<f64> { trace.get(&format!("h.{t}:grad")).unwrap().square()?.sum(..)?.sqrt()?.item() };
    let curve = DepthProfile::new((0..STEPS).step_by(100).chain([STEPS - 1]).map(|t| (format!("h.{t}"), norm(t).unwrap())))?;
    say(&format!("recurrence: {curve}"));
    assert_eq!(curve.verdict(), Verdict::Vanishing);
    assert!(curve.decades() > 20.0);
    Ok(())
}

/// Units that saturate give more than their slope passes back; where the norm stands decides what becomes of it. (With
/// ReLU both arrangements keep their gradients: what a branch adds to the variance, its slope adds to the gradient.)
#[test]
fn pre_norm_keeps_gradients_at_depth_64_and_post_norm_loses_them() -> Result<()> {
    const WIDE: usize = 32;
    let x = normal(&[16, WIDE], 1.0, 41);
    let target = normal(&[16, WIDE], 1.0, 42);
    let norm = |x: &Tensor| x.layer_norm(1, None, None, 1e-5);
    let profile = |post: bool, relu: bool| -> Result<DepthProfile> {
        let w = |k, gain: f64| Param::from(normal(&[WIDE, WIDE], gain / (WIDE as f64).sqrt(), 200 + k));
        let net: Vec<(Param, Param)> = (0..64u64).map(|l| (w(2 * l, 1.0), w(2 * l + 1, 2.0))).collect();
        let (_, g) = value_and_grad(&net, |layers| {
            let mut x = x.clone();
            for (up, down) in layers {
                let f = |x: &Tensor| {
                    let h = x.linear(up, None)?;
                    if relu { h.relu()?.mul_scalar(0.5)?.linear(down, None) } else { h.sigmoid()?.linear(down, None) }
                };
                x = if post { norm(&x.add(&f(&x)?)?)? } else { x.add(&f(&norm(&x)?)?)? };
            }
            norm(&x)?.mul(&target)?.mean(..)
        })?;
        Ok(HealthReport::new(&net, &g)?.depth())
    };
    let (pre, post) = (profile(false, false)?, profile(true, false)?);
    let every = |p: &DepthProfile| DepthProfile::new(p.points.iter().step_by(9).cloned()).unwrap();
    say(&format!("64 layers. pre-norm: {}post-norm: {}", every(&pre), every(&post)));
    assert_eq!((pre.points.len(), pre.verdict(), post.verdict()), (64, Verdict::Healthy, Verdict::Vanishing));
    assert!(pre.decades() < 1.0 && post.decades() > 5.0, "{pre}{post}");
    for post in [false, true] {
        let even = profile(post, true)?;
        say(&format!("ReLU, post-norm {post}: {:.1} decades", even.decades()));
        assert!(even.decades().abs() < 1.0, "{even}");
    }
    Ok(())
}
