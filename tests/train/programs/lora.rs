//! Changes of low rank fine-tune a GPT-2 from a folder of Hugging Face; the run is stopped and continued, and the changes are merged.

use cotangent::io::ModuleFile;
use cotangent::models::{LanguageModel, LoadOptions, Lora, add_lora, load, merge_lora};
use cotangent::optim::AdamW;
use cotangent::train::{Batches, Bytes, Options, Order, Snapshots, Tokenizer, Tokens, Trainer, Windows};
use cotangent::{F32, Key, Module, Result};
use std::path::Path;

const CONTEXT: usize = 16;

fn adapted_model() -> Result<LanguageModel> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-gpt2");
    let mut model = load(folder, LoadOptions::dtype(F32))?.model;
    let options = Lora { rank: 8, alpha: 16.0, key: Key::new(1), ..Lora::default() };
    add_lora(&mut model, options, |name, _| name.contains(".h.") && name.contains(".c_") && name.ends_with(".weight"))?;
    Ok(model)
}

/// Up to so many steps, from the newest snapshot in the folder on.
fn train(data: &Windows, steps: usize, folder: &Path) -> Result<LanguageModel> {
    let mut trainer = Trainer::new(adapted_model()?, AdamW { lr: 1e-2, weight_decay: 0.0, ..AdamW::default() });
    trainer.options = Options { steps, clip: Some(1.0), ..Options::default() };
    trainer.snapshots = Some(Snapshots::open(folder, 0)?);
    trainer.resume()?;
    trainer.run(data, |m, (x, y), _| m.forward(x)?.cross_entropy(y))?;
    Ok(trainer.model)
}

/// The loss before and after, whether the run that was stopped ended alike, and how far the merged model is off.
pub fn run(steps: usize, folder: &Path) -> Result<(f64, f64, bool, f64)> {
    let tokens = Tokens::from(Bytes.encode(include_str!("../../../ARCHITECTURE.md"))?);
    let (training, validation) = tokens.split_at(tokens.len() * 9 / 10)?;
    let data = Windows::new(training, 8, CONTEXT, Order::Random, Key::new(2))?;
    let all = validation.len() / CONTEXT;
    let (x, y) = Windows::new(validation, all, CONTEXT, Order::Sequential, Key::new(2))?.batch(0)?;
    let loss = |m: &LanguageModel| m.forward(&x)?.cross_entropy(&y)?.item();

    let model = train(&data, steps, &folder.join("whole"))?;
    train(&data, steps / 2, &folder.join("halves"))?;
    let resumed = train(&data, steps, &folder.join("halves"))?;
    let adapter = |m: &LanguageModel| m.trainable().iter().map(|(_, t)| t.to_vec::<f32>()).collect::<Result<Vec<_>>>();
    let same = adapter(&model)? == adapter(&resumed)?;

    model.save_trainable(folder.join("adapter.safetensors"))?;
    let mut again = adapted_model()?;
    again.load_partial(folder.join("adapter.safetensors"))?;
    let merged = merge_lora(&again)?.forward(&x)?.sub(&model.forward(&x)?)?.abs()?.max(..)?.item()?;
    Ok((loss(&adapted_model()?)?, loss(&again)?, same, merged))
}

#[cfg(test)]
mod tests {
    /// The folder's model has random weights and is worse than guessing among its 512 tokens. The changes beside it learn more than that
    /// a text of bytes has half of these.
    #[test]
    fn a_stopped_run_ends_alike_and_its_merged_model_is_the_same() {
        let folder = crate::models::scratch("programs-lora");
        let (before, after, same, merged) = super::run(100, &folder).unwrap();
        crate::say(&format!("lora: loss {before:.3}, then {after:.3}; merged differs by {merged:.1e}"));
        assert!(before > 512f64.ln() && after < 256f64.ln(), "{before} {after}");
        assert!(same && merged < 1e-3, "{same} {merged}");
        let adapter = std::fs::metadata(folder.join("adapter.safetensors")).unwrap().len();
        let whole = std::fs::metadata(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-gpt2/model.safetensors")).unwrap().len();
        assert!(adapter < whole / 8, "{adapter} of {whole} bytes");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
