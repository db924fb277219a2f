//! Whole programs, each beside its twin in PyTorch: `NAME.rs` and `NAME.py` are the same model, trained in the same way on the same data.
//!
//! The program is what stands above `#[cfg(test)]`; below it a test runs the program and says what it must reach. Here the lines of
//! both are counted. A twin is run by hand, with a PyTorch from anywhere: `python tests/train/programs/NAME.py`.

mod ddpm;
#[cfg(feature = "readers")]
mod implicit;
mod lora;
mod lstm;
mod maml;
#[cfg(feature = "readers")]
mod moe;
mod nanogpt;
mod pinn;
#[cfg(feature = "readers")]
mod tabular;
#[cfg(feature = "readers")]
mod vae;
#[cfg(feature = "readers")]
mod vit;

use crate::house::tidy::{code_only, files, read};
use std::path::Path;

/// The longest that a program may be beside its twin.
const RATIO: f64 = 1.3;
/// rustfmt keeps Rust's lines below its own limit; nothing formats Python here.
const PYTHON_COLUMNS: usize = 120;

/// The lines of the program that are neither blank nor comment.
fn rust_lines(source: &str) -> usize {
    let program = source.split("\n#[cfg(test)]\n").next().unwrap_or_default();
    code_only(program).lines().filter(|line| !line.trim().is_empty()).count()
}

/// The lines that are neither blank nor comment nor part of a docstring (a string that is a statement of its own).
fn python_lines(source: &str) -> Vec<&str> {
    let (mut out, mut end) = (Vec::new(), None::<&str>);
    for line in source.lines() {
        let text = line.trim();
        match end {
            Some(quotes) => end = Some(quotes).filter(|q| !text.ends_with(*q)),
            None if text.is_empty() || text.starts_with('#') => {}
            None => match ["\"\"\"", "'''"].into_iter().find(|q| text.starts_with(*q)) {
                Some(quotes) => end = Some(quotes).filter(|q| text.len() < 6 || !text.ends_with(*q)),
                None => out.push(line),
            },
        }
    }
    out
}

#[test]
fn lines_of_code_are_counted() {
    let rust =
        "//! Says what.\n\n/// A.\nfn a() -> &'static str {\n    // why\n    \"// no comment\" // end\n}\n\n#[cfg(test)]\nmod tests {}\n";
    assert_eq!(rust_lines(rust), 3);
    let python =
        "\"\"\"Says what.\n\nAt length.\n\"\"\"\nimport a\n\n\ndef f():\n    \"\"\"Short.\"\"\"\n    # why\n    return '''x'''  # end\n";
    assert_eq!(python_lines(python), ["import a", "def f():", "    return '''x'''  # end"]);
}

/// A program is not much longer than its twin, and both are in the book.
#[test]
fn programs_are_as_short_as_their_twins() {
    let stems = |ending| -> Vec<String> {
        let all = files("tests/train/programs", &[ending]);
        all.iter().filter_map(|f| Path::new(f).file_stem()?.to_str().map(str::to_owned)).filter(|s| s != "mod").collect()
    };
    let programs = stems("rs");
    assert_eq!(programs, stems("py"), "each program has its twin");
    let book = read("docs/book/README.md");
    let mut problems = Vec::new();
    for name in programs {
        let (rust, python) = (read(&format!("tests/train/programs/{name}.rs")), read(&format!("tests/train/programs/{name}.py")));
        let python = python_lines(&python);
        let (ours, theirs) = (rust_lines(&rust), python.len());
        println!("{name:<12} {ours:>4} lines of Rust, {theirs:>4} of Python: {:.2}", ours as f64 / theirs as f64);
        if ours as f64 > RATIO * theirs as f64 {
            problems.push(format!("{name}: {ours} lines of Rust, {theirs} of Python"));
        }
        if !rust.contains("\n#[cfg(test)]\nmod tests {\n") {
            problems.push(format!("{name}.rs: no `#[cfg(test)] mod tests {{` ends the program"));
        }
        for line in python {
            // Outside of strings and comments, a semicolon puts two statements in a line.
            let code = line.split('#').next().unwrap_or_default();
            if line.chars().count() > PYTHON_COLUMNS || code.split('"').step_by(2).any(|code| code.contains(';')) {
                problems.push(format!("{name}.py: too long, or two statements in a line: {line}"));
            }
        }
        for ending in ["rs", "py"] {
            if !book.contains(&format!("(../../tests/train/programs/{name}.{ending})")) {
                problems.push(format!("docs/book/README.md has no link to {name}.{ending}"));
            }
        }
    }
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}
