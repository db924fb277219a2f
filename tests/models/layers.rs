//! Layers: their formulas, gradients, names, caches and initial values.

use cotangent::io::ModuleFile;
use cotangent::nn::{
    Activation, AdaptiveAvgPool1d, AdaptiveAvgPool2d, AdaptiveAvgPool3d, AdaptiveMaxPool1d, AdaptiveMaxPool2d, AdaptiveMaxPool3d, Attend,
    AttentionConfig, AvgPool1d, AvgPool2d, AvgPool3d, BatchNorm2d, Block, CausalSelfAttention, Conv1d, Conv2d, Conv3d, ConvTranspose1d,
    ConvTranspose2d, ConvTranspose3d, DecoderLayer, Dropout, Embedding, Fans, Flatten, Func, GatedMlp, GroupNorm, GruCell, Init,
    InstanceNorm, KvCache, Layer, LayerNorm, Linear, LocalResponseNorm, LstmCell, MaxPool1d, MaxPool2d, MaxPool3d, Mlp, MultiHeadAttention,
    NormOrder, Pass, PixelShuffle, Residual, RmsNorm, RnnCell, Sequential, Upsample,
};
use cotangent::ops::{Conv2dOptions, ConvTranspose2dOptions, RopeOptions};
use cotangent::{BF16, BufferUpdates, F32, F64, Key, Module, Result, Tensor, U8, gradcheck_module, value_and_grad};

fn randn(shape: &[usize], k: u64) -> Tensor {
    Tensor::randn(shape, F64, Key::new(k)).unwrap()
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_f64_vec().unwrap()
}

fn assert_close(a: &Tensor, b: &Tensor, tolerance: f64) {
    assert_eq!(a.shape(), b.shape());
    let worst = a.sub(b).unwrap().abs().unwrap().max(..).unwrap().item().unwrap();
    assert!(worst <= tolerance, "differ by {worst:e}");
}

fn config(rope: bool, causal: bool) -> AttentionConfig {
    let rope = rope.then(RopeOptions::default);
    AttentionConfig { width: 6, heads: 4, kv_heads: 2, head: 2, qkv_bias: true, rope, causal, ..AttentionConfig::default() }
}

/// A model with random numbers in place of ones and zeros, which would hide mistakes.
fn shaken<M: Module + Clone>(m: &M) -> M {
    let mut k = 1000;
    m.map(|_, t| {
        k += 1;
        t.add(&randn(t.shape(), k).mul_scalar(0.3)?)
    })
    .unwrap()
}

fn check<M: Module + Clone>(what: &str, m: &M, f: impl Fn(&M) -> Result<Tensor>) {
    let m = shaken(m);
    let report = gradcheck_module(&m, f).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(report.inputs.len(), m.names().len(), "{what}");
}

fn decoder(order: NormOrder) -> DecoderLayer {
    DecoderLayer {
        self_attn: MultiHeadAttention::new(&config(true, true), F64, Key::new(1)).unwrap(),
        mlp: GatedMlp::new(6, 5, Activation::Silu, F64, Key::new(2)).unwrap(),
        input_layernorm: RmsNorm::new(6, 1e-5, F64).unwrap(),
        post_attention_layernorm: RmsNorm::new(6, 1e-5, F64).unwrap(),
        order,
    }
}

fn gpt_attention() -> CausalSelfAttention {
    let linear = |o, k| Linear::new(6, o, F64, Key::new(k)).unwrap();
    CausalSelfAttention { c_attn: linear(18, 1), c_proj: linear(6, 2), heads: 3, dropout: 0.0 }
}

fn gpt_block(order: NormOrder) -> Block {
    Block {
        ln_1: LayerNorm::new(6, F64).unwrap(),
        attn: gpt_attention(),
        ln_2: LayerNorm::new(6, F64).unwrap(),
        mlp: Mlp::new(6, 5, Activation::GeluTanh, F64, Key::new(3)).unwrap(),
        order,
    }
}

#[test]
fn every_layer_passes_a_gradient_check() {
    let (x, row) = (randn(&[1, 3, 6], 7), randn(&[2, 6], 8));
    check("rms_norm", &RmsNorm::new(6, 1e-5, F64).unwrap(), |m| m.forward(&x));
    use Activation::{Gelu, GeluTanh, Relu, ReluSquared, Sigmoid, Silu, Tanh};
    for activation in [Gelu, GeluTanh, Relu, ReluSquared, Silu, Tanh, Sigmoid] {
        check("mlp", &Mlp::new(6, 5, activation, F64, Key::new(1)).unwrap(), |m| m.forward(&x, None));
        check("gated mlp", &GatedMlp::new(6, 5, activation, F64, Key::new(1)).unwrap(), |m| m.forward(&x));
    }
    for (rope, causal) in [(true, true), (true, false), (false, true)] {
        // Without a rotation the key bias shifts all scores of a query alike: its gradient is zero.
        let attention = MultiHeadAttention::new(&AttentionConfig { qkv_bias: rope, ..config(rope, causal) }, F64, Key::new(1)).unwrap();
        check("attention", &attention, |m| m.forward(&x, None));
    }
    for order in [NormOrder::Pre, NormOrder::Post] {
        check("decoder layer", &decoder(order), |m| m.forward(&x, None));
        check("block", &gpt_block(order), |m| m.forward(&x, None));
        check("block in training", &gpt_block(order), |m| m.forward(&x, Some(Key::new(5))));
    }
    let (h, c) = (randn(&[2, 4], 9), randn(&[2, 4], 10));
    check("rnn", &RnnCell::new(6, 4, F64, Key::new(1)).unwrap(), |m| m.forward(&row, &m.forward(&row, &h)?));
    check("gru", &GruCell::new(6, 4, F64, Key::new(1)).unwrap(), |m| m.forward(&row, &m.forward(&row, &h)?));
    check("lstm", &LstmCell::new(6, 4, F64, Key::new(1)).unwrap(), |m| {
        let (h, c) = m.forward(&row, (&h, &c))?;
        let (h, c) = m.forward(&row, (&h, &c))?;
        Tensor::concat(&[&h, &c], 0)
    });
    let ids = Tensor::from_slice(&[0i64, 2, 2], [3]).unwrap();
    check("tied embedding", &Embedding::normal(4, 3, 1.0, F64, Key::new(1)).unwrap(), |m| m.unembed(&m.forward(&ids)?.tanh()?));
    let net = Sequential::new()
        .push(Linear::new(6, 4, F64, Key::new(1)).unwrap())
        .push(Activation::Silu)
        .push(RmsNorm::new(4, 1e-5, F64).unwrap());
    check("sequential", &net, |m| m.call(&x, None));
}

#[test]
fn convolutions_pass_a_gradient_check_and_start_as_pytorchs() -> Result<()> {
    let image = randn(&[2, 4, 5, 4], 3);
    let options = Conv2dOptions { stride: [2, 1], padding: 1.into(), groups: 2, ..Conv2dOptions::default() };
    check("conv", &Conv2d::with(4, 6, [3, 2], F64, Key::new(1), &options)?, |m| m.forward(&image));
    check("conv without a bias", &Conv2d::no_bias(4, 6, [3, 2], F64, Key::new(1), &options)?, |m| m.forward(&image));
    let back = ConvTranspose2dOptions { stride: [2, 3], output_padding: [1, 2], groups: 2, ..ConvTranspose2dOptions::default() };
    check("transposed", &ConvTranspose2d::with(4, 6, [3, 2], F64, Key::new(1), &back)?, |m| m.forward(&image));
    check("transposed without a bias", &ConvTranspose2d::no_bias(4, 6, [3, 2], F64, Key::new(1), &back)?, |m| m.forward(&image));
    let (line, volume) = (randn(&[1, 2, 6], 4), randn(&[1, 2, 3, 2, 4], 5));
    let key = Key::new(2);
    check("conv1d", &(Conv1d::new(2, 3, [3], F64, key)?, ConvTranspose1d::new(3, 2, [2], F64, key)?), |m| m.call(&line, None));
    let pair = (Conv3d::new(2, 3, [2, 1, 3], F64, key)?, Activation::Silu, ConvTranspose3d::new(3, 2, [2, 1, 1], F64, key)?);
    assert_eq!(pair.names(), ["0.weight", "0.bias", "2.weight", "2.bias"]);
    check("conv3d", &pair, |m| m.call(&volume, None));

    // Uniform in ±1/√(channels of a group · kernel), for the transposed one by its second extent.
    let conv = Conv2d::with(32, 64, [3, 5], F64, key, &Conv2dOptions { groups: 2, ..Conv2dOptions::default() })?;
    let back = ConvTranspose2d::new(64, 16, [3, 5], F64, key)?;
    for (weight, bias, shape) in [(&conv.weight, &conv.bias, [64, 16, 3, 5]), (&back.weight, &back.bias, [64, 16, 3, 5])] {
        assert_eq!(weight.shape(), &shape);
        let bound = 1.0 / 240f64.sqrt();
        let most = |t: &Tensor| t.abs().unwrap().max(..).unwrap().item().unwrap();
        assert!((0.99 * bound..=bound).contains(&most(weight)) && most(bias.as_ref().unwrap()) <= bound);
    }
    let refused = Conv2d::with(3, 4, [3, 3], F64, key, &Conv2dOptions { groups: 2, ..Conv2dOptions::default() }).unwrap_err();
    assert!(refused.to_string().starts_with("conv: inputs (3) must be a multiple of groups (2)"), "{refused}");
    let wrong = conv.forward(&image).unwrap_err().to_string();
    assert!(wrong.starts_with("conv2d: ") && wrong.contains("`weight` f64[64, 16, 3, 5]"), "{wrong}");
    Ok(())
}

#[test]
fn norms_of_channels_train_evaluate_and_are_saved() -> Result<()> {
    let x = randn(&[4, 4, 3, 2], 3);
    check("group norm", &GroupNorm::new(2, 4, F64)?, |m| m.forward(&x));
    check("instance norm", &InstanceNorm::new(4, F64)?, |m| m.forward(&x));
    assert_close(&InstanceNorm::plain().forward(&x)?, &GroupNorm::new(4, 4, F64)?.forward(&x)?, 1e-12);

    let mut norm = BatchNorm2d::new(4, F64)?;
    assert_eq!(norm.names(), ["weight", "bias", "running_mean", "running_var"]);
    assert_eq!(norm.trainable().len(), 2);
    let (mut mean, mut var) = (vec![0.0; 4], vec![1.0; 4]);
    for step in 0..3 {
        let x = randn(&[4, 4, 3, 2], 10 + step);
        let mut pass = Pass::train();
        let (_, grads) = value_and_grad(&norm, |m| m.forward_in(&x, &mut pass)?.powi(3)?.sum(..))?;
        assert_eq!(grads.named().len(), 2);
        pass.update(&mut norm)?;
        assert!(!norm.running_mean.is_tracked() && !norm.running_var.is_tracked());
        // The running variance is unbiased, as PyTorch's: n / (n − 1) of 24 values.
        let v = values(&x);
        for c in 0..4 {
            let own: Vec<f64> = (0..v.len()).filter(|i| i / 6 % 4 == c).map(|i| v[i]).collect();
            let m = own.iter().sum::<f64>() / 24.0;
            let s = own.iter().map(|v| (v - m) * (v - m)).sum::<f64>() / 23.0;
            (mean[c], var[c]) = (0.9 * mean[c] + 0.1 * m, 0.9 * var[c] + 0.1 * s);
        }
    }
    let near = |t: &Tensor, want: &[f64]| assert!(values(t).iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{t} {want:?}");
    near(&norm.running_mean, &mean);
    near(&norm.running_var, &var);
    let y = values(&norm.forward(&x)?);
    let v = values(&x);
    assert!((0..y.len()).all(|i| (y[i] - (v[i] - mean[i / 6 % 4]) / (var[i / 6 % 4] + 1e-5).sqrt()).abs() < 1e-12));

    // What evaluates is saved and comes back [E10].
    let folder = std::env::temp_dir().join(format!("cotangent-batch-norm-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("norm.safetensors");
    norm.save(&path)?;
    let mut back = BatchNorm2d::new(4, F64)?;
    back.load(&path)?;
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(values(&back.forward(&x)?), y);

    let refused = (norm.clone(), Activation::Relu).call(&x, Some(Key::new(1))).unwrap_err().to_string();
    assert!(refused.contains("call_in"), "{refused}");
    assert_eq!(values(&norm.call(&x, None)?), y);
    assert_eq!(values(&norm.call_in(&x, &mut Pass::eval())?), y);
    let other = &mut Pass::train();
    BatchNorm2d::new(4, F64)?.forward_in(&x, other)?;
    let refused = other.update(&mut norm).unwrap_err().to_string();
    assert!(refused.contains("not in this model") && refused.contains("layers.rs"), "{refused}");
    assert!(norm.forward_in(&randn(&[1, 4], 1), &mut Pass::train()).unwrap_err().to_string().contains("batch_norm_with"));
    Ok(())
}

/// What a pass notes finds its layer through casts, clones of the model, lists and freezing; clones of a layer are refused.
#[test]
fn a_pass_finds_the_norms_of_a_model() -> Result<()> {
    let x = randn(&[4, 3, 2, 2], 7);
    let conv = || Conv2d::new(3, 3, [1, 1], F64, Key::new(1));
    let mut net =
        (conv()?, vec![BatchNorm2d::new(3, F64)?, BatchNorm2d::new(3, F64)?], Residual { inner: (Dropout { p: 0.5 }, Func(Tensor::relu)) });
    let mut expected = net.clone();
    // By hand, one after the other.
    let first = net.0.forward(&x)?;
    let second = first.batch_norm(None, None, 1e-5)?;
    for (norm, x) in expected.1.iter_mut().zip([&first, &second]) {
        let towards = |old: &Tensor, new: &Tensor| old.mul_scalar(0.9)?.add(&new.mul_scalar(0.1)?);
        let (mean, var) = (towards(&norm.running_mean, &x.mean([0, 2, 3])?)?, towards(&norm.running_var, &x.var([0, 2, 3], 1.0)?)?);
        norm.running_mean.set(&mean)?;
        norm.running_var.set(&var)?;
    }
    assert_eq!(net.1[1].freeze(|_| true), 2);
    let key = Key::new(5);
    let mut pass = Pass::train().with_key(key);
    let (loss, _) = value_and_grad(&net, |net| net.call_in(&x, &mut pass)?.powi(2)?.sum(..))?;
    assert_eq!((pass.key, pass.updates.len()), (Some(key), 4));
    let mut copy = net.clone();
    pass.updates.apply(&mut copy)?;
    pass.update(&mut net)?;
    assert!(pass.updates.is_empty() && pass.key == Some(key));
    for net in [&mut net, &mut copy] {
        for ((name, a), (_, b)) in net.buffers().into_iter().zip(expected.buffers()) {
            assert!(values(&a).iter().zip(values(&b)).all(|(a, b)| (a - b).abs() < 1e-12), "{name}");
        }
    }
    // The same keys as without a pass, the same value in evaluation.
    let dropped = |y: &Tensor| (Dropout { p: 0.5 }, Func(Tensor::relu)).call(y, Some(key.fold(2)));
    let normed = second.batch_norm(None, None, 1e-5)?;
    assert_close(&loss, &normed.add(&dropped(&normed)?)?.powi(2)?.sum(..)?, 1e-9);
    assert_eq!(values(&net.call(&x, None)?), values(&net.call_in(&x, &mut Pass::eval())?));

    // In a half type: statistics in f32, and the model's own buffers keep their dtype.
    let mut net = net.cast(F32)?;
    let before = values(&net.1[0].running_mean);
    let mut pass = Pass::train();
    value_and_grad(&net, |net| net.cast(BF16)?.call_in(&x.cast(BF16)?, &mut pass)?.cast(F32)?.powi(3)?.mean(..))?;
    pass.update(&mut net)?;
    let (old, new) = (&before[0], values(&net.1[0].running_mean)[0]);
    assert_eq!(net.1[0].running_mean.dtype(), F32);
    let mean = values(&first.mean([0, 2, 3])?)[0];
    assert!((new - (0.9 * old + 0.1 * mean)).abs() < 1e-3 && new != *old);

    // One layer in two places: no way to know which.
    let norm = BatchNorm2d::new(3, F64)?;
    let mut twins = vec![norm.clone(), norm];
    let before: Vec<f64> = twins.buffers().iter().flat_map(|(_, t)| values(t)).collect();
    let mut pass = Pass::train();
    twins.call_in(&x, &mut pass)?;
    let refused = pass.update(&mut twins).unwrap_err().to_string();
    assert!(refused.contains("`0.running_mean` and `1.running_mean` are one buffer"), "{refused}");
    assert_eq!(twins.buffers().iter().flat_map(|(_, t)| values(t)).collect::<Vec<_>>(), before);
    // Called twice in a pass, a norm moves twice.
    let mut norm = BatchNorm2d::new(3, F64)?;
    let mut pass = Pass::train();
    norm.forward_in(&x, &mut pass)?;
    norm.forward_in(&x, &mut pass)?;
    pass.update(&mut norm)?;
    let mean = values(&x.mean([0, 2, 3])?);
    let moved = |norm: &BatchNorm2d, by: f64| values(&norm.running_mean).iter().zip(&mean).all(|(r, m)| (r - by * m).abs() < 1e-12);
    assert!(moved(&norm, 0.19));
    // A pass that is made before a loop notes each step once.
    norm.forward_in(&x, &mut pass)?;
    pass.update(&mut norm)?;
    pass.update(&mut norm)?;
    assert!(moved(&norm, 0.271));

    let mut updates = BufferUpdates::new();
    assert!(updates.set(&norm.running_mean, &x).unwrap_err().is_shape());
    assert!(updates.move_towards(&norm.running_mean, &norm.running_var, 1.5).is_err() && updates.is_empty());
    Ok(())
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// PyTorch's formulas, written out for single numbers.
#[test]
fn recurrent_cells_follow_their_formulas() {
    let (x, h, c) = (randn(&[1, 3], 1), randn(&[1, 2], 2), randn(&[1, 2], 3));
    // Rows of W·v + b.
    let rows = |w: &Tensor, v: &Tensor, b: &Tensor| -> Vec<f64> {
        let (w, v, b, n) = (values(w), values(v), values(b), v.numel());
        (0..b.len()).map(|i| b[i] + (0..n).map(|j| w[i * n + j] * v[j]).sum::<f64>()).collect()
    };
    let close = |got: &Tensor, want: &[f64]| assert!(values(got).iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{got} {want:?}");
    let (v, s) = (values(&h), values(&c));
    let m = RnnCell::new(3, 2, F64, Key::new(4)).unwrap();
    let (a, b) = (rows(&m.weight_ih, &x, &m.bias_ih), rows(&m.weight_hh, &h, &m.bias_hh));
    close(&m.forward(&x, &h).unwrap(), &[(a[0] + b[0]).tanh(), (a[1] + b[1]).tanh()]);
    let m = LstmCell::new(3, 2, F64, Key::new(5)).unwrap();
    let (a, b) = (rows(&m.weight_ih, &x, &m.bias_ih), rows(&m.weight_hh, &h, &m.bias_hh));
    let gate = |g: usize, k: usize| a[2 * g + k] + b[2 * g + k];
    let next: Vec<f64> = (0..2).map(|k| sigmoid(gate(1, k)) * s[k] + sigmoid(gate(0, k)) * gate(2, k).tanh()).collect();
    let (new_h, new_c) = m.forward(&x, (&h, &c)).unwrap();
    close(&new_c, &next);
    close(&new_h, &[sigmoid(gate(3, 0)) * next[0].tanh(), sigmoid(gate(3, 1)) * next[1].tanh()]);
    let m = GruCell::new(3, 2, F64, Key::new(6)).unwrap();
    let (a, b) = (rows(&m.weight_ih, &x, &m.bias_ih), rows(&m.weight_hh, &h, &m.bias_hh));
    let want: Vec<f64> = (0..2)
        .map(|k| {
            let (r, z) = (sigmoid(a[k] + b[k]), sigmoid(a[2 + k] + b[2 + k]));
            (1.0 - z) * (a[4 + k] + r * b[4 + k]).tanh() + z * v[k]
        })
        .collect();
    close(&m.forward(&x, &h).unwrap(), &want);
    assert_eq!(m.names(), ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]);
    assert!(m.forward(&x, &randn(&[1, 3], 1)).unwrap_err().is_shape());
}

/// Any split of a sequence into pieces gives what the whole gives.
#[test]
fn a_cache_replaces_the_past() {
    let x = randn(&[2, 7, 6], 1);
    let (attention, gpt, layer) = (
        shaken(&MultiHeadAttention::new(&config(true, true), F64, Key::new(1)).unwrap()),
        shaken(&gpt_attention()),
        shaken(&decoder(NormOrder::Pre)),
    );
    type Forward<'a> = Box<dyn Fn(&Tensor, Attend<'_>) -> Result<Tensor> + 'a>;
    let all: [Forward; 3] =
        [Box::new(|x, a| attention.forward_with(x, a)), Box::new(|x, a| gpt.forward_with(x, a)), Box::new(|x, a| layer.forward_with(x, a))];
    for forward in all {
        let whole = forward(&x, Attend::default()).unwrap();
        for pieces in [vec![7], vec![1; 7], vec![3, 1, 3], vec![1, 6]] {
            let (mut cache, mut at) = (KvCache::default(), 0);
            for n in pieces {
                let y = forward(&x.narrow(1, at, n).unwrap(), Attend { cache: Some(&mut cache), ..Attend::default() }).unwrap();
                assert_close(&y, &whole.narrow(1, at, n).unwrap(), 1e-12);
                at += n;
            }
            assert_eq!((cache.len(), cache.is_empty()), (7, false));
            // Taking the last tokens back, and giving them again.
            cache.truncate(5).unwrap();
            let y = forward(&x.narrow(1, 5, 2).unwrap(), Attend { cache: Some(&mut cache), ..Attend::default() }).unwrap();
            assert_close(&y, &whole.narrow(1, 5, 2).unwrap(), 1e-12);
            // What does not continue it is refused, and changes nothing.
            assert!(forward(&x.narrow(0, 0, 1).unwrap(), Attend { cache: Some(&mut cache), ..Attend::default() }).unwrap_err().is_shape());
            assert_eq!(cache.len(), 7);
            cache.truncate(0).unwrap();
            assert!(cache.is_empty() && cache.get().unwrap().is_none());
        }
    }
}

/// Shared key heads are key heads repeated; given positions and masks are what they say.
#[test]
fn shared_heads_positions_and_masks() {
    let x = randn(&[2, 5, 6], 1);
    let shared = shaken(&MultiHeadAttention::new(&config(true, true), F64, Key::new(1)).unwrap());
    let y = shared.forward(&x, None).unwrap();
    let repeat = |l: &Linear| Linear {
        weight: l.weight.reshape([2, 2, 6]).unwrap().repeat_interleave(2, 0).unwrap().reshape([8, 6]).unwrap().into(),
        bias: l.bias.as_ref().map(|b| b.reshape([2, 2]).unwrap().repeat_interleave(2, 0).unwrap().reshape([8]).unwrap().into()),
    };
    let full = MultiHeadAttention {
        k_proj: repeat(&shared.k_proj),
        v_proj: repeat(&shared.v_proj),
        config: AttentionConfig { kv_heads: 4, ..config(true, true) },
        ..shared.clone()
    };
    assert_close(&full.forward(&x, None).unwrap(), &y, 1e-12);
    // Only differences of positions matter.
    let positions = Tensor::from_slice(&[3i64, 4, 5, 6, 7, 100, 101, 102, 103, 104], [2, 5]).unwrap();
    assert_close(&shared.forward_with(&x, Attend { positions: Some(&positions), ..Attend::default() }).unwrap(), &y, 1e-11);
    let twice = Tensor::from_slice(&[0i64, 2, 4, 6, 8], [5]).unwrap();
    let other = shared.forward_with(&x, Attend { positions: Some(&twice), ..Attend::default() }).unwrap();
    assert!(values(&other).iter().zip(values(&y)).any(|(a, b)| (a - b).abs() > 1e-3));
    // A causal mask is causality.
    let open = MultiHeadAttention { config: config(true, false), ..shared.clone() };
    let lower: Vec<u8> = (0..25).map(|i| u8::from(i % 5 <= i / 5)).collect();
    let mask = Tensor::from_slice(&lower, [5, 5]).unwrap();
    assert_eq!(mask.dtype(), U8);
    assert_close(&open.forward_with(&x, Attend { mask: Some(&mask), ..Attend::default() }).unwrap(), &y, 1e-12);
    // Refused: positions nobody reads, heads that cannot share, an input without axes.
    let plain = MultiHeadAttention { config: config(false, true), ..shared.clone() };
    assert!(plain.forward_with(&x, Attend { positions: Some(&positions), ..Attend::default() }).unwrap_err().is_argument());
    assert!(gpt_attention().forward_with(&x, Attend { positions: Some(&positions), ..Attend::default() }).unwrap_err().is_argument());
    for bad in [
        AttentionConfig { kv_heads: 3, ..config(true, true) },
        AttentionConfig { heads: 0, ..config(true, true) },
        // 6 is no multiple of 4.
        AttentionConfig { head: 0, ..config(true, true) },
    ] {
        assert!(MultiHeadAttention::new(&bad, F64, Key::new(1)).unwrap_err().is_argument());
    }
    // What is left out follows: a key head for each head, which share the width.
    let usual = AttentionConfig { width: 8, heads: 4, ..AttentionConfig::default() };
    let usual = MultiHeadAttention::new(&usual, F64, Key::new(1)).unwrap();
    assert_eq!((usual.config.kv_heads, usual.config.head, usual.k_proj.weight.shape().dims()), (4, 2, &[8, 8][..]));
    let e = shared.forward(&x.select(0, 0).unwrap(), None).unwrap_err();
    assert!(e.is_shape() && e.location().unwrap().file().ends_with("layers.rs"), "{e}");
}

#[test]
fn norms_stand_before_or_after() {
    let x = randn(&[1, 4, 6], 1);
    let (pre, post) = (decoder(NormOrder::Pre), decoder(NormOrder::Post));
    let by_hand = {
        let x = x.add(&pre.self_attn.forward(&pre.input_layernorm.forward(&x).unwrap(), None).unwrap()).unwrap();
        x.add(&pre.mlp.forward(&pre.post_attention_layernorm.forward(&x).unwrap()).unwrap()).unwrap()
    };
    assert_close(&pre.forward(&x, None).unwrap(), &by_hand, 1e-14);
    let by_hand = {
        let x = post.input_layernorm.forward(&x.add(&post.self_attn.forward(&x, None).unwrap()).unwrap()).unwrap();
        post.post_attention_layernorm.forward(&x.add(&post.mlp.forward(&x).unwrap()).unwrap()).unwrap()
    };
    let y = post.forward(&x, None).unwrap();
    assert_close(&y, &by_hand, 1e-14);
    let squares = y.square().unwrap().mean(-1).unwrap();
    assert!(values(&squares).iter().all(|s| (s - 1.0).abs() < 1e-4), "{squares}");
}

#[test]
fn sequences_call_in_turn_and_name_by_number() {
    let linear = |i, o, k| Linear::new(i, o, F64, Key::new(k)).unwrap();
    let x = randn(&[3, 4], 1);
    let (a, b) = (linear(4, 6, 1), linear(6, 4, 2));
    let by_hand = b.forward(&a.forward(&x).unwrap().relu().unwrap()).unwrap();
    let tuple = (a.clone(), Activation::Relu, b.clone());
    let boxed = Sequential::new().push(a.clone()).push(Activation::Relu).push(b.clone());
    let list: Vec<Box<dyn cotangent::nn::AnyLayer>> = vec![Box::new(a), Box::new(Activation::Relu), Box::new(b)];
    assert_close(&tuple.call(&x, None).unwrap(), &by_hand, 0.0);
    assert_close(&boxed.clone().call(&x, None).unwrap(), &by_hand, 0.0);
    assert_close(&list.call(&x, None).unwrap(), &by_hand, 0.0);
    assert_eq!((tuple.names(), boxed.len()), (boxed.names(), 3));
    assert_eq!(boxed.names(), ["0.weight", "0.bias", "2.weight", "2.bias"]);
    let residual = Residual { inner: tuple };
    assert_close(&residual.call(&x, None).unwrap(), &x.add(&by_hand).unwrap(), 0.0);
    assert_eq!(residual.names(), boxed.names());
    // Dropout works with a key only, and differs from layer to layer.
    let ones = Tensor::ones([1000], F64).unwrap();
    let drop = Dropout { p: 0.25 };
    assert_close(&drop.call(&ones, None).unwrap(), &ones, 0.0);
    let twice = (drop, drop).call(&ones, Some(Key::new(1))).unwrap();
    let kept = values(&twice).iter().filter(|v| **v != 0.0).count();
    assert!((500..625).contains(&kept), "{kept} of 1000 kept twice with probability 0.75");
    assert_close(&vec![drop, drop].call(&ones, Some(Key::new(1))).unwrap(), &twice, 0.0);
    assert_close(&Sequential::new().push(drop).push(drop).call(&ones, Some(Key::new(1))).unwrap(), &twice, 0.0);
    let e = boxed.call(&randn(&[3, 5], 1), None).unwrap_err();
    assert!(e.location().unwrap().file().ends_with("layers.rs"), "{e}");
}

/// Layers without parameters are the methods.
#[test]
fn layers_without_parameters_are_the_methods() {
    use cotangent::ops::{AvgPoolOptions, InterpolateMode, InterpolateOptions, MaxPoolOptions};
    let (line, plane, volume) = (randn(&[2, 4, 6], 1), randn(&[2, 4, 6, 8], 2), randn(&[1, 4, 2, 4, 6], 3));
    let (max, avg) =
        (MaxPoolOptions { stride: Some([1, 2]), ..MaxPoolOptions::default() }, AvgPoolOptions { ceil: true, ..AvgPoolOptions::default() });
    let twice = InterpolateOptions { mode: InterpolateMode::Linear, ..InterpolateOptions::default() };
    let pairs: Vec<(Box<dyn cotangent::nn::AnyLayer>, &Tensor, Tensor)> = vec![
        (Box::new(MaxPool1d::new([2])), &line, line.max_pool1d([2], &MaxPoolOptions::default()).unwrap()),
        (Box::new(MaxPool2d::with([2, 3], &max)), &plane, plane.max_pool2d([2, 3], &max).unwrap()),
        (Box::new(MaxPool3d::new([1, 2, 3])), &volume, volume.max_pool3d([1, 2, 3], &MaxPoolOptions::default()).unwrap()),
        (Box::new(AvgPool1d::new([4])), &line, line.avg_pool1d([4], &AvgPoolOptions::default()).unwrap()),
        (Box::new(AvgPool2d::with([4, 3], &avg)), &plane, plane.avg_pool2d([4, 3], &avg).unwrap()),
        (Box::new(AvgPool3d::new([1, 2, 3])), &volume, volume.avg_pool3d([1, 2, 3], &AvgPoolOptions::default()).unwrap()),
        (Box::new(AdaptiveAvgPool1d { output: [2] }), &line, line.adaptive_avg_pool1d([2]).unwrap()),
        (Box::new(AdaptiveAvgPool2d { output: [1, 2] }), &plane, plane.adaptive_avg_pool2d([1, 2]).unwrap()),
        (Box::new(AdaptiveAvgPool3d { output: [1, 2, 3] }), &volume, volume.adaptive_avg_pool3d([1, 2, 3]).unwrap()),
        (Box::new(AdaptiveMaxPool1d { output: [2] }), &line, line.adaptive_max_pool1d([2]).unwrap()),
        (Box::new(AdaptiveMaxPool2d { output: [1, 2] }), &plane, plane.adaptive_max_pool2d([1, 2]).unwrap()),
        (Box::new(AdaptiveMaxPool3d { output: [1, 2, 3] }), &volume, volume.adaptive_max_pool3d([1, 2, 3]).unwrap()),
        (Box::new(Upsample::new(2.0, InterpolateMode::Linear)), &plane, plane.interpolate(2.0, &twice).unwrap()),
        (Box::new(PixelShuffle { factor: 2 }), &plane, plane.pixel_shuffle(2).unwrap()),
        (Box::new(LocalResponseNorm::new(3)), &plane, plane.local_response_norm(3, 1e-4, 0.75, 1.0).unwrap()),
        (Box::new(Flatten), &plane, plane.reshape([2, 4 * 6 * 8]).unwrap()),
    ];
    for (layer, x, want) in pairs {
        let y = layer.call(x, Some(Key::new(1))).unwrap();
        assert_eq!(y.shape(), want.shape());
        assert_close(&y, &want, 0.0);
    }
}

/// Standard deviations and bounds of 200 000 weights against their formulas, by the fans of the layout.
#[test]
fn initial_weights_follow_their_formulas() {
    let shape = [400usize, 500];
    let (fan_in, fan_out) = (500f64, 400f64);
    let cases = [
        (Init::xavier(), (2.0 / (fan_in + fan_out)).sqrt(), Some((6.0 / (fan_in + fan_out)).sqrt())),
        (Init::XavierNormal { gain: 2.0 }, 2.0 * (2.0 / (fan_in + fan_out)).sqrt(), None),
        (Init::KaimingUniform { gain: 2f64.sqrt() }, (2.0 / fan_in).sqrt(), Some((6.0 / fan_in).sqrt())),
        (Init::he(), (2.0 / fan_in).sqrt(), None),
        (Init::gpt2(), 0.02, None),
        (Init::gpt2_residual(12), 0.02 / 24f64.sqrt(), None),
        (Init::TruncatedNormal { std: 0.5 }, 0.5 * 0.879_62, Some(1.0)),
        (Init::Torch, (1.0 / (3.0 * fan_in)).sqrt(), Some(1.0 / fan_in.sqrt())),
    ];
    for (k, (init, std, bound)) in cases.into_iter().enumerate() {
        let v = values(&init.tensor(shape, F64, Key::new(k as u64)).unwrap());
        let n = v.len() as f64;
        let mean = v.iter().sum::<f64>() / n;
        let got = (v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
        // Five standard errors of the mean; of the deviation about as many.
        assert!(mean.abs() < 5.0 * std / n.sqrt(), "{init:?}: mean {mean}");
        assert!((got / std - 1.0).abs() < 5.0 / (2.0 * n).sqrt(), "{init:?}: deviation {got} instead of {std}");
        let largest = v.iter().fold(0f64, |m, x| m.max(x.abs()));
        match bound {
            Some(b) => assert!(largest <= b && largest > 0.999 * b, "{init:?}: {largest} of {b}"),
            None => assert!(largest > 3.5 * std, "{init:?}: no tails"),
        }
    }
    assert!(values(&Init::Zeros.tensor([3], F64, Key::new(1)).unwrap()) == [0.0; 3]);
    // Convolutions count their kernel; GPT-2's files lie the other way round.
    let conv = Fans::of(&[8, 4, 3, 5].into()).unwrap();
    assert_eq!((conv.fan_in, conv.fan_out), (60, 120));
    let file = Fans::of_transposed(&[500, 400].into()).unwrap();
    assert_eq!(file, Fans::of(&shape.into()).unwrap());
    let v = values(&Init::he().tensor_with(file, [500, 400], F64, Key::new(9)).unwrap());
    let std = (v.iter().map(|x| x * x).sum::<f64>() / v.len() as f64).sqrt();
    assert!((std / (2.0 / fan_in).sqrt() - 1.0).abs() < 0.01);
    assert!(Fans::of(&[3].into()).unwrap_err().is_shape());
    for refused in [Init::he().tensor([3], F32, Key::new(1)), Init::Normal { std: -1.0 }.tensor([2, 2], F32, Key::new(1))] {
        let e = refused.unwrap_err();
        assert!(e.location().unwrap().file().ends_with("layers.rs") && e.op().is_some(), "{e}");
    }
}
