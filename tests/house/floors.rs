//! Who may name whom: layers of modules, floors inside them, and no circles.
//!
//! Paths are read from the sources: what follows `crate::`, `super::` or `self::`, and what a `use` or a path begins with a module
//! of the file's own. A name that a module hands on from another (`pub use`) counts as the other's.

use super::tidy::{files, product_code, read, words};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::OnceLock;

/// Modules from the bottom up. A module may name those in earlier rows and those in its own row.
///
/// Three rows hold modules that need each other: lists give the backend's cache back when memory is short, and kernels need
/// lists; a tensor knows its node and a node saves tensors; the op contract asks for
/// samples, and samples are samples of ops.
const LAYERS: &[&[&str]] = &[
    &["error"],
    &["dtype"],
    &["shape"],
    &["layout"],
    &["instruction_set"],
    &["rng"],
    &["notice"],
    &["backend", "memory"],
    &["array"],
    &["tensor", "tape"],
    &["question_mark"],
    &["op", "testing"],
    &["ops"],
    &["grad"],
    &["module"],
    &["functional"],
    &["capture"],
    &["nn"],
    &["optim"],
    &["diagnostics", "train", "io"],
    &["models"],
    &["prelude"],
];

/// The same inside of modules: rooms of a folder from the bottom up. Every one of them has its row, and a room names those in earlier
/// rows. What stands in the folder's own `mod.rs` is above all of them.
const FLOORS: &[(&str, &[&[&str]])] = &[
    ("backend", &[&["attention", "conv", "device", "freed", "resample"], &["cpu"], &["cuda"]]),
    ("backend::cpu", &[&["memory"], &["math"], &["run"], &["reduce", "optim"], &["matmul"], &["attention", "conv"]]),
    ("backend::cuda", &[&["abi"], &["driver"], &["device"], &["launch"], &["ops"]]),
    (
        "ops",
        &[
            &["create"],
            &["shape"],
            &["accumulate"],
            &["second_order"],
            &["elementwise"],
            &["reduce"],
            &["conv", "index", "linalg", "norm"],
            &["attention", "loss"],
        ],
    ),
];

/// Uses of a module from a later row, with the reason why each is right.
const UPWARD: &[(&str, &str, &str)] = &[(
    "testing",
    "ops",
    "a registry entry says whether an op is a `Unary`: those are checked on all half values, and a failure names `ops::replay`",
)];

/// A module as the names on the way to it; the crate itself has none.
type Path = Vec<String>;

fn shown(path: &[String]) -> String {
    if path.is_empty() { "the crate's root".into() } else { path.join("::") }
}

/// What the names in a file stand for.
#[derive(Default)]
struct Names {
    /// Declared there.
    own: BTreeSet<String>,
    /// Brought there by `use`, as paths from the root of the crate.
    brought: BTreeMap<String, Path>,
    /// Modules whose names are brought there as a whole.
    whole: Vec<Path>,
}

/// One path that a file names.
struct Mention {
    path: Path,
    /// It hands a name on to others.
    hands_on: bool,
}

/// The modules of the crate that have a file.
struct Sources {
    code: BTreeMap<Path, String>,
    names: BTreeMap<Path, Names>,
}

/// The end of the block that opens at `open`.
fn block_end(code: &str, open: usize) -> usize {
    let mut depth = 0;
    let end = code[open..].char_indices().find_map(|(i, c)| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        (depth == 0).then_some(open + i + 1)
    });
    end.unwrap_or(code.len())
}

/// `use` declarations: where, whether they hand names on, and the tree of names.
fn declarations(code: &str) -> Vec<(Range<usize>, bool, &str)> {
    let mut out = Vec::new();
    for (at, word) in words(code) {
        if word != "use" {
            continue;
        }
        let Some(end) = code[at..].find(';').map(|i| at + i) else { continue };
        let before = code[..at].trim_end();
        let public = before.ends_with("pub") || before.ends_with(')') && before.rfind("pub(").is_some_and(|i| !before[i..].contains('\n'));
        out.push((at..end, public, &code[at + "use".len()..end]));
    }
    out
}

/// The paths of a tree of names, each with the name that it gets.
fn flat(tree: &str) -> Vec<(Path, String)> {
    let tree = tree.trim();
    let segments = |text: &str| text.split("::").map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect::<Path>();
    let Some(open) = tree.find('{') else {
        let (path, renamed) = tree.split_once(" as ").map_or((tree, None), |(p, n)| (p, Some(n.trim().to_owned())));
        let path = segments(path);
        let name = renamed.or_else(|| path.last().cloned()).unwrap_or_default();
        return if path.is_empty() { Vec::new() } else { vec![(path, name)] };
    };
    let (head, inner) = (segments(&tree[..open]), &tree[open + 1..tree.rfind('}').unwrap_or(tree.len())]);
    let (mut depth, mut start, mut out) = (0, 0, Vec::new());
    for (i, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if c == ',' && depth == 0 {
            for (path, name) in flat(&inner[start..i]) {
                // `a::{self}` is `a`.
                let itself = path == ["self"];
                let name = if itself && name == "self" { head.last().cloned().unwrap_or_default() } else { name };
                out.push((head.iter().cloned().chain(path.into_iter().filter(|_| !itself)).collect(), name));
            }
            start = i + 1;
        }
    }
    out
}

/// Blocks `mod x { … }` of a file, with their names.
fn inline(code: &str) -> Vec<(Range<usize>, String)> {
    let all: Vec<(usize, &str)> = words(code).collect();
    let blocks = all.windows(2).filter(|w| w[0].1 == "mod").filter_map(|w| {
        let (at, name) = w[1];
        let rest = &code[at + name.len()..];
        rest.trim_start().starts_with('{').then(|| {
            let open = at + name.len() + rest.find('{').unwrap_or(0);
            (open..block_end(code, open), name.to_owned())
        })
    });
    blocks.collect()
}

impl Sources {
    fn of(list: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut code = BTreeMap::new();
        for (file, source) in list {
            let inside = file.trim_start_matches("src/").trim_end_matches(".rs");
            let inside = inside.strip_suffix("/mod").unwrap_or(inside);
            let path = inside.split('/').filter(|s| *s != "lib").map(str::to_owned).collect();
            code.insert(path, product_code(&source));
        }
        let mut all = Sources { code, names: BTreeMap::new() };
        let names = all.code.iter().map(|(module, code)| (module.clone(), all.names_of(module, code))).collect();
        all.names = names;
        all
    }

    fn names_of(&self, module: &[String], code: &str) -> Names {
        let mut out = Names::default();
        let all: Vec<(usize, &str)> = words(code).collect();
        for w in all.windows(2) {
            if ["fn", "struct", "enum", "trait", "type", "const", "static", "union", "macro_rules"].contains(&w[0].1) {
                out.own.insert(w[1].1.to_owned());
            }
        }
        let blocks = inline(code);
        for (place, _, tree) in declarations(code) {
            if blocks.iter().any(|(block, _)| block.contains(&place.start)) {
                continue;
            }
            for (path, name) in flat(tree) {
                let Some(mut path) = self.rooted(module, &path) else { continue };
                if path.last().is_some_and(|n| n == "*") {
                    path.pop();
                    out.whole.push(path);
                } else {
                    out.brought.insert(name, path);
                }
            }
        }
        out
    }

    /// A path as it is written in a module, from the root of the crate; none if it begins with another crate or an item.
    fn rooted(&self, module: &[String], path: &[String]) -> Option<Path> {
        let mut at = module.to_vec();
        let rest = match path.first()?.as_str() {
            "crate" => {
                at.clear();
                &path[1..]
            }
            "self" => &path[1..],
            "super" => {
                let up = path.iter().take_while(|s| *s == "super").count();
                at.truncate(at.len().saturating_sub(up));
                &path[up..]
            }
            child => {
                at.push(child.to_owned());
                if !self.code.contains_key(&at) {
                    return None;
                }
                &path[1..]
            }
        };
        at.extend(rest.iter().cloned());
        Some(at)
    }

    /// The module with a file that a path leads to, through names that are handed on.
    fn leads_to(&self, path: &[String], depth: usize) -> Path {
        let mut module: Path = Vec::new();
        for (k, name) in path.iter().enumerate() {
            let mut child = module.clone();
            child.push(name.clone());
            if self.code.contains_key(&child) {
                module = child;
                continue;
            }
            let Some(names) = self.names.get(&module).filter(|n| depth > 0 && !n.own.contains(name)) else { return module };
            if let Some(brought) = names.brought.get(name).filter(|b| b[..] != path[..=k]) {
                let on: Path = brought.iter().chain(&path[k + 1..]).cloned().collect();
                return self.leads_to(&on, depth - 1);
            }
            for whole in &names.whole {
                let on: Path = whole.iter().chain([name]).cloned().collect();
                let found = self.leads_to(&on, depth - 1);
                if self.names.get(&found).is_some_and(|n| n.own.contains(name)) {
                    return found;
                }
            }
            return module;
        }
        module
    }

    /// Every path of a module's file that begins in this crate.
    fn mentions(&self, module: &[String]) -> Vec<Mention> {
        let code = &self.code[module];
        let (blocks, declared) = (inline(code), declarations(code));
        let base = |at: usize| -> Path {
            let inside = blocks.iter().filter(|(block, _)| block.contains(&at)).map(|(_, name)| name.clone());
            module.iter().cloned().chain(inside).collect()
        };
        let mut out = Vec::new();
        for (place, hands_on, tree) in &declared {
            for (mut path, _) in flat(tree) {
                if path.last().is_some_and(|n| n == "*") {
                    path.pop();
                }
                out.extend(self.rooted(&base(place.start), &path).map(|path| Mention { path, hands_on: *hands_on }));
            }
        }
        for (at, word) in words(code) {
            let begins = !code[..at].trim_end().ends_with("::") && code[at + word.len()..].starts_with("::");
            if !begins || declared.iter().any(|(place, ..)| place.contains(&at)) {
                continue;
            }
            let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            let text = &code[at..];
            let text = &text[..text.find(|c| !is_path(c)).unwrap_or(text.len())];
            let path: Path = text.split("::").filter(|s| !s.is_empty()).map(str::to_owned).collect();
            out.extend(self.rooted(&base(at), &path).map(|path| Mention { path, hands_on: false }));
        }
        out
    }

    /// Which modules each one names. That a module hands on names of those inside of it is no use of them.
    fn uses(&self) -> BTreeMap<Path, BTreeSet<Path>> {
        let mut out = BTreeMap::new();
        for module in self.code.keys() {
            let mentions = self.mentions(module).into_iter();
            let to = mentions.map(|m| (self.leads_to(&m.path, 8), m.hands_on)).filter(|(to, on)| !(*on && to.starts_with(module)));
            out.insert(module.clone(), to.map(|(to, _)| to).filter(|to| to != module).collect());
        }
        out
    }
}

/// The crate's own.
fn uses() -> &'static BTreeMap<Path, BTreeSet<Path>> {
    static USES: OnceLock<BTreeMap<Path, BTreeSet<Path>>> = OnceLock::new();
    USES.get_or_init(|| {
        let list = files("src", &["rs"]).into_iter().filter(|f| !f.ends_with("tests.rs"));
        Sources::of(list.map(|f| (f.clone(), read(&f)))).uses()
    })
}

fn row(rows: &[&[&str]], name: &str) -> Option<usize> {
    rows.iter().position(|row| row.contains(&name))
}

/// Uses of later rows inside of a folder, and names without a row.
fn looks_down(uses: &BTreeMap<Path, BTreeSet<Path>>, folder: &[String], rows: &[&[&str]]) -> Vec<(String, String, String)> {
    let mut out = Vec::new();
    let own = |m: &Path| m.strip_prefix(folder).and_then(|rest| rest.first().cloned());
    for (from, to) in uses {
        let Some(name) = own(from) else { continue };
        let Some(mine) = row(rows, &name) else {
            out.push((name.clone(), String::new(), format!("{}: `{name}` has no row", shown(from))));
            continue;
        };
        for target in to {
            // The folder's own file, which holds what is above them all, or lies outside of it.
            let there = match own(target) {
                Some(n) => n,
                None if target[..] == *folder && !folder.is_empty() => "mod.rs".into(),
                None => continue,
            };
            if row(rows, &there).unwrap_or(usize::MAX) > mine {
                let text = format!("{} uses {}, but `{there}` stands above `{name}`", shown(from), shown(target));
                out.push((name.clone(), there, text));
            }
        }
    }
    out
}

fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn layers_look_up_only() {
    let (mut problems, mut needed) = (Vec::new(), BTreeSet::new());
    for (from, to, text) in looks_down(uses(), &[], LAYERS) {
        match UPWARD.iter().position(|(a, b, _)| *a == from && *b == to) {
            Some(i) => drop(needed.insert(i)),
            None => problems.push(text),
        }
    }
    let idle = UPWARD.iter().enumerate().filter(|(i, _)| !needed.contains(i));
    problems.extend(idle.map(|(_, (from, to, _))| format!("UPWARD allows `{from}` to use `{to}`, but it does not any more")));
    assert_none(&problems);
}

#[test]
fn floors_look_up_only() {
    let (uses, mut problems) = (uses(), Vec::new());
    for (folder, rows) in FLOORS {
        let path: Path = folder.split("::").map(str::to_owned).collect();
        problems.extend(looks_down(uses, &path, rows).into_iter().map(|(.., text)| text));
        for name in rows.iter().flat_map(|row| row.iter()) {
            let room: Path = path.iter().cloned().chain([(*name).to_owned()]).collect();
            if !uses.contains_key(&room) {
                problems.push(format!("FLOORS names `{}`, which does not exist", shown(&room)));
            }
        }
    }
    assert_none(&problems);
}

/// Groups of rooms in one folder of which each needs all others. A room and the files that it was split into are one.
fn circles(uses: &BTreeMap<Path, BTreeSet<Path>>, folder: &[String]) -> Vec<BTreeSet<String>> {
    let own = |m: &Path| m.strip_prefix(folder).and_then(|rest| rest.first().cloned());
    let mut next: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (from, to) in uses {
        if let Some(a) = own(from) {
            next.entry(a.clone()).or_default().extend(to.iter().filter_map(own).filter(|b| *b != a));
        }
    }
    let reach = |from: &String| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(a) = open.pop() {
            open.extend(next.get(&a).into_iter().flatten().filter(|b| seen.insert((*b).clone())).cloned());
        }
        seen
    };
    let all: BTreeMap<&String, BTreeSet<String>> = next.keys().map(|a| (a, reach(a))).collect();
    let circle = |a: &String| all.keys().filter(|b| all[a].contains(**b) && all[**b].contains(a)).map(|b| (*b).clone()).collect();
    let found: BTreeSet<BTreeSet<String>> = next.keys().map(circle).collect();
    found.into_iter().filter(|c: &BTreeSet<String>| c.len() > 1).collect()
}

#[test]
fn no_folder_has_a_circle() {
    let uses = uses();
    let mut folders: BTreeSet<Path> = uses.keys().flat_map(|m| (1..m.len()).map(|k| m[..k].to_vec())).collect();
    folders.insert(Vec::new());
    let mut problems = Vec::new();
    for folder in folders {
        for circle in circles(uses, &folder) {
            // Layers of one row say why they need each other.
            let known =
                folder.is_empty() && circle.iter().all(|m| m == "ops" || LAYERS.iter().any(|r| r.len() > 1 && r.contains(&m.as_str())));
            if !known {
                problems.push(format!("{}: {} need each other", shown(&folder), circle.into_iter().collect::<Vec<_>>().join(", ")));
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn the_reader_of_paths_reads_paths() {
    let sources = Sources::of(
        [
            ("src/lib.rs", "mod a;\npub mod b;\npub use a::inner::Thing;\n"),
            ("src/a/mod.rs", "mod inner;\nmod other;\npub(crate) use inner::{Thing, late};\npub use other::*;\n"),
            ("src/a/inner.rs", "pub struct Thing;\npub fn late() { super::other::own() }\nmod deep { use super::late; use super::super::other; }"),
            ("src/a/other.rs", "pub fn own() {}\n#[cfg(test)]\nmod tests { use crate::b; }"),
            ("src/b.rs", "use crate::{a::{self as first, Thing as T}, std_like};\nuse std::fmt;\nfn f() { crate::Thing; first::own(); crate::a::own() }"),
        ]
        .map(|(f, s)| (f.to_owned(), s.to_owned())),
    );
    let uses = sources.uses();
    let of = |m: &str| -> Vec<String> {
        let path: Path = m.split("::").filter(|s| !s.is_empty()).map(str::to_owned).collect();
        uses[&path].iter().map(|p| shown(p)).collect()
    };
    assert_eq!(of("a::inner"), ["a::other"], "from a block inside of the file, too, and its own names are no use");
    assert_eq!(of("a::other"), [""; 0], "not what tests use");
    assert_eq!(of("b"), ["the crate's root", "a", "a::inner", "a::other"], "handed on by name, renamed, and as a whole");
    assert_eq!(of(""), [""; 0], "what the root hands on is no use");
    let found = |m: &[(&str, &str)]| {
        let uses = m.iter().map(|(a, b)| (vec!["x".to_owned(), (*a).to_owned()], [vec!["x".to_owned(), (*b).to_owned()]].into())).collect();
        circles(&uses, &["x".to_owned()])
    };
    assert_eq!(found(&[("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")]), [["a", "b", "c"].map(String::from).into()]);
    assert!(found(&[("a", "b"), ("b", "c"), ("d", "a")]).is_empty());
    let uses = [(vec!["x".to_owned(), "low".to_owned()], [vec!["x".to_owned(), "high".to_owned()], vec!["x".to_owned()]].into())].into();
    assert_eq!(looks_down(&uses, &["x".to_owned()], &[&["low"], &["high"]]).len(), 2, "a later row, and the folder's own file");
    assert_eq!(looks_down(&uses, &["x".to_owned()], &[&["high"]])[0].2, "x::low: `low` has no row");
}
