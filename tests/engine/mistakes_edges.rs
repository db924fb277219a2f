//! The mistakes of `mistakes.rs`, third part: what once went on silently, and messages that once named no way out.

use super::mistakes::{Row, a_row, ids, linear, x};
use super::mistakes_training::{folder, without};
use cotangent::io::ModuleFile;
use cotangent::models::{LoadOptions, Lora, add_lora};
use cotangent::nn::{
    AttentionConfig, BatchNorm, Dropout, KvCache, Linear, Lstm, MultiHeadAttention, Pass, RecurrentConfig, TransformerConfig,
    TransformerEncoderLayer,
};
use cotangent::ops::{BceWithLogitsOptions, SdpaOptions};
use cotangent::optim::{LossScaler, Muon, ReduceLrOnPlateau, Schedule, Sgd};
use cotangent::train::{Options, Sampling, Snapshots, Trainer};
use cotangent::{
    Buffer, F16, F32, F64, I64, Key, Module, Result, Tensor, U8, checkpoint, checkpoint_module, grad, jacobian, jvp, tensor,
    value_and_grad, vjp,
};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

fn functions() -> Vec<Row> {
    let row = a_row;
    let (net, data) = (linear(3, 2), x(&[4, 3]));
    let (direction, frozen) = (linear(3, 2), {
        let mut net = linear(3, 2);
        assert_eq!(net.freeze(|_| true), 2);
        net
    });
    let calls = AtomicUsize::new(0);
    let changing: &'static AtomicUsize = Box::leak(Box::new(calls));
    let other_value = move |x: &[Tensor]| Ok(vec![x[0].mul_scalar(changing.fetch_add(1, SeqCst) as f64)?]);
    let first = Box::leak(Box::new(AtomicUsize::new(0)));
    let other_dtype = move |x: &[Tensor]| match first.fetch_add(1, SeqCst) {
        0 => Ok(vec![x[0].square()?]),
        _ => Ok(vec![x[0].square()?.cast(F64)?]),
    };
    let drawn = Box::leak(Box::new(AtomicUsize::new(0)));
    vec![
        row("vjp of a captured model", &["vjp: ", "none was used", "|m| m.forward(&x)"], vjp(&net, |_| net.forward(&data)).map(drop)),
        row("jvp of a captured model", &["jvp: ", "none was used", "|m| m.forward(&x)"], {
            jvp(&net, &direction, |_| net.forward(&data)).map(drop)
        }),
        row("jacobian of a captured model", &["jacobian: ", "none was used", "|m| m.forward(&x)"], {
            jacobian(&net, |_| net.forward(&data)).map(drop)
        }),
        row("vjp of a frozen model", &["vjp: ", "frozen", "thaw"], vjp(&frozen, |m| m.forward(&data)).map(drop)),
        row("a step of a frozen model", &["value_and_grad: ", "frozen", "thaw"], {
            value_and_grad(&frozen, |m| m.forward(&data)?.mean(..)).map(drop)
        }),
        row("a checkpoint whose function changes", &["checkpoint: ", "second run", "output 0", "value", "`Key`"], {
            grad(&data, |x| checkpoint(&[x], other_value)?[0].sum(..)).map(drop)
        }),
        row("a checkpoint whose dtype changes", &["checkpoint: ", "second run", "f64", "f32"], {
            grad(&data, |x| checkpoint(&[x], other_dtype)?[0].sum(..)).map(drop)
        }),
        row("a checkpoint that draws anew", &["checkpoint: ", "second run", "`Key`"], {
            let f = |l: &Linear, x: &Tensor| l.forward(x)?.dropout(0.5, Key::new(drawn.fetch_add(1, SeqCst) as u64));
            grad(&net, |l| checkpoint_module(l, &data, f)?.sum(..)).map(drop)
        }),
    ]
}

fn trees() -> Vec<Row> {
    let row = a_row;
    let (net, data) = (linear(3, 2), x(&[4, 3]));
    let whole = || net.named_tensors().into_iter();
    vec![
        row("trees of other shapes side by side", &["zip_map: ", "`weight`", "[2, 3]", "[2, 1]", "named_tensors"], {
            net.zip_map(&linear(1, 2), |_, a, b| a.add(b)).map(drop)
        }),
        row("a model of integers", &["cast: ", "i64", "tensor.cast(I64)"], Module::cast(&net, I64).map(drop)),
        row("integers for weights", &["load_named: ", "`weight`", "i64", "f32", "cast"], {
            linear(3, 2).load_named(&whole().map(|(n, t)| (n, t.cast(I64).unwrap())).collect())
        }),
        row("integers for a parameter", &["param: ", "i64", "f32", "cast"], linear(3, 2).bias.unwrap().set(&ids(&[1, 2]))),
        row("floats for a count", &["buffer: ", "f32", "i64", "cast"], Buffer::new(ids(&[1, 2])).set(&x(&[2]))),
        row("floats for ids", &["load_named: ", "f32", "i64", "cast"], ids(&[1, 2]).load_named(&[(String::new(), x(&[2]))].into())),
        row("gradients by a name that is not there", &["retain: ", "weight, bias"], {
            let mut g = grad(&net, |l| l.forward(&data)?.sum(..)).unwrap();
            g.retain(|name| name == "weigth")
        }),
        row("a low rank for a name that is not there", &["add_lora: ", "matches", "weight, bias"], {
            add_lora(&mut linear(3, 2), Lora::default(), |name, _| name == "weigth").map(drop)
        }),
    ]
}

fn numbers() -> Vec<Row> {
    let row = a_row;
    let step = |momentum: f64, dampening: f64| {
        let (mut w, mut sgd) = (x(&[2]), Sgd { momentum, dampening, ..Sgd::new(0.1) });
        let g = grad(&w, |w| w.square()?.sum(..))?;
        sgd.step(&mut w, &g)
    };
    let muon = || {
        let (mut w, mut muon) = (x(&[2, 3]), Muon { newton_schulz: 0, ..Muon::default() });
        let g = grad(&w, |w| w.square()?.sum(..))?;
        muon.step(&mut w, &g)
    };
    let scaled = |s: LossScaler| s.scale(&x(&[])).map(drop);
    let attention = |c: AttentionConfig| MultiHeadAttention::new(&AttentionConfig { width: 8, heads: 2, ..c }, F32, Key::new(1)).map(drop);
    vec![
        row("a fraction among integers", &["tensor: ", "i64", "0.5"], tensor![1, 0.5; I64].map(drop)),
        row("a fraction in a variable", &["tensor: ", "u8", "2.5"], {
            let v = 2.5f32;
            tensor![[v], [1.0]; U8].map(drop)
        }),
        row("a million in f16", &["tensor: ", "f16", "1000000", "65504"], tensor![1e6; F16].map(drop)),
        row("the same by full", &["full: ", "f16", "1000000", "65504", "INFINITY"], Tensor::full([2], 1e6, F16).map(drop)),
        row("a normal of a million in f16", &["normal: ", "f16"], Tensor::normal([2], 1e6, 1.0, F16, Key::new(1)).map(drop)),
        row("a mask's filling beyond f16", &["masked_fill: ", "f16", "INFINITY"], {
            let h = x(&[3]).cast(F16).unwrap();
            h.masked_fill(&h.gt_scalar(0.0).unwrap(), -1e9).map(drop)
        }),
        row("no steps of Newton and Schulz", &["muon: ", "newton_schulz", "at least 1"], muon()),
        row("dampening beyond 1", &["sgd: ", "dampening", "2"], step(0.9, 2.0)),
        row("a scaler that shrinks", &["loss_scaler: ", "growth", "0.5", "exchanged"], {
            scaled(LossScaler { growth: 0.5, backoff: 2.0, ..LossScaler::default() })
        }),
        row("a draw beyond 1", &["draw: ", "[0, 1)", "1.5"], Sampling::default().draw(&[0.0, 1.0], 1.5).map(drop)),
        row("a rate of 2 in a transformer", &["encoder_layer: ", "dropout", "2"], {
            let c = TransformerConfig { width: 8, heads: 2, hidden: 8, dropout: 2.0, ..TransformerConfig::default() };
            TransformerEncoderLayer::new(&c, F32, Key::new(1)).map(drop)
        }),
        row("a rate of minus in attention", &["attention: ", "dropout", "-0.1"], {
            attention(AttentionConfig { dropout: -0.1, ..AttentionConfig::default() })
        }),
        row(
            "a cap of zero",
            &["attention: ", "softcap", "0"],
            attention(AttentionConfig { softcap: Some(0.0), ..AttentionConfig::default() }),
        ),
        row("a rate of 2 in recurrence", &["lstm: ", "dropout", "2"], {
            Lstm::new(&RecurrentConfig { inputs: 2, hidden: 2, dropout: 2.0, ..RecurrentConfig::default() }, F32, Key::new(1)).map(drop)
        }),
        row("a rate of 2 without a key", &["dropout: ", "2"], Dropout { p: 2.0 }.forward(&x(&[2]), None).map(drop)),
        row("a momentum of 2 in statistics", &["batch_norm: ", "momentum", "2"], {
            let norm = BatchNorm { momentum: 2.0, ..BatchNorm::new(3, F32).unwrap() };
            norm.forward_in(&x(&[4, 3]), &mut Pass::train()).map(drop)
        }),
        row("a cache cut to more than it has", &["kv_cache: ", "3", "5"], {
            let mut cache = KvCache::default();
            cache.append(x(&[1, 2, 3, 4]), x(&[1, 2, 3, 4])).unwrap();
            cache.truncate(5)
        }),
    ]
}

fn remedies() -> Vec<Row> {
    let row = a_row;
    let scores = x(&[4, 3]).log_softmax(-1).unwrap();
    let (q, t) = (x(&[2, 3, 4, 6]), |s: &[usize]| Tensor::ones(s, U8).unwrap());
    let attend = |k: &Tensor, mask: Option<&Tensor>| q.scaled_dot_product_attention(k, &q, mask, &SdpaOptions::default()).map(drop);
    let weighted = |n: usize| {
        let options = BceWithLogitsOptions { pos_weight: Some(Tensor::ones([n], F32)?), ..BceWithLogitsOptions::default() };
        x(&[4, 3]).bce_with_logits_with(&Tensor::ones([4, 3], F32)?, &options).map(drop)
    };
    vec![
        row("one-hot rows for nll_loss", &["nll_loss: ", "[4, 3]", "argmax(-1)"], scores.nll_loss(&x(&[4, 3])).map(drop)),
        row("one-hot rows of integers", &["nll_loss: ", "[4, 3]", "argmax(-1)"], {
            scores.nll_loss(&Tensor::zeros([4, 3], I64).unwrap()).map(drop)
        }),
        row("targets in a column", &["cross_entropy: ", "[4, 1]", "[4]", "squeeze(-1)"], {
            scores.cross_entropy(&Tensor::zeros([4, 1], I64).unwrap()).map(drop)
        }),
        row("a mask without its axis of heads", &["[2, 4, 4]", "[2, 3, 4, 4]", "unsqueeze(1)"], attend(&q, Some(&t(&[2, 4, 4])))),
        row("a mask of keys alone", &["[2, 4]", "reshape([batch, 1, 1, keys])"], attend(&q, Some(&t(&[2, 4])))),
        row("transposed keys", &["keys are transposed", "[2, 3, 6, 4]", "transpose(-1, -2)"], attend(&x(&[2, 3, 6, 4]), None)),
        row("a pos_weight of another length", &["bce_with_logits: ", "pos_weight [2]", "[4, 3]", "class"], weighted(2)),
        row("a state that run does not pass", &["train: ", "run_carrying"], {
            let mut t = Trainer::with_carry(x(&[2]), Sgd::new(0.1), x(&[2]));
            t.options = Options { steps: 1, ..Options::default() };
            t.run(&|_: u64| Ok(()), |w, _, _| w.square()?.sum(..)).map(drop)
        }),
    ]
}

fn files() -> Vec<Row> {
    let row = a_row;
    let inside = folder("edges");
    let trainer = |key: u64| -> Result<Trainer<'static, Linear, Sgd>> {
        let mut t = Trainer::new(linear(3, 2), Sgd::new(0.1));
        t.options = Options { steps: 1, ..Options::default() };
        t.key = Key::new(key);
        t.snapshots = Some(Snapshots::open(&inside, 1)?);
        Ok(t)
    };
    let loss = |m: &Linear, _: &(), _: Key| m.forward(&x(&[4, 3]))?.square()?.mean(..);
    trainer(7).and_then(|mut t| t.run(&|_: u64| Ok(()), loss)).unwrap();
    // Without a key of its own a run takes that of the snapshot.
    let mut same = trainer(0).unwrap();
    assert!(same.resume().unwrap().is_some() && same.key == Key::new(7));
    let snapshot = inside.join("step-000000001.safetensors");
    let adapter = inside.join("lora");
    std::fs::create_dir_all(&adapter).unwrap();
    std::fs::write(adapter.join("adapter_config.json"), "{}").unwrap();
    let rows = vec![
        row(
            "another key for a run that goes on",
            &["key was 7, is 8", "allow_changes"],
            without(&inside, trainer(8).and_then(|mut t| t.resume().map(drop))),
        ),
        row("a snapshot for a model", &["snapshot of a run", "Snapshot::load(path)?.model", "Trainer::resume"], {
            without(&inside, linear(3, 2).load(&snapshot).map(drop))
        }),
        row("a part of a snapshot", &["snapshot of a run", "load_named"], without(&inside, linear(3, 2).load_partial(&snapshot).map(drop))),
        row("an adapter for a model", &["adapter_config.json", "base model", "add_lora"], {
            without(&inside, cotangent::models::load(&adapter, LoadOptions::default()).map(drop))
        }),
    ];
    let _ = std::fs::remove_dir_all(&inside);
    rows
}

pub fn rows() -> Vec<Row> {
    [functions(), trees(), numbers(), remedies(), files()].into_iter().flatten().collect()
}

/// Rates that grow where they were to fall are refused by hand, too, and not only by the trainer.
#[test]
fn a_plateau_that_multiplies_is_refused() {
    let mut s = ReduceLrOnPlateau { factor: 2.0, ..ReduceLrOnPlateau::new(0.1) };
    let e = s.observe(1.0).unwrap_err();
    assert!(e.is_argument() && e.to_string().contains("factor must be in [0, 1), found 2"), "{e}");
}

/// What is allowed beside the refusals above.
#[test]
fn the_neighbours_of_what_is_refused_go_on() -> Result<()> {
    // Ends of the types, a key that is captured, an identity, a part of the parameters.
    assert_eq!(tensor![9_007_199_254_740_993, -5; I64]?.to_vec::<i64>()?, [9_007_199_254_740_993, -5]);
    assert_eq!(tensor![2.0, 1e3, true; I64]?.to_vec::<i64>()?, [2, 1000, 1]);
    assert_eq!(tensor![65504.0, f64::INFINITY; F16]?.to_f64_vec()?, [65504.0, f64::INFINITY]);
    let a = x(&[3]);
    assert_eq!(vjp(&a, |a| Ok(a.clone()))?.pull(&Tensor::ones([3], F32)?)?.to_vec::<f32>()?, [1.0; 3]);
    assert!(jacobian(&(a.clone(), a.clone()), |(a, _)| a.square())?.disconnected() == ["1"]);
    let noisy = |x: &[Tensor]| Ok(vec![x[0].dropout(0.5, Key::new(3))?, x[0].permute([0])?.expand([2, 3])?]);
    let g = grad(&a, |a| checkpoint(&[a], noisy)?[0].sum(..))?;
    assert_eq!(g.to_f64_vec()?, grad(&a, |a| noisy(std::slice::from_ref(a))?[0].sum(..))?.to_f64_vec()?);
    // Statistics of NaN are the same twice.
    assert!(grad(&a, |a| checkpoint(&[a], |x| Ok(vec![x[0].mul_scalar(f64::NAN)?]))?[0].sum(..))?.to_f64_vec()?[0].is_nan());
    Ok(())
}
