//! Fused ops beside the compositions they replace, and known bugs that a sample of one op cannot show.

use cotangent::nn::{Activation, Linear};
use cotangent::nn::{
    Attend, AttentionConfig, Block, CausalSelfAttention, DecoderLayer, GatedMlp, Gpt, GptConfig, LayerNorm, Mlp, MultiHeadAttention,
    NormOrder, RmsNorm,
};
use cotangent::ops::{CrossEntropyOptions, Reduction, RopeOptions};
use cotangent::{BF16, DType, Device, F16, F32, F64, Key, Result, Tape, Tensor, grad, value_and_grad};

fn randn(shape: &[usize], dtype: DType, key: u64) -> Tensor {
    Tensor::randn(shape, dtype, Key::new(key)).unwrap()
}

fn bits(t: &Tensor) -> Vec<u64> {
    t.to_f64_vec().unwrap().into_iter().map(f64::to_bits).collect()
}

fn devices() -> Vec<Device> {
    let mut all = vec![Device::Cpu];
    all.extend(Device::cuda_emulated());
    all
}

/// Values, and the gradients of all operands for random cotangents of every result.
fn run(x: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
    let tape = Tape::new();
    let x: Vec<Tensor> = x.iter().map(|t| tape.watch(t)).collect::<Result<_>>()?;
    let y = f(&x)?;
    let mut seeds = Vec::new();
    for (k, y) in y.iter().enumerate() {
        seeds.push((y, randn(y.shape(), y.dtype(), 50 + k as u64).to_device(y.device())?));
    }
    let values = y.iter().map(Tensor::detach).collect();
    let g = tape.backward_from(&seeds)?;
    Ok((values, x.iter().map(|x| g.get(x).cloned()).collect::<Result<_>>()?))
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    a.to_f64_vec().unwrap().iter().zip(b.to_f64_vec().unwrap()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn a_sum_and_its_norm_have_the_bits_of_the_two_ops() -> Result<()> {
    for device in devices() {
        for dtype in [F64, F32, BF16, F16] {
            // Rows that a team of threads holds, and rows that it does not.
            for n in [7, 3001] {
                let x = [randn(&[5, n], dtype, 1), randn(&[5, n], dtype, 2), randn(&[n], dtype, 3), randn(&[n], dtype, 4)];
                let x = x.map(|t| t.to_device(device).unwrap());
                let fused = |x: &[Tensor]| x[0].add_layer_norm(&x[1], 1, Some(&x[2]), Some(&x[3]), 1e-5).map(|(y, s)| vec![y, s]);
                let composed = |x: &[Tensor]| {
                    let s = x[0].add(&x[1])?;
                    Ok(vec![s.layer_norm(1, Some(&x[2]), Some(&x[3]), 1e-5)?, s])
                };
                let ((a, da), (b, db)) = (run(&x, fused)?, run(&x, composed)?);
                for (a, b) in a.iter().zip(&b) {
                    assert_eq!(bits(a), bits(b), "{device} {dtype} {n}");
                }
                for (i, (a, b)) in da.iter().zip(&db).enumerate() {
                    // The composition rounds the norm's cotangent before it adds the sum's.
                    let scale = b.abs()?.max(..)?.item()?;
                    assert!(largest_difference(a, b) <= 4.0 * dtype.epsilon() * scale, "{device} {dtype} {n}: gradient {i}");
                }
                let (y, s) = x[0].add_rms_norm(&x[1], Some(&x[2]), 1e-6)?;
                assert_eq!(bits(&s), bits(&x[0].add(&x[1])?));
                assert_eq!(bits(&y), bits(&s.rms_norm(Some(&x[2]), 1e-6)?));
            }
        }
    }
    Ok(())
}

#[test]
fn rope_of_queries_and_keys_and_dropout_with_a_residual_have_the_bits_of_the_single_ops() -> Result<()> {
    for device in devices() {
        let x = [randn(&[2, 4, 5, 8], F32, 1), randn(&[2, 2, 5, 8], F32, 2)].map(|t| t.to_device(device).unwrap());
        let rope = RopeOptions::default();
        let (a, da) = run(&x, |x| x[0].rope_with_key(&x[1], &rope).map(|(q, k)| vec![q, k]))?;
        let (b, db) = run(&x, |x| Ok(vec![x[0].rope(&rope)?, x[1].rope(&rope)?]))?;
        for (a, b) in a.iter().chain(&da).zip(b.iter().chain(&db)) {
            assert_eq!(bits(a), bits(b), "{device}");
        }
        let x = [randn(&[3, 333], F32, 1), randn(&[3, 333], F32, 2)].map(|t| t.to_device(device).unwrap());
        let (a, da) = run(&x, |x| Ok(vec![x[0].dropout_add(&x[1], 0.3, Key::new(5))?]))?;
        let (b, db) = run(&x, |x| Ok(vec![x[1].add(&x[0].dropout(0.3, Key::new(5))?)?]))?;
        for (a, b) in a.iter().chain(&da).zip(b.iter().chain(&db)) {
            assert_eq!(bits(a), bits(b), "{device}");
        }
    }
    Ok(())
}

/// Blocks use the fused ops; this is what they stand for.
#[test]
fn blocks_are_their_compositions() -> Result<()> {
    let x = randn(&[2, 5, 8], F32, 1);
    let key = Some(Key::new(3));
    for order in [NormOrder::Pre, NormOrder::Post] {
        let block = Block {
            ln_1: LayerNorm::new(8, F32)?,
            attn: CausalSelfAttention {
                c_attn: Linear::new(8, 24, F32, Key::new(1))?,
                c_proj: Linear::new(8, 8, F32, Key::new(2))?,
                heads: 2,
                dropout: 0.2,
            },
            ln_2: LayerNorm::new(8, F32)?,
            mlp: Mlp { dropout: 0.3, ..Mlp::new(8, 16, Activation::ReluSquared, F32, Key::new(4))? },
            order,
        };
        let composed = |x: &Tensor| -> Result<Tensor> {
            let (attn, mlp) = (key.map(|k| k.fold(0)), key.map(|k| k.fold(1)));
            if order == NormOrder::Pre {
                let x = x.add(&block.attn.forward(&block.ln_1.forward(x)?, attn)?)?;
                return x.add(&block.mlp.forward(&block.ln_2.forward(&x)?, mlp)?);
            }
            let x = block.ln_1.forward(&x.add(&block.attn.forward(x, attn)?)?)?;
            block.ln_2.forward(&x.add(&block.mlp.forward(&x, mlp)?)?)
        };
        assert_eq!(bits(&block.forward(&x, key)?), bits(&composed(&x)?), "{order:?}");
        let config = AttentionConfig {
            width: 8,
            heads: 2,
            kv_heads: 1,
            head: 4,
            qkv_bias: true,
            rope: Some(RopeOptions::default()),
            causal: true,
            window: None,
            softcap: None,
            dropout: 0.0,
            ..AttentionConfig::default()
        };
        let layer = DecoderLayer {
            self_attn: MultiHeadAttention::new(&config, F32, Key::new(1))?,
            mlp: GatedMlp::new(8, 16, Activation::Silu, F32, Key::new(2))?,
            input_layernorm: RmsNorm::new(8, 1e-6, F32)?,
            post_attention_layernorm: RmsNorm::new(8, 1e-6, F32)?,
            order,
        };
        let composed = |x: &Tensor| -> Result<Tensor> {
            let (a, b) = (&layer.input_layernorm, &layer.post_attention_layernorm);
            let mlp =
                |x: &Tensor| layer.mlp.down_proj.forward(&layer.mlp.gate_proj.forward(x)?.silu()?.mul(&layer.mlp.up_proj.forward(x)?)?);
            if order == NormOrder::Pre {
                let x = x.add(&layer.self_attn.forward(&a.forward(x)?, None)?)?;
                return x.add(&mlp(&b.forward(&x)?)?);
            }
            let x = a.forward(&x.add(&layer.self_attn.forward(x, None)?)?)?;
            b.forward(&x.add(&mlp(&x)?)?)
        };
        let y = layer.forward_with(&x, Attend::default())?;
        assert!(largest_difference(&y, &composed(&x)?) < 1e-6, "{order:?}");
    }
    Ok(())
}

#[test]
fn a_gpts_loss_is_the_cross_entropy_of_its_logits_without_keeping_them() -> Result<()> {
    let config = GptConfig { vocabulary: 301, context: 8, layers: 1, heads: 2, width: 16, ..GptConfig::default() };
    let gpt = Gpt::new(&config, F64, Key::new(1))?;
    let tokens = Tensor::from_slice(&(0..32).map(|i| i * 7 % 301).collect::<Vec<i64>>(), [4, 8])?;
    let targets = Tensor::from_slice(&(0..32).map(|i| if i % 5 == 0 { -100 } else { i * 11 % 301 }).collect::<Vec<i64>>(), [4, 8])?;
    let (a, da) = value_and_grad(&gpt, |m| m.loss(&tokens, &targets, None))?;
    let (b, db) = value_and_grad(&gpt, |m| m.forward(&tokens, None)?.cross_entropy(&targets))?;
    assert!((a.item()? - b.item()?).abs() < 1e-12);
    for ((name, a), (_, b)) in da.named().iter().zip(db.named()) {
        assert!(largest_difference(a, &b) < 1e-13, "{name}");
    }
    let saved = |f: &dyn Fn(&Gpt) -> Result<Tensor>| -> Result<usize> {
        use cotangent::Module;
        let tape = Tape::new();
        f(&gpt.watch(&tape)?)?;
        Ok(tape.saved_bytes())
    };
    let logits = 32 * 301 * 8;
    let gradients = (301 + 32) * 16 * 8;
    let (fused, composed) = (saved(&|m| m.loss(&tokens, &targets, None))?, saved(&|m| m.forward(&tokens, None)?.cross_entropy(&targets))?);
    assert!(fused + logits <= composed + gradients + 16 * 301 * 8, "{fused} {composed}");
    Ok(())
}

/// The gradients that the forward pass kept are handed out as they are when the loss itself is differentiated, and a second pull
/// gets them unchanged.
#[test]
fn a_loss_by_itself_is_not_multiplied() -> Result<()> {
    let x = [randn(&[6, 5], F32, 1), randn(&[40, 5], F32, 2)];
    let targets = Tensor::from_slice(&[0i64, 39, 7, -100, 7, 1], [6])?;
    let gradients = |by: f64| -> Result<Vec<Tensor>> {
        let tape = Tape::new();
        let x: Vec<Tensor> = x.iter().map(|t| tape.watch(t)).collect::<Result<_>>()?;
        let y = x[0].linear_cross_entropy(&x[1], None, &targets, &CrossEntropyOptions::default())?;
        let g = tape.backward_from(&[(&y, Tensor::full((), by, F32)?)])?;
        x.iter().map(|x| g.get(x).cloned()).collect()
    };
    for (one, two) in gradients(1.0)?.iter().zip(gradients(2.0)?) {
        assert_eq!(bits(&one.mul_scalar(2.0)?), bits(&two));
    }
    let both = (x[0].clone(), x[1].clone());
    let pull = cotangent::vjp(&both, |(x, w)| x.linear_cross_entropy(w, None, &targets, &CrossEntropyOptions::default()))?;
    let one = Tensor::full((), 1.0, F32)?;
    let (mut first, second) = (pull.pull(&one)?, pull.pull(&one)?);
    let before = bits(&second.0);
    first.update(|_, g| {
        *g = g.mul_scalar(3.0)?;
        Ok(())
    })?;
    assert_eq!(before, bits(&pull.pull(&one)?.0));
    assert_eq!(bits(&pull.pull(&one)?.1), bits(&gradients(1.0)?[1]));
    Ok(())
}

/// More than one piece of logits, at the size that the method chooses.
#[test]
fn linear_cross_entropy_in_pieces_is_the_composition() -> Result<()> {
    let classes = 140_000;
    let x = [randn(&[150, 4], F32, 1), randn(&[classes, 4], F32, 2), randn(&[classes], F32, 3)];
    let t = Tensor::from_slice(&(0..150).map(|i| i * 977 % classes as i64).collect::<Vec<_>>(), [150])?;
    for options in [
        CrossEntropyOptions { z_loss: 1e-3, ..CrossEntropyOptions::default() },
        CrossEntropyOptions { reduction: Reduction::None, ..CrossEntropyOptions::default() },
    ] {
        for x in [&x[..2], &x[..]] {
            let (a, da) = run(x, |x| Ok(vec![x[0].linear_cross_entropy(&x[1], x.get(2), &t, &options)?]))?;
            let (b, db) = run(x, |x| Ok(vec![x[0].linear(&x[1], x.get(2))?.cross_entropy_with(&t, &options)?]))?;
            assert_eq!(da.len(), x.len());
            for (a, b) in a.iter().chain(&da).zip(b.iter().chain(&db)) {
                let scale = b.abs()?.max(..)?.item()?;
                assert!(largest_difference(a, b) <= 2e-6 * scale, "{options:?}");
            }
        }
    }
    Ok(())
}

/// One-hot probabilities are class indices, also beside a head, and probabilities get a gradient there.
#[test]
fn probabilities_of_one_class_are_its_index() -> Result<()> {
    let x = [randn(&[2, 3, 4], F64, 1), randn(&[5, 4], F64, 2), randn(&[5], F64, 3)];
    let t = Tensor::from_slice(&[0i64, 4, 2, 2, 1, 3], [2, 3])?;
    let q = t.one_hot(5, F64)?;
    for options in [
        CrossEntropyOptions::default(),
        CrossEntropyOptions { label_smoothing: 0.2, reduction: Reduction::None, z_loss: 0.01, ..CrossEntropyOptions::default() },
        CrossEntropyOptions { weights: Some(randn(&[5], F64, 4).square()?), reduction: Reduction::Sum, ..CrossEntropyOptions::default() },
    ] {
        let (a, da) = run(&x, |x| Ok(vec![x[0].linear_cross_entropy(&x[1], x.get(2), &t, &options)?]))?;
        let (b, db) = run(&x, |x| Ok(vec![x[0].linear_cross_entropy(&x[1], x.get(2), &q, &options)?]))?;
        assert_eq!(da.len(), 3);
        for (a, b) in a.iter().chain(&da).zip(b.iter().chain(&db)) {
            assert!(largest_difference(a, b) < 1e-12, "{options:?}");
        }
    }
    let own = grad(&q, |q| x[0].linear_cross_entropy(&x[1], None, q, &CrossEntropyOptions::default()))?;
    let want = x[0].linear(&x[1], None)?.log_softmax(-1)?.mul_scalar(-1.0 / 6.0)?;
    assert!(largest_difference(&own, &want) < 1e-14);
    Ok(())
}

/// Fifty runs give the same bits [B14]; a row's result does not depend on the rows beside it [B20].
#[test]
fn norms_repeat_and_do_not_see_the_batch() -> Result<()> {
    let x = [randn(&[131, 67], F32, 1), randn(&[67], F32, 2), randn(&[67], F32, 3)];
    let norm = |x: &[Tensor]| Ok(vec![x[0].layer_norm(1, Some(&x[1]), Some(&x[2]), 1e-5)?]);
    let all = |(y, g): (Vec<Tensor>, Vec<Tensor>)| y.iter().chain(&g).map(bits).collect::<Vec<_>>();
    let first = all(run(&x, norm)?);
    for _ in 0..50 {
        assert_eq!(all(run(&x, norm)?), first);
    }
    for device in devices() {
        let y = x[0].to_device(device)?.rms_norm(Some(&x[1].to_device(device)?), 1e-5)?.narrow(0, 77, 1)?;
        let alone = x[0].narrow(0, 77, 1)?.to_device(device)?.rms_norm(Some(&x[1].to_device(device)?), 1e-5)?;
        assert_eq!(bits(&y), bits(&alone), "{device}");
    }
    Ok(())
}

/// A weight used twice gets the sum of both gradients [B13]. Weight and bias are views of one parameter, with many rows [B19].
#[test]
fn shared_and_tied_norm_parameters() -> Result<()> {
    let (x, both) = (randn(&[16_500, 4], F64, 1), randn(&[8], F64, 2));
    let halves = |p: &Tensor| Ok::<_, cotangent::Error>((p.narrow(0, 0, 4)?, p.narrow(0, 4, 4)?));
    let (_, g) = run(&[x.clone(), both.clone()], |x| {
        let (w, b) = halves(&x[1])?;
        Ok(vec![x[0].layer_norm(1, Some(&w), Some(&b), 1e-5)?])
    })?;
    let (w, b) = halves(&both)?;
    let (_, apart) = run(&[x.clone(), w.clone(), b.clone()], |x| Ok(vec![x[0].layer_norm(1, Some(&x[1]), Some(&x[2]), 1e-5)?]))?;
    let (gw, gb) = halves(&g[1])?;
    assert!(largest_difference(&gw, &apart[1]) < 1e-10 && largest_difference(&gb, &apart[2]) < 1e-10);
    let x = x.narrow(0, 0, 5)?;
    let (_, twice) = run(std::slice::from_ref(&w), |w| Ok(vec![x.rms_norm(Some(&w[0]), 1e-5)?, x.exp()?.rms_norm(Some(&w[0]), 1e-5)?]))?;
    let (_, split) = run(&[w.clone(), w], |w| Ok(vec![x.rms_norm(Some(&w[0]), 1e-5)?, x.exp()?.rms_norm(Some(&w[1]), 1e-5)?]))?;
    assert!(largest_difference(&twice[0], &split[0].add(&split[1])?) < 1e-12);
    Ok(())
}

/// Logits that another op saved are not written over [C3]. Targets one element off an aligned address, offset logits [C10].
#[test]
fn cross_entropy_leaves_its_operands_alone_and_takes_any_place() -> Result<()> {
    for device in devices() {
        let x = randn(&[5, 9], F32, 1).to_device(device)?;
        let wide = Tensor::from_slice(&[9i64, 0, 3, 8, -100, 1], [6])?.to_device(device)?;
        let t = wide.narrow(0, 1, 5)?;
        // The softmax saves its result, which is also the loss's operand.
        let (_, g) = run(std::slice::from_ref(&x), |x| Ok(vec![x[0].softmax(-1)?.cross_entropy(&t)?]))?;
        let (_, want) =
            run(&[x.to_device(Device::Cpu)?.cast(F64)?], |x| Ok(vec![x[0].softmax(-1)?.cross_entropy(&t.to_device(Device::Cpu)?)?]))?;
        assert!(largest_difference(&g[0], &want[0]) < 1e-6, "{device}");
        let shifted = randn(&[46], F32, 1).to_device(device)?;
        let view = shifted.narrow(0, 1, 45)?.reshape([5, 9])?;
        assert_eq!(bits(&view.cross_entropy(&t)?), bits(&view.contiguous()?.cross_entropy(&t)?), "{device}");
    }
    Ok(())
}

/// Microbatches of unequal numbers of targets give the gradient of the whole batch, by sums and one division [C12].
#[test]
fn sums_over_microbatches_are_the_full_batch() -> Result<()> {
    let (x, w) = (randn(&[7, 3], F64, 1), randn(&[5, 3], F64, 2));
    let t = Tensor::from_slice(&[0i64, -100, 4, 2, -100, -100, 1], [7])?;
    let (_, whole) = value_and_grad(&w, |w| x.linear_cross_entropy(w, None, &t, &CrossEntropyOptions::default()))?;
    let sum = CrossEntropyOptions { reduction: Reduction::Sum, ..CrossEntropyOptions::default() };
    let part = |from: usize, n: usize| -> Result<Tensor> {
        let (x, t) = (x.narrow(0, from, n)?, t.narrow(0, from, n)?);
        Ok(value_and_grad(&w, |w| x.linear_cross_entropy(w, None, &t, &sum))?.1.into_inner())
    };
    let parts = part(0, 2)?.add(&part(2, 5)?)?.mul_scalar(1.0 / 4.0)?;
    assert!(largest_difference(&parts, &whole.into_inner()) < 1e-14);
    Ok(())
}

/// All parameters of a model in a few launches: the steps of many tensors are those of each alone.
#[test]
#[cfg(feature = "emulator")]
fn optimizer_steps_share_launches() -> Result<()> {
    use cotangent::backend::cuda;
    use cotangent::optim::{AdamW, Muon, Sgd};
    let device = Device::cuda_emulated()?;
    // More tensors than a table holds, of many sizes, one of them empty.
    let model: Vec<Linear> = (0..70usize)
        .map(|i| Linear::no_bias(1 + i % 7, if i == 3 { 0 } else { 1 + i * i % 211 }, F32, Key::new(i as u64)))
        .collect::<Result<_>>()?;
    let loss = |m: &Vec<Linear>| {
        let mut total = m[0].weight.square()?.sum(..)?;
        for (i, l) in m.iter().enumerate().skip(1) {
            total = total.add(&l.weight.sin()?.mul_scalar(i as f64)?.sum(..)?)?;
        }
        Ok(total)
    };
    for kind in 0..4 {
        let step = |on: Device| -> Result<(Vec<Tensor>, usize)> {
            use cotangent::Module;
            let mut model = model.to_device(on)?;
            let mut adam = AdamW { lr: 1e-2, weight_decay: 0.1, amsgrad: kind == 1, ..AdamW::default() };
            let mut sgd = Sgd { lr: 1e-2, momentum: 0.9, weight_decay: 0.01, ..Sgd::default() };
            let mut muon = Muon { lr: 1e-2, newton_schulz: 1, ..Muon::default() };
            let mut launches = 0;
            for _ in 0..2 {
                let (_, g) = value_and_grad(&model, loss)?;
                let before = cuda::launches();
                match kind {
                    0 | 1 => adam.step(&mut model, &g)?,
                    2 => sgd.step(&mut model, &g)?,
                    _ => muon.step(&mut model, &g)?,
                }
                launches = cuda::launches() - before;
            }
            Ok((model.iter().map(|l| Tensor::to_device(&l.weight, Device::Cpu)).collect::<Result<_>>()?, launches))
        };
        let ((a, _), (b, launches)) = (step(Device::Cpu)?, step(device)?);
        for (i, (a, b)) in a.iter().zip(&b).enumerate() {
            assert!(a.numel() == 0 || largest_difference(a, b) < 1e-5, "kind {kind}, tensor {i}");
        }
        // The check for infinities and the step, two tables each, and what adds up the norm.
        assert!(kind == 3 || launches <= 6, "kind {kind}: {launches} launches");
    }
    Ok(())
}
