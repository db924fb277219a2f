//! Refusals name the line of the caller, not one inside the crate.

use cotangent::nn::{Embedding, Gpt, GptConfig, Init, LayerNorm, Linear, LinearOptions};
use cotangent::ops::{BceWithLogitsOptions, SdpaOptions, Span};
use cotangent::{Error, F32, F64, Key, Result, Tape, Tensor, custom_vjp, grad};

fn refused_here<T>(what: &str, result: Result<T>) -> Error {
    let Err(e) = result else { panic!("{what} was not refused") };
    let at = e.location().unwrap_or_else(|| panic!("{what} has no location: {e}"));
    assert!(at.file().ends_with("tests/engine/callers_line.rs"), "{what} points into the crate: {e}");
    assert!(e.op().is_some(), "{what} names no op: {e}");
    e
}

#[test]
fn composites_and_layers_name_the_callers_line() -> Result<()> {
    let key = Key::new(1);
    let (x, huge) = (Tensor::zeros([2, 3], F64)?, usize::MAX / 4);
    let vector = Tensor::zeros([3], F64)?;
    let wide = Tensor::zeros([1 << 40], F64)?;
    let e = refused_here("repeat", Tensor::from_rows(&[[1f64, 2.0]])?.repeat([1 << 30, 1 << 20]));
    assert!(e.is_out_of_memory() && e.op() == Some("repeat"), "{e}");
    let e = refused_here("outer", wide.outer(&wide));
    assert!(e.op() == Some("outer"), "{e}");
    refused_here("outer of integers", vector.cast(cotangent::I64)?.outer(&vector));
    refused_here(
        "bce_with_logits",
        x.bce_with_logits_with(&x, &BceWithLogitsOptions { pos_weight: Some(Tensor::zeros([2], F64)?), ..BceWithLogitsOptions::default() }),
    );
    refused_here("mse_loss", x.mse_loss(&vector));
    refused_here("split", x.split(&[1, 1], 5));
    refused_here("stack", Tensor::stack(&[&x, &vector], 0));
    refused_here("flatten", x.flatten(1, 0));
    refused_here("einsum", Tensor::einsum("ij,jk->ik", &[&x, &vector]));
    refused_here("attention", x.scaled_dot_product_attention(&vector, &x, None, &SdpaOptions::default()));
    refused_here("slice", x.slice(0, Span { start: Some(5), end: None }));
    refused_here("reshape", x.reshape((4, ())));
    refused_here("linear", Linear::no_bias(huge, huge, F32, key));
    let normal = LinearOptions { bias: false, init: Init::Normal { std: 0.1 } };
    refused_here("linear, normal", Linear::with(huge, huge, F32, key, &normal));
    refused_here("embedding", Embedding::normal(huge, huge, 0.1, F32, key));
    refused_here("layer_norm", LayerNorm::new(huge * 2 + 2, F32));
    Ok(())
}

#[test]
fn gpt_names_itself_and_the_callers_line() -> Result<()> {
    let key = Key::new(1);
    let small = GptConfig { vocabulary: 5, context: 4, layers: 1, heads: 2, width: 4, ..GptConfig::default() };
    for bad in [
        GptConfig { heads: 3, ..small.clone() },
        GptConfig { layers: 0, ..small.clone() },
        GptConfig { dropout: 1.0, ..small.clone() },
        GptConfig { width: 1 << 40, ..small.clone() },
    ] {
        let e = refused_here("gpt", Gpt::new(&bad, F32, key));
        assert!(e.to_string().starts_with("gpt: "), "{e}");
    }
    // A part inside that refuses keeps its name.
    refused_here("a table", Gpt::new(&GptConfig { vocabulary: 1 << 60, ..small.clone() }, F32, key));
    let gpt = Gpt::new(&small, F32, key)?;
    assert!(refused_here("rank", gpt.forward(&Tensor::zeros([3], cotangent::I64)?, None)).to_string().starts_with("gpt: tokens"));
    refused_here("length", gpt.forward(&Tensor::zeros([1, 5], cotangent::I64)?, None));
    refused_here("attention", gpt.transformer.h[0].attn.forward(&Tensor::zeros([3], F32)?, None));
    Ok(())
}

/// What a rule of the sweep refuses is reported at the line that called the op.
#[test]
fn the_sweep_names_the_ops_line() -> Result<()> {
    let tape = Tape::new();
    let x = tape.watch(&Tensor::zeros([1 << 50], F32)?)?;
    let line = line!() + 1;
    let y = x.slice(0, ..2)?.sum(..)?;
    let e = refused_here("the derivative of a slice", tape.backward(&y));
    assert!(e.is_out_of_memory() && e.location().is_some_and(|at| at.line() == line), "{e}");
    Ok(())
}

/// By the name that was called, too, not by that of the kernel that computes the derivative, in any order of derivative.
#[test]
fn the_sweep_names_the_op_that_was_called() -> Result<()> {
    type Of = fn(&Tensor) -> Result<Tensor>;
    let x = Tensor::zeros([1 << 50], F32)?;
    let ops: [(&str, Of); 6] = [
        ("slice", |x| x.slice(0, ..2)),
        ("narrow", |x| x.narrow(0, 7, 2)),
        ("slice_step", |x| x.slice_step(0, 1..9, 2)),
        // Of a composition, its part that was recorded.
        ("slice", |x| x.select(0, -1)),
        ("slice", |x| x.unsqueeze(0)?.slice(1, 3..5)),
        ("narrow", |x| x.flatten(0, -1)?.narrow(0, 5, 1)?.exp()),
    ];
    for (name, f) in ops {
        for e in [grad(&x, |x| f(x)?.sum(..)).unwrap_err(), grad(&x, |x| grad(x, |x| f(x)?.sum(..))?.sum(..)).unwrap_err()] {
            let e = refused_here::<()>(name, Err(e));
            assert!(e.is_out_of_memory() && e.to_string().starts_with(&format!("{name}: in the derivative: ")), "{e}");
            assert!(!e.to_string().contains("_vjp"), "{e}");
        }
    }
    Ok(())
}

/// What a derivative by hand refuses names the op that has it, and the part that refused.
#[test]
fn a_derivative_by_ops_names_its_part() -> Result<()> {
    let line = line!() + 4; // that of `custom_vjp`
    let e = grad(&Tensor::ones([2], F64)?, |x| {
        let wrong = |_: &[Tensor], _: &[Tensor], g: &[Tensor]| Ok(vec![Some(g[0].reshape([3])?)]);
        let f = |x: &[Tensor]| Ok(vec![x[0].square()?]);
        custom_vjp(&[x], f, wrong)?[0].sum(..)
    });
    let e = refused_here("custom_vjp", e);
    assert!(e.to_string().starts_with("reshape: cannot reshape [2]") && e.location().is_some_and(|at| at.line() == line), "{e}");
    Ok(())
}

/// The line is taken before a closure is entered: there it would be the crate's own.
#[test]
fn parts_and_files_name_the_callers_line() -> Result<()> {
    let x = Tensor::zeros([2, 3], F32)?;
    for (op, e) in [
        ("unpack", refused_here("unpack", x.unpack::<4>(1))),
        ("parts", refused_here("parts", x.parts::<2>(1))),
        ("save_npy", refused_here("save_npy", cotangent::io::save_npy("/no/such/folder/x.npy", &x))),
        ("split_at", refused_here("split_at", cotangent::train::Tokens::from(vec![1, 2, 3]).split_at(10))),
        ("linear", refused_here("linear", Linear::new(2, 3, cotangent::I64, Key::new(1)))),
    ] {
        assert_eq!(e.op(), Some(op), "{e}");
    }
    Ok(())
}

/// What looks into a file, a run or a record without an op of its own.
#[test]
fn questions_name_the_callers_line() -> Result<()> {
    use cotangent::diagnostics::{HealthHistory, observe};
    use cotangent::io::{ModuleFile, TensorFile, WeightFiles};
    use cotangent::nn::{Fans, Rotation};
    use cotangent::train::{Snapshot, TokenRules, mean_loss};
    use std::sync::{Arc, atomic::AtomicBool};
    let folder = std::env::temp_dir().join(format!("cotangent-questions-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("model.safetensors");
    let layer = Linear::new(3, 2, F32, Key::new(1))?;
    layer.save(&path)?;
    let (file, whole) = (TensorFile::open(&path)?, WeightFiles::open(&folder)?);
    let rules = TokenRules { suppress_tokens: vec![9], ..TokenRules::default() };
    let settings = [("task".to_owned(), "other".to_owned())].into();
    let profiler = cotangent::diagnostics::Profiler::new();
    for (op, e) in [
        ("shape", refused_here("shape", file.shape("no such"))),
        ("dtype", refused_here("dtype", file.dtype("no such"))),
        ("shape", refused_here("shape of a folder", whole.shape("no such"))),
        ("dtype", refused_here("dtype of a folder", whole.dtype("no such"))),
        ("init", refused_here("fans", Fans::of(&[3].into()))),
        ("init", refused_here("transposed fans", Fans::of_transposed(&[3].into()))),
        ("rotation", refused_here("rotation", Rotation::new(&[1.0], 1.0, &[], F32))),
        ("token_rules", refused_here("rules", rules.check(5))),
        ("check_settings", refused_here("settings", Snapshot::default().check_settings(&settings))),
        ("mean_loss", refused_here("mean_loss", mean_loss(&|_: u64| Ok(()), 0, &AtomicBool::new(false), |_| Tensor::scalar(1f32)))),
        ("observe", refused_here("observe", observe(&layer, Arc::new(profiler.clone())))),
        ("observe", refused_here("attach", profiler.attach(&layer))),
        ("html", refused_here("html", HealthHistory::default().html())),
    ] {
        assert_eq!(e.op(), Some(op), "{e}");
        assert_eq!(e.to_string().matches(" (at ").count(), 1, "{e}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
    Ok(())
}

/// A printed chain of causes says each of them once, and a fault of the crate asks for a report.
#[test]
fn causes_are_said_once_and_faults_of_the_crate_are_called_so() {
    let e = cotangent::io::read_file("/no/such/file", 100).unwrap_err();
    let cause = e.underlying().unwrap().to_string();
    assert_eq!(e.to_string().matches(&cause).count(), 1, "{e}");
    assert!(std::error::Error::source(&e).is_none());
    let outer = Error::argument("settings").with_source(e);
    assert_eq!((outer.underlying().unwrap().to_string(), outer.to_string().matches(&cause).count()), (cause, 1));
    let e = Error::internal("two outputs expected");
    assert!(e.is_internal() && e.to_string() == "two outputs expected (a fault of cotangent itself: please report it)", "{e}");
}
