//! Turns kernels/<family>/*.cu into what the crate embeds: self-contained sources, typed Rust launchers, and, when asked for,
//! binaries (nvcc) or host code (the emulator). No toolkit is needed, and nothing is fetched.
//!
//! A kernel file declares its kernels by lines that are C++ macros (kernels/common/kernel.cuh) and read here as text:
//!
//! | Line | Kernels |
//! |---|---|
//! | `KERNEL(name, (args), types…) { … }` | `name_<T>` for every type |
//! | `KERNEL2(name, (args), (types), (types)) { … }` | `name_<T>_<U>` for every pair |
//! | `KERNEL0(name, (args)) { … }` | `name` |
//! | `UNARY(name, Struct)` | `name_fwd_<T>`, `name_vjp_<T>` for the four floats |
//! | `BINARY(name, Struct)` | `name_<T>` for the four floats |
//!
//! In Rust, the kernel `name` of kernels/family/file.cu is launched by `file::name`, and its symbols begin with `file_`.
//!
//! `LAUNCH_BOUNDS(n)` on a line of its own bounds the block size of the next; `LAUNCH_BOUNDS(n, m)` also asks for
//! registers to be spared until m such blocks (of doubles half as many) fit on a multiprocessor. The entry points are appended to the
//! flattened text, one module for each first type: training in bf16 compiles no f64 kernel at run time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
#[cfg(feature = "emulator")]
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::{env, fs, process};

const FLOATS: [&str; 4] = ["f64", "f32", "bf16", "f16"];
/// Types of memory, and their names as a `DType`; `u16` and `u64` are words: memory of any dtype of that size.
const TYPES: [(&str, Option<&str>); 9] = [
    ("f64", Some("F64")),
    ("f32", Some("F32")),
    ("bf16", Some("BF16")),
    ("f16", Some("F16")),
    ("i64", Some("I64")),
    ("u32", Some("U32")),
    ("u8", Some("U8")),
    ("u16", None),
    ("u64", None),
];
/// Rust's keywords, as far as one would call a kernel so, and the functions that launchers call.
const RESERVED: &str = "as box in loop match mod move ref type use where yield dtype_index word_index acc_dtype acc_bits";
const SCALARS: [&str; 6] = ["i32", "i64", "u32", "u64", "f32", "f64"];

fn fail(file: &str, line: usize, what: &str) -> ! {
    eprintln!("kernels/{file}:{line}: {what}");
    process::exit(1);
}

/// A file's name without family and ending.
fn stem_of(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or(file).trim_end_matches(".cu")
}

fn dtype_of(t: &str) -> Option<&'static str> {
    TYPES.iter().find(|(n, _)| *n == t).and_then(|(_, d)| *d)
}

/// What memory holds: one of the kernel's type parameters, the type that T is computed in, or always the same.
#[derive(Clone, Debug, PartialEq)]
enum Memory {
    T,
    U,
    AccT,
    Fixed(&'static str),
}

#[derive(Clone, Debug)]
enum Kind {
    Pointer {
        of: Memory,
        written: bool,
        optional: bool,
    },
    Scalar(&'static str),
    /// `acc<T>` by value: an f64 in Rust.
    AccScalar,
    Struct(String),
}

#[derive(Clone, Debug)]
struct Arg {
    name: String,
    /// As in the entry point, with T and U still to be replaced.
    spelling: String,
    kind: Kind,
}

#[derive(Debug)]
struct KernelLine {
    name: String,
    args: Vec<Arg>,
    t: Vec<String>,
    u: Vec<String>,
    /// Threads of a block, and blocks that must fit on a multiprocessor.
    bounds: Option<(u32, Option<u32>)>,
    /// The body's call, with T and U still to be replaced.
    call: String,
    line: usize,
}

/// Splits at commas outside of parentheses and angle brackets.
fn split(list: &str) -> Vec<String> {
    let (mut depth, mut out) = (0i32, vec![String::new()]);
    for c in list.chars() {
        depth += i32::from("(<".contains(c)) - i32::from(")>".contains(c));
        if c == ',' && depth == 0 {
            out.push(String::new());
        } else if let Some(last) = out.last_mut() {
            last.push(if c == '\n' { ' ' } else { c });
        }
    }
    out.into_iter().map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect()
}

fn unwrapped(group: &str) -> Option<&str> {
    group.trim().strip_prefix('(')?.strip_suffix(')')
}

/// Replaces whole identifiers.
fn substitute(text: &str, from: &str, to: &str) -> String {
    let (mut out, mut word) = (String::new(), String::new());
    for c in text.chars().chain(std::iter::once('\0')) {
        if c.is_ascii_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        out.push_str(if word == from { to } else { &word });
        word.clear();
        if c != '\0' {
            out.push(c);
        }
    }
    out
}

fn parse_arg(file: &str, line: usize, spelling: &str) -> Arg {
    let unknown = || -> ! {
        fail(
            file,
            line,
            &format!(
                "argument `{spelling}`: expected `T* y`, `const T* x` (T, U, acc<T> or one of f64 f32 bf16 f16 i64 u32 u8), \
                 `maybe<const T*> x`, a scalar (i32 i64 u32 u64 f32 f64 acc<T>), `View v` or `const View& v`"
            ),
        )
    };
    let cut = spelling.trim_end_matches(|c: char| c.is_ascii_alphanumeric() || c == '_').len();
    let (ty, name) = (spelling[..cut].trim(), spelling[cut..].to_owned());
    if name.is_empty() || ty.is_empty() {
        unknown();
    }
    let (optional, inner) = match ty.strip_prefix("maybe<").and_then(|s| s.strip_suffix('>')) {
        Some(inner) => (true, inner.trim()),
        None => (false, ty),
    };
    let kind = if let Some(pointee) = inner.strip_suffix('*') {
        let (written, pointee) = match pointee.trim().strip_prefix("const ") {
            Some(p) => (false, p.trim()),
            None => (true, pointee.trim()),
        };
        let of = match pointee {
            "T" => Memory::T,
            "U" => Memory::U,
            "acc<T>" => Memory::AccT,
            p => match TYPES.iter().find(|(n, d)| *n == p && d.is_some()) {
                Some((n, _)) => Memory::Fixed(n),
                None => unknown(),
            },
        };
        Kind::Pointer { of, written, optional }
    } else if optional {
        unknown();
    } else if let Some(s) = SCALARS.iter().find(|s| **s == ty) {
        Kind::Scalar(s)
    } else if ty == "acc<T>" {
        Kind::AccScalar
    } else {
        let s = ty.strip_prefix("const ").and_then(|t| t.strip_suffix('&')).unwrap_or(ty).trim();
        let is_struct = s.len() > 1 && s.starts_with(|c: char| c.is_ascii_uppercase()) && s.chars().all(|c| c.is_ascii_alphanumeric());
        if !is_struct {
            unknown();
        }
        Kind::Struct(s.to_owned())
    };
    // A struct stays in the parameter bank, where its arrays can be indexed by a variable without a copy in local memory.
    let spelling = match &kind {
        Kind::Struct(s) => format!("const __grid_constant__ {s} {name}"),
        Kind::Pointer { .. } => format!("{inner} {name}"),
        _ => spelling.to_owned(),
    };
    Arg { name, spelling, kind }
}

/// A type list, checked.
fn types(file: &str, line: usize, list: &str) -> Vec<String> {
    let list = split(list);
    if list.is_empty() || list.iter().any(|t| !TYPES.iter().any(|(n, _)| n == t)) {
        fail(file, line, &format!("expected a list of types among {}", TYPES.map(|(n, _)| n).join(" ")));
    }
    if list.iter().any(|t| dtype_of(t).is_none()) && list.join(" ") != "u8 u16 u32 u64" {
        fail(file, line, "kernels on words have the types u8, u16, u32, u64, in this order");
    }
    list
}

fn parse(file: &str, text: &str) -> Vec<KernelLine> {
    let (mut out, mut bounds) = (Vec::new(), None);
    let starts: Vec<usize> = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
    for (n, &start) in starts.iter().enumerate() {
        let (rest, line) = (&text[start..], n + 1);
        let Some(open) = rest.find('(') else { continue };
        let head = &rest[..open];
        if !["KERNEL", "KERNEL2", "KERNEL0", "UNARY", "BINARY", "LAUNCH_BOUNDS"].contains(&head) {
            continue;
        }
        let mut depth = 0;
        let close = rest.char_indices().find_map(|(i, c)| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            (c == ')' && depth == 0).then_some(i)
        });
        let Some(close) = close else { fail(file, line, &format!("`{head}(` is never closed")) };
        let parts = split(&rest[open + 1..close]);
        let args = |group: &str| -> Vec<Arg> {
            let Some(list) = unwrapped(group) else { fail(file, line, &format!("`{group}`: expected the arguments in parentheses")) };
            split(list).iter().map(|a| parse_arg(file, line, a)).collect()
        };
        let family = |args: &str| args.split(';').map(|a| parse_arg(file, line, a.trim())).collect::<Vec<_>>();
        let floats = || FLOATS.map(str::to_owned).to_vec();
        let names = |args: &[Arg]| args.iter().map(|a| a.name.clone()).collect::<Vec<_>>().join(", ");
        let mut add = |name: String, args: Vec<Arg>, t: Vec<String>, u: Vec<String>, body: &str, line: usize| {
            let call = format!("{body}({});", names(&args));
            out.push(KernelLine { name, args, t, u, bounds, call, line });
        };
        match (head, &parts[..]) {
            ("LAUNCH_BOUNDS", [n, blocks @ ..]) => {
                bounds = n.parse().ok().map(|n| (n, blocks.first().and_then(|b| b.parse().ok())));
                if bounds.is_none_or(|(_, b)| b.is_some() != (blocks.len() == 1)) {
                    fail(file, line, "LAUNCH_BOUNDS takes one or two numbers");
                }
                continue;
            }
            ("KERNEL", [name, group, list @ ..]) => {
                let body = format!("{name}<T>");
                add(name.clone(), args(group), types(file, line, &list.join(",")), Vec::new(), &body, line);
            }
            ("KERNEL2", [name, group, t, u]) => {
                let (Some(t), Some(u)) = (unwrapped(t), unwrapped(u)) else { fail(file, line, "expected both type lists in parentheses") };
                add(name.clone(), args(group), types(file, line, t), types(file, line, u), &format!("{name}<T, U>"), line);
            }
            ("KERNEL0", [name, group]) => add(name.clone(), args(group), Vec::new(), Vec::new(), &format!("{name}_body"), line),
            ("UNARY", [name, op]) => {
                let fwd = family("T* y; const T* x; const View& vx; i64 n; const Params& p");
                add(format!("{name}_fwd"), fwd, floats(), Vec::new(), &format!("unary_fwd<T, {op}>"), line);
                let vjp = family("T* y; const T* s; const View& vs; const T* g; const View& vg; i64 n; const Params& p");
                add(format!("{name}_vjp"), vjp, floats(), Vec::new(), &format!("unary_vjp<T, {op}>"), line);
            }
            ("BINARY", [name, op]) => {
                let f = family("T* y; const T* a; const View& va; const T* b; const View& vb; i64 n; const Params& p");
                add(name.clone(), f, floats(), Vec::new(), &format!("binary_fwd<T, {op}>"), line);
            }
            _ => fail(file, line, &format!("wrong number of arguments to `{head}`")),
        }
        bounds = None;
    }
    for k in &out {
        if RESERVED.split(' ').any(|r| r == function(stem_of(file), k)) {
            fail(file, k.line, &format!("`{}` cannot name a function in Rust", k.name));
        }
        let pointed = |m: &Memory| k.args.iter().any(|a| matches!(&a.kind, Kind::Pointer { of, optional: false, .. } if of == m));
        if (!k.t.is_empty() && !pointed(&Memory::T)) || (!k.u.is_empty() && !pointed(&Memory::U)) {
            fail(file, k.line, "every type parameter needs a pointer that is always there: its dtype chooses the kernel");
        }
        let uses_acc = k.args.iter().any(|a| matches!(&a.kind, Kind::AccScalar | Kind::Pointer { of: Memory::AccT, .. }));
        if uses_acc && k.t.iter().any(|t| !FLOATS.contains(&t.as_str())) {
            fail(file, k.line, "acc<T> exists for floats only");
        }
    }
    out
}

/// The file with its `#include "common/…"` put in, each once, in pieces: what stands between two includes. Other includes are refused:
/// NVRTC has no headers.
fn flatten(root: &Path, file: &str, seen: &mut Vec<String>, out: &mut Vec<String>) {
    let path = root.join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| fail(file, 0, &e.to_string()));
    let mut piece = format!("#line 1 \"kernels/{file}\"\n");
    for (i, line) in text.lines().enumerate() {
        if line.trim() == "#pragma once" {
            piece.push('\n');
        } else if let Some(include) = line.strip_prefix("#include ") {
            let name = include.trim().trim_matches('"');
            if !name.starts_with("common/") {
                fail(file, i + 1, "only files of common/ can be included");
            }
            out.push(std::mem::take(&mut piece));
            if !seen.iter().any(|s| s == name) {
                seen.push(name.to_owned());
                flatten(root, name, seen, out);
            }
            let _ = writeln!(piece, "#line {} \"kernels/{file}\"", i + 2);
        } else {
            piece.push_str(line);
            piece.push('\n');
        }
    }
    out.push(piece);
}

/// One text to compile: a file's kernels for one first type.
struct Module {
    name: String,
    source: PathBuf,
    /// Numbers of the pieces that the source consists of.
    pieces: Vec<usize>,
    hopper: bool,
}

/// The number of a text among those that the crate embeds. Four types of a kernel share its body, and all files share the headers:
/// embedded whole, the modules would be thirteen times as large.
fn embedded(texts: &mut Vec<String>, text: String) -> usize {
    texts.iter().position(|t| *t == text).unwrap_or_else(|| {
        texts.push(text);
        texts.len() - 1
    })
}

/// Entry points of a kernel line: (symbol, module suffix, definition), the first type outermost.
fn entries(stem: &str, k: &KernelLine) -> Vec<(String, String, String)> {
    let one = |list: &[String]| if list.is_empty() { vec![String::new()] } else { list.to_vec() };
    let mut out = Vec::new();
    for t in one(&k.t) {
        for u in one(&k.u) {
            let suffix: String = [&t, &u].into_iter().filter(|s| !s.is_empty()).map(|s| format!("_{s}")).collect();
            let with = |text: &str| substitute(&substitute(text, "T", &t), "U", &u);
            let args: Vec<String> = k.args.iter().map(|a| with(&a.spelling)).collect();
            let bounds = k.bounds.map_or(String::new(), |(n, blocks)| match blocks {
                // Doubles take two registers each: half as many blocks.
                Some(b) => format!("__launch_bounds__({n}, {}) ", if t == "f64" { b.div_ceil(2) } else { b }),
                None => format!("__launch_bounds__({n}) "),
            });
            let base = if function(stem, k) == stem { stem.to_owned() } else { format!("{stem}_{}", function(stem, k)) };
            let symbol = format!("{base}{suffix}");
            let text = format!("ENTRY void {bounds}{symbol}({}) {{ {} }}\nEMULATED({symbol})\n", args.join(", "), with(&k.call));
            out.push((symbol, t.clone(), text));
        }
    }
    out
}

/// A kernel's name in Rust: without the file's name in front.
fn function<'a>(stem: &str, k: &'a KernelLine) -> &'a str {
    k.name.strip_prefix(stem).and_then(|n| n.strip_prefix('_')).unwrap_or(&k.name)
}

fn launcher(k: &KernelLine, file: &str, stem: &str, module_of: &BTreeMap<String, usize>) -> String {
    let mut s = String::new();
    let mut params = String::new();
    for a in &k.args {
        let ty = match &a.kind {
            Kind::Pointer { written, optional, .. } => {
                let base = if *written { "&Dst<'_>" } else { "&Src<'_>" };
                if *optional { format!("Option<{base}>") } else { base.to_owned() }
            }
            Kind::Scalar(t) => (*t).to_owned(),
            Kind::AccScalar => "f64".to_owned(),
            Kind::Struct(t) => t.clone(),
        };
        let _ = write!(params, ", {}: {ty}", a.name);
    }
    let all = entries(stem, k);
    let _ = writeln!(s, "    // kernels/{file}:{}", k.line);
    let _ = writeln!(s, "    pub(crate) fn {}(on: &Context, grid: Grid{params}) -> Result<()> {{", function(stem, k));
    let _ = writeln!(s, "        static KERNELS: [Kernel; {}] = [", all.len());
    for (symbol, ..) in &all {
        let _ =
            writeln!(s, "            kernel!({}, {symbol:?}, {:?}, cuemu_launch_{symbol}),", module_of[symbol], k.bounds.map(|(n, _)| n));
    }
    let _ = writeln!(s, "        ];");
    let pointers = |m: &Memory| -> Vec<&Arg> { k.args.iter().filter(|a| matches!(&a.kind, Kind::Pointer { of, .. } if of == m)).collect() };
    let dtype = |a: &Arg| match &a.kind {
        Kind::Pointer { optional: true, .. } => format!("{}.map(|p| p.dtype())", a.name),
        _ => format!("Some({}.dtype())", a.name),
    };
    let named = |list: Vec<&Arg>| list.iter().map(|a| format!("({:?}, {})", a.name, dtype(a))).collect::<Vec<_>>().join(", ");
    let mut index = String::new();
    for (var, memory, list) in [("t", Memory::T, &k.t), ("u", Memory::U, &k.u)] {
        if list.is_empty() {
            continue;
        }
        let used = named(pointers(&memory));
        if list.iter().any(|t| dtype_of(t).is_none()) {
            let _ = writeln!(s, "        let {var} = word_index({:?}, &[{used}])?;", k.name);
        } else {
            let list: Vec<String> = list.iter().filter_map(|t| dtype_of(t)).map(|d| format!("DType::{d}")).collect();
            let _ = writeln!(s, "        let {var} = dtype_index({:?}, &[{}], &[{used}])?;", k.name, list.join(", "));
        }
        index = if index.is_empty() { var.to_owned() } else { format!("{index} * {} + {var}", list.len()) };
    }
    let t_dtype = k.args.iter().find(|a| matches!(&a.kind, Kind::Pointer { of: Memory::T, optional: false, .. }));
    let t_dtype = t_dtype.map_or(String::new(), |a| format!("{}.dtype()", a.name));
    for a in &k.args {
        let want = match &a.kind {
            Kind::Pointer { of: Memory::Fixed(t), .. } => format!("DType::{}", dtype_of(t).unwrap_or_default()),
            Kind::Pointer { of: Memory::AccT, .. } => format!("acc_dtype({t_dtype})"),
            _ => continue,
        };
        let _ = writeln!(s, "        dtype_index({:?}, &[{want}], &[({:?}, {})])?;", k.name, a.name, dtype(a));
    }
    let (mut list, mut sizes) = (String::new(), String::new());
    for (i, a) in k.args.iter().enumerate() {
        let value = match &a.kind {
            Kind::Pointer { optional: true, .. } => format!("{}.map_or(0, |p| p.addr())", a.name),
            Kind::Pointer { .. } => format!("{}.addr()", a.name),
            Kind::AccScalar => format!("acc_bits({t_dtype}, {})", a.name),
            _ => a.name.clone(),
        };
        let _ = writeln!(s, "        let mut a{i} = {value};");
        let _ = write!(list, "{}(&raw mut a{i}).cast()", if i > 0 { ", " } else { "" });
        let _ = write!(sizes, "{}size_of_val(&a{i})", if i > 0 { ", " } else { "" });
    }
    let index = if index.is_empty() { "0".to_owned() } else { index };
    let _ = writeln!(
        s,
        "        // SAFETY: these are the kernel's parameters in number, order and type, with memory of the dtypes it reads and writes."
    );
    let _ = writeln!(s, "        unsafe {{ on.launch(&KERNELS[{index}], grid, &mut [{list}], &[{sizes}]) }}");
    let _ = writeln!(s, "    }}");
    s
}

/// Code that all launchers use.
const HELPERS: &str = r#"
macro_rules! kernel {
    ($module:expr, $name:literal, $bounds:expr, $emulated:ident) => {
        Kernel {
            module: $module,
            name: $name,
            bounds: $bounds,
            #[cfg(feature = "emulator")]
            emulated: $emulated,
        }
    };
}

/// Which of the kernel's types the operands have: all the same one. An absent operand agrees with any.
fn dtype_index(kernel: &str, types: &[DType], operands: &[(&str, Option<DType>)]) -> Result<usize> {
    let first = operands.iter().find_map(|(_, d)| *d);
    let at = first.and_then(|d| types.iter().position(|t| *t == d));
    match at {
        None if first.is_none() => Ok(0),
        Some(i) if operands.iter().all(|(_, d)| d.is_none_or(|d| Some(d) == first)) => Ok(i),
        _ => Err(refusal(kernel, types, operands)),
    }
}

#[cold]
fn refusal(kernel: &str, types: &[DType], operands: &[(&str, Option<DType>)]) -> Error {
    let found: Vec<String> = operands.iter().filter_map(|(n, d)| Some(format!("{n}: {}", (*d)?))).collect();
    let types: Vec<&str> = types.iter().map(|t| t.name()).collect();
    Error::dtype(format!("internal: kernel {kernel} takes one of {} for all of its operands, found {}", types.join(", "), found.join(", ")))
}
"#;
const WORD: &str = r#"
/// Which of the four words the operands' elements fill.
fn word_index(kernel: &str, operands: &[(&str, Option<DType>)]) -> Result<usize> {
    let first = operands.iter().find_map(|(_, d)| *d).unwrap_or(DType::U8);
    dtype_index(kernel, &[first], operands)?;
    Ok(first.size().trailing_zeros() as usize)
}
"#;
const ACC: &str = r#"
/// The type in which kernels compute on a dtype.
fn acc_dtype(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
"#;
const ACC_BITS: &str = r#"
/// A number in the type in which kernels compute on a dtype, in the leading bytes.
fn acc_bits(dtype: DType, x: f64) -> u64 {
    let [a, b, c, d] = (x as f32).to_ne_bytes();
    if dtype == DType::F64 { x.to_bits() } else { u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]) }
}
"#;

fn main() {
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-changed=build.rs");
    for v in ["COTANGENT_NVCC", "COTANGENT_FATBIN", "NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={v}");
    }
    let var = |v: &str| PathBuf::from(env::var_os(v).unwrap_or_else(|| fail("", 0, &format!("{v} is not set"))));
    let (root, out_dir) = (var("CARGO_MANIFEST_DIR").join("kernels"), var("OUT_DIR"));
    let names = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok());
    // Every folder is a family, but for the two of shared code, which have no such file.
    let mut files: Vec<String> = names(&root)
        .flat_map(|family| names(&root.join(&family)).map(move |f| format!("{family}/{f}")))
        .filter(|f| f.ends_with(".cu"))
        .collect();
    files.sort();
    if let Some(f) = files.iter().find(|f| files.iter().any(|other| other != *f && stem_of(other) == stem_of(f))) {
        fail(f, 0, "another family has a file of this name");
    }

    let (mut modules, mut texts): (Vec<Module>, Vec<String>) = Default::default();
    let (mut launchers, mut symbols) = (String::new(), BTreeSet::new());
    for file in &files {
        let stem = stem_of(file);
        let mut flat = Vec::new();
        flatten(&root, file, &mut Vec::new(), &mut flat);
        let text = fs::read_to_string(root.join(file)).unwrap_or_default();
        let kernels = parse(file, &text);
        if kernels.is_empty() {
            fail(file, 0, "no kernel: shared code belongs into common/");
        }
        let hopper = text.lines().any(|l| l.trim() == "// arch: sm_90a");
        // Entry points by first type, in order of appearance.
        let mut parts: Vec<(String, String)> = Vec::new();
        let mut module_of = BTreeMap::new();
        for k in &kernels {
            for (symbol, t, text) in entries(stem, k) {
                let name = if t.is_empty() { stem.to_owned() } else { format!("{stem}_{t}") };
                let at = parts.iter().position(|(n, _)| *n == name).unwrap_or_else(|| {
                    parts.push((name, String::new()));
                    parts.len() - 1
                });
                parts[at].1.push_str(&text);
                module_of.insert(symbol.clone(), modules.len() + at);
                if let Some(twice) = symbols.replace(symbol) {
                    fail(file, k.line, &format!("there is another kernel `{twice}`"));
                }
            }
        }
        for (name, text) in parts {
            let source = out_dir.join(format!("{name}.cu"));
            let all = [&flat[..], &[format!("#line 1 \"entry points of {name}\"\n{text}")]].concat();
            write_if_new(&source, &all.concat());
            let pieces = all.into_iter().map(|t| embedded(&mut texts, t)).collect();
            modules.push(Module { name, source, pieces, hopper });
        }
        let _ = writeln!(launchers, "\npub(crate) mod {stem} {{\n    use super::*;\n");
        for k in &kernels {
            launchers.push_str(&launcher(k, file, stem, &module_of));
            launchers.push('\n');
        }
        launchers.push_str("}\n");
    }

    let fatbins = fatbins(&modules);
    let mut rust = String::new();
    for (i, text) in texts.iter().enumerate() {
        let _ = writeln!(rust, "const TEXT_{i}: &str = {text:?};");
    }
    let _ = writeln!(rust, "pub(crate) static MODULES: [Module; {}] = [", modules.len());
    for (m, fatbin) in modules.iter().zip(fatbins) {
        let fatbin = fatbin.map_or("None".to_owned(), |f| format!("Some(include_bytes!({f:?}))"));
        let _ = writeln!(
            rust,
            "    Module {{ stem: {:?}, source: &[{}], hopper: {}, fatbin: {fatbin} }},",
            m.name,
            m.pieces.iter().map(|i| format!("TEXT_{i}")).collect::<Vec<_>>().join(", "),
            m.hopper
        );
    }
    let _ = writeln!(
        rust,
        "];\n\n/// Every kernel.\n#[cfg(feature = \"emulator\")]\npub(crate) static SYMBOLS: [&str; {}] = {:?};",
        symbols.len(),
        symbols.iter().collect::<Vec<_>>()
    );
    write_if_new(&out_dir.join("modules.rs"), &rust);

    let mut rust = String::new();
    rust.push_str("#[cfg(feature = \"emulator\")]\n#[allow(dead_code, reason = \"the launcher that nobody calls is reported\")]\nunsafe extern \"C\" {\n");
    for s in &symbols {
        let _ =
            writeln!(rust, "    fn cuemu_launch_{s}(grid_block: *const u32, shared: usize, order: u32, params: *mut *mut c_void) -> i32;");
    }
    rust.push_str("}\n");
    rust.push_str(HELPERS);
    for (name, code) in [("word_index(", WORD), ("acc_dtype(", ACC), ("acc_bits(", ACC_BITS)] {
        if launchers.contains(name) {
            rust.push_str(code);
        }
    }
    rust.push_str(&launchers);
    write_if_new(&out_dir.join("launchers.rs"), &rust);

    #[cfg(feature = "emulator")]
    emulator(&root, &modules);
}

/// Leaves an unchanged file alone: its time stamp is what the next compiler looks at.
fn write_if_new(path: &Path, text: &str) {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return;
    }
    if let Err(e) = fs::write(path, text) {
        fail("", 0, &format!("{}: {e}", path.display()));
    }
}

/// A compiler, when binaries are asked for: what a machine happens to have must not change what is built.
fn nvcc() -> Option<PathBuf> {
    if let Some(p) = env::var_os("COTANGENT_NVCC") {
        return Some(p.into());
    }
    if env::var("COTANGENT_FATBIN").ok()? != "1" {
        return None;
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(|p| PathBuf::from(p).join("bin/nvcc"));
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::var_os("NVCC").map(PathBuf::from).into_iter().chain(homes);
    let found = found.chain(env::split_paths(&path).map(|d| d.join("nvcc"))).find(|p| p.is_file());
    if found.is_none() {
        println!("cargo:warning=COTANGENT_FATBIN=1, but there is no nvcc: kernels will be compiled when they are first used");
    }
    found
}

/// Binaries of all modules, as many at a time as cargo allows; none where no compiler is asked for or it refuses.
fn fatbins(modules: &[Module]) -> Vec<Option<PathBuf>> {
    let Some(nvcc) = nvcc() else { return vec![None; modules.len()] };
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).max(1);
    let part = modules.len().div_ceil(jobs).max(1);
    std::thread::scope(|s| {
        let nvcc = &nvcc;
        let parts: Vec<_> = modules.chunks(part).map(|p| s.spawn(move || p.iter().map(|m| fatbin(nvcc, m)).collect::<Vec<_>>())).collect();
        parts.into_iter().flat_map(|p| p.join().unwrap_or_default()).collect()
    })
}

/// nvcc has no `--device-as-default-execution-space`, and needs none: a lambda in a device function is device code for it. (nvcc 13.0
/// from the wheel nvidia-cuda-nvcc takes all modules.)
///
/// Machine code for Ampere (and Hopper's own instructions for a file that uses them), and PTX for what comes later.
fn fatbin(nvcc: &Path, m: &Module) -> Option<PathBuf> {
    let target = m.source.with_extension("fatbin");
    let mut c = process::Command::new(nvcc);
    c.args(["-fatbin", "-O3", "-std=c++17", "-gencode=arch=compute_80,code=sm_80"]);
    c.arg(if m.hopper { "-gencode=arch=compute_90a,code=sm_90a" } else { "-gencode=arch=compute_90,code=sm_90" });
    c.args(["-gencode=arch=compute_80,code=compute_80", "-o"]).arg(&target).arg(&m.source);
    match c.output() {
        Ok(o) if o.status.success() => Some(target),
        Ok(o) => {
            let text = String::from_utf8_lossy(&o.stderr);
            let first = text.lines().find(|l| l.contains("error")).or_else(|| text.lines().next()).unwrap_or_default();
            println!("cargo:warning=nvcc refuses {}: {first}; it will be compiled when it is first used", m.name);
            None
        }
        Err(e) => {
            println!("cargo:warning={}: {e}; {} will be compiled when it is first used", nvcc.display(), m.name);
            None
        }
    }
}

/// The kernels for the host. One file for each module, so that they are compiled side by side.
#[cfg(feature = "emulator")]
fn emulator(root: &Path, modules: &[Module]) {
    let include = root.join("emulator");
    let mut build = cc::Build::new();
    // Contraction of a·b + c into one rounding is the machine's choice on a GPU: here it is off, so that results are the
    // same on every host, and a kernel that needs it says fma.
    build.cpp(true).std("c++17").opt_level(2).flag("-ffp-contract=off").flag("-Wno-unknown-pragmas").include(&include);
    let files = fs::read_dir(&include).into_iter().flatten().flatten().map(|e| e.path());
    let mut own: Vec<PathBuf> = files.filter(|p| p.extension().is_some_and(|e| e == "cpp" || e == "h")).collect();
    own.sort();
    let headers: Vec<String> = own.iter().map(|p| fs::read_to_string(p).unwrap_or_default()).collect();
    own.retain(|p| p.extension().is_some_and(|e| e == "cpp"));
    let mut units = own;
    for m in modules {
        let unit = m.source.with_extension("emulated.cpp");
        // A namespace for each: helpers of one name in two files are different functions. Launchers have C linkage all the same.
        write_if_new(&unit, &format!("#include \"emulator.h\"\nnamespace {} {{\n#include {:?}\n}}\n", m.name, m.source));
        units.push(unit);
    }
    // Two hundred units take minutes; an edit of one kernel concerns a few. A stamp beside its object says what a unit was made of.
    let compiler = build.get_compiler();
    let made_of = |unit: &Path| {
        let mut h = std::hash::DefaultHasher::new();
        let source = unit.with_extension("").with_extension("cu");
        let texts = [unit, &source].map(|p| fs::read_to_string(p).unwrap_or_default());
        (&texts, &headers, compiler.path(), compiler.args()).hash(&mut h);
        format!("{:016x}", h.finish())
    };
    let of = |unit: &Path, ending: &str| build_dir().join(unit.file_name().unwrap_or_default()).with_extension(ending);
    let stale = |u: &&PathBuf| !of(u, "o").is_file() || fs::read_to_string(of(u, "stamp")).ok() != Some(made_of(u));
    let changed: Vec<PathBuf> = units.iter().filter(stale).cloned().collect();
    let mut some = build.clone();
    for (unit, object) in changed.iter().zip(some.files(&changed).compile_intermediates()) {
        if let Err(e) = fs::rename(&object, of(unit, "o")) {
            fail("", 0, &format!("{}: {e}", object.display()));
        }
        write_if_new(&of(unit, "stamp"), &made_of(unit));
    }
    build.objects(units.iter().map(|u| of(u, "o"))).compile("cotangent_emulator");
}

#[cfg(feature = "emulator")]
fn build_dir() -> PathBuf {
    env::var_os("OUT_DIR").unwrap_or_default().into()
}
