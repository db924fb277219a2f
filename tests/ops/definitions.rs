//! Definitions are independent: what `define` calls is called by no kernel, shape rule or derivative.
//!
//! A reference that shares its parser, its plan or its count of axes with what it checks agrees with both when that is wrong. The
//! test reads the sources: it follows the calls of every `define` of src/ops, and names the functions that something else
//! calls as well. Names are resolved by their file, their type and the imports, not by a compiler: where a receiver's type is
//! not written, any method of that name counts.

use crate::house::tidy::{files, product_code, read, words};
use std::collections::{BTreeMap, BTreeSet};

/// What definitions may share, with the reason, and the op whose cases in tests/fixtures/torch_ops hold it from outside: (owner of
/// the definition, function, op, reason).
const ALLOWED: &[(&str, &str, &str, &str)] = &[
    ("Dropout", "Key::u32", "dropout", "the generator's words: the script of the cases has a Philox of its own"),
    ("Dropout", "bernoulli_threshold", "dropout", "which words keep an element: as the words"),
    ("SdpaOp", "Key::u32", "scaled_dot_product_attention", "as dropout"),
    ("SdpaOp", "bernoulli_threshold", "scaled_dot_product_attention", "as dropout"),
    ("SdpaVjp", "Key::u32", "scaled_dot_product_attention", "as dropout"),
    ("SdpaVjp", "bernoulli_threshold", "scaled_dot_product_attention", "as dropout"),
];

/// Methods that only read what a shape, a list or a number is, and those of std, and of definitions (`slope`), under the same names.
const DATA: &str = "map iter new len min max sum contains at from_fn zip collect filter unwrap_or rev enumerate clone cloned copied any all \
    fold product abs exp ln sqrt sin cos tanh erf erfc powf lit re one zero chain skip take to_vec is_empty position push insert rank \
    numel dims from scalar broadcast_at indices reshape shape get first last next find add mul sub div default fmt into extend as_ref \
    swap data count reduce eq and or not write sort is_finite flatten floor ceil round expm1 ln_1p sigmoid chunks is_nan slope";

struct Function {
    file: String,
    /// The type of the `impl`, or empty.
    owner: String,
    /// In an `impl` without a trait.
    inherent: bool,
    name: String,
    body: String,
}

impl Function {
    fn shown(&self) -> String {
        if self.owner.is_empty() { self.name.clone() } else { format!("{}::{}", self.owner, self.name) }
    }

    /// Whether it says what an op is.
    fn defines(&self) -> bool {
        self.file.starts_with("src/ops") && (self.name == "define" || (self.name == "slope" && self.owner == "unary"))
    }

    /// Samples may use what they like: they are inputs.
    fn is_sample(&self) -> bool {
        self.name.contains("sample") || self.file.contains("samples")
    }
}

/// Where the block or expression from `from` on ends: at the brace that closes the first one, or at a semicolon outside of brackets.
fn end_of(code: &str, from: usize, braces: bool) -> usize {
    let mut depth = 0i32;
    for (i, c) in code[from..].char_indices() {
        match c {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => {
                depth -= 1;
                if braces && depth == 0 && c == '}' {
                    return from + i + 1;
                }
            }
            ';' if depth == 0 => return from + i,
            _ => {}
        }
    }
    code.len()
}

/// The type that an `impl` is for, and whether it names no trait. `head` stands between `impl` and the brace.
fn owner_of(head: &str) -> (String, bool) {
    let mut rest = head.trim();
    if rest.starts_with('<') {
        let mut depth = 0;
        let end = rest.char_indices().find_map(|(i, c)| {
            depth += i32::from(c == '<') - i32::from(c == '>');
            (depth == 0).then_some(i + 1)
        });
        rest = &rest[end.unwrap_or(0)..];
    }
    let (of, inherent) = rest.split_once(" for ").map_or((rest, true), |(_, of)| (of, false));
    (words(of).next().map_or("", |(_, w)| w).to_string(), inherent)
}

/// The functions of a file, those of `unary! { … name(self, x) => body; … }` included.
fn functions(file: &str, source: &str) -> Vec<Function> {
    let code = product_code(source);
    let mut blocks = Vec::new();
    for (at, word) in words(&code) {
        let starts = code[..at].ends_with(['\n', ' ']) || at == 0;
        if (word == "impl" || word == "trait") && starts {
            let Some(open) = code[at..].find(['{', ';', '(']).map(|i| at + i).filter(|&i| code[i..].starts_with('{')) else { continue };
            let (owner, inherent) = owner_of(&code[at + word.len()..open]);
            blocks.push((at, end_of(&code, open, true), owner, inherent && word == "impl"));
        }
    }
    let within = |at: usize| blocks.iter().rev().find(|b| b.0 < at && at < b.1).map_or((String::new(), false), |b| (b.2.clone(), b.3));
    let mut out = Vec::new();
    let all: Vec<(usize, &str)> = words(&code).collect();
    for (k, &(at, word)) in all.iter().enumerate() {
        let Some(&(next, name)) = all.get(k + 1) else { break };
        if word == "fn" && code[at + 2..next].trim().trim_start_matches('$').is_empty() {
            // The body, unless a semicolon comes first: a declaration.
            let mut depth = 0i32;
            let open = code[next..].char_indices().find_map(|(i, c)| {
                depth += i32::from(c == '(' || c == '[') - i32::from(c == ')' || c == ']');
                (depth == 0 && (c == '{' || c == ';')).then_some((next + i, c))
            });
            let Some((open, '{')) = open else { continue };
            let (owner, inherent) = within(at);
            let body = code[open..end_of(&code, open, true)].to_string();
            out.push(Function { file: file.into(), owner, inherent, name: name.into(), body });
        } else if name == "self" && code[at + word.len()..next].trim() == "(" {
            let Some(close) = code[next..].find(')').map(|i| next + i + 1) else { continue };
            if let Some(rest) = code[close..].strip_prefix(" => ") {
                let from = code.len() - rest.len();
                let body = code[from..end_of(&code, from, false)].to_string();
                out.push(Function { file: file.into(), owner: "unary".into(), inherent: false, name: word.into(), body });
            }
        }
    }
    out
}

/// Names that `let`, a pattern or a closure binds somewhere in some code.
fn bound(body: &str) -> BTreeSet<&str> {
    let mut out = BTreeSet::new();
    let all: Vec<(usize, &str)> = words(body).collect();
    for (k, &(at, word)) in all.iter().enumerate() {
        if word == "let" || word == "for" {
            // Up to the `=` or `in`.
            out.extend(all[k + 1..].iter().take_while(|(i, w)| *w != "in" && !body[at..*i].contains('=')).map(|(_, w)| *w));
        }
    }
    for (i, _) in body.match_indices('|') {
        let rest = &body[i + 1..];
        let list = &rest[..rest.find(['|', ';', '{']).unwrap_or(0)];
        out.extend(words(list).map(|(_, w)| w));
    }
    out
}

/// What a file imports, by the name it has there.
type Imports = BTreeMap<String, BTreeMap<String, String>>;

fn imports_of(source: &str) -> BTreeMap<String, String> {
    let code = product_code(source);
    let mut out = BTreeMap::new();
    for list in code.split(';').filter_map(|s| s.split_once("use ").map(|(_, u)| u)) {
        let all: Vec<&str> = words(list).map(|(_, w)| w).collect();
        for (k, &word) in all.iter().enumerate() {
            let renamed = k > 1 && all[k - 1] == "as";
            out.insert(word.to_string(), if renamed { all[k - 2].to_string() } else { word.to_string() });
        }
    }
    out
}

/// Whom every function calls, as places in the list.
fn calls(list: &[Function], imports: &Imports) -> Vec<BTreeSet<usize>> {
    let mut by_name: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, f) in list.iter().enumerate() {
        by_name.entry(&f.name).or_default().push(i);
    }
    let data: BTreeSet<&str> = DATA.split_whitespace().collect();
    let mut out = Vec::new();
    for f in list {
        let (mut edges, body) = (BTreeSet::new(), f.body.as_str());
        let local = bound(body);
        for (at, word) in words(body) {
            let Some(named) = by_name.get(word) else { continue };
            let after = body[at + word.len()..].trim_start();
            let before = body[..at].trim_end();
            let is_call = after.starts_with('(') || after.starts_with("::<");
            let last = |text: &str| words(text).last().map_or("", |(_, w)| w).to_string();
            let mut hits: Vec<usize> = if let Some(receiver) = before.strip_suffix('.').filter(|b| !b.ends_with('.')) {
                let receiver = receiver.trim_end();
                // With a character or a string as argument it is std's method on text (`split`).
                if !is_call || after.starts_with("('") || after.starts_with("(\"") {
                    continue;
                }
                if receiver.ends_with("self") && !receiver.ends_with(".self") && last(receiver) == "self" {
                    named.iter().copied().filter(|&k| list[k].owner == f.owner).collect()
                } else if data.contains(word) {
                    continue;
                } else {
                    named.iter().copied().filter(|&k| list[k].inherent && list[k].owner != "Tensor").collect()
                }
            } else if let Some(path) = before.strip_suffix("::") {
                let of = last(path.split_once("::<").map_or(path, |_| path.trim_end_matches(['>', '<'])));
                let of = if of == "Self" { f.owner.clone() } else { imports.get(&f.file).and_then(|i| i.get(&of).cloned()).unwrap_or(of) };
                let typed: Vec<usize> = named.iter().copied().filter(|&k| list[k].owner == of).collect();
                let module = |k: &usize| {
                    list[*k].owner.is_empty() && list[*k].file.trim_end_matches(".rs").trim_end_matches("/mod").ends_with(&format!("/{of}"))
                };
                if typed.is_empty() { named.iter().copied().filter(|k| module(k)).collect() } else { typed }
            } else if local.contains(word) || before.ends_with("fn") || !(is_call || after.starts_with([',', ')'])) {
                continue;
            } else {
                let imported = imports.get(&f.file).is_some_and(|i| i.contains_key(word));
                named.iter().copied().filter(|&k| list[k].owner.is_empty() && (list[k].file == f.file || imported)).collect()
            };
            if hits.iter().any(|&k| list[k].file == f.file) {
                hits.retain(|&k| list[k].file == f.file);
            }
            edges.extend(hits);
        }
        out.push(edges);
    }
    out
}

/// Every pair of a definition and a function that it shares with what is no definition.
fn shared(sources: &[(String, String)]) -> BTreeSet<(String, String)> {
    let mut list = Vec::new();
    let mut imports = BTreeMap::new();
    for (file, source) in sources {
        imports.insert(file.clone(), imports_of(source));
        list.extend(functions(file, source));
    }
    let edges = calls(&list, &imports);
    let reach = |from: &[usize]| {
        let mut seen: BTreeSet<usize> = from.iter().copied().collect();
        let mut open: Vec<usize> = from.to_vec();
        while let Some(i) = open.pop() {
            open.extend(edges[i].iter().copied().filter(|&k| seen.insert(k)));
        }
        seen
    };
    let definitions: Vec<usize> = (0..list.len()).filter(|&i| list[i].defines()).collect();
    let inside = reach(&definitions);
    let mut used_elsewhere = BTreeSet::new();
    for (i, calls) in edges.iter().enumerate().filter(|(i, _)| !inside.contains(i) && !list[*i].is_sample()) {
        let _ = i;
        used_elsewhere.extend(calls.iter().copied().filter(|k| inside.contains(k) && !list[*k].defines()));
    }
    let mut out = BTreeSet::new();
    for &d in &definitions {
        // What stands behind a shared function is the shared function's.
        let (mut seen, mut open) = (BTreeSet::from([d]), vec![d]);
        while let Some(i) = open.pop() {
            for &k in &edges[i] {
                if used_elsewhere.contains(&k) {
                    out.insert((list[d].owner.clone(), list[k].shown()));
                } else if seen.insert(k) {
                    open.push(k);
                }
            }
        }
    }
    out
}

/// The sources of the crate below the ops, and the ops.
fn sources() -> Vec<(String, String)> {
    let mut all = files("src/ops", &["rs"]);
    all.extend(files("src/backend", &["rs"]).into_iter().filter(|f| !f.contains("/cuda/")));
    all.extend(["src/shape.rs", "src/layout.rs", "src/rng.rs", "src/dtype.rs", "src/array.rs"].map(String::from));
    all.into_iter()
        .filter(|f| !f.ends_with("tests.rs") && crate::house::tidy::root().join(f).is_file())
        .map(|f| (f.clone(), read(&f)))
        .collect()
}

#[test]
fn definitions_share_nothing_with_what_they_check() {
    let found = shared(&sources());
    let allowed = |pair: &(String, String)| ALLOWED.iter().any(|(d, f, ..)| *d == pair.0 && *f == pair.1);
    let wrong: Vec<String> =
        found.iter().filter(|p| !allowed(p)).map(|(d, f)| format!("the definition of `{d}` and something else both call `{f}`")).collect();
    assert!(
        wrong.is_empty(),
        "{}\nWrite the textbook's loop in `define`, or allow it in tests/ops/definitions.rs with a reason and cases that hold it",
        wrong.join("\n")
    );
    let idle: Vec<_> = ALLOWED.iter().filter(|(d, f, ..)| !found.contains(&(d.to_string(), f.to_string()))).collect();
    assert!(idle.is_empty(), "allowed, but no longer shared: {idle:?}");
}

/// What is shared is held by numbers from outside.
#[test]
fn what_definitions_share_has_fixtures() {
    assert!(ALLOWED.len() <= 12, "the list must stay short");
    let cases: String = files("tests/fixtures/torch_ops", &["json"]).iter().map(|f| read(f)).collect();
    for (definition, function, op, reason) in ALLOWED {
        assert!(reason.len() > 5 && cases.contains(&format!("{{\"op\":\"{op}\"")), "`{definition}`, `{function}`: no case of `{op}`");
    }
}

/// The reader itself: sharing that is planted is found, whichever way it is called, and independence is not reported.
#[test]
fn planted_sharing_is_found() {
    let op = |define: &str, infer: &str, rest: &str| {
        let text = format!(
            "use super::plan::{{imported}};\nuse super::plan as p;\nimpl X {{\n    fn plan(&self, n: usize) -> usize {{ n + 1 }}\n    fn own(&self) -> usize {{ 2 }}\n}}\n\
             impl Describe for X {{\n    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {{ {define} }}\n}}\n\
             impl Op for X {{\n    fn infer(&self, x: &[Spec]) -> Result<Specs> {{ {infer} }}\n}}\n{rest}\n"
        );
        let plan = "pub fn imported(n: usize) -> usize { n }\n".to_string();
        let axis = "impl Axis {\n    pub fn resolve(self, rank: usize) -> Result<usize> { rank }\n}\n".to_string();
        let found = shared(&[("src/ops/x.rs".into(), text), ("src/ops/plan.rs".into(), plan), ("src/shape.rs".into(), axis)]);
        found.into_iter().map(|(d, f)| format!("{d} {f}")).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(op("self.plan(1)", "self.plan(2)", ""), "X X::plan");
    assert_eq!(op("Self::plan(self, 1)", "self.plan(2)", ""), "X X::plan");
    assert_eq!(op("imported(1)", "imported(2)", ""), "X imported");
    assert_eq!(op("x.iter().map(imported)", "imported(2)", ""), "X imported", "a function handed on as a value");
    assert_eq!(op("plan::imported(1)", "imported(2)", ""), "X imported");
    assert_eq!(op("p::imported(1)", "imported(2)", ""), "X imported", "a module under another name");
    assert_eq!(op("self.axis.resolve(1)?", "self.axis.resolve(2)", ""), "X Axis::resolve");
    assert_eq!(op("helper(1)", "self.plan(2)", "fn helper(n: usize) -> usize { X.plan(n) }"), "X X::plan", "behind a function of its own");
    assert_eq!(op("helper(1)", "other()", "fn helper(n: usize) { }\nfn other() { helper(2) }"), "X helper", "shared behind the shape rule");
    let unary = "unary! {\n    Y, \"y\", saves Input;\n    f(self, x) => table(x);\n    define(self, x) => S::lit(table(x.re()));\n}\nfn table(x: f64) -> f64 { x }";
    assert_eq!(op("self.own()", "self.plan(1)", unary), "unary table");
    // A local closure of that name, one's own helper, a comment, samples and tests are no sharing.
    assert_eq!(op("let imported = |n| n; imported(1)", "imported(2)", ""), "");
    assert_eq!(op("self.own()", "self.plan(2)", ""), "");
    assert_eq!(op("own(1) // self.plan(1)\n", "self.plan(2)", "fn own(n: usize) { }"), "");
    assert_eq!(op("helper(1)", "self.plan(2)", "fn helper(n: usize) { }\nfn samples() { helper(1) }"), "");
    assert_eq!(op("helper(1)", "self.plan(2)", "fn helper(n: usize) { }\n#[cfg(test)]\nmod tests {\n    fn t() { helper(1) }\n}"), "");
}
