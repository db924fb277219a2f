//! What is no method of `Tensor`: layers, optimizers, schedules, layouts, caches, data.

use super::Pick;
use cotangent::io::{RopeConfig, RopeScaling};
use cotangent::nn::{
    Activation, AttentionConfig, Conv2d, ConvTranspose1d, Dropout, Embedding, Fans, GatedMlp, Gpt, GptConfig, GruCell, Init, KvCache,
    Layer, LayerNorm, Linear, LinearOptions, LstmCell, Mlp, MultiHeadAttention, Residual, RmsNorm, RnnCell, Rotation, Sequential,
};
use cotangent::ops::{Conv2dOptions, ConvTranspose1dOptions};
use cotangent::optim::{Adam, AdamW, Decay, Ema, LossScaler, Muon, Schedule, Sgd, Warmup, WarmupCosine};
use cotangent::train::{Batches, Order, Prefetch, Rows, Sampling, Tokens, Windows, document_mask};
use cotangent::{Axes, DType, F32, I64, Layout, Module, Result, Shape, Tensor, value_and_grad};

/// Gradient of a layer's sum: shapes and dtypes are those of the parameters.
fn trained<M: Module + Clone>(m: &M, f: impl Fn(&M) -> Result<Tensor>) -> Result<()> {
    let (_, grads) = value_and_grad(m, |m| f(m)?.sum(..))?;
    for ((name, p), (_, g)) in m.trainable().iter().zip(grads.named()) {
        assert_eq!((p.shape(), p.dtype()), (g.shape(), g.dtype()), "{name}");
    }
    assert!(!m.names().is_empty());
    Ok(())
}

/// A width: mostly one that memory holds.
fn width(g: &mut Pick) -> usize {
    if g.rarely(10) { g.size() } else { g.one(&[1, 2, 4, 6, 8]) }
}

fn input(g: &mut Pick, width: usize, dtype: DType) -> Tensor {
    let lead = g.one(&[vec![], vec![3], vec![2, 3], vec![0]]);
    let wrong = usize::from(g.rarely(10));
    g.tensor(&[&lead[..], &[width.min(64) + wrong]].concat(), dtype)
}

fn activation(g: &mut Pick) -> Activation {
    g.one(&[Activation::Relu, Activation::Gelu, Activation::Silu, Activation::Tanh])
}

fn layout(g: &mut Pick) -> Result<Layout> {
    let shape = if g.rarely(4) { vec![g.size(), g.size(), g.size()] } else { g.extents() };
    if g.rarely(2) {
        return Ok(Layout::contiguous(shape));
    }
    let strides: Vec<usize> = shape.iter().map(|_| g.size()).collect();
    Layout::from_parts(shape.into(), strides.into(), g.size())
}

/// An optimizer's step with gradients of the model, or of another.
macro_rules! step {
    ($optimizer:expr) => {
        |g| {
            let dtype = g.float();
            let (a, b) = (g.extents(), g.extents());
            let mut model = vec![g.tensor(&a, dtype), g.tensor(&b, dtype)];
            let shape = model[0].shape().clone();
            let (_, mut grads) = value_and_grad(&model, |m| m[0].square()?.sum(..)?.add(&m[1].sum(..)?))?;
            if g.rarely(8) {
                let (w, key) = (g.number(), g.number());
                grads.clip_global_norm(w)?;
                grads.scale(key)?;
            }
            let mut optimizer = ($optimizer)(g);
            optimizer.step(&mut model, &grads)?;
            optimizer.step(&mut model, &grads)?;
            assert_eq!((model[0].shape(), model[0].dtype()), (&shape, dtype));
            Ok(())
        }
    };
}

pub(super) const MODULES: &[(&str, fn(&mut Pick) -> Result<()>)] = &[
    ("Linear", |g| {
        let (i, o, d) = (width(g), width(g), g.float());
        let l = Linear::with(i, o, d, g.key(), &LinearOptions { bias: g.rarely(2), ..LinearOptions::default() })?;
        let x = input(g, i, d);
        trained(&l, |l| l.forward(&x))
    }),
    ("Conv2d", |g| {
        let (i, o, k, d) = (width(g), width(g), g.one(&[1, 2, 3, 0]), g.float());
        let options = Conv2dOptions { padding: g.below(3).into(), groups: g.one(&[1, 1, 2]), ..Conv2dOptions::default() };
        let l = Conv2d::with(i, o, [k, g.one(&[1, 2])], d, g.key(), &options)?;
        let x = g.tensor(&[2, i.min(64), 4, 3], d);
        trained(&l, |l| l.forward(&x))
    }),
    ("ConvTranspose1d", |g| {
        let (i, o, k, d) = (width(g), width(g), g.one(&[1, 2, 3, 0]), g.float());
        let options = ConvTranspose1dOptions { stride: [g.one(&[1, 2])], groups: g.one(&[1, 1, 2]), ..ConvTranspose1dOptions::default() };
        let l = ConvTranspose1d::with(i, o, [k], d, g.key(), &options)?;
        let x = g.tensor(&[2, i.min(64), 4], d);
        trained(&l, |l| l.forward(&x))
    }),
    ("Embedding", |g| {
        let (n, w, d) = (width(g), width(g), g.float());
        let e = Embedding { weight: Tensor::normal([n, w], 0.0, 1.0, d, g.key())?.into() };
        let s = g.extents();
        let ids = g.ids(&s, n.min(100));
        trained(&e, |e| e.forward(&ids))
    }),
    ("LayerNorm", |g| {
        let (w, d) = (width(g), g.float());
        let l = if g.rarely(2) { LayerNorm::new(w, d)? } else { LayerNorm::no_bias(w, d)? };
        let x = input(g, w, d);
        trained(&l, |l| l.forward(&x))
    }),
    ("RmsNorm", |g| {
        let (w, d) = (width(g), g.float());
        let l = RmsNorm::new(w, 1e-6, d)?;
        let x = input(g, w, d);
        trained(&l, |l| l.forward(&x))
    }),
    ("Mlp", |g| {
        let (w, h, d) = (width(g), width(g), g.float());
        let m = if g.rarely(2) { Mlp::new(w, h, activation(g), d, g.key())? } else { Mlp::no_bias(w, h, activation(g), d, g.key())? };
        let (x, key) = (input(g, w, d), g.key());
        trained(&m, |m| m.forward(&x, Some(key)))
    }),
    ("GatedMlp", |g| {
        let (w, h, d) = (width(g), width(g), g.float());
        let m = GatedMlp::new(w, h, activation(g), d, g.key())?;
        let x = input(g, w, d);
        trained(&m, |m| m.forward(&x))
    }),
    ("RnnCell", |g| {
        let (i, h, d) = (width(g), width(g), g.float());
        let c = RnnCell::new(i, h, d, g.key())?;
        let (x, s) = (g.tensor(&[2, i.min(64)], d), g.tensor(&[2, h.min(64)], d));
        trained(&c, |c| c.forward(&x, &s))
    }),
    ("LstmCell", |g| {
        let (i, h, d) = (width(g), width(g), g.float());
        let c = LstmCell::new(i, h, d, g.key())?;
        let (x, s) = (g.tensor(&[2, i.min(64)], d), g.tensor(&[2, h.min(64)], d));
        trained(&c, |c| c.forward(&x, (&s, &s))?.0.square())
    }),
    ("GruCell", |g| {
        let (i, h, d) = (width(g), width(g), g.float());
        let c = GruCell::new(i, h, d, g.key())?;
        let (x, s) = (g.tensor(&[2, i.min(64)], d), g.tensor(&[2, h.min(64)], d));
        trained(&c, |c| c.forward(&x, &s))
    }),
    ("MultiHeadAttention", |g| {
        let config = AttentionConfig {
            width: width(g),
            heads: if g.rarely(8) { g.size() } else { 4 },
            kv_heads: if g.rarely(8) { g.size() } else { g.one(&[1, 2, 4]) },
            head: width(g),
            qkv_bias: g.rarely(2),
            window: if g.rarely(3) { Some((g.size(), g.size())) } else { None },
            causal: g.rarely(2),
            ..AttentionConfig::default()
        };
        let d = g.float();
        let m = MultiHeadAttention::new(&config, d, g.key())?;
        let t = g.one(&[0, 1, 5]);
        let x = g.tensor(&[2, t, config.width.min(64)], d);
        trained(&m, |m| m.forward(&x, None))
    }),
    ("Gpt", |g| {
        let config = GptConfig {
            vocabulary: width(g),
            context: width(g),
            layers: if g.rarely(8) { g.size() } else { 1 },
            heads: if g.rarely(8) { g.size() } else { g.one(&[1, 2]) },
            width: width(g),
            ..GptConfig::default()
        };
        let gpt = Gpt::new(&config, F32, g.key())?;
        let t = g.below(config.context.min(6) + 1);
        let ids = g.ids_of(I64, &[2, t], config.vocabulary.min(50));
        trained(&gpt, |m| m.loss(&ids, &ids, None))
    }),
    ("Sequential", |g| {
        let (w, d) = (g.one(&[1, 2, 4]), g.float());
        let mut net = Sequential::new();
        for _ in 0..g.below(4) {
            net = match g.below(4) {
                0 => net.push(Linear::new(w, w, d, g.key())?),
                1 => net.push(activation(g)),
                2 => net.push(Dropout { p: g.one(&[0.0, 0.5, 2.0]) }),
                _ => net.push(Residual { inner: Linear::no_bias(w, w, d, g.key())? }),
            };
        }
        let (x, key) = (input(g, w, d), g.key());
        net.call(&x, Some(key)).map(drop)
    }),
    ("Rotation", |g| {
        let (t, half, d) = (g.below(5), g.below(4), g.float());
        let frequencies: Vec<f64> = (0..half).map(|_| g.number()).collect();
        let positions: Vec<usize> = (0..t).map(|_| g.size()).collect();
        let r = Rotation::new(&frequencies, g.number(), &[positions], d)?;
        r.turn(&g.tensor(&[1, 2, t, 2 * half], d)).map(drop)
    }),
    ("Init", |g| {
        let shape = if g.rarely(3) { vec![g.size(), g.size(), g.size()] } else { g.extents() };
        let (gain, d) = (g.number(), g.dtype());
        let init =
            g.one(&[Init::XavierUniform { gain }, Init::KaimingNormal { gain }, Init::Normal { std: gain }, Init::Torch, Init::Zeros]);
        let _ = Fans::of(&shape.clone().into());
        init.tensor(shape, d, g.key()).map(drop)
    }),
    ("KvCache", |g| {
        let (mut cache, d, h) = (KvCache::with_capacity(g.size()), g.float(), g.one(&[1, 2, 0]));
        for _ in 0..g.below(4) {
            let t = g.one(&[0, 1, 3, 130]);
            let wide = h + usize::from(g.rarely(20));
            let k = g.tensor(&[1, 2, t, wide], d);
            let before = cache.len();
            cache.append(k.clone(), k)?;
            assert_eq!(cache.len(), before + t);
            if g.rarely(4) {
                cache.truncate(g.size())?;
            }
        }
        cache.get().map(drop)
    }),
    ("Sgd", step!(|g: &mut Pick| Sgd { lr: g.number(), momentum: 0.9, ..Sgd::default() })),
    ("Adam", step!(|g: &mut Pick| Adam { lr: g.number(), ..Adam::default() })),
    ("AdamW", step!(|g: &mut Pick| AdamW { lr: g.number(), ..AdamW::default() })),
    ("Muon", step!(|g: &mut Pick| Muon { lr: g.number(), ..Muon::default() })),
    ("Ema", |g| {
        let (s, d) = (g.extents(), g.float());
        let (mut model, decay) = (vec![g.tensor(&s, d)], g.one(&[0.0, 0.5, 0.999, 1.0, -1.0]));
        let mut ema = Ema::new(&model, decay)?;
        model[0] = g.tensor(&s, d);
        ema.update(&model)
    }),
    ("LossScaler", |g| {
        let mut scaler = LossScaler {
            scale: g.number(),
            good: g.size() as u64,
            skipped: g.size() as u64,
            interval: g.size() as u64,
            ..LossScaler::default()
        };
        let w = g.tensor(&[3], F32);
        let (_, mut grads) = value_and_grad(&w, |w| scaler.scale(&w.sum(..)?))?;
        scaler.unscale(&mut grads).map(drop)
    }),
    ("Schedule", |g| {
        let (peak, floor, warmup, end, from) = (g.number(), g.number(), g.size(), g.size(), g.size());
        let decay = g.one(&[
            Decay::Constant,
            Decay::Cosine { end, floor },
            Decay::Linear { end, floor },
            Decay::InverseSqrt,
            Decay::Wsd { from, end, floor },
        ]);
        let (w, c) = (Warmup { peak, warmup, decay }, WarmupCosine { peak, floor, warmup, end });
        for step in [0, 1, g.size(), g.size(), usize::MAX] {
            let _ = (w.at(step), c.at(step));
        }
        w.check().and_then(|()| c.check())
    }),
    ("Layout", |g| {
        let l = layout(g)?;
        let _ = (l.numel(), l.end(), l.is_contiguous(), l.indices().take(20).count());
        let (a, start, len, step) = (g.below(4), g.size(), g.size(), g.size());
        if let Ok(s) = l.slice(a, start, len, step) {
            let _ = (s.numel(), s.end(), s.indices().take(5).count());
        }
        let order: Vec<usize> = (0..l.rank()).rev().collect();
        let turned = l.permute(&order)?;
        let to = Shape::from(vec![g.size(), g.size()]);
        let _ = (turned.reshape(&to), turned.reshape(l.shape()), l.expand(&to), turned.end());
        Ok(())
    }),
    ("Shape", |g| {
        let s = Shape::from(vec![g.size(), g.size(), g.size()]);
        let t = Shape::from(vec![g.size(), g.size()]);
        let axes = Axes::from(&g.axes(3)[..]);
        let _ = (s.numel(), s.checked_numel(), s.broadcast(&t), s.axis(g.whole()), axes.resolve(3), s.to_string());
        t.checked_numel().map(drop)
    }),
    ("RopeConfig", |g| {
        let scaling = g.one(&[
            RopeScaling::None,
            RopeScaling::Linear { factor: 2.0 },
            RopeScaling::Dynamic { factor: 2.0, original_positions: 16 },
            RopeScaling::Llama3 { factor: 8.0, original_positions: 64, low_freq_factor: 1.0, high_freq_factor: 4.0 },
        ]);
        RopeConfig { theta: g.number(), scaling }.frequencies(g.size(), g.size()).map(drop)
    }),
    ("Windows", |g| {
        let n = g.below(60);
        let tokens = Tokens::from((0..n as u32).collect::<Vec<u32>>());
        let (batch, context) = (if g.rarely(4) { g.size() } else { 2 }, if g.rarely(4) { g.size() } else { 3 });
        let order = g.one(&[Order::Random, Order::Shuffled, Order::Sequential]);
        let data = Windows::new(tokens, batch, context, order, g.key())?;
        let _ = data.epoch();
        data.batch(g.size() as u64).map(drop)
    }),
    ("Tokens", |g| {
        let tokens = Tokens::from((0..30).collect::<Vec<u32>>());
        let (a, b) = tokens.split_at(if g.rarely(3) { g.size() } else { g.below(31) })?;
        b.read(g.below(3), g.size()).and_then(|_| a.read(0, a.len())).map(drop)
    }),
    ("Rows", |g| {
        let n = g.below(9);
        let all = vec![g.tensor(&[n, 2], F32), g.ids_of(I64, &[n], 5)];
        let order = g.one(&[Order::Random, Order::Shuffled, Order::Sequential]);
        let data = Rows::new(all, if g.rarely(4) { g.size() } else { 1 + g.below(3) }, order, g.key())?;
        data.batch(g.size() as u64).map(drop)
    }),
    ("Prefetch", |g| {
        let data = Prefetch::new(|i: u64| Ok(i), g.size());
        let at = (g.size() as u64).min(u64::MAX - 2);
        assert_eq!((data.batch(at)?, data.batch(at + 1)?), (at, at + 1));
        Ok(())
    }),
    ("document_mask", |g| {
        let (b, t) = (g.below(3), g.below(7));
        let ids = g.ids_of(I64, &[b, t], 4);
        document_mask(&ids, g.one(&[0, 3, -1])).map(drop)
    }),
    ("Sampling", |g| {
        let s = Sampling {
            temperature: g.number(),
            top_k: if g.rarely(2) { None } else { Some(g.size()) },
            top_p: g.number(),
            min_p: g.number(),
            repetition_penalty: if g.rarely(3) { g.number() } else { 1.0 },
        };
        let s = if g.rarely(2) { Sampling { temperature: 0.7, top_p: 0.9, min_p: 0.05, ..s } } else { s };
        let logits: Vec<f64> = (0..g.below(20)).map(|_| g.number()).collect();
        let token = s.draw_after(&logits, &[0, 1, 1 << 31], g.one(&[0.0, 0.5, 0.999]))?;
        assert!(token < logits.len());
        Ok(())
    }),
];
