//! PyTorch's numbers on long rows, real sizes and chains of ops: every stored case is replayed in f64 and f32, outputs and gradients.
//! Every op with every option, on few numbers: `torch_ops.rs`.
//!
//! The cases in tests/fixtures/ops are a part of what PyTorch 2.13 computed in float64, with its own float32 error
//! beside each; `COTANGENT_FIXTURES=<folder>` replays further folders of the same format.

use cotangent::ops::cross_entropy::CrossEntropyOptions;
use cotangent::ops::loss::Reduction;
use cotangent::ops::rope::{RopeOptions, RopePositions, RopeStyle};
use cotangent::ops::sdpa::SdpaOptions;
use cotangent::{Axes, DType, F32, F64, I64, Result, Tape, Tensor, U8};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Where this crate differs from PyTorch on purpose: case, what is not compared, why.
const DIFFERENCES: &[(&str, &[&str], &str)] = &[
    ("cross_entropy/all_ignored_mean", &["out.y", "grad.x"], "the mean over no target is 0 with zero gradient, PyTorch gives 0/0 = NaN"),
    ("rms_norm/size1", &["grad.x in f32"], "1 - xhat² cancels to 1e-5: what is left in f32 is rounding of either implementation"),
    ("reductions/max_dim_ties", &["grad.x"], "ties share the gradient equally, as PyTorch's amax; its max(dim) picks one index"),
];

/// Sums so long, or angles and scores so large, that rounding shows in the twelfth digit.
const LONG: &[&str] = &[
    "embedding/same_id_4096",
    "matmul/long_k",
    "reductions/sum_alternating_1e6",
    "rotary/half_pos",
    "rotary/interleaved_pos",
    "sdpa/huge",
    "softmax/huge",
];

struct Case<'a> {
    id: String,
    op: &'a str,
    name: &'a str,
    attributes: &'a Value,
    /// Operands by name (`in.x` as `x`), tracked when the case has a gradient for them.
    inputs: BTreeMap<String, Tensor>,
}

impl Case<'_> {
    fn x(&self, name: &str) -> &Tensor {
        self.maybe(name).unwrap_or_else(|| panic!("{}: no input {name}", self.id))
    }
    fn maybe(&self, name: &str) -> Option<&Tensor> {
        self.inputs.get(name)
    }
    fn number(&self, name: &str) -> Option<f64> {
        self.attributes[name].as_f64()
    }
    fn integers(&self, name: &str) -> Vec<i64> {
        self.attributes[name]
            .as_array()
            .map(|a| a.iter().flat_map(|v| v.as_array().map_or_else(|| vec![v.clone()], Clone::clone)).filter_map(|v| v.as_i64()).collect())
            .unwrap_or_default()
    }
    fn axis(&self) -> i32 {
        self.attributes["dim"].as_i64().unwrap_or(-1) as i32
    }
    fn axes(&self) -> Axes {
        match &self.attributes["dim"] {
            Value::Null => (..).into(),
            Value::Array(_) => self.integers("dim").iter().map(|&d| d as i32).collect::<Vec<_>>()[..].into(),
            _ => self.axis().into(),
        }
    }
}

/// The case's result, by this crate's API.
fn compute(c: &Case<'_>) -> Result<Tensor> {
    match c.op {
        "elementwise_broadcast" => elementwise(c),
        "layout" => layout(c),
        "reductions" => reduction(c),
        "matmul" => match c.name {
            "transposed_views" => c.x("a").t()?.matmul(&c.x("b").t()?),
            "same_operand" => c.x("a").matmul(c.x("a")),
            "gram" => c.x("a").matmul(&c.x("a").t()?),
            _ => c.x("a").matmul(c.x("b")),
        },
        "linear" if c.name == "conv1d_gpt2" => c.x("x").matmul(c.x("w"))?.add(c.x("b")),
        "linear" => c.x("x").linear(c.x("w"), c.maybe("b")),
        "softmax" => c.x("x").softmax(c.axis()),
        "log_softmax" => c.x("x").log_softmax(c.axis()),
        "layer_norm" => c.x("x").layer_norm(
            c.maybe("weight").or(c.maybe("bias")).map_or(1, Tensor::rank),
            c.maybe("weight"),
            c.maybe("bias"),
            c.number("eps").unwrap_or(1e-5),
        ),
        "rms_norm" => c.x("x").rms_norm(c.maybe("weight"), c.number("eps").unwrap_or(1e-6)),
        "embedding" => c.x("weight").embedding(c.x("ids"), c.number("padding_idx").map(|p| p as usize)),
        "relu" => c.x("x").relu(),
        "sigmoid" => c.x("x").sigmoid(),
        "tanh" => c.x("x").tanh(),
        "silu" => c.x("x").silu(),
        "gelu_exact" => c.x("x").gelu(),
        "gelu_tanh" => c.x("x").gelu_tanh(),
        "swiglu" if c.name == "mlp" => {
            let x = c.x("x");
            x.linear(c.x("wg"), None)?.silu()?.mul(&x.linear(c.x("wu"), None)?)?.linear(c.x("wd"), None)
        }
        "swiglu" => c.x("gate").silu()?.mul(c.x("up")),
        "cross_entropy" => {
            let reduction = match c.attributes["reduction"].as_str() {
                Some("sum") => Reduction::Sum,
                Some("none") => Reduction::None,
                _ => Reduction::Mean,
            };
            let ignore_index = c.attributes["ignore_index"].as_i64();
            let options = CrossEntropyOptions {
                ignore_index,
                label_smoothing: c.number("label_smoothing").unwrap_or(0.0),
                reduction,
                weights: c.maybe("weight").cloned(),
                z_loss: 0.0,
            };
            c.x("x").cross_entropy_with(c.x("target"), &options)
        }
        "rotary" if c.name == "llama_permute" => {
            let (w, heads) = (c.x("w"), c.number("n_head").unwrap_or(1.0) as usize);
            let (rows, columns) = (w.shape()[0], w.shape()[1]);
            w.reshape([heads, 2, rows / heads / 2, columns])?.transpose(1, 2)?.reshape([rows, columns])
        }
        "rotary" => {
            let style = if c.attributes["style"] == "half" { RopeStyle::Half } else { RopeStyle::Interleaved };
            let at = c.integers("positions");
            let positions = RopePositions::Given(Tensor::from_slice(&at, [at.len()])?);
            c.x("x").rope(&RopeOptions {
                base: c.number("base").unwrap_or(1e4),
                style,
                positions,
                rotary_dim: c.number("rotary_dim").map(|d| d as usize),
            })
        }
        "sdpa" => {
            let options = SdpaOptions { causal: c.attributes["causal"] == true, scale: c.number("scale"), ..SdpaOptions::default() };
            c.x("q").scaled_dot_product_attention(c.x("k"), c.x("v"), c.maybe("mask"), &options)
        }
        _ => panic!("{}: no such op: add it to tests/ops/parity.rs", c.id),
    }
}

fn elementwise(c: &Case<'_>) -> Result<Tensor> {
    if let Some(f) = c.name.strip_prefix("unary_") {
        let x = c.x("x");
        return match f {
            "exp" => x.exp(),
            // Made positive first.
            "log" => x.abs()?.add_scalar(0.1)?.log(),
            "sqrt" => x.abs()?.add_scalar(0.1)?.sqrt(),
            "rsqrt" => x.abs()?.add_scalar(0.1)?.rsqrt(),
            "sin" => x.sin(),
            "cos" => x.cos(),
            "neg" => x.neg(),
            "abs" => x.abs(),
            "square" => x.square(),
            "cube" => x.powi(3),
            "reciprocal" => x.recip(),
            _ => panic!("{}: no such function", c.id),
        };
    }
    let a = c.x("a");
    match c.name {
        "self_add" => return a.add(a),
        "self_mul" => return a.mul(a),
        "diamond" => {
            let e = a.exp()?;
            return e.mul(&e)?.add(&e.mul(&a.sin()?)?);
        }
        "where" => return c.x("m").where_cond(a, c.x("b")),
        "where_nan_branch" => return c.x("m").where_cond(&a.sqrt()?, &Tensor::zeros((), a.dtype())?),
        _ => {}
    }
    let b = c.x("b");
    match c.name.split('_').next() {
        Some("add") => a.add(b),
        Some("sub") => a.sub(b),
        Some("mul") => a.mul(b),
        Some("div") => a.div(b),
        Some("maximum") => a.maximum(b),
        Some("minimum") => a.minimum(b),
        Some("pow") => a.abs()?.add_scalar(0.5)?.pow(b),
        _ => panic!("{}: no such function", c.id),
    }
}

fn layout(c: &Case<'_>) -> Result<Tensor> {
    let x = || c.x("x");
    match c.name {
        "stack" => Tensor::stack(&[c.x("a"), c.x("b")], 1),
        "step_slice" => x().slice_step(0, 1.., 3),
        "index_neg" => x().select(0, -1),
        "permute_reshape" => x().permute([0, 2, 1, 3])?.reshape([2, 4, 15]),
        "expand_sum" => x().expand([3, 4])?.mul(&Tensor::arange(0.0, 12.0, 1.0, x().dtype())?.reshape([3, 4])?),
        "repeat_interleave" => x().repeat_interleave(3, 1),
        "gather" => {
            let index = c.integers("index");
            x().gather(1, &Tensor::from_slice(&index, [3, index.len() / 3])?)
        }
        "scatter_add" => {
            let index = c.integers("index");
            let index = Tensor::from_slice(&index, [index.len(), 1])?.expand(c.x("s").shape())?;
            x().scatter_add(0, &index, c.x("s"))
        }
        "masked_fill" => x().masked_fill(c.x("m"), c.number("value").unwrap_or(0.0)),
        "tril" => x().tril(0),
        "triu_off" => x().triu(1),
        "flip_roll" => x().flip(0)?.roll(&[2], 0),
        "squeeze" => x().squeeze_all(),
        "zero_reshape" => x().reshape([2, 0, 2]),
        _ => panic!("{}: no such function", c.id),
    }
}

fn reduction(c: &Case<'_>) -> Result<Tensor> {
    let x = c.x("x");
    let keep = c.attributes["keepdim"] == true;
    match c.name.split('_').next() {
        Some("sum") if keep => x.sum_keepdim(c.axes()),
        Some("sum") => x.sum(c.axes()),
        Some("mean") if keep => x.mean_keepdim(c.axes()),
        Some("mean") => x.mean(c.axes()),
        Some("amax" | "max") => x.max(c.axes()),
        Some("amin" | "min") => x.min(c.axes()),
        Some("logsumexp") => x.logsumexp(c.axes()),
        Some("var") => x.var(c.axes(), 0),
        Some("norm") => x.norm(..),
        Some("cumsum") => x.cumsum(c.axis()),
        _ => panic!("{}: no such function", c.id),
    }
}

fn read(file: &SafeTensors<'_>, name: &str, dtype: DType) -> Result<Tensor> {
    let t = file.tensor(name).unwrap();
    let words = || t.data().chunks_exact(8).map(|b| <[u8; 8]>::try_from(b).unwrap());
    match t.dtype() {
        Dtype::F64 => {
            let v: Vec<f64> = words().map(f64::from_le_bytes).collect();
            if dtype == F32 {
                Tensor::from_slice(&v.iter().map(|&v| v as f32).collect::<Vec<_>>(), t.shape())
            } else {
                Tensor::from_slice(&v, t.shape())
            }
        }
        Dtype::I64 => Tensor::from_slice(&words().map(i64::from_le_bytes).collect::<Vec<_>>(), t.shape()),
        Dtype::BOOL => Tensor::from_slice(t.data(), t.shape()),
        other => panic!("{name}: dtype {other:?}"),
    }
}

/// Why a tensor is not PyTorch's, if it is not. `f32_error` is PyTorch's own largest error in float32; below `floor` two
/// f64 numbers are the same zero.
fn differs(got: &Tensor, want: &Tensor, f32_error: f64, floor: f64, long: bool) -> Result<Option<String>> {
    if got.shape() != want.shape() {
        return Ok(Some(format!("shape {} instead of {}", got.shape(), want.shape())));
    }
    let (dtype, got, want) = (got.dtype(), got.to_f64_vec()?, want.to_f64_vec()?);
    let largest = want.iter().filter(|v| v.is_finite()).fold(0f64, |m, v| m.max(v.abs()));
    let worst = got.iter().zip(&want).enumerate().find(|(_, (g, w))| {
        if w.is_nan() || w.is_infinite() {
            return !(g.to_bits() == w.to_bits() || g.is_nan() && w.is_nan());
        }
        let allowed = if dtype == F32 {
            2.0 * f32_error + f64::from(f32::EPSILON) * largest
        } else {
            floor + largest * if long { 1e-10 } else { 1e-12 }
        };
        // Written so that NaN fails; below the smallest normal number f32 has no relative precision.
        !((*g - *w).abs() <= allowed + if dtype == F32 { f64::from(f32::MIN_POSITIVE) } else { 0.0 })
    });
    Ok(worst.map(|(i, (g, w))| format!("element {i}: {g:e} instead of {w:e} (largest {largest:e}, PyTorch's f32 error {f32_error:e})")))
}

fn replay(folder: &Path) -> (usize, Vec<String>) {
    let (mut compared, mut failures) = (0, Vec::new());
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())).map(|f| f.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "safetensors"));
    files.sort();
    assert!(!files.is_empty(), "no fixtures in {}", folder.display());
    for path in files {
        let bytes = std::fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap_or_default();
        let op = metadata["op"].as_str();
        // The optimizer has tests of its own.
        if op == "adamw" {
            continue;
        }
        let cases: BTreeMap<String, Value> = serde_json::from_str(&metadata["cases"]).unwrap();
        let names = file.names();
        for (name, attributes) in &cases {
            let id = format!("{op}/{name}");
            let of = |kind: &str| -> Vec<String> {
                names.iter().filter_map(|n| Some(n.strip_prefix(&format!("{name}.{kind}."))?.to_string())).collect()
            };
            if of("out").is_empty() {
                continue;
            }
            let skipped: &[&str] = DIFFERENCES.iter().find(|d| d.0 == id).map_or(&[], |d| d.1);
            let long = LONG.iter().any(|l| id.starts_with(l));
            for dtype in [F64, F32] {
                let mut run = || -> Result<()> {
                    let (tape, gradients) = (Tape::new(), of("grad"));
                    let mut inputs = BTreeMap::new();
                    for i in of("in") {
                        let t = read(&file, &format!("{name}.in.{i}"), dtype)?;
                        assert!(matches!(t.dtype(), F64 | F32 | I64 | U8));
                        inputs.insert(i.clone(), if gradients.contains(&i) { tape.watch(&t)? } else { t });
                    }
                    let case = Case { id: id.clone(), op, name, attributes, inputs };
                    let y = compute(&case)?;
                    let error = |what: &str| attributes["f32"][what][0].as_f64().unwrap_or(0.0);
                    let seed = read(&file, &format!("{name}.ct.y"), dtype)?;
                    let floor = 5e-14 * seed.to_f64_vec()?.iter().fold(0f64, |m, v| m.max(v.abs()));
                    let mut check = |what: String, got: &Tensor| -> Result<()> {
                        if skipped.contains(&what.as_str()) || skipped.contains(&format!("{what} in {dtype}").as_str()) {
                            return Ok(());
                        }
                        compared += 1;
                        if let Some(why) = differs(got, &read(&file, &format!("{name}.{what}"), F64)?, error(&what), floor, long)? {
                            failures.push(format!("{id} {what} in {dtype}: {why}"));
                        }
                        Ok(())
                    };
                    check("out.y".into(), &y)?;
                    let wrt: Vec<&Tensor> = gradients.iter().map(|g| case.x(g)).collect();
                    for (g, bar) in gradients.iter().zip(tape.cotangents(&[(&y, seed)], &wrt)?) {
                        let zero = case.x(g).zeros_like()?;
                        check(format!("grad.{g}"), bar.as_ref().unwrap_or(&zero))?;
                    }
                    Ok(())
                };
                if let Err(e) = run() {
                    failures.push(format!("{id} in {dtype}: {e}"));
                }
            }
        }
    }
    (compared, failures)
}

#[test]
fn every_case_agrees_with_pytorch() {
    let mut folders = vec![concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures").to_string()];
    folders.extend(std::env::var("COTANGENT_FIXTURES"));
    for folder in folders {
        let folder = Path::new(&folder).join("ops");
        let (compared, failures) = replay(&folder);
        println!("{}: {compared} tensors compared, {} differences", folder.display(), failures.len());
        assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
        assert!(compared > 500, "only {compared} tensors compared");
    }
}

/// A documented difference that no longer is one must leave the list.
#[test]
fn documented_differences_have_reasons() {
    assert!(DIFFERENCES.iter().all(|(id, what, why)| id.contains('/') && !what.is_empty() && why.len() > 20));
}
