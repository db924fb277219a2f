//! Every op with every option against numbers that PyTorch computed in float64: values, gradients, second derivatives.
//!
//! The cases are written by scripts/torch_op_fixtures.py. Each is replayed in every float type that holds its inputs, contiguous
//! and strided. Tolerances are those of the suite: the bound that the op's definition gives when it runs on balls. The definition
//! itself is compared with the same numbers, so a fault that kernel and definition share shows here.

mod calls;
mod cases;
mod convolutions;
mod reference;

use cases::{Case, Numbers};
use cotangent::ops::registry;
use cotangent::testing::{Ball, Tolerance};
use cotangent::{DType, Device, F64, Result, Tape, Tensor};
use rayon::prelude::*;
use reference::{Call, Reference};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Where this crate differs from PyTorch on purpose: cases (`*` for the rest of the name), what is not compared, why. The same
/// table stands in docs/book/numerics.md.
const DIFFERENCES: &[(&str, &str, &str)] = &[
    ("sign/special", "all", "sign of NaN is NaN, as in NumPy: PyTorch's 0 hides it"),
    ("gelu/special", "all", "0 at −∞ and slope 1 at +∞, the limits: PyTorch multiplies −∞ by 0"),
    ("gelu_tanh/special", "all", "the limits at ±∞, as gelu"),
    ("silu/special", "all", "the limits at ±∞, as gelu"),
    ("swiglu/special", "gradient", "the limits at ±∞, as gelu"),
    ("geglu/special", "gradient", "the limits at ±∞, as gelu"),
    ("geglu_tanh/special", "gradient", "the limits at ±∞, as gelu"),
    ("powf/special1", "all", "IEEE 754: (−∞)^½ is +∞; PyTorch takes a square root, and gives NaN"),
    ("maximum/special", "gradient", "the operand that is NaN takes the cotangent: PyTorch gives all of it to both"),
    ("minimum/special", "gradient", "as maximum"),
    ("max/special", "gradient", "the elements that are NaN share the cotangent: PyTorch gives NaN to the whole group"),
    ("min/special", "gradient", "as max"),
    ("logsumexp/special", "gradient", "the gradient of a row of −∞ only is 0: PyTorch gives NaN"),
    ("var/special*", "gradient", "a row with an infinity has the gradient NaN, as its variance: PyTorch gives ±∞ to its finite elements"),
    ("pow/whole", "definition's gradient", "a definition differentiates the power of a negative base by the base alone"),
    ("pow/extreme", "definition's gradient", "as whole"),
    ("softmax/special", "all", "a row of −∞ only gives zeros and zero gradients: PyTorch gives NaN"),
    ("log_softmax/special", "all", "as softmax"),
    ("cross_entropy/all_ignored_Mean", "all", "the mean over no target is 0: PyTorch gives 0/0"),
    ("nll_loss/all_ignored_Mean", "all", "as cross_entropy"),
    ("linear_cross_entropy/all_ignored", "all", "as cross_entropy"),
    ("soft_cross_entropy/special", "all", "a row of −∞ only counts 0, and a logit of −∞ whose probability is 0 nothing: PyTorch gives NaN"),
    ("soft_cross_entropy/no_rows_Mean", "all", "the mean over no row is 0: PyTorch gives 0/0"),
    (
        "scatter_reduce/left_out*",
        "all",
        "an element that is left out takes no share of a tie: PyTorch counts it where it equals the result",
    ),
    ("mse_loss/empty_Mean", "all", "the mean loss of no elements is 0: PyTorch gives 0/0"),
    ("bce_with_logits/empty_Mean", "all", "as mse_loss"),
    (
        "interpolate/nearest_rounding",
        "gradient",
        "the transpose of the value: PyTorch's gradient rounds positions where its value does not",
    ),
    ("interpolate/nearest_rounding", "definition's gradient", "the same"),
    ("interpolate/nearest-exact_rounding", "gradient", "the same"),
    ("interpolate/nearest-exact_rounding", "definition's gradient", "the same"),
    ("interpolate/special", "all", "an element of weight 0 takes no part: PyTorch multiplies it by 0"),
    (
        "interpolate/nearest_one_factor",
        "all",
        "positions follow a factor also where no extent changes, as PyTorch's along one axis: along two it copies",
    ),
    (
        "interpolate/cubic_one_factor",
        "gradient",
        "the transpose of the value: PyTorch's gradient copies where no extent changes, its value does not",
    ),
    ("interpolate/cubic_one_factor", "definition's gradient", "the same"),
    ("cast/*", "definition", "the definition does not round: the bound says by how much a result may be off"),
];

/// Ops that exist for the derivatives of others, beside those called `<name>_vjp`, which are the gradient of `<name>`.
const THROUGH: &[(&str, &str)] = &[("extremum_vjp", "maximum")];

fn tensor(n: &Numbers, dtype: DType, strided: bool) -> Result<Tensor> {
    let dtype = n.dtype.unwrap_or(dtype);
    let t = if dtype == DType::I64 {
        Tensor::from_slice(&n.data.iter().map(|&v| v as i64).collect::<Vec<_>>(), &n.shape[..])?
    } else {
        Tensor::from_slice(&n.data, &n.shape[..])?.cast(dtype)?
    };
    if !strided {
        return Ok(t);
    }
    // The same values, but neighbours lie apart: axes in another order, or every second element of a longer tensor.
    match t.rank() {
        0 => Tensor::stack(&[&t, &t], 0)?.select(0, 1),
        1 => Tensor::stack(&[&t, &t.flip(0)?], 1)?.select(1, 0),
        r => t.transpose(r - 2, r - 1)?.contiguous()?.transpose(r - 2, r - 1),
    }
}

/// Why numbers are not PyTorch's within the bounds, if they are not.
fn differs(got: &[f64], want: &[f64], bounds: Option<&[Ball]>, tolerance: Tolerance) -> Option<String> {
    if got.len() != want.len() {
        return Some(format!("{} elements instead of {}", got.len(), want.len()));
    }
    // PyTorch's own rounding in float64: as far off as ours may be.
    let theirs = Tolerance::of_derivative(F64, F64, 2);
    (0..got.len()).find_map(|i| {
        let of = bounds.map_or(Ball { v: want[i], e: 2.0 * want[i].abs(), h: 0.0 }, |b| b[i]);
        // Where the bound itself leaves f64's range nothing but the exact number passes.
        let ball = Ball { v: want[i], e: if of.e.is_finite() { of.e } else { 0.0 }, h: 0.0 };
        let close = (got[i] - want[i]).abs() <= tolerance.bound(ball) + theirs.bound(ball);
        (!tolerance.accepts(got[i], ball) && !close).then(|| {
            format!("element {i} of {}: {:e} instead of {:e}, allowed error {:e}", got.len(), got[i], want[i], tolerance.bound(ball))
        })
    })
}

/// What was compared, and what differs: (case, part, text).
#[derive(Default)]
struct Found {
    compared: usize,
    differences: Vec<(String, String, String)>,
}

impl Found {
    fn check(&mut self, c: &Case, part: &str, at: &str, why: Option<String>) {
        self.compared += 1;
        if let Some(why) = why {
            self.differences.push((c.id(), part.to_string(), format!("{} {part} {at}: {why}", c.id())));
        }
    }
}

fn values(of: &[Ball]) -> Vec<f64> {
    of.iter().map(|b| b.v).collect()
}

/// The definition against PyTorch.
fn defined(c: &Case, r: &Reference, found: &mut Found) {
    let tolerance = Tolerance::of_derivative(F64, F64, 2);
    for (k, y) in c.outputs.iter().enumerate() {
        let why = r.values.get(k).map_or(Some("missing".into()), |v| differs(&values(v), &y.data, Some(v), tolerance));
        found.check(c, "definition", &format!("output {k}"), why);
    }
    // At infinities and NaN a definition promises its value alone.
    if c.order == 0 || !c.finite() {
        return;
    }
    for (k, g) in c.gradients.iter().enumerate() {
        found.check(
            c,
            "definition's gradient",
            &format!("input {}", c.diff[k]),
            differs(&values(&r.gradients[k]), &g.data, Some(&r.gradients[k]), tolerance),
        );
    }
    for (k, h) in c.second.iter().enumerate() {
        found.check(
            c,
            "definition's second",
            &format!("input {}", c.diff[k]),
            differs(&values(&r.second[k]), &h.data, Some(&r.second[k]), tolerance),
        );
    }
}

/// The method, its gradient and the gradient's gradient in one type and layout.
fn replay(c: &Case, call: &Call, r: Option<&Reference>, dtype: DType, strided: bool, found: &mut Found) -> Result<()> {
    let at = format!("in {dtype}{}", if strided { ", strided" } else { "" });
    let rounds = registry().iter().any(|e| e.name == call.name && e.rounds());
    let tape = Tape::new();
    let mut x = Vec::new();
    for (i, n) in c.inputs.iter().enumerate() {
        let t = tensor(n, dtype, strided)?;
        x.push(if c.order > 0 && c.diff.contains(&i) { tape.watch(&t)? } else { t });
    }
    let y = (call.run)(&x, dtype)?;
    if y.len() != c.outputs.len() {
        found.check(c, "value", &at, Some(format!("{} outputs instead of {}", y.len(), c.outputs.len())));
        return Ok(());
    }
    let mut overflowed = false;
    for (k, (y, want)) in y.iter().zip(&c.outputs).enumerate() {
        let got = y.to_f64_vec()?;
        overflowed |= dtype.is_half() && c.finite() && got.iter().any(|v| !v.is_finite());
        let mut why = differs(&got, &want.data, r.map(|r| &r.values[k][..]), Tolerance::of_value(y.dtype(), rounds, Device::Cpu));
        if y.shape() != &want.shape[..] {
            why = Some(format!("shape {} instead of {:?}", y.shape(), want.shape));
        }
        if let Some(d) = want.dtype.filter(|&d| d != y.dtype() && !y.dtype().is_float()) {
            why = Some(format!("dtype {} instead of {d}", y.dtype()));
        }
        found.check(c, "value", &format!("of output {k} {at}"), why);
    }
    // A derivative may be written in the value: where that exceeds a 16-bit type, the derivative does too.
    let Some(r) = r.filter(|_| c.order > 0 && !overflowed) else { return Ok(()) };
    let mut seeds = Vec::new();
    for (y, s) in y.iter().zip(&c.seeds) {
        seeds.push(match s {
            Some(s) if y.is_tracked() => Some(tape.watch(&tensor(s, y.dtype(), strided)?)?),
            _ => None,
        });
    }
    let pairs: Vec<(&Tensor, Tensor)> = y.iter().zip(&seeds).filter_map(|(y, s)| Some((y, s.clone()?))).collect();
    let wrt: Vec<&Tensor> = c.diff.iter().map(|&i| &x[i]).collect();
    let bars = if c.order > 1 { tape.cotangents_recorded(&pairs, &wrt)? } else { tape.cotangents(&pairs, &wrt)? };
    let widest = |t: &Tensor| if t.dtype().epsilon() > dtype.epsilon() { t.dtype() } else { dtype };
    let coarsest =
        y.iter().filter(|y| y.dtype().is_float()).map(widest).max_by(|a, b| a.epsilon().total_cmp(&b.epsilon())).unwrap_or(dtype);
    let read = |t: &Option<Tensor>, n: usize| t.as_ref().map_or(Ok(vec![0.0; n]), Tensor::to_f64_vec);
    let first = Tolerance::of_derivative(dtype, coarsest, 1);
    for (k, (bar, want)) in bars.iter().zip(&c.gradients).enumerate() {
        let got = read(bar, want.data.len())?;
        overflowed |= dtype.is_half() && got.iter().any(|v| !v.is_finite());
        found.check(c, "gradient", &format!("of input {} {at}", c.diff[k]), differs(&got, &want.data, Some(&r.gradients[k]), first));
    }
    if c.order < 2 || overflowed {
        return Ok(());
    }
    let mut results = Vec::new();
    for (bar, d) in bars.iter().zip(&c.directions) {
        if let Some(bar) = bar.as_ref().filter(|b| b.is_tracked()) {
            results.push((bar, tensor(d, dtype, strided)?));
        }
    }
    let mut inputs = wrt.clone();
    inputs.extend(seeds.iter().flatten());
    let hs = if results.is_empty() { vec![None; inputs.len()] } else { tape.cotangents(&results, &inputs)? };
    let second = Tolerance::of_derivative(dtype, coarsest, 2);
    for (k, want) in c.second.iter().enumerate() {
        let why = differs(&read(&hs[k], want.data.len())?, &want.data, Some(&r.second[k]), second);
        found.check(c, "second", &format!("derivative by input {} {at}", c.diff[k]), why);
    }
    let mut rest = hs[wrt.len()..].iter();
    for (k, want) in c.second_seeds.iter().enumerate().filter(|(k, _)| seeds[*k].is_some()) {
        let (Some(h), Some(want)) = (rest.next(), want) else { continue };
        let why = differs(&read(h, want.data.len())?, &want.data, Some(&r.second_seeds[k]), second);
        found.check(c, "second", &format!("derivative by the cotangent of output {k} {at}"), why);
    }
    Ok(())
}

fn check(c: &Case) -> Found {
    let mut found = Found::default();
    let call = calls::call(c);
    let r = call.op.as_ref().map(|op| Reference::new(c, op.as_ref()));
    if let Some(r) = &r {
        defined(c, r, &mut found);
    }
    for &dtype in &c.dtypes {
        for strided in [false, true] {
            if let Err(e) = replay(c, &call, r.as_ref(), dtype, strided, &mut found) {
                found.check(c, "value", &format!("in {dtype}"), Some(format!("error: {e}")));
            }
        }
    }
    found
}

/// Whether a name fits a pattern with at most a star at its end.
fn fits(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |p| name.starts_with(p))
}

#[test]
fn every_case_agrees_with_pytorch() {
    let only = std::env::var("COTANGENT_OP").ok();
    let cases: Vec<Case> = cases::all().into_iter().filter(|c| only.as_ref().is_none_or(|o| c.id().contains(o.as_str()))).collect();
    let found: Vec<Found> = cases.par_iter().map(check).collect();
    let compared: usize = found.iter().map(|f| f.compared).sum();
    let mut used = BTreeSet::new();
    let mut wrong = Vec::new();
    for (id, part, text) in found.iter().flat_map(|f| &f.differences) {
        match DIFFERENCES.iter().position(|(p, what, _)| fits(p, id) && (what == part || *what == "all")) {
            Some(i) => _ = used.insert(i),
            None => wrong.push(text.as_str()),
        }
    }
    println!("{} cases, {compared} tensors compared", cases.len());
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    if only.is_none() {
        let idle: Vec<_> = (0..DIFFERENCES.len()).filter(|i| !used.contains(i)).map(|i| DIFFERENCES[i]).collect();
        assert!(idle.is_empty(), "no longer differences: {idle:?}");
        assert!(compared > 10_000, "only {compared} tensors compared");
    }
}

/// The op whose gradient an internal op is: `None` for ops that users call.
fn forward_of(name: &str) -> Option<&str> {
    THROUGH.iter().find(|(vjp, _)| *vjp == name).map(|(_, f)| *f).or_else(|| name.strip_suffix("_vjp"))
}

/// Every op of the registry has cases for its value, its gradient and its second derivative; a derivative kernel has them as
/// the gradient of the op it belongs to, and its own derivative as that op's second.
#[test]
fn every_op_has_fixtures() {
    let mut order: BTreeMap<String, usize> = BTreeMap::new();
    for c in cases::all() {
        let highest = order.entry(c.op.clone()).or_default();
        *highest = c.order.max(*highest);
    }
    // Ops whose results are masks, indices or constants.
    let discrete = ["any_all", "argmax", "compare", "compare_scalar", "dequantize", "logical", "logical_not", "one_hot"];
    let mut problems = String::new();
    for e in registry() {
        let of = forward_of(e.name).unwrap_or(e.name);
        let needed = if discrete.contains(&of) { 0 } else { 2 };
        match order.get(of) {
            None => writeln!(problems, "`{}`: no case of `{of}`: add some to scripts/torch_op_fixtures.py", e.name).unwrap(),
            // A cast is linear: its cases are of order 1.
            Some(n) if *n < needed.min(if of == "cast" { 1 } else { 2 }) => {
                writeln!(problems, "`{}`: no case of `{of}` has derivatives of order {needed}", e.name).unwrap()
            }
            _ => {}
        }
    }
    for (vjp, _) in THROUGH {
        assert!(registry().iter().any(|e| e.name == *vjp), "`{vjp}` is not an op any more");
    }
    assert!(problems.is_empty(), "{problems}");
}

/// Fields of ops that are no options: (op, field, why one value is enough).
const NO_OPTIONS: &[(&str, &str, &str)] = &[
    ("pow", "0", "the order of a derivative: other values are made by its own derivative, which these cases take twice"),
    ("pow", "0.by_base", "the order of a derivative"),
    ("pow", "0.by_exponent", "the order of a derivative"),
    ("cumsum", "reverse", "its derivative"),
    ("rope", "inverse", "its derivative"),
    ("rope_with_key", "0.inverse", "its derivative"),
    ("rms_norm", "axes", "the method has the last axis only"),
    ("rms_norm", "bias", "the method has none"),
    ("add_rms_norm", "norm.axes", "the method has the last axis only"),
    ("add_rms_norm", "norm.bias", "the method has none"),
    ("max_with_index", "keep", "the methods drop the axis"),
    ("sort", "k", "topk's"),
    ("dropout", "key.stream", "a key is one option: its seed differs"),
    ("dropout_add", "0.key.stream", "a key is one option: its seed differs"),
    ("linear_cross_entropy", "keep", "set by what is tracked; the result is the same"),
    ("max_pool", "windows.groups", "there are none"),
    ("avg_pool", "windows.groups", "there are none"),
    ("unfold", "0.groups", "there are none"),
    ("fold", "0.groups", "there are none"),
    ("linear_cross_entropy", "rows", "how the work is cut; the result is the same"),
];

/// The fields of a value as Rust prints it, with nested ones under a path.
fn fields(shown: &str, path: &str, out: &mut Vec<(String, String)>) {
    let Some(open) = shown.find(['{', '(']).filter(|_| shown.ends_with(['}', ')'])) else { return };
    let (mut depth, mut start, mut parts) = (0, open + 1, Vec::new());
    for (i, c) in shown.char_indices().skip_while(|(i, _)| *i <= open) {
        match c {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' if depth > 0 => depth -= 1,
            ',' | '}' | ')' if depth == 0 => {
                parts.push(shown[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    let named = shown[open..].starts_with('{');
    for (i, part) in parts.into_iter().filter(|p| !p.is_empty()).enumerate() {
        let (name, value) = if named { part.split_once(": ").unwrap() } else { ("", part) };
        let name = if named { name.to_string() } else { i.to_string() };
        let path = if path.is_empty() { name } else { format!("{path}.{name}") };
        out.push((path.clone(), value.to_string()));
        // An option that is there or not counts as a whole.
        if value.starts_with(|c: char| c.is_uppercase()) && !value.starts_with("Some") && !value.starts_with("List") {
            fields(value, &path, out);
        }
    }
}

/// Every field of an op takes at least two values in its cases, and an enum each of its own: an option without a case is named.
#[test]
fn every_option_has_fixtures() {
    let mut seen: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for c in cases::all() {
        let Some(op) = calls::call(&c).op else { continue };
        assert_eq!(op.name(), c.op, "{}: the case calls another op", c.id());
        let mut found = Vec::new();
        fields(&op.show(), "", &mut found);
        for (field, value) in found {
            seen.entry((c.op.clone(), field)).or_default().insert(value);
        }
    }
    let mut problems = String::new();
    for ((op, field), values) in &seen {
        // The type of a function that an op wraps (`Map(Exp)`) is no option.
        let wrapped = ["0", "of"].contains(&field.as_str())
            && values.iter().all(|v| v.chars().all(char::is_alphanumeric) && v.parse::<f64>().is_err());
        let excused = wrapped || NO_OPTIONS.iter().any(|(o, f, _)| o == op && f == field);
        if values.len() < 2 && !excused {
            writeln!(problems, "`{op}`: every case has `{field}` {}", values.first().unwrap()).unwrap();
        }
    }
    let every = |op: &str, field: &str, wanted: &[&str]| {
        let found = seen.get(&(op.to_string(), field.to_string())).unwrap_or_else(|| panic!("`{op}` has no field `{field}`"));
        let missing: Vec<_> = wanted.iter().filter(|w| !found.contains(**w)).collect();
        assert!(missing.is_empty(), "`{op}`: no case has `{field}` {missing:?}, only {found:?}");
    };
    for op in ["cross_entropy", "nll_loss", "bce_with_logits", "mse_loss"] {
        every(op, "reduction", &["Mean", "Sum", "None"]);
    }
    every("soft_cross_entropy", "of.reduction", &["Mean", "Sum", "None"]);
    every("linear_cross_entropy", "of.reduction", &["Mean", "Sum", "None"]);
    for op in ["compare", "compare_scalar"] {
        every(op, "0", &["Equal", "NotEqual", "Less", "AtMost", "Greater", "AtLeast"]);
    }
    every("scatter_fold", "by", &["Prod", "Max", "Min"]);
    every("scatter_reduce", "by", &["Sum", "Mean", "Prod", "Max", "Min"]);
    every("matrix_norm", "kind", &["Frobenius", "One", "Infinity", "MinusOne", "MinusInfinity"]);
    every("cast", "to", &["F64", "F32", "BF16", "F16", "I64", "U32", "U8"]);
    every("pad_with", "mode", &["Reflect", "Replicate", "Circular"]);
    every("interpolate", "options.mode", &["Nearest", "NearestExact", "Linear", "Cubic", "Area"]);
    every("grid_sample", "0.mode", &["Linear", "Nearest", "Cubic"]);
    every("grid_sample", "0.padding", &["Zeros", "Border", "Reflection"]);
    every("embedding", "padding", &["None", "Row(0)"]);
    for op in ["sum", "mean", "logsumexp", "max", "min", "norm", "prod", "var", "std", "any_all"] {
        every(op, "axes", &["All"]);
        every(op, "keep", &["true", "false"]);
    }
    assert!(problems.is_empty(), "options without a case:\n{problems}");
}

/// Methods that no case calls, and why.
const NO_DOORS: &[(&str, &str)] = &[
    ("expand_as", "expand to another tensor's shape"),
    ("full", "one value everywhere"),
    ("full_on", "one value everywhere"),
    ("zeros", "one value everywhere"),
    ("ones", "one value everywhere"),
    ("zeros_like", "one value everywhere"),
    ("ones_like", "one value everywhere"),
    ("from_vec", "the elements themselves"),
    ("from_rows", "the elements themselves"),
    ("to_device", "the elements themselves"),
    ("nonzero", "indices whose number depends on values: compared with a loop where it stands"),
    ("rand", "draws of a generator that PyTorch lacks: src/rng_tests.rs"),
    ("uniform", "a draw"),
    ("randn", "a draw"),
    ("randn_like", "a draw"),
    ("normal", "a draw"),
    ("truncated_normal", "a draw"),
    ("bernoulli", "a draw"),
    ("randint", "a draw"),
    ("randperm", "a draw"),
];

/// Every public method of a tensor that src/ops declares is called by a case.
#[test]
fn every_method_has_fixtures() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let calls =
        ["calls", "convolutions"].map(|f| std::fs::read_to_string(root.join(format!("tests/ops/torch_ops/{f}.rs"))).unwrap()).concat();
    let mut folders = vec![root.join("src/ops")];
    let (mut methods, mut missing) = (BTreeSet::new(), Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
                continue;
            }
            let source = std::fs::read_to_string(&entry).unwrap();
            let mut inside = false;
            for line in source.lines() {
                inside = if line.starts_with("impl") { line.starts_with("impl Tensor {") } else { inside && !line.starts_with('}') };
                let name = line.trim().strip_prefix("pub fn ").filter(|_| inside).and_then(|l| l.split(['(', '<']).next());
                methods.extend(name.map(str::to_string));
            }
        }
    }
    assert!(methods.len() > 90, "{methods:?}");
    for name in &methods {
        let called =
            [format!(".{name}("), format!("Tensor::{name}("), format!("Tensor::{name})")].iter().any(|c| calls.contains(c.as_str()));
        if !called && !NO_DOORS.iter().any(|(n, _)| n == name) {
            missing.push(name);
        }
    }
    let idle: Vec<_> = NO_DOORS.iter().filter(|(n, _)| !methods.contains(*n)).collect();
    assert!(missing.is_empty(), "no case calls {missing:?}: add them to tests/ops/torch_ops/calls.rs and scripts/torch_op_fixtures.py");
    assert!(idle.is_empty(), "no methods any more: {idle:?}");
}

#[test]
fn fields_are_read_from_debug() {
    let mut out = Vec::new();
    fields("Reduce { of: Var { correction: 1 }, axes: List([Axis(-1), Axis(0)]), keep: false, w: Some((1, 2)) }", "", &mut out);
    let want = [
        ("of", "Var { correction: 1 }"),
        ("of.correction", "1"),
        ("axes", "List([Axis(-1), Axis(0)])"),
        ("keep", "false"),
        ("w", "Some((1, 2))"),
    ];
    assert_eq!(out, want.map(|(a, b)| (a.to_string(), b.to_string())));
    out.clear();
    fields("Zip(Pow { by_base: 0 })", "", &mut out);
    assert_eq!(out[1], ("0.by_base".to_string(), "0".to_string()));
}
