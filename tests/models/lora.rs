//! Changes of low rank: names, gradients, memory, merging, what is refused.

use crate::models::{folders, scratch};
use cotangent::io::ModuleFile;
use cotangent::models::{LanguageModel, LoadOptions, Lora, add_lora, load, merge_lora};
use cotangent::optim::AdamW;
use cotangent::{BF16, DType, F32, F64, Grads, Key, Module, Result, Tensor, gradcheck_module, module, nn::Linear, value_and_grad};

fn open(name: &str, dtype: DType) -> (LanguageModel, Tensor, Tensor) {
    let folder = folders(name).remove(0);
    let want = crate::train::pytorch_run::load(&folder.join("fixture.safetensors"));
    (load(&folder, LoadOptions::dtype(dtype)).unwrap().model, want["input_ids"].clone(), want["targets"].clone())
}

fn worst(a: &Tensor, b: &Tensor) -> f64 {
    a.cast(F64).unwrap().sub(&b.cast(F64).unwrap()).unwrap().abs().unwrap().max(..).unwrap().item().unwrap()
}

fn bytes<M: cotangent::Module + Clone>(grads: &Grads<M>) -> usize {
    grads.named().iter().map(|(_, g)| g.numel() * g.dtype().size()).sum()
}

/// Trains nothing but the changes, learns, and merges into a model that computes the same and saves under the old names.
#[test]
fn a_model_learns_by_changes_of_low_rank() {
    for (name, target, matrices) in [("tiny-qwen2", "_proj.weight", 21), ("tiny-gpt2", "c_attn.weight", 2)] {
        let (plain, tokens, targets) = open(name, F32);
        let mut model = plain.clone();
        let lora = Lora { rank: 4, key: Key::new(5), ..Lora::default() };
        assert_eq!(add_lora(&mut model, lora, |n, _| n.ends_with(target)).unwrap(), matrices);
        assert_eq!(worst(&model.forward(&tokens).unwrap(), &plain.forward(&tokens).unwrap()), 0.0);
        assert_eq!(model.trainable().len(), 2 * matrices);
        assert!(model.trainable().iter().all(|(n, _)| n.ends_with(".lora_a") || n.ends_with(".lora_b")));
        let loss = |m: &LanguageModel| m.forward(&tokens)?.cross_entropy(&targets);
        let mut adam = AdamW { lr: 1e-2, weight_decay: 0.0, ..AdamW::default() };
        let mut losses = Vec::new();
        for _ in 0..12 {
            let (l, grads) = value_and_grad(&model, loss).unwrap();
            losses.push(l.item().unwrap());
            adam.step(&mut model, &grads).unwrap();
        }
        crate::say(&format!("{name}: loss {:.3} -> {:.3} by {matrices} changes of rank 4", losses[0], losses[11]));
        assert!(losses[11] < 0.8 * losses[0], "{losses:?}");
        let merged = merge_lora(&model).unwrap();
        assert_eq!(merged.names(), plain.names());
        assert_eq!(merged.trainable().len(), plain.trainable().len());
        assert!(worst(&merged.forward(&tokens).unwrap(), &model.forward(&tokens).unwrap()) < 1e-3);
        // What is not adapted is what it was, to the bit.
        for ((n, a), (_, b)) in merged.named_tensors().iter().zip(plain.named_tensors()) {
            assert_eq!(worst(a, &b) == 0.0, !n.ends_with(target), "{n}");
        }
        let folder = scratch(&format!("lora-{name}"));
        std::fs::copy(folders(name).remove(0).join("config.json"), folder.join("config.json")).unwrap();
        merged.save(folder.join("model.safetensors")).unwrap();
        let again = load(&folder, LoadOptions::default()).unwrap().model;
        assert_eq!(worst(&again.forward(&tokens).unwrap(), &merged.forward(&tokens).unwrap()), 0.0);
        std::fs::remove_dir_all(folder).unwrap();
    }
}

/// Frozen weights have no gradient, and none is made on the way: neither what comes back nor what the sweep holds grows with them.
#[test]
fn frozen_weights_cost_no_gradient_memory() {
    let (full, tokens, targets) = open("tiny-qwen2", F32);
    let mut adapted = full.clone();
    add_lora(&mut adapted, Lora { rank: 2, ..Lora::default() }, |n, _| n.ends_with("q_proj.weight") || n.ends_with("v_proj.weight"))
        .unwrap();
    let run = |m: &LanguageModel| value_and_grad(m, |m| m.forward(&tokens)?.cross_entropy(&targets)).unwrap().1;
    let (all, few) = (run(&full), run(&adapted));
    let trained: usize = adapted.trainable().iter().map(|(_, t)| t.numel() * 4).sum();
    crate::say(&format!("gradients: {} bytes of all parameters, {} with LoRA", bytes(&all), bytes(&few)));
    assert_eq!(bytes(&all), full.num_params() * 4);
    assert_eq!(bytes(&few), trained);
    assert!(few.named().iter().all(|(n, _)| n.contains(".lora_")));
    // Optimizers keep two numbers for each that is trained, and nothing for the others.
    let mut adam = AdamW::default();
    adam.step(&mut adapted, &few).unwrap();
    let state: Vec<String> = adapted.names().into_iter().filter(|n| adam.moments(n).is_some()).collect();
    assert_eq!(state.len(), 12);
}

/// A frozen model in half precision with changes in f32: the gradients are in f32, the matrices keep their dtype when merged.
#[test]
fn half_precision_stays_with_the_frozen_weights() {
    let (mut model, tokens, targets) = open("tiny-qwen2", BF16);
    add_lora(&mut model, Lora { rank: 4, ..Lora::default() }, |n, t| t.rank() == 2 && n.contains("self_attn")).unwrap();
    let mut adam = AdamW { lr: 1e-2, ..AdamW::default() };
    let mut losses = Vec::new();
    for _ in 0..8 {
        let (l, grads) = value_and_grad(&model, |m| m.forward(&tokens)?.cast(F32)?.cross_entropy(&targets)).unwrap();
        assert!(grads.named().iter().all(|(_, g)| g.dtype() == F32));
        losses.push(l.item().unwrap());
        adam.step(&mut model, &grads).unwrap();
    }
    assert!(losses[7] < losses[0] - 0.5, "{losses:?}");
    let merged = merge_lora(&model).unwrap();
    assert!(merged.named_tensors().iter().all(|(_, t)| t.dtype() == BF16));
}

#[derive(Clone)]
struct Net {
    table: cotangent::nn::Embedding,
    out: Linear,
}
module!(Net { table, out });

/// Exact derivatives, of the tied table too: looked up and as the output matrix.
#[test]
fn derivatives_of_changes_are_exact() {
    let ids = Tensor::from_slice(&[0i64, 3, 1, 3], [2, 2]).unwrap();
    let mut net = Net {
        table: cotangent::nn::Embedding::normal(5, 4, 1.0, F64, Key::new(1)).unwrap(),
        out: Linear::new(4, 4, F64, Key::new(2)).unwrap(),
    };
    add_lora(&mut net, Lora { rank: 2, dtype: F64, ..Lora::default() }, |n, _| n.ends_with("weight")).unwrap();
    // Away from zero, where half of the gradients vanish.
    let mut k = 10;
    let net = net
        .map(|n, t| {
            k += 1;
            if n.contains("lora") { Tensor::randn(t.shape(), F64, Key::new(k)) } else { Ok(t.clone()) }
        })
        .unwrap();
    let f = |m: &Net| -> Result<Tensor> { m.table.unembed(&m.out.forward(&m.table.forward(&ids)?)?.tanh()?) };
    let report = gradcheck_module(&net, f).unwrap();
    assert_eq!(report.inputs.len(), 4);
    let merged = merge_lora(&net).unwrap();
    assert!(worst(&f(&merged).unwrap(), &f(&net).unwrap()) < 1e-12);
}

#[test]
fn impossible_changes_are_refused_and_change_nothing() {
    let (plain, ..) = open("tiny-gpt2", F32);
    let refused = |lora: Lora, of: &dyn Fn(&str, &Tensor) -> bool, words: &str| {
        let mut model = plain.clone();
        let e = add_lora(&mut model, lora, of).unwrap_err();
        assert!(e.to_string().contains(words) && e.location().unwrap().file().ends_with("lora.rs"), "{e}");
        assert_eq!((model.names(), model.trainable().len()), (plain.names(), plain.trainable().len()));
    };
    refused(Lora { rank: 0, ..Lora::default() }, &|_, _| true, "rank must be at least 1");
    refused(Lora { rank: 65, ..Lora::default() }, &|n, _| n.ends_with("c_attn.weight"), "would be no smaller");
    refused(Lora::default(), &|n, _| n == "q_proj", "no parameter of the model matches");
    refused(Lora::default(), &|n, _| n.ends_with("ln_f.weight"), "no matrix");
    let mut model = plain.clone();
    let matrix = |n: &str, _: &Tensor| n.ends_with("c_attn.weight");
    add_lora(&mut model, Lora::default(), matrix).unwrap();
    assert!(add_lora(&mut model, Lora::default(), matrix).unwrap_err().to_string().contains("merge it first"));
}
