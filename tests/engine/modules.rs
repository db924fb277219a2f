//! Buffers, freezing, trees of every kind, the summary, keys.

use cotangent::diagnostics::{Trace, review};
use cotangent::io::{ModuleFile, TensorFile, save_safetensors};
use cotangent::models::{Lora, add_lora, merge_lora};
use cotangent::nn::{Activation, BatchNorm2d, Conv2d, Dropout, Func, Gpt, GptConfig, Layer, LayerNorm, Linear, Sequential};
use cotangent::optim::{AdamW, Ema, Muon, Sgd};
use cotangent::{BF16, Buffer, F32, F64, GradOptions, I64, Key, Module, Param, Result, Rng, Role, Tensor, module};
use cotangent::{value_and_grad, value_and_grad_with_aux};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A centred linear layer: running statistics and their count are buffers.
#[derive(Clone, Debug)]
struct Net {
    layer: Linear,
    running_mean: Buffer,
    count: Buffer,
    momentum: f64,
}
module!(Net { layer, running_mean, count } skip { momentum });

impl Net {
    fn new() -> Result<Self> {
        let running_mean = Tensor::from_slice(&[1f32, 2.0, 3.0], [3])?.into();
        let layer = Linear::new(3, 2, F32, Key::new(7))?;
        Ok(Net { layer, running_mean, count: Tensor::from_slice(&[4i64], [1])?.into(), momentum: 0.1 })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.layer.forward(&x.sub(&self.running_mean)?)
    }

    fn update(&mut self, batch: &Tensor) -> Result<()> {
        let mean = self.running_mean.mul_scalar(1.0 - self.momentum)?.add(&batch.mul_scalar(self.momentum)?)?;
        self.running_mean.set(&mean)
    }
}

fn close(a: &Tensor, b: &[f64]) {
    let a = a.to_f64_vec().unwrap();
    assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6), "{a:?} is not {b:?}");
}

/// A running mean is a `Buffer`: as a `Param` it would be trained.
#[test]
fn buffers_are_never_trained_and_always_saved() -> Result<()> {
    let x = Tensor::randn([8, 3], F32, Key::new(1))?;
    for optimizer in 0..3 {
        let mut net = Net::new()?;
        let (mut adam, mut sgd, mut muon) =
            (AdamW { lr: 0.1, ..AdamW::default() }, Sgd { lr: 0.1, ..Sgd::default() }, Muon { lr: 0.1, ..Muon::default() });
        let mut want = net.running_mean.to_f64_vec()?;
        let batch = x.mean(0)?.to_f64_vec()?;
        for _ in 0..3 {
            let (_, mean, grads) =
                value_and_grad_with_aux(&net, GradOptions::default(), |m| Ok((m.forward(&x)?.square()?.mean(..)?, x.mean(0)?)))?;
            assert_eq!(grads.named().iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["layer.weight", "layer.bias"]);
            let before = net.layer.weight.to_vec::<f32>()?;
            match optimizer {
                0 => adam.step(&mut net, &grads)?,
                1 => sgd.step(&mut net, &grads)?,
                _ => muon.step(&mut net, &grads)?,
            };
            assert_ne!(before, net.layer.weight.to_vec::<f32>()?);
            close(&net.running_mean, &want);
            net.update(&mean)?;
            want.iter_mut().zip(&batch).for_each(|(w, b)| *w = 0.9 * *w + 0.1 * b);
            close(&net.running_mean, &want);
        }
        assert!(!net.running_mean.is_tracked());
    }
    // Counted apart, saved and loaded by name, in their own dtype.
    let net = Net::new()?;
    assert_eq!(net.names(), ["layer.weight", "layer.bias", "running_mean", "count"]);
    assert_eq!((net.num_params(), net.trainable().len(), net.buffers().len()), (8, 2, 2));
    let folder = std::env::temp_dir().join(format!("cotangent-buffers-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let file = folder.join("model.safetensors");
    let mut changed = net.clone();
    changed.running_mean.set(&Tensor::full([3], 9.0, F32)?)?;
    cotangent::io::ModuleFile::save(&changed, &file)?;
    assert_eq!(TensorFile::open(&file)?.names().len(), 4);
    let mut loaded = net.clone();
    cotangent::io::ModuleFile::load(&mut loaded, &file)?;
    std::fs::remove_dir_all(&folder)?;
    close(&loaded.running_mean, &[9.0; 3]);
    assert_eq!((loaded.buffers().len(), loaded.count.dtype()), (2, I64));
    // Cast like a parameter, integers stay; still buffers.
    let half = net.cast(BF16)?;
    assert_eq!((half.running_mean.dtype(), half.count.dtype(), half.buffers().len()), (BF16, I64, 2));
    Ok(())
}

#[test]
fn a_buffer_keeps_shape_dtype_and_no_history() -> Result<()> {
    let mut b = Buffer::new(Tensor::zeros([2], BF16)?);
    let e = b.set(&Tensor::zeros([3], BF16)?).unwrap_err();
    assert!(
        e.is_shape() && e.to_string().starts_with("buffer: the new value has shape [3], the old one [2] (at tests/engine/modules.rs:"),
        "{e}"
    );
    b.set(&Tensor::from_slice(&[1f64, 2.0], [2])?)?;
    assert_eq!((b.dtype(), b.to_f64_vec()?), (BF16, vec![1.0, 2.0]));
    // A tracked value leaves its history behind: nothing of the tape lives on.
    let tape = cotangent::Tape::new();
    let w = tape.watch(&Tensor::ones([2], F32)?)?;
    b.set(&w.mul_scalar(3.0)?)?;
    assert!(!b.is_tracked() && !Buffer::new(w).is_tracked());
    drop(tape);
    assert_eq!(b.square()?.to_f64_vec()?, [9.0, 9.0]);
    Ok(())
}

/// `freeze` does not thaw what its predicate does not name, nor does an assignment, and buffers never thaw.
#[test]
fn freezing_adds_thawing_takes_away_and_buffers_stay() -> Result<()> {
    let mut net = (Net::new()?, Net::new()?);
    let trainable = |net: &(Net, Net)| net.trainable().into_iter().map(|(n, _)| n).collect::<Vec<_>>();
    assert_eq!(net.freeze(|n| n.starts_with("0.")), 2);
    assert_eq!(net.freeze(|n| n.ends_with("bias")), 2);
    assert_eq!(trainable(&net), ["1.layer.weight"]);
    assert_eq!(net.freeze(|n| n == "nothing"), 0);
    assert_eq!(trainable(&net), ["1.layer.weight"]);
    assert_eq!(net.thaw(|n| n.contains("weight") || n.contains("running")), 2);
    assert_eq!(trainable(&net), ["0.layer.weight", "1.layer.weight"]);
    assert_eq!(net.thaw(|_| true), 4);
    assert_eq!(net.buffers().len(), 4);
    // A new value keeps what the parameter is; so do maps, casts and loads.
    assert_eq!(net.freeze(|n| n.ends_with("bias")), 2);
    net.0.layer.bias.as_mut().unwrap().set(&Tensor::from_slice(&[5f64, 6.0], [2])?)?;
    assert_eq!(net.0.layer.bias.as_ref().unwrap().to_vec::<f32>()?, [5.0, 6.0]);
    let named: BTreeMap<String, Tensor> = net.named_tensors().into_iter().collect();
    net.load_named(&named)?;
    let net = net.cast(F64)?.map(|_, t| Ok(t.clone()))?;
    assert_eq!(trainable(&net), ["0.layer.weight", "1.layer.weight"]);
    assert!(Param::frozen(Tensor::ones([1], F32)?).is_frozen());
    let mut p = Param::frozen(Tensor::ones([1], F32)?);
    assert!(p.set(&Tensor::ones([2], F32)?).unwrap_err().is_shape() && p.is_frozen());
    Ok(())
}

#[test]
fn averages_and_low_rank_treat_buffers_right() -> Result<()> {
    let mut net = Net::new()?;
    let mut ema = Ema::new(&net, 0.9)?;
    net.running_mean.set(&Tensor::from_slice(&[10f32, 20.0, 30.0], [3])?)?;
    net.layer.bias.as_mut().unwrap().set(&Tensor::full([2], 1.0, F32)?)?;
    let bias = Net::new()?.layer.bias.unwrap().to_f64_vec()?;
    ema.update(&net)?;
    let averaged = ema.model(&net)?;
    close(&averaged.running_mean, &[10.0, 20.0, 30.0]); // copied, as torch's AveragedModel does
    close(averaged.layer.bias.as_ref().unwrap(), &[0.9 * bias[0] + 0.1, 0.9 * bias[1] + 0.1]);
    assert_eq!(averaged.buffers().len(), 2);

    let mut net = Net::new()?;
    assert_eq!(add_lora(&mut net, Lora { rank: 1, ..Lora::default() }, |n, t| n.ends_with("weight") && t.rank() == 2)?, 1);
    assert_eq!(net.trainable().iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["layer.weight.lora_a", "layer.weight.lora_b"]);
    let merged = merge_lora(&net)?;
    assert_eq!((merged.buffers().len(), merged.trainable().len()), (2, 2));
    // A matrix in a buffer cannot have a change beside it.
    let mut only = Buffer::new(Tensor::ones([4, 4], F32)?);
    assert!(add_lora(&mut only, Lora { rank: 1, ..Lora::default() }, |_, _| true).is_err());
    // Traces watch what can be watched.
    let x = Tensor::ones([2, 3], F32)?;
    let (_, trace) = Trace::of(&Net::new()?, |m| m.forward(&x))?;
    assert!(trace.entries().iter().any(|(n, _)| n.starts_with("layer")));
    Ok(())
}

#[derive(Clone)]
struct Wrap<L> {
    inner: L,
}
module!(Wrap<L> { inner });

#[derive(Clone)]
struct Many<'a, A, B: Layer + Clone, T: Copy, const N: usize> {
    first: A,
    rest: [B; N],
    name: &'a str,
    tag: T,
}
module!(Many<'a, A, B: Layer + Clone, T: Copy, const N: usize> { first as "head", rest } skip { name, tag });

#[derive(Clone)]
struct Pair<M>(M, Param);
module!(Pair<M>(a, b));

#[derive(Clone)]
#[allow(clippy::large_enum_variant)] // three variants on purpose, of which one is a whole layer
enum Mixer<L> {
    Dense(L),
    Scale { gate: Param, shift: Option<Param>, power: i32 },
    Nothing,
}
module!(enum Mixer<L> {
    Dense(m),
    Scale { gate as "g", shift } skip { power },
    Nothing,
});

/// Generic structs and enums are modules.
#[test]
fn the_macro_takes_generics_tuples_and_enums() -> Result<()> {
    let layer = |k| Linear::no_bias(2, 2, F64, Key::new(k));
    let scalar = || Ok::<Param, cotangent::Error>(Tensor::scalar(2f64)?.into());
    let many = Many { first: Wrap { inner: scalar()? }, rest: [layer(1)?, layer(2)?], name: "x", tag: 3u8 };
    assert_eq!(many.names(), ["head.inner", "rest.0.weight", "rest.1.weight"]);
    assert_eq!((many.name, many.tag), ("x", 3));
    assert_eq!(Pair(vec![layer(1)?], scalar()?).names(), ["0.0.weight", "1"]);
    let mut mixers = vec![
        Mixer::Dense(layer(1)?),
        Mixer::Scale { gate: scalar()?, shift: None, power: 2 },
        Mixer::Scale { gate: scalar()?, shift: Some(scalar()?), power: 3 },
        Mixer::Nothing,
    ];
    assert_eq!(mixers.names(), ["0.weight", "1.g", "2.g", "2.shift"]);
    assert_eq!(mixers.freeze(|n| n.starts_with("0")), 1);
    let x = Tensor::from_rows(&[[1f64, 2.0]])?;
    let (_, grads) = value_and_grad(&mixers, |m| {
        let mut x = x.clone();
        for m in m {
            x = match m {
                Mixer::Dense(l) => l.forward(&x)?,
                Mixer::Scale { gate, shift, power } => {
                    let y = x.mul(&gate.powi(*power)?)?;
                    shift.as_ref().map_or(Ok(y.clone()), |s| y.add(s))?
                }
                Mixer::Nothing => x,
            };
        }
        x.sum(..)
    })?;
    assert_eq!(grads.named().into_iter().map(|(n, _)| n).collect::<Vec<_>>(), ["1.g", "2.g", "2.shift"]);
    assert_eq!(grads.named()[2].1.item()?, 2.0);
    Ok(())
}

/// Long tuples, closures as layers, maps as modules.
#[test]
fn long_tuples_functions_and_maps() -> Result<()> {
    let mut rng = Rng::seed(3);
    let mut lin = || Linear::new(2, 2, F64, &mut rng);
    let gelu = Activation::Gelu;
    let twelve = (
        lin()?,
        gelu,
        lin()?,
        gelu,
        lin()?,
        gelu,
        lin()?,
        Dropout { p: 0.5 },
        [lin()?, lin()?],
        Func(|x| x.relu()),
        None::<Linear>,
        lin()?,
    );
    assert_eq!(twelve.names().len(), 14);
    assert_eq!(twelve.names()[13], "11.bias");
    let x = Tensor::randn([3, 2], F64, Key::new(1))?;
    let (y, grads) = value_and_grad(&twelve, |m| m.call(&x, None)?.sum(..))?;
    // The same by hand.
    let mut by_hand = x.clone();
    for l in [&twelve.0, &twelve.2, &twelve.4] {
        by_hand = l.forward(&by_hand)?.gelu()?;
    }
    by_hand = twelve.6.forward(&by_hand)?;
    for l in &twelve.8 {
        by_hand = l.forward(&by_hand)?;
    }
    by_hand = twelve.11.forward(&by_hand.relu()?)?.sum(..)?;
    assert_eq!((y.item()?, grads.named().len()), (by_hand.item()?, 14));

    // Functions in lists chosen at run time, with what they capture.
    let factor = 3.0;
    let net = Sequential::new().push(Func(move |x| x.mul_scalar(factor))).push(Func(Tensor::exp)).push(LayerNorm::new(2, F64)?);
    assert_eq!(net.clone().names(), ["2.weight", "2.bias"]);
    assert_eq!(net.call(&x, None)?.to_vec::<f64>()?, LayerNorm::new(2, F64)?.forward(&x.mul_scalar(3.0)?.exp()?)?.to_vec::<f64>()?);
    assert_eq!(vec![Func(|x: &Tensor| x.square()); 2].call(&Tensor::scalar(3f64)?, None)?.item()?, 81.0);

    // Maps: by name, in the order of names.
    let heads: BTreeMap<String, Linear> = ["value", "policy"].into_iter().map(|n| Ok((n.to_owned(), lin()?))).collect::<Result<_>>()?;
    assert_eq!(heads.names(), ["policy.weight", "policy.bias", "value.weight", "value.bias"]);
    let hashed: HashMap<String, Box<Linear>> = heads.iter().map(|(n, l)| (n.clone(), Box::new(l.clone()))).collect();
    for _ in 0..20 {
        assert_eq!(hashed.clone().into_iter().collect::<HashMap<_, _>>().names(), heads.names());
    }
    let (_, grads) = value_and_grad(&hashed, |m| m["policy"].forward(&x)?.add(&m["value"].forward(&x)?)?.sum(..))?;
    assert_eq!(grads["value"].bias.as_ref().unwrap().to_vec::<f64>()?, [3.0, 3.0]);
    // Two tensors of one name are refused, as everywhere.
    let twice: BTreeMap<String, Vec<Param>> = [("a".to_owned(), vec![Tensor::scalar(1f64)?.into()])].into();
    let single: BTreeMap<String, Param> = [("a.0".to_owned(), Tensor::scalar(1f64)?.into())].into();
    #[derive(Clone)]
    struct Same(BTreeMap<String, Vec<Param>>, BTreeMap<String, Param>);
    impl Module for Same {
        fn visit(&mut self, v: &mut cotangent::Visitor<'_>) {
            self.0.visit(v);
            self.1.visit(v);
        }
    }
    let e = value_and_grad(&Same(twice, single), |m| m.1["a.0"].square()).unwrap_err();
    assert!(e.to_string().contains("two tensors of the model are called `a.0`"), "{e}");
    Ok(())
}

#[test]
fn a_summary_counts_and_prints() -> Result<()> {
    let mut net = Net::new()?;
    assert_eq!(net.freeze(|n| n.ends_with("bias")), 1);
    let s = net.summary();
    assert_eq!((s.trainable(), s.frozen(), s.buffers(), s.count(Role::Constant)), (6, 2, 4, 0));
    assert_eq!((s.bytes(), s.bytes_by_dtype()), (11 * 4 + 8, vec![(F32, 44), (I64, 8)]));
    let text = s.to_string();
    assert_eq!(
        text,
        "name          shape   dtype  elements  memory\n\
         layer.weight  [2, 3]  f32           6    24 B  trainable\n\
         layer.bias    [2]     f32           2     8 B  frozen\n\
         running_mean  [3]     f32           3    12 B  buffer\n\
         count         [1]     i64           1     8 B  buffer\n\
         12 elements: 6 trainable, 2 frozen, 4 in buffers; 52 B (f32 44 B, i64 8 B)"
    );
    let big = Linear::no_bias(1024, 1024, F32, Key::new(1))?.summary();
    assert!(big.to_string().ends_with("1048576 elements: 1048576 trainable; 4.0 MiB"), "{big}");
    assert_eq!(().summary().to_string(), "name  shape  dtype  elements  memory\n0 elements: 0 trainable; 0 B");
    Ok(())
}

/// Split keys differ from each other and from folds, so that no key is used twice by accident.
#[test]
fn split_keys_differ_from_each_other_and_from_folds() {
    let key = Key::new(5);
    let [a, b, c] = key.split();
    let folds: BTreeSet<_> = (0..1000).map(|i| key.fold(i).parts()).collect();
    let split: BTreeSet<_> = [a, b, c, key].map(Key::parts).into();
    assert!(split.len() == 4 && split.is_disjoint(&folds));
    let [again] = key.split();
    assert_eq!(again, a);
    assert_ne!(Key::new(6).split::<1>()[0], a);
    // A sequence gives a fresh key to every constructor.
    let mut rng = Rng::seed(5);
    let weight = |rng: &mut Rng| Linear::no_bias(2, 2, F32, rng).unwrap().weight.to_vec::<f32>().unwrap();
    assert_ne!(weight(&mut rng), weight(&mut rng));
    assert_eq!(rng.state()[2], 2);
}

/// Equal initial weights are pointed out.
#[test]
fn a_review_names_parameters_that_were_drawn_twice() -> Result<()> {
    let lin = |i, o, k, d| Linear::new(i, o, d, Key::new(k));
    // The same key, with the same extents, more outputs, more inputs (another bound), half precision, frozen.
    let mut net = vec![
        lin(16, 16, 1, F32)?,
        lin(16, 16, 2, F32)?,
        lin(16, 16, 1, F32)?,
        lin(16, 24, 1, F32)?,
        lin(64, 16, 2, F32)?,
        lin(16, 16, 2, BF16)?,
    ];
    assert_eq!(net.freeze(|n| n.starts_with("2.")), 2);
    let found = review(&net)?;
    let pairs: Vec<_> = found.twins.iter().map(|t| (t.first.as_str(), t.second.as_str())).collect();
    for pair in
        [("0.weight", "2.weight"), ("0.weight", "3.weight"), ("1.weight", "4.weight"), ("1.weight", "5.weight"), ("0.bias", "2.bias")]
    {
        assert!(pairs.contains(&pair), "{pair:?} in {found}");
    }
    assert!(pairs.iter().all(|(a, b)| !(a.starts_with('0') && b.starts_with('1'))), "{found}");
    let wide = found.twins.iter().find(|t| t.second == "4.weight").unwrap();
    assert!(
        (wide.factor - 0.5).abs() < 1e-4 && found.to_string().contains("`4.weight` begins with 0.5000 times the values of `1.weight`"),
        "{found}"
    );
    // Clones are not tied.
    let one = lin(16, 16, 1, F32)?;
    let found = review(&vec![one.clone(), one])?;
    assert!(found.twins.iter().all(|t| t.shared) && found.to_string().contains("a tied weight is one field"), "{found}");
    // Models of the crate, constants, identities, buffers and small tensors raise nothing.
    let gpt =
        Gpt::new(&GptConfig { vocabulary: 32, context: 16, layers: 3, heads: 2, width: 16, ..GptConfig::default() }, F32, Key::new(1))?;
    assert!(review(&gpt)?.is_clean(), "{}", review(&gpt)?);
    let b = Buffer::new(Tensor::randn([32], F32, Key::new(9))?);
    let diagonal: Vec<f32> = (0..64).map(|i| if i % 9 == 0 { 1.0 } else { 0.0 }).collect();
    let eye: Param = Tensor::from_slice(&diagonal, [8, 8])?.into();
    let quiet = (b.clone(), b, LayerNorm::new(16, F32)?, LayerNorm::new(16, F32)?, eye.clone(), Param::new(eye.mul_scalar(1.0)?));
    assert!(review(&quiet)?.is_clean(), "{}", review(&quiet)?);
    // Values that are not finite, in buffers and half types, too.
    let spoilt = (
        lin(2, 2, 1, F32)?,
        Buffer::new(Tensor::from_slice(&[1f32, f32::NAN, f32::INFINITY], [3])?),
        Param::new(Tensor::full([4], f64::NEG_INFINITY, BF16)?),
    );
    let found = review(&spoilt)?;
    assert_eq!(found.not_finite, [("1".to_owned(), 2), ("2".to_owned(), 4)]);
    assert!(
        !found.is_clean() && found.to_string() == "`1` has 2 values that are NaN or infinite\n`2` has 4 values that are NaN or infinite",
        "{found}"
    );
    Ok(())
}

/// Two trees of one form, tensor by tensor; others are refused with their names.
#[test]
fn trees_are_mapped_side_by_side() -> Result<()> {
    let two = |a: f64, b: f64| -> Result<(Tensor, Option<Param>)> { Ok((Tensor::scalar(a)?, Some(Tensor::scalar(b)?.into()))) };
    let mut names = Vec::new();
    let mean = two(1.0, 2.0)?.zip_map(&two(3.0, 8.0)?, |name, a, b| {
        names.push(name.to_owned());
        a.add(b)?.mul_scalar(0.5)
    })?;
    assert_eq!((mean.0.item()?, mean.1.unwrap().item()?, names.join(" ")), (2.0, 5.0, "0 1".to_owned()));
    // What is frozen stays so.
    let mut frozen = Linear::new(2, 2, F32, Key::new(1))?;
    assert_eq!(frozen.freeze(|n| n == "bias"), 1);
    assert_eq!(frozen.zip_map(&frozen, |_, a, b| a.sub(b))?.trainable().len(), 1);
    let e = two(1.0, 2.0)?.zip_map(&(Tensor::scalar(1f64)?, None), |_, a, _| Ok(a.clone())).unwrap_err();
    assert!(e.is_argument() && e.to_string().starts_with("zip_map: the other tree has [0], this one [0, 1]"), "{e}");
    let e = frozen.zip_map(&frozen, |_, a, _| a.matmul(&Tensor::ones([3, 3], F32)?)).unwrap_err();
    assert!(e.is_shape() && e.to_string().contains("matmul"), "{e}");
    Ok(())
}

/// A state dict of PyTorch's counts the batches of each batch norm, on which nothing depends here: neither a file nor a map of it is refused for
/// that, and nothing is left over. A count beside no batch norm is as unexpected as any other name.
#[test]
fn pytorchs_counts_of_batches_are_passed_over() -> Result<()> {
    let made = |seed| Ok::<_, cotangent::Error>((Conv2d::new(2, 3, [1, 1], F32, Key::new(seed))?, BatchNorm2d::new(3, F32)?));
    let (trained, count) = (made(1)?, Tensor::scalar(7i64)?);
    let mut dict: BTreeMap<String, Tensor> = trained.named_tensors().into_iter().collect();
    dict.insert("1.running_mean".into(), Tensor::from_slice(&[1f32, 2., 3.], [3])?);
    dict.insert("1.num_batches_tracked".into(), count.clone());
    let mut other = made(2)?;
    other.load_named(&dict)?;
    assert_eq!(other.1.running_mean.to_vec::<f32>()?, [1., 2., 3.]);
    assert_eq!(other.0.weight.to_vec::<f32>()?, trained.0.weight.to_vec::<f32>()?);

    let path = std::env::temp_dir().join(format!("cotangent-counts-{}.safetensors", std::process::id()));
    save_safetensors(&path, dict.iter().map(|(n, t)| (n.as_str(), t)), &[])?;
    let mut third = made(3)?;
    let report = third.load(&path)?;
    assert_eq!(report.ignored, ["1.num_batches_tracked"]);
    assert!(report.is_complete() && report.loaded.len() == 6, "{report}");
    assert_eq!(third.1.running_mean.to_vec::<f32>()?, [1., 2., 3.]);
    assert_eq!(made(4)?.load_partial(&path)?.unexpected, [""; 0]);

    dict.insert("0.num_batches_tracked".into(), count);
    assert!(made(5)?.load_named(&dict).unwrap_err().to_string().contains("unexpected [0.num_batches_tracked]"));
    save_safetensors(&path, dict.iter().map(|(n, t)| (n.as_str(), t)), &[])?;
    assert!(made(6)?.load(&path).unwrap_err().to_string().contains("unexpected in the file: 0.num_batches_tracked"));
    std::fs::remove_file(&path)?;
    Ok(())
}
