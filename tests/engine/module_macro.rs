//! What `module!` says in another crate about a list that is not the struct's: compiled by `rustc`, as a user would.

use std::path::Path;
use std::process::Command;

/// The macro alone, with the two names that it needs: a crate that compiles in no time.
fn library(text: &str) -> String {
    let from = text.find("#[macro_export]\nmacro_rules! module").expect("the macro is in src/module/macros.rs");
    let length = text[from..].find("\n}\n").expect("and ends") + 3;
    let macro_rules = &text[from..from + length];
    format!(
        "pub struct Visitor<'a>(pub &'a ());\n\
         impl Visitor<'_> {{ pub fn field<M>(&mut self, _: &str, _: &mut M) {{}} }}\n\
         pub trait Module {{ fn visit(&mut self, v: &mut Visitor<'_>); }}\n{macro_rules}"
    )
}

/// Whether it compiles, and what the compiler says.
fn rustc(folder: &Path, name: &str, source: &str) -> (bool, String) {
    let file = folder.join(format!("{name}.rs"));
    std::fs::write(&file, source).unwrap();
    let out = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "--color=never", "-Dwarnings", "--crate-name", name])
        .arg("--out-dir")
        .arg(folder)
        .arg("-L")
        .arg(folder)
        .arg(&file)
        .output()
        .unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn a_forgotten_field_is_named_at_the_callers_line() {
    let folder = std::env::temp_dir().join(format!("cotangent-module-macro-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (built, said) = rustc(&folder, "cotangent", &library(include_str!("../../src/module/macros.rs")));
    assert!(built, "{said}");
    let user = |name: &str, list: &str| {
        let fields = "a: f32, b: f32, n: usize";
        let source = format!("extern crate cotangent;\npub struct Net {{ {fields} }}\ncotangent::module!(Net {list});\n");
        rustc(&folder, name, &format!("{source}impl Drop for Net {{ fn drop(&mut self) {{ let _ = (self.a, self.b, self.n); }} }}\n"))
    };
    let (built, said) = user("complete", "{ a, b as \"bias\" } skip { n }");
    assert!(built, "{said}");
    for (name, list, missing) in [("forgets_b", "{ a } skip { n }", "`b`"), ("forgets_n", "{ a, b }", "`n`")] {
        let (built, said) = user(name, list);
        assert!(!built && said.contains(&format!("missing field {missing}")), "{said}");
        assert!(said.contains(&format!("{name}.rs:3:")) && said.matches("error[").count() == 1, "{said}");
    }
    // The same of generic structs, tuple structs and enums: what is forgotten is said, at the caller's line.
    let types = "pub struct Wrap<M> { pub inner: M, pub n: usize }\npub struct Pair(pub f32, pub f32);\n\
                 pub enum Mixer { A(f32), B { x: f32, y: f32 }, C }\n";
    let user = |name: &str, line: &str| {
        let traits = "impl cotangent::Module for f32 { fn visit(&mut self, _: &mut cotangent::Visitor<'_>) {} }\n";
        let traits = if line.contains("Mixer") {
            traits.replace("for f32", "for Own").replace("impl", "pub struct Own;\nimpl")
        } else {
            String::new()
        };
        let types = types.replace("f32", if line.contains("Mixer") { "Own" } else { "f32" });
        rustc(&folder, name, &format!("extern crate cotangent;\n{traits}{types}cotangent::module!({line});\n"))
    };
    for (name, line) in
        [("wrap", "Wrap<M> { inner } skip { n }"), ("pair", "Pair(a, b)"), ("mixer", "enum Mixer { A(m), B { x } skip { y }, C }")]
    {
        let (built, said) = user(name, line);
        assert!(built, "{said}");
    }
    for (name, line, missing) in [
        ("wrap_n", "Wrap<M> { inner }", "missing field `n`"),
        ("pair_b", "Pair(a)", "2 fields"),
        ("mixer_c", "enum Mixer { A(m), B { x, y } }", "`&mut Mixer::C` not covered"),
        ("mixer_y", "enum Mixer { A(m), B { x }, C }", "missing field `y`"),
    ] {
        let (built, said) = user(name, line);
        let at = source_line(&said, name);
        assert!(!built && said.contains(missing) && at, "{said}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Whether a message points into the user's file.
fn source_line(said: &str, name: &str) -> bool {
    said.contains(&format!("{name}.rs:"))
}
