//! The house rules, as tests (who may name whom: `floors.rs`): `unsafe`, file sizes, registered ops, headings. Documents: `tidy_documents.rs`.

use cotangent::ops::registry;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Files that may be longer than [`BUDGET`], with the reason.
const LONGER: &[(&str, usize, &str)] = &[(
    "src/backend/cpu/math/mod.rs",
    700,
    "one elementary function after the other, each with its polynomial; no part is read without the others",
)];

/// Lines a source file may have, its unit tests not counted.
const BUDGET: usize = 600;

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Files below a folder with one of the given endings, as paths from the root of the crate, sorted.
pub fn files(folder: &str, endings: &[&str]) -> Vec<String> {
    fn walk(dir: PathBuf, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { walk(path, out) } else { out.push(path) }
        }
    }
    let mut found = Vec::new();
    walk(root().join(folder), &mut found);
    let mut names: Vec<String> = found
        .iter()
        .filter(|p| p.extension().is_some_and(|e| endings.iter().any(|x| e == *x)))
        .filter_map(|p| Some(p.strip_prefix(root()).ok()?.to_string_lossy().replace('\\', "/")))
        .collect();
    names.sort();
    names
}

pub fn rust(folders: &[&str]) -> Vec<String> {
    folders.iter().flat_map(|f| files(f, &["rs"])).collect()
}

pub fn documents() -> Vec<String> {
    let mut out: Vec<String> = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "benches/record/README.md",
        "kernels/README.md",
        "tests/README.md",
    ]
    .map(String::from)
    .into();
    out.extend(files("docs", &["md"]));
    out
}

/// The code without comments, and with the content of strings and characters blanked; line numbers stay.
pub fn code_only(source: &str) -> String {
    let s: Vec<char> = source.chars().collect();
    let at = |i: usize| s.get(i).copied().unwrap_or('\0');
    let mut out = String::with_capacity(source.len());
    let mut i = 0;
    // Copies line breaks of a skipped stretch and replaces everything else by nothing.
    let skip = |out: &mut String, from: usize, to: usize| out.extend(s[from..to.min(s.len())].iter().filter(|c| **c == '\n'));
    while i < s.len() {
        let start = i;
        let word_before = i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_');
        match at(i) {
            '/' if at(i + 1) == '/' => {
                while i < s.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                let mut depth = 0;
                while i < s.len() {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 {
                        break;
                    }
                }
                skip(&mut out, start, i);
            }
            'r' if !word_before && (at(i + 1) == '"' || (at(i + 1) == '#' && matches!(at(i + 2), '"' | '#'))) => {
                let hashes = (i + 1..).take_while(|&k| at(k) == '#').count();
                i += hashes + 2;
                while i < s.len() && !(at(i) == '"' && (1..=hashes).all(|k| at(i + k) == '#')) {
                    i += 1;
                }
                i += hashes + 1;
                out.push_str("\"\"");
                skip(&mut out, start, i);
            }
            '"' => {
                i += 1;
                while i < s.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
                out.push_str("\"\"");
                skip(&mut out, start, i);
            }
            // A character literal, not a lifetime.
            '\'' if at(i + 1) == '\\' || at(i + 2) == '\'' => {
                i += if at(i + 1) == '\\' { 3 } else { 2 };
                while i < s.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
                out.push_str("' '");
            }
            c => {
                out.push(c);
                i += 1;
            }
        }
    }
    out
}

/// [`code_only`] without `#[cfg(test)] mod … { … }`.
pub fn product_code(source: &str) -> String {
    let mut code = code_only(source);
    while let Some(start) = code.find("#[cfg(test)]\nmod ").or_else(|| code.find("#[cfg(test)]\n    mod ")) {
        let Some(open) = code[start..].find('{').map(|i| start + i).filter(|&o| !code[start..o].contains(';')) else {
            // `mod tests;`: the file beside it is skipped by name.
            code.replace_range(start..start + "#[cfg(test)]".len(), "");
            continue;
        };
        let mut depth = 0;
        let end = code[open..].char_indices().find_map(|(i, c)| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            (depth == 0).then_some(open + i + 1)
        });
        code.replace_range(start..end.unwrap_or(code.len()), "");
    }
    code
}

/// Words (identifiers) of some code, with their positions.
pub fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = 0;
    std::iter::from_fn(move || {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let start = rest + code[rest..].find(is_word)?;
        let len = code[start..].find(|c| !is_word(c)).unwrap_or(code.len() - start);
        rest = start + len;
        Some((start, &code[start..rest]))
    })
}

pub fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn unsafe_stays_in_the_backend() {
    let mut problems = Vec::new();
    for file in rust(&["src", "examples", "benches", "tests"]) {
        let allowed = file.starts_with("src/backend/") || file == "src/instruction_set.rs";
        if !allowed && words(&code_only(&read(&file))).any(|(_, w)| w == "unsafe") {
            problems.push(format!("{file}: `unsafe` outside src/backend"));
        }
    }
    assert_none(&problems);
}

/// Files outside of `io` that open files themselves, with the reason.
const OPENERS: &[(&str, &str)] = &[("src/backend/cuda/driver/load.rs", "stands below `io`; compiled kernels in a cache folder of its own")];

/// Every file is opened by `io`, which refuses what is not a regular file, locks, and replaces old files whole.
#[test]
fn files_are_opened_in_io_only() {
    let openers = ["src/io/atomic.rs", "src/io/open.rs", "src/io/lock.rs"];
    let functions = ["read", "read_to_string", "write", "copy", "rename", "hard_link", "set_permissions"];
    let (mut problems, mut needed) = (Vec::new(), BTreeSet::new());
    for file in rust(&["src", "examples"]).into_iter().filter(|f| !openers.contains(&f.as_str())) {
        let code = product_code(&read(&file));
        let words: Vec<&str> = words(&code).map(|(_, w)| w).collect();
        let opens = words.windows(2).any(|w| match w {
            ["File", f] => ["open", "create", "create_new", "options"].contains(f),
            ["fs", f] => functions.contains(f),
            [f, _] => *f == "OpenOptions",
            _ => false,
        });
        match (opens, OPENERS.iter().position(|(f, _)| *f == file)) {
            (true, Some(i)) => drop(needed.insert(i)),
            (true, None) => {
                problems.push(format!("{file}: opens, reads or writes a file itself: take `io::open`, `io::read`, `io::replace`"))
            }
            (false, _) => {}
        }
    }
    let idle = OPENERS.iter().enumerate().filter(|(i, _)| !needed.contains(i));
    problems.extend(idle.map(|(_, (file, _))| format!("OPENERS allows {file} to open files, but it does not any more")));
    assert_none(&problems);
}

/// [`product_code`] without definitions and samples: they compute what is small.
fn without_definitions(code: &str) -> String {
    let mut out = code.to_owned();
    for (at, _) in code.match_indices("fn ") {
        let Some(open) = code[at..].find(['{', ';']).map(|i| at + i).filter(|&i| code[i..].starts_with('{')) else { continue };
        let head = &code[at..open];
        let small = ["fn define", "samples", "sample", "Nd<", "Gen", "Scalar"].iter().any(|w| head.contains(w));
        if !small {
            continue;
        }
        let mut depth = 0;
        let end = code[open..].char_indices().find_map(|(i, c)| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            (depth == 0).then_some(open + i)
        });
        let body = open + 1..end.unwrap_or(code.len());
        let blank: String =
            code[body.clone()].chars().filter(|c| c.is_ascii() || *c == '\n').map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        // Bytes stay where they are: what is not ASCII was blanked as several.
        let missing = body.len() - blank.len();
        out.replace_range(body, &(blank + &" ".repeat(missing)));
    }
    out
}

/// Where lists are made without asking for memory: reason, file or folder, and what the statement contains.
fn unasked() -> Vec<(String, String, String)> {
    let mut reason = String::new();
    let mut out = Vec::new();
    for line in read("tests/house/tidy_unasked.txt").lines().filter(|l| !l.trim().is_empty() && !l.starts_with("//")) {
        match line.strip_prefix("# ") {
            Some(r) => reason = r.to_owned(),
            None => {
                let (file, part) = line.split_once(' ').unwrap_or((line, ""));
                out.push((reason.clone(), file.to_owned(), part.trim().to_owned()));
            }
        }
    }
    out
}

/// Whether a statement, which ends with the line that is looked at, makes a list without asking for memory.
fn takes_unasked(line: &str, statement: &str, before: &[&str], of: &str) -> bool {
    // Lists of these have a number for each axis, or one tensor for each operand.
    const SHORT: &[&str] = &["Dims", "Shape", "SmallVec", "Axes", "Spec", "Outputs", "Cotangents", "Saved"];
    let short = |text: &str| SHORT.iter().any(|w| words(text).any(|(_, word)| word.starts_with(w) || word.ends_with(w)));
    // A list of a written number of items is small.
    let fixed = |rest: &str| {
        let Some((_, n)) = rest.split_once("; ") else { return true };
        n.split(']').next().is_some_and(|n| n.chars().all(|c| c.is_ascii_digit()))
    };
    let list = line.find("vec![").is_some_and(|i| line[i..].contains(';') && !fixed(&line[i..]));
    let copies =
        ["with_capacity(", ".to_vec()", ".resize(", ".repeat("].iter().any(|w| line.contains(w)) && !line.contains("to_vec().map_err");
    let collects = line.contains(".collect") && !short(statement) && (statement.starts_with("let ") || !short(of));
    let asked = |l: &&str| ["room(", "grow(", "reserve"].iter().any(|w| l.contains(w));
    let extends = line.find(".extend(").is_some_and(|i| !line[i..].starts_with(".extend(["))
        && !["then_some", "to_le_bytes", "std::iter::repeat_n(' '"].iter().any(|w| line.contains(w))
        && !before.iter().rev().take(12).any(asked);
    list || copies || collects || extends
}

/// The places of some code that stand in the body of a loop.
fn in_loops(code: &str) -> Vec<std::ops::Range<usize>> {
    let mut out = Vec::new();
    for (at, word) in words(code).filter(|(_, w)| ["for", "while", "loop"].contains(w)) {
        let Some(open) = code[at..].find(['{', ';']).map(|i| at + i).filter(|&i| code[i..].starts_with('{')) else { continue };
        // `impl X for Y {` and `for<'a>` are no loops.
        if word == "for" && !code[at..open].contains(" in ") {
            continue;
        }
        let mut depth = 0;
        let end = code[open..].char_indices().find_map(|(i, c)| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            (depth == 0).then_some(open + i)
        });
        out.push(open..end.unwrap_or(code.len()));
    }
    out
}

/// Whether a line, which begins at `place`, adds an item in a loop to a list or a map that may have to grow for it.
fn grows_unasked(line: &str, place: usize, loops: &[std::ops::Range<usize>], before: &[&str]) -> bool {
    let asked = |l: &&str| ["room(", "grow(", "grow_table(", "reserve", "small("].iter().any(|w| l.contains(w));
    let adds = [".push(", ".push_back(", ".push_front(", ".insert("].iter().filter_map(|w| line.find(w));
    adds.map(|i| place + i).any(|at| loops.iter().any(|l| l.contains(&at))) && !before.iter().rev().take(12).any(asked)
}

/// Memory whose size comes from data or an argument is asked for: `vec!`, `with_capacity`, `collect`, `extend`, and `push` and
/// `insert` in loops end the process when there is none. What is allowed all the same stands in `tidy_unasked.txt`.
#[test]
fn sizes_from_data_cannot_abort() {
    let (mut problems, mut needed, unasked) = (Vec::new(), BTreeSet::new(), unasked());
    for file in rust(&["src"]) {
        let samples = ["tests.rs", "samples.rs", "define.rs"].iter().any(|end| file.ends_with(end));
        if file.starts_with("src/testing/") || samples {
            continue;
        }
        let code = without_definitions(&product_code(&read(&file)));
        let lines: Vec<&str> = code.lines().map(str::trim).collect();
        let loops = in_loops(&code);
        // What the function returns.
        let (mut of, mut place) = ("", 0);
        for (i, (whole, line)) in code.lines().zip(&lines).enumerate() {
            let looped = grows_unasked(whole, place, &loops, &lines[..i]);
            place += whole.len() + 1;
            if words(line).any(|(_, w)| w == "fn") {
                of = line.rsplit_once("->").map_or("", |(_, of)| of);
            }
            let begin = lines[..i].iter().rposition(|l| l.is_empty() || l.ends_with([';', '{', '}'])).map_or(0, |i| i + 1);
            let statement = lines[begin..=i].join(" ");
            if !takes_unasked(line, &statement, &lines[..i], of) && !looped {
                continue;
            }
            match unasked.iter().position(|(_, f, part)| {
                (*f == file || f.ends_with('/') && file.starts_with(f)) && part.split(" | ").any(|p| statement.contains(p))
            }) {
                Some(i) => drop(needed.insert(i)),
                None => problems
                    .push(format!("{file}: `{statement}`: take it from `crate::memory`, or say in tidy_unasked.txt why it is small")),
            }
        }
    }
    let idle = unasked.iter().enumerate().filter(|(i, _)| !needed.contains(i));
    problems.extend(idle.map(|(_, (_, file, part))| format!("tidy_unasked.txt allows `{part}` in {file}, which is not there any more")));
    assert_none(&problems);
}

#[test]
fn files_stay_short() {
    let (mut problems, mut needed) = (Vec::new(), BTreeSet::new());
    for file in rust(&["src"]) {
        let source = read(&file);
        let tests = source.find("#[cfg(test)]\nmod tests {").unwrap_or(source.len());
        let lines = source[..tests].lines().count();
        let longer = LONGER.iter().position(|(f, ..)| *f == file);
        let limit = longer.map_or(BUDGET, |i| LONGER[i].1);
        if lines > limit {
            problems.push(format!("{file}: {lines} lines, {limit} allowed: split it by subject"));
        }
        needed.extend(longer.filter(|_| lines > BUDGET));
    }
    let idle = LONGER.iter().enumerate().filter(|(i, _)| !needed.contains(i));
    problems.extend(idle.map(|(_, (file, ..))| format!("LONGER allows {file} to be longer, but it is not any more")));
    assert_none(&problems);
}

#[test]
fn nothing_is_left_unfinished() {
    let mut problems = Vec::new();
    for file in rust(&["src", "examples", "benches", "tests"]) {
        let source = read(&file);
        let code = code_only(&source);
        for bad in ["todo!", "unimplemented!", "dbg!"] {
            if code.contains(bad) {
                problems.push(format!("{file}: {bad}"));
            }
        }
        // Timings that need private functions are run by hand; nothing else may be skipped.
        let skipped = source.lines().filter(|l| l.trim().starts_with("#[ignore") && !l.contains("= \"measurement\""));
        problems.extend(skipped.map(|l| format!("{file}: {}", l.trim())));
    }
    assert_none(&problems);
}

#[test]
fn no_path_of_one_machine() {
    let mut all = rust(&["src", "examples", "benches", "tests"]);
    all.extend(documents());
    all.extend(["Cargo.toml", "justfile", ".ci/run"].map(String::from));
    let mut problems = Vec::new();
    for file in all {
        for top in ["home", "root", "work", "Users"] {
            let path = format!("/{top}/");
            let text = read(&file);
            // `src/work/x` would be a path of the crate: only a path that starts here counts.
            let absolute = |i: &usize| !text[..*i].ends_with(|c: char| c.is_alphanumeric() || "_.-}".contains(c));
            if text.match_indices(&path).map(|(i, _)| i).any(|i| absolute(&i)) {
                problems.push(format!("{file}: names a path below {path}"));
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn every_op_is_registered() {
    let registered: BTreeSet<&str> = registry().iter().map(|e| e.name).collect();
    // `Map` and its like wrap whatever a list names; the constructors in entry.rs apply them.
    let listed = code_only(&(read("src/ops/mod.rs") + &read("src/testing/entry.rs")));
    let listed: BTreeSet<&str> = words(&listed).map(|(_, w)| w).collect();
    let mut problems = Vec::new();
    for file in files("src/ops", &["rs"]) {
        let source = read(&file);
        for part in source.split("NAME: &'static str = \"").skip(1) {
            let name = part.split('"').next().unwrap_or_default();
            if !registered.contains(name) {
                problems.push(format!("{file}: op `{name}` is not in the registry"));
            }
        }
        let code = product_code(&source);
        for (i, _) in code.match_indices("\nimpl") {
            let head = code[i + 1..].split('{').next().unwrap_or_default();
            let Some((traits, of)) = head.split_once(" for ") else { continue };
            let is_op = words(traits).last().is_some_and(|(_, t)| ["Op", "View", "Composite", "Unary", "Binary"].contains(&t));
            let name = words(of).next().map_or("", |(_, w)| w);
            if is_op && !listed.contains(name) {
                problems.push(format!("{file}: `{name}` is not in the registry of src/ops/mod.rs"));
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn names_are_unique_and_described() {
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for e in registry() {
        if !seen.insert(e.name) {
            problems.push(format!("`{}` is registered twice", e.name));
        }
        if !e.math.is_complete() {
            problems.push(format!("`{}`: its mathematics has an empty field", e.name));
        }
        if !e.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
            problems.push(format!("`{}` is not snake_case", e.name));
        }
    }
    assert_none(&problems);
}

/// Public tensor methods say how they fail and how they differentiate.
#[test]
fn op_methods_have_headings() {
    let mut problems = Vec::new();
    for file in files("src/ops", &["rs"]) {
        let (mut doc, mut of_tensor) = (String::new(), false);
        let source = read(&file);
        let lines: Vec<&str> = source.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let line = line.trim();
            if let Some(text) = line.strip_prefix("///") {
                doc.push_str(text.trim());
                doc.push('\n');
                continue;
            }
            if line.starts_with("$(#[") {
                doc.push_str("# Gradient # Errors"); // a macro hands on what its callers write
                continue;
            }
            if line.starts_with("#[") {
                doc.push_str(line.strip_prefix("#[doc").unwrap_or_default()); // written by a macro
                continue;
            }
            if line.starts_with("impl") {
                of_tensor = line.starts_with("impl Tensor");
            }
            if let Some(rest) = line.strip_prefix("pub fn ").filter(|_| of_tensor) {
                let name = rest.split(['(', '<']).next().unwrap_or_default();
                let signature: String = lines[i..].iter().take(16).map(|l| l.trim()).collect::<Vec<_>>().join(" ");
                let signature = signature.split(" {").next().unwrap_or_default();
                // A variant that points to its full description need not repeat it.
                let refers = doc.lines().any(|l| l.contains("[`Tensor::"));
                if signature.contains("-> Result<") && !doc.contains("# Errors") {
                    problems.push(format!("{file}: `{name}` has no `# Errors`"));
                }
                let is_op = signature.contains("&self")
                    && (signature.contains("-> Result<Tensor>") || signature.contains("-> Result<Vec<Tensor>>"));
                if is_op && !refers && !doc.contains("# Gradient") && !file.starts_with("src/ops/create/") {
                    problems.push(format!("{file}: `{name}` has no `# Gradient`"));
                }
            }
            doc.clear();
        }
    }
    assert_none(&problems);
}

#[test]
fn the_reader_of_rust_reads_rust() {
    let code = code_only("let a = \"unsafe // x\"; // unsafe\nlet c = '\"'; /* unsafe /* a */ */ let r = r#\"dbg!(\"\"#; fn f<'a>() {}");
    assert!(!code.contains("unsafe") && !code.contains("dbg!") && code.contains("fn f<'a>() {}"), "{code}");
    assert_eq!(code.lines().count(), 2);
    assert_eq!(product_code("a\n#[cfg(test)]\nmod tests { fn x() { } }\nb"), "a\n\nb");
}
