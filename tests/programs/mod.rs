//! Whole programs, each beside its twin in PyTorch: `NAME.rs` and `NAME.py` are the same model, trained in the same way on the same data.
//!
//! The program is what stands above `#[cfg(test)]`; below it a test runs the program and says what it must reach. Here the lines of
//! both are counted. A twin is run by hand, with a PyTorch from anywhere: `python tests/programs/NAME.py`.

mod ddpm;
#[cfg(feature = "readers")]
mod implicit;
mod lstm;
mod maml;
mod pinn;
#[cfg(feature = "readers")]
mod tabular;
#[cfg(feature = "readers")]
mod vae;

use crate::tidy::{code_only, files, read};
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
fn python_lines(source: &str) -> usize {
    let (mut count, mut end) = (0, None::<&str>);
    for line in source.lines().map(str::trim) {
        match end {
            Some(quotes) => end = Some(quotes).filter(|q| !line.ends_with(*q)),
            None if line.is_empty() || line.starts_with('#') => {}
            None => match ["\"\"\"", "'''"].into_iter().find(|q| line.starts_with(*q)) {
                Some(quotes) => end = Some(quotes).filter(|q| line.len() < 6 || !line.ends_with(*q)),
                None => count += 1,
            },
        }
    }
    count
}

#[test]
fn lines_of_code_are_counted() {
    let rust =
        "//! Says what.\n\n/// A.\nfn a() -> &'static str {\n    // why\n    \"// no comment\" // end\n}\n\n#[cfg(test)]\nmod tests {}\n";
    assert_eq!(rust_lines(rust), 3);
    let python =
        "\"\"\"Says what.\n\nAt length.\n\"\"\"\nimport a\n\n\ndef f():\n    \"\"\"Short.\"\"\"\n    # why\n    return '''x'''  # end\n";
    assert_eq!(python_lines(python), 3);
}

/// A program is not much longer than its twin, and both are in the book.
#[test]
fn programs_are_as_short_as_their_twins() {
    let stems = |ending| -> Vec<String> {
        let all = files("tests/programs", &[ending]);
        all.iter().filter_map(|f| Path::new(f).file_stem()?.to_str().map(str::to_owned)).filter(|s| s != "mod").collect()
    };
    let programs = stems("rs");
    assert_eq!(programs, stems("py"), "each program has its twin");
    let book = read("docs/book/README.md");
    let mut problems = Vec::new();
    for name in programs {
        let (rust, python) = (read(&format!("tests/programs/{name}.rs")), read(&format!("tests/programs/{name}.py")));
        let (ours, theirs) = (rust_lines(&rust), python_lines(&python));
        println!("{name:<12} {ours:>4} lines of Rust, {theirs:>4} of Python: {:.2}", ours as f64 / theirs as f64);
        if ours as f64 > RATIO * theirs as f64 {
            problems.push(format!("{name}: {ours} lines of Rust, {theirs} of Python"));
        }
        if !rust.contains("\n#[cfg(test)]\nmod tests {\n") {
            problems.push(format!("{name}.rs: no `#[cfg(test)] mod tests {{` ends the program"));
        }
        for (i, line) in python.lines().enumerate() {
            if line.chars().count() > PYTHON_COLUMNS || line.trim_end().ends_with(';') || line.contains("; ") && !line.contains('#') {
                problems.push(format!("{name}.py:{}: too long, or two statements in a line", i + 1));
            }
        }
        for ending in ["rs", "py"] {
            if !book.contains(&format!("(../../tests/programs/{name}.{ending})")) {
                problems.push(format!("docs/book/README.md has no link to {name}.{ending}"));
            }
        }
    }
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}
