//! What `module!` says in another crate about a list that is not the struct's: compiled by `rustc`, as a user would.

use std::path::Path;
use std::process::Command;

/// The macro alone, with the two names that it needs: a crate that compiles in no time.
fn library(text: &str) -> String {
    let from = text.find("#[macro_export]\nmacro_rules! module").expect("the macro is in src/module.rs");
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
    let (built, said) = rustc(&folder, "cotangent", &library(include_str!("../src/module.rs")));
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
    std::fs::remove_dir_all(&folder).unwrap();
}
