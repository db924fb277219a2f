//! What the compiler says about slips of newcomers: compiled by `rustc` against the crate as it was built for these tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// The newest build of the crate beside this test; `None` where cargo keeps it elsewhere.
fn library(deps: &Path) -> Option<PathBuf> {
    let built = |p: &PathBuf| p.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let files = std::fs::read_dir(deps).ok()?.filter_map(|f| Some(f.ok()?.path()));
    let own = |p: &PathBuf| {
        let name = p.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libcotangent-") && name.ends_with(".rlib")
    };
    files.filter(own).max_by_key(built)
}

/// (what is written, what the compiler has to say)
const SLIPS: &[(&str, &[&str])] = &[
    (
        "fn f() { #[derive(Clone)] struct Net { w: Param, n: usize } module!(Net { w, n }); }",
        &["`usize` is not a tree of parameters", "belongs under `skip`"],
    ),
    ("fn f(x: &Tensor) { let _ = grad(&1.5f32, |_| x.sum(..)); }", &["`f32` is not a tree of parameters"]),
    (
        "fn f() { #[derive(Clone)] struct Own; let _ = nn::Sequential::new().push(Own); }",
        &["`Own` is not a layer", "nn::Func(|x| x.relu())"],
    ),
    ("fn f() { fn layer(_: impl nn::Layer) {} layer(|x: &Tensor| x.relu()); }", &["is not a layer", "a function is one as `nn::Func"]),
    ("fn f(x: &Tensor) { let _ = x.reshape([2.0, 3.0]); }", &["is not a shape to reshape to", "one may be open: `[-1, 6]`"]),
    ("fn f(x: &Tensor) { let _ = x.reshape((2, 3.0)); }", &["is not an extent", "x.reshape((batch, ()))"]),
    (
        "fn f() { fn layer(_: impl nn::Layer) {} let r = nn::Activation::Relu; layer((r, r, r, r, r, r, r, r, r, r, r, r, r)); }",
        &["is not a layer", "of more than twelve: tuples in a tuple"],
    ),
    (
        "fn f(x: &Tensor) { let _ = grad(&(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13), |_| x.sum(..)); }",
        &["is not a tree of parameters", "of more than twelve: tuples in a tuple"],
    ),
    ("struct Net<L: nn::Layer> { l: L } module!(Net<L> { l });", &["`L` is not a layer", "module!(Net<L: Layer> { layer })"]),
    ("struct Net<L: Clone> { l: L } module!(Net<L: Clone> { l });", &["`L` is not a tree of parameters", "module!(Net<L: Module + Clone>"]),
    ("fn f(x: &Tensor) { let _ = Tensor::stack(&[1.5f32], 0); }", &["`f32: AsRef<cotangent::Tensor>` is not satisfied"]),
    ("fn f(x: Tensor) -> Result<()> { grad(x, |x: &Tensor| x.square()?.sum(..))?; Ok(()) }", &["consider borrowing here", "grad(&x"]),
    ("fn f(x: &Tensor) -> Result<()> { x.square().sum(..)?; Ok(()) }", &["`?` is missing before the method", "x.square()?.sum(..)?"]),
    ("fn f(x: &Tensor) -> Result<()> { x.square().max(0)?; Ok(()) }", &["`?` is missing before the method"]),
    (
        "fn f() { #[derive(Clone)] enum Mix { Dense(nn::Linear), Scale { gate: Param } } module!(Mix { Dense(m), Scale { gate } }); }",
        &["an enum has `enum` before its name: `module!(enum Mix {"],
    ),
    ("fn f() { #[derive(Clone)] struct Net { a: Param } module!(Net { a: Param }); }", &["names of its fields, without types"]),
    ("fn f() { #[derive(Clone)] enum Mix { Two(Param, Param) } module!(enum Mix { Two(a, b) }); }", &["`Dense(m)` for one module"]),
    ("fn f() { let _: Box<dyn optim::Schedule> = Box::new(\"cosine\"); }", &["is not a learning-rate schedule", "a schedule is a number"]),
];

/// Compile errors that said nothing to a newcomer.
#[test]
fn the_compiler_gives_advice() {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
    let Some(library) = library(&deps) else {
        crate::say("no build of the crate beside the tests: the compiler's advice was not checked");
        return;
    };
    let folder = std::env::temp_dir().join(format!("cotangent-advice-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    // One file: the compiler reports each slip by itself.
    let uses = "#![allow(unused)]\nuse cotangent::*;\n";
    let slips: Vec<String> = SLIPS.iter().enumerate().map(|(i, (code, _))| format!("mod slip_{i} {{ use super::*; {code} }}")).collect();
    // What was unclear once and compiles now must go on to compile.
    let right = "fn right(x: &Tensor) -> Result<()> { x.reshape([-1, 6])?; x.reshape((2, -1))?; x.reshape((x.rank(), -1))?; x.reshape(-1)?;\n\
                 let layers = (nn::Activation::Relu, nn::Activation::Relu, nn::Activation::Relu, nn::Activation::Relu, nn::Activation::Relu,\n\
                 nn::Activation::Relu, nn::Activation::Relu); nn::Layer::call(&layers, x, None)?;\n\
                 let (list, p) = (vec![x.clone(), x.clone()], Param::new(x.clone()));\n\
                 Tensor::stack(&list, 0)?; Tensor::stack(&list[..], 0)?; Tensor::stack(&list.iter().collect::<Vec<_>>(), 0)?;\n\
                 Tensor::concat(&[x, &p], 0)?; Tensor::concat(&[&p, x], 0)?; Tensor::concat(&[&p, &p], 0)?; Tensor::concat(&[&x.exp()?, x], 0)?;\n\
                 Tensor::einsum(\"i,i->\", &list)?;\n\
                 #[derive(Clone)] struct Net { p: Param } module!(struct Net { p });\n\
                 let (n, m) = ([1, 2].iter().sum::<i32>(), [1, 2].iter().max()); let _ = std::cmp::max(n, 1).max(2).min(3);\n\
                 Ok(()) }";
    let compile = |name: &str, source: String| {
        let file = folder.join(format!("{name}.rs"));
        std::fs::write(&file, source).unwrap();
        let out = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "--color=never", "--crate-name", name, "--out-dir"])
            .arg(&folder)
            .arg(format!("-Ldependency={}", deps.display()))
            .arg(format!("--extern=cotangent={}", library.display()))
            .arg(&file)
            .output()
            .unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (built, said) = compile("right", format!("{uses}{right}\n"));
    assert!(built, "{said}");
    let (built, said) = compile("slips", format!("{uses}{}\n", slips.join("\n")));
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(!built);
    let first = uses.lines().count() + 1;
    for (i, (code, advice)) in SLIPS.iter().enumerate() {
        let at = format!("slips.rs:{}:", first + i);
        let about: Vec<&str> = said.split("\nerror").filter(|e| e.contains(&at)).collect();
        assert!(!about.is_empty(), "nothing about {code}\n{said}");
        for text in *advice {
            assert!(about.iter().any(|e| e.contains(text)), "{code}\n  should say {text}, and says:\n{}", about.join("\n"));
        }
    }
}
