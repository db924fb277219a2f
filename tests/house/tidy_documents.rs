//! Documents are true: generated pages are current, what documents name exists, what they quote is the text.

use super::tidy::{assert_none, documents, read, root, rust};
use cotangent::ops::registry;
use cotangent::testing::{Implementation, OpEntry};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// docs/ops.md as it should be.
fn render_ops() -> String {
    let entries = registry();
    let mut out = String::from(
        "# Every op\n\n\
         Generated from the registry by `tests/house/tidy_documents.rs`; write it anew with `COTANGENT_BLESS=1 cargo test --test main tidy` (or `just bless`).\n\n\
         *x̄* is the cotangent of *x*: the derivative of the final result with respect to it. *Saves* under cost is what the tape keeps \
         for the derivative, apart from shapes.\n\n\
         Ops stand by family, as in `src/ops`, `kernels` and the backends. A *kernel* has code of its own on every device; a *view* moves no \
         element, its result reads the operand's memory; a *composite* is made of other ops, and so is its derivative. Names that end in \
         `_vjp` are fused derivatives: ops too, so that they can be differentiated again.\n",
    );
    let families: BTreeSet<&str> = entries.iter().map(|e| e.family().expect("a type of src/ops")).collect();
    for family in families {
        let text = read(&format!("src/ops/{family}/mod.rs"));
        let about: Vec<&str> = text.lines().map_while(|l| l.strip_prefix("//! ")).collect();
        let about = about.join(" ");
        let first = about.split(". ").next().unwrap_or_default().trim_end_matches('.');
        let title = family[..1].to_uppercase() + &family[1..];
        let _ = write!(
            out,
            "\n## {title}\n\n{first}.\n\n| Op | Kind | Value | Derivative | Kinks and limits | Cost | References |\n|---|---|---|---|---|---|---|\n"
        );
        // Derivatives after what they are of.
        let mut list: Vec<&OpEntry> = entries.iter().filter(|e| e.family() == Some(family)).collect();
        list.sort_by_key(|e| (e.name.ends_with("_vjp"), e.name));
        for e in list {
            let cell = |s: &str| s.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
            let (m, kind) = (e.math, format!("{:?}", e.implementation).to_lowercase());
            let cells = [m.forward, m.vjp, m.kinks, m.cost, m.references].map(cell).join(" | ");
            let _ = writeln!(out, "| `{}` | {kind} | {cells} |", e.name);
        }
    }
    out
}

/// docs/rules.md as it should be: the derivative of every op, and nothing else.
fn render_rules() -> String {
    let mut out = String::from(
        "# Every derivative rule\n\n\
         Generated from the registry by `tests/house/tidy_documents.rs`; write it anew with `COTANGENT_BLESS=1 cargo test --test main tidy` (or `just bless`).\n\n\
         `x̄` is the cotangent of `x`, `ȳ` that of the result `y`; `a` and `b` are the operands where there are two. A cotangent is summed over the\n\
         axes along which its operand was broadcast. Each rule is checked against exact derivatives of the op's definition. Not listed are ops without a derivative (masks, indices), ops composed of others, whose\n\
         derivative is that of the parts, and the derivative kernels; they are in [ops.md](ops.md).\n\n\
         ```text\n",
    );
    let mut rules: Vec<(String, Vec<&str>)> = Vec::new();
    let mut entries = registry();
    entries.retain(|e| e.implementation != Implementation::Composite && !e.name.ends_with("_vjp") && !e.math.vjp.starts_with("none"));
    entries.sort_by_key(|e| e.name);
    for e in &entries {
        let rule = e.math.vjp.replace(", each summed over its broadcast axes", "").split_whitespace().collect::<Vec<_>>().join(" ");
        match rules.iter_mut().find(|(r, _)| *r == rule) {
            Some((_, names)) => names.push(e.name),
            None => rules.push((rule, vec![e.name])),
        }
    }
    const COLUMN: usize = 18;
    for (rule, names) in rules {
        let mut line = names.join(", ");
        if line.len() >= COLUMN {
            let _ = writeln!(out, "{line}");
            line.clear();
        }
        let mut width = COLUMN;
        let _ = write!(out, "{line:<COLUMN$}");
        for (i, word) in rule.split(' ').enumerate() {
            let length = word.chars().count();
            if i > 0 && width + 1 + length > 100 {
                let _ = write!(out, "\n{:COLUMN$}{word}", "");
                width = COLUMN + length;
            } else {
                let _ = write!(out, "{}{word}", if i > 0 { " " } else { "" });
                width += length + usize::from(i > 0);
            }
        }
        out.push('\n');
    }
    out.push_str("```\n");
    out
}

#[test]
fn generated_pages_are_current() {
    for (page, want) in [("docs/ops.md", render_ops()), ("docs/rules.md", render_rules())] {
        let path = root().join(page);
        if std::env::var_os("COTANGENT_BLESS").is_some_and(|v| v == "1") {
            fs::write(&path, &want).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
        let have = fs::read_to_string(&path).unwrap_or_default();
        let line = have.lines().zip(want.lines()).position(|(a, b)| a != b).unwrap_or(have.lines().count().min(want.lines().count())) + 1;
        assert!(have == want, "{page} is stale from line {line} on: run `COTANGENT_BLESS=1 cargo test --test main tidy`");
    }
}

/// `tests/x.rs::name` in ARCHITECTURE.md names a test that is there.
#[test]
fn invariants_name_existing_tests() {
    let text = read("ARCHITECTURE.md");
    let mut problems = Vec::new();
    let mut named = 0;
    for part in text.split('`').skip(1).step_by(2) {
        let Some((file, test)) = part.split_once(".rs::") else { continue };
        let file = format!("{file}.rs");
        named += 1;
        let found = fs::read_to_string(root().join(&file)).is_ok_and(|s| s.contains(&format!("fn {test}(")));
        if !found {
            problems.push(format!("ARCHITECTURE.md names `{file}::{test}`, which does not exist"));
        }
    }
    for paragraph in text.split("\n\n").filter(|p| p.contains("*Invariant")) {
        if !paragraph.contains(".rs::") && !paragraph.contains("doc test") && !paragraph.contains("compil") {
            problems.push(format!("no test is named for: {}", paragraph.lines().next().unwrap_or_default()));
        }
    }
    assert!(named > 0, "ARCHITECTURE.md names no test");
    assert_none(&problems);
}

/// tests/README.md says of every file of tests what it answers.
#[test]
fn every_test_file_has_its_question() {
    let page = read("tests/README.md");
    let parts = ["torch_ops/", "api_fuzz/", "programs/"];
    let mut problems = Vec::new();
    for file in rust(&["tests"]).iter().filter_map(|f| f.strip_prefix("tests/")).filter(|f| f.contains('/')) {
        let is_part = parts.iter().any(|p| file.contains(p)) && !file.ends_with("mod.rs");
        let is_list = file.ends_with("/mod.rs") && file.matches('/').count() == 1;
        if !is_part && !is_list && !file.starts_with("fixtures") && !page.contains(&format!("`{file}`")) {
            problems.push(format!("tests/README.md does not list `{file}`"));
        }
    }
    for path in page.split('`').skip(1).step_by(2).filter(|p| p.contains('/') && p.ends_with(".rs")) {
        if !root().join("tests").join(path).exists() && !root().join(path).exists() {
            problems.push(format!("tests/README.md lists `{path}`, which does not exist"));
        }
    }
    assert_none(&problems);
}

/// Codes such as `A1` in brackets, alone or in a list: rows of docs/known-bugs.md.
fn cited_bugs(text: &str) -> Vec<&str> {
    let is_code =
        |c: &str| c.starts_with(['A', 'B', 'C', 'D', 'E']) && (2..=3).contains(&c.len()) && c[1..].chars().all(|d| d.is_ascii_digit());
    let lists = text.split('[').skip(1).filter_map(|part| part.split_once(']')).map(|(list, _)| list);
    lists.filter(|list| list.split(", ").all(is_code)).flat_map(|list| list.split(", ")).collect()
}

/// A bug that a sample or a test cites has a row in docs/known-bugs.md, and every row is cited.
#[test]
fn known_bugs_are_cited_and_described() {
    assert_eq!(cited_bugs("x[0], \"zeros [B1, C22]\", [A1], [G1], [A], [A1; 2]"), ["B1", "C22", "A1"]);
    let page = read("docs/known-bugs.md");
    let cell = |l: &str| {
        l.strip_prefix("| ").and_then(|l| l.split(' ').next()).filter(|c| c.chars().any(|d| d.is_ascii_digit())).map(String::from)
    };
    let rows: Vec<String> = page.lines().filter_map(cell).collect();
    let described: BTreeSet<&str> = rows.iter().map(String::as_str).collect();
    let (mut problems, mut cited) = (Vec::new(), BTreeSet::new());
    if described.len() != rows.len() {
        problems.push("docs/known-bugs.md has two rows of one code".to_owned());
    }
    for file in rust(&["src", "tests"]).into_iter().filter(|f| !f.ends_with("tidy_documents.rs")) {
        for code in cited_bugs(&read(&file)) {
            match described.get(code) {
                Some(&code) => drop(cited.insert(code)),
                None => problems.push(format!("{file}: cites [{code}], which has no row in docs/known-bugs.md")),
            }
        }
    }
    problems.extend(described.difference(&cited).map(|code| format!("docs/known-bugs.md: {code} is cited by no sample and no test")));
    assert_none(&problems);
}

/// docs/mended-faults.md: each row has a label of its own and tests that exist, as `tests/x.rs: name`.
#[test]
fn mended_faults_name_existing_tests() {
    let page = read("docs/mended-faults.md");
    let (mut problems, mut labels, mut named) = (Vec::new(), BTreeSet::new(), 0);
    let label = |l: &str| {
        let cell = l.strip_prefix("| ")?.split(' ').next()?;
        (cell.starts_with(|c: char| c.is_ascii_uppercase()) && cell.ends_with(|c: char| c.is_ascii_digit())).then(|| cell.to_owned())
    };
    for row in page.lines() {
        let Some(label) = label(row) else { continue };
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        if cells.len() != 4 || cells.iter().any(|c| c.trim().is_empty()) {
            problems.push(format!("{label}: a row has a label, what went wrong, what holds now, and tests"));
            continue;
        }
        let tests: Vec<(&str, &str)> = cells[3].split('`').skip(1).step_by(2).filter_map(|t| t.split_once(": ")).collect();
        for (file, test) in &tests {
            named += 1;
            let text = fs::read_to_string(root().join(file)).unwrap_or_default();
            // A test, not a helper of that name.
            let found = text.split(&format!("fn {test}(")).next().filter(|before| before.len() < text.len());
            let is_test = found.is_some_and(|before| before.lines().rev().take(5).any(|l| l.trim() == "#[test]"));
            if !file.ends_with(".rs") || !is_test {
                problems.push(format!("{label}: there is no test `{test}` in {file}"));
            }
        }
        if tests.is_empty() {
            problems.push(format!("{label} names no test"));
        }
        if !labels.insert(label.clone()) {
            problems.push(format!("{label} stands there twice"));
        }
    }
    // Labels of a letter are counted through.
    for (letter, most) in [("U", 23), ("P-", 11), ("A", 4), ("B", 7), ("C", 13), ("D", 3), ("W", 20)] {
        let missing = (1..=most).map(|n| format!("{letter}{n}")).filter(|l| !labels.contains(l));
        problems.extend(missing.map(|l| format!("there is no row {l}")));
    }
    assert!(named > 100, "the page names {named} tests");
    assert_none(&problems);
}

/// What a link to a heading is called.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Every `--example`, `--bench`, `--test` and `just` recipe that a document mentions, and every relative link, exists.
#[test]
fn documents_name_existing_things() {
    let just = read("justfile");
    let mut problems = Vec::new();
    for doc in documents() {
        let text = read(&doc);
        for (flag, folder) in [("--example ", "examples"), ("--bench ", "benches"), ("--test ", "tests")] {
            for part in text.split(flag).skip(1) {
                let name: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let there = [format!("{folder}/{name}.rs"), format!("{folder}/{name}/main.rs")].iter().any(|f| root().join(f).is_file());
                if !name.is_empty() && !there {
                    problems.push(format!("{doc}: {flag}{name} does not exist"));
                }
            }
        }
        for part in text.split("`just ").skip(1) {
            let name: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if !just.lines().any(|l| l.split([':', ' ']).next() == Some(&name)) {
                problems.push(format!("{doc}: `just {name}` is not a recipe"));
            }
        }
        let folder = Path::new(&doc).parent().unwrap_or(Path::new(""));
        for part in text.split("](").skip(1) {
            let link = part.split([')', '#', ' ']).next().unwrap_or_default();
            let is_file = !link.is_empty() && !link.contains("://") && !link.contains("::") && (link.contains('.') || link.contains('/'));
            if is_file && !root().join(folder).join(link).exists() {
                problems.push(format!("{doc}: the link to {link} leads nowhere"));
            }
            let target = part.split([')', ' ']).next().unwrap_or_default();
            if let Some((file, heading)) = target.split_once('#').filter(|(f, _)| f.is_empty() || f.ends_with(".md") && !f.contains("://"))
            {
                let page =
                    if file.is_empty() { text.clone() } else { fs::read_to_string(root().join(folder).join(file)).unwrap_or_default() };
                if !page.lines().filter_map(|l| l.strip_prefix('#')).any(|l| anchor(l) == heading) {
                    problems.push(format!("{doc}: no heading for the link to {target}"));
                }
            }
        }
    }
    // Paths in the text: `src/op.rs`. Decisions and changes tell of files that may be gone.
    for doc in documents().into_iter().filter(|d| !d.starts_with("docs/adr/") && d != "CHANGELOG.md") {
        for path in read(&doc).split('`').skip(1).step_by(2) {
            let folders = ["src/", "kernels/", "tests/", "docs/", "examples/", "benches/", "scripts/"];
            let plain = path.chars().all(|c| c.is_alphanumeric() || "_-./".contains(c));
            let planned = ["kernels/elementwise/smooth_abs.cu"].contains(&path);
            if plain && !planned && folders.iter().any(|f| path.starts_with(f)) && !root().join(path).exists() {
                problems.push(format!("{doc}: `{path}` does not exist"));
            }
        }
    }
    for needed in ["cargo run --release --example train_gpt", "cargo test"] {
        if !read("README.md").contains(needed) {
            problems.push(format!("README.md does not give the command `{needed}`"));
        }
    }
    assert_none(&problems);
}

/// The worked example of CONTRIBUTING.md is compiled and checked as examples/custom_op.rs.
#[test]
fn the_worked_example_is_the_compiled_one() {
    let between = |text: &str, from: &str, to: &str| {
        let start = text.find(from).map_or_else(|| panic!("no {from}"), |i| i + from.len());
        let end = text[start..].find(to).map_or_else(|| panic!("no {to}"), |i| start + i);
        (start, end)
    };
    let example = read("examples/custom_op.rs");
    let (start, end) = between(&example, "// <op>\n", "// </op>");
    let code = example[start..end].replace("cotangent::", "crate::");
    let page = read("CONTRIBUTING.md");
    let (start, end) = between(&page, "<!-- op -->\n```rust,ignore\n", "```\n<!-- /op -->");
    if std::env::var_os("COTANGENT_BLESS").is_some_and(|v| v == "1") {
        let new = format!("{}{code}{}", &page[..start], &page[end..]);
        fs::write(root().join("CONTRIBUTING.md"), new).unwrap_or_else(|e| panic!("CONTRIBUTING.md: {e}"));
        return;
    }
    assert!(page[start..end] == code, "CONTRIBUTING.md's worked example is stale: run `COTANGENT_BLESS=1 cargo test --test main tidy`");
}

/// What kernels/README.md explains line by line stands in the kernel as it is.
#[test]
fn the_annotated_kernel_is_the_compiled_one() {
    let kernel = read("kernels/norm/softmax.cu");
    let page = read("kernels/README.md");
    let mut rest = kernel.as_str();
    for quote in page.split("```cpp\n").skip(1) {
        let quote = quote.split("```").next().unwrap_or_default();
        let Some(at) = rest.find(quote) else {
            panic!("kernels/README.md quotes what is not in softmax.cu, or not in this order:\n{quote}")
        };
        rest = &rest[at + quote.len()..];
    }
    assert!(rest.len() < kernel.len(), "kernels/README.md quotes nothing");
}

/// examples/quickstart.rs is the README's example.
#[test]
fn quickstart_is_the_readme_example() {
    let page = read("README.md");
    let code = page.split("```rust\n").nth(1).and_then(|s| s.split("```").next()).unwrap_or_default();
    assert!(read("examples/quickstart.rs").ends_with(code), "examples/quickstart.rs differs from the README's first example");
}
