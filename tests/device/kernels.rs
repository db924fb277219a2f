//! The CUDA kernels as source: they compile for every architecture within their registers, and the emulator that the other
//! tests run them on notices the mistakes that it is there to notice.
//!
//! `COTANGENT_NVRTC_DIR` names the folder of libnvrtc when the loader does not find it (`scripts/install_nvrtc` fetches one);
//! `REQUIRE_NVRTC=1` makes its absence a failure instead of a skipped test.

use cotangent::backend::cuda;
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Registers a kernel may use: with 256 threads a block, four blocks fit on a multiprocessor.
const REGISTERS: u32 = 64;

/// Kernels that may use more (a part of the symbol), with the reason.
const MORE_REGISTERS: &[(&str, u32, &str)] = &[
    (
        "binary_pow_f32",
        80,
        "the factorial and its derivatives, in doubles: a factor leaves the range of a float where the power brings the product back",
    ),
    ("binary_pow_f64", 80, "the factorial and its derivatives, in doubles"),
    ("sdpa_forward_f64", 192, "attention: 4 x 4 scores and as many results, in doubles"),
    ("sdpa_rows_f64", 232, "the same, with the cotangents of the scores"),
    ("sdpa_mask_f64", 232, "the same"),
    ("sdpa_columns_f64", 252, "the same, with two results"),
    (
        "sdpa_mma_vjp_",
        255,
        "tiles of scores, their cotangents, and results of up to 128 columns, in fragments of tensor cores; one or two blocks fill a multiprocessor",
    ),
    ("sdpa_mma_forward_", 248, "the same without cotangents"),
    ("sdpa_decode_part_", 168, "attention: sums of eight queries for each of eight columns; three blocks of 128 threads fit"),
    ("sdpa_columns_", 168, "attention: 4 x 4 scores, their cotangents, and two results; six blocks of 64 threads fit"),
    ("sdpa_mask_", 168, "the same, with the sum over heads"),
    ("sdpa_", 128, "attention: 4 x 4 scores, their cotangents, and results; eight blocks of 64 threads fit"),
    ("conv_forward_", 88, "4 x 4 sums, and where a column reads; three blocks of 256 threads fit, of doubles two"),
    ("conv_input_", 96, "the same, in doubles"),
    ("conv_weight_", 96, "the same"),
    ("cross_entropy_fwd_f64", 96, "a row in doubles, two at a time"),
    ("cross_entropy_vjp_f64", 96, "the same"),
    ("cross_entropy_soft_", 80, "a row and its probabilities, in doubles"),
    ("argmax_reduce_", 80, "value and position of four columns"),
    ("group_prod_reduce_f32", 104, "four columns' products in doubles, with their counts of zeros"),
    (
        "group_std_reduce_",
        112,
        "sums of squares of four columns in doubles, so that no square leaves the range; two blocks of 256 threads fit",
    ),
    ("group_var_reduce_", 112, "the same"),
    ("group_", 96, "parts of several numbers for four columns"),
    ("norm_fwd_", 128, "a row, one that is added, its weight and its bias; a block of 512 threads fits"),
    ("unary_gelu_vjp_f64", 72, "erf and its derivative in doubles"),
    ("norm_vjp_", 112, "a row, its cotangent, and two sums for each of its columns"),
    ("quant_linear_few_", 84, "sums of eight rows, eight elements of each, and of the matrix"),
    ("quant_linear_many_", 104, "4 x 4 sums, and what they come from, in doubles"),
    ("quant_linear_mma_", 128, "2 x 4 tiles of sums, and of a block's products; two blocks of 256 threads fit"),
    ("softmax_", 120, "a row stays in registers"),
];

/// Kernels that may use memory of their own: CUDA's reduction of large angles keeps its digits there.
const STACK: &[&str] = &["unary_sin_", "unary_cos_", "rope_table_"];

/// What the assembler's log says of one kernel.
#[derive(Debug, Default)]
struct Usage {
    registers: u32,
    stack: u32,
    spills: u32,
}

fn usage(log: &str) -> BTreeMap<String, Usage> {
    let mut out: BTreeMap<String, Usage> = BTreeMap::new();
    let mut kernel = String::new();
    // The number before or after some words.
    let before = |line: &str, words: &str| -> u32 {
        let head = line.split(words).next().filter(|h| h.len() < line.len()).unwrap_or("0");
        head.trim().rsplit([' ', ',']).next().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("entry function '") {
            kernel = rest.split('\'').next().unwrap_or_default().to_owned();
        }
        if line.contains("bytes stack frame") {
            let u = out.entry(kernel.clone()).or_default();
            u.stack = before(line, " bytes stack frame");
            u.spills = before(line, " bytes spill stores") + before(line, " bytes spill loads");
        }
        if line.contains("Used ") && line.contains(" registers") {
            let n = line.split("Used ").nth(1).and_then(|r| r.split(' ').next()).and_then(|n| n.parse().ok());
            out.entry(kernel.clone()).or_default().registers = n.expect("a number of registers");
        }
    }
    out
}

#[test]
fn the_log_of_the_assembler_is_understood() {
    let log = "ptxas info    : 0 bytes gmem\n\
               ptxas info    : Compiling entry function 'unary_sin_fwd_f32' for 'sm_90'\n\
               ptxas info    : Function properties for unary_sin_fwd_f32\n    \
                   32 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n\
               ptxas info    : Used 36 registers, used 0 barriers, 32 bytes cumulative stack size, 720 bytes cmem[0]\n";
    let u = usage(log);
    let u = &u["unary_sin_fwd_f32"];
    assert_eq!((u.registers, u.stack, u.spills), (36, 32, 12));
}

#[test]
fn every_kernel_compiles_for_gpus() {
    const NAME: &str = "device::kernels::every_kernel_compiles_for_gpus";
    // The loader reads its search path when a process starts: start one that has the folder in it.
    if let Some(dir) = env::var_os("COTANGENT_NVRTC_DIR").filter(|_| env::var_os("COTANGENT_NVRTC_CHILD").is_none()) {
        assert!(Path::new(&dir).is_dir(), "COTANGENT_NVRTC_DIR: {} is not a folder", PathBuf::from(&dir).display());
        let old = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let path = env::join_paths(std::iter::once(PathBuf::from(dir)).chain(env::split_paths(&old))).unwrap();
        let mut child = Command::new(env::current_exe().unwrap());
        child.args([NAME, "--exact", "--nocapture"]).env("LD_LIBRARY_PATH", path).env("COTANGENT_NVRTC_CHILD", "1");
        let output = child.output().unwrap();
        for line in String::from_utf8_lossy(&output.stdout).lines().filter(|l| l.starts_with("sm_")) {
            crate::say(line);
        }
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    if !cuda::has_compiler() {
        assert!(env::var("REQUIRE_NVRTC").as_deref() != Ok("1"), "REQUIRE_NVRTC=1, and libnvrtc was not found");
        crate::say(
            "skipped: compiling the kernels; libnvrtc was not found (scripts/install_nvrtc fetches it, COTANGENT_NVRTC_DIR names its folder)",
        );
        return;
    }
    // A GPU that the compiler does not know gets code that its driver compiles.
    let (target, code) = cuda::compile_one_for((99, 0)).unwrap();
    assert!(target.starts_with("compute_") && String::from_utf8_lossy(&code).contains(".target sm_"), "{target}");
    assert_eq!(cuda::compile_one_for((8, 0)).unwrap().0, "sm_80");
    let mut problems = Vec::new();
    let mut exceptions = BTreeSet::new();
    let mut table: BTreeMap<String, BTreeMap<&str, Vec<(String, u32)>>> = BTreeMap::new();
    for arch in ["80", "90"] {
        let modules = cuda::compile_kernels(arch).unwrap_or_else(|e| panic!("{e}"));
        let (mut kernels, mut most) = (0, (0, String::new()));
        for m in &modules {
            for (kernel, u) in usage(&m.log) {
                kernels += 1;
                let (name, dtype) = split(&kernel);
                table.entry(name).or_default().entry(arch).or_default().push((dtype, u.registers));
                let exception = MORE_REGISTERS.iter().find(|(k, ..)| kernel.contains(k));
                let limit = exception.map_or(REGISTERS, |(_, n, _)| *n);
                if u.registers > limit {
                    problems.push(format!("{kernel} uses {} registers on sm_{arch}, {limit} allowed", u.registers));
                }
                if let Some((k, ..)) = exception.filter(|_| u.registers > REGISTERS) {
                    exceptions.insert(*k);
                }
                if u.spills > 0 {
                    problems.push(format!("{kernel} spills {} bytes on sm_{arch}", u.spills));
                }
                if u.stack > 0 && !STACK.iter().any(|k| kernel.contains(k)) {
                    problems
                        .push(format!("{kernel} keeps {} bytes in local memory on sm_{arch}: an array is indexed by a variable", u.stack));
                }
                most = most.max((u.registers, kernel));
            }
        }
        assert!(kernels > 100, "the log of sm_{arch} tells of {kernels} kernels only");
        let bytes: usize = modules.iter().map(|m| m.bytes).sum();
        crate::say(&format!(
            "sm_{arch}: {kernels} kernels in {} modules, {} KiB; most registers: {} ({})",
            modules.len(),
            bytes >> 10,
            most.0,
            most.1
        ));
    }
    status_page(&table);
    let idle = MORE_REGISTERS.iter().filter(|(k, ..)| !exceptions.contains(k));
    problems.extend(idle.map(|(k, ..)| format!("MORE_REGISTERS lists {k}, which does not need it")));
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

/// `softmax_fwd_bf16` as kernel and types.
fn split(symbol: &str) -> (String, String) {
    let types = ["f64", "f32", "bf16", "f16", "i64", "u32", "u16", "u64", "u8"];
    let parts: Vec<&str> = symbol.split('_').collect();
    let first = parts.iter().rposition(|p| !types.contains(p)).map_or(0, |i| i + 1);
    (parts[..first].join("_"), parts[first..].join(" "))
}

/// The table of docs/gpu-status.md: kernels and the registers that the assembler gave them. `COTANGENT_BLESS=1` writes it.
fn status_page(table: &BTreeMap<String, BTreeMap<&str, Vec<(String, u32)>>>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/gpu-status.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (start, end) = ("<!-- kernels -->\n", "<!-- end -->");
    let (before, rest) = page.split_once(start).expect("the table's start");
    let (old, after) = rest.split_once(end).expect("the table's end");
    // What was seen on a GPU is written by hand, and kept.
    let by_hand = |name: &str| -> String {
        let row = old.lines().find(|l| l.starts_with(&format!("| `{name}` |")));
        let cells: Vec<&str> = row.map_or_else(Vec::new, |l| l.split('|').map(str::trim).collect());
        if cells.len() == 8 { format!("{} | {}", cells[5], cells[6]) } else { "not yet | –".into() }
    };
    let mut new = String::from(
        "\n| kernel | types | registers sm_80 | registers sm_90 | verified on (GPU, driver, date, commit) | % of limit |\n|---|---|---|---|---|---|\n",
    );
    for (name, archs) in table {
        let list = |arch: &str| -> Vec<&(String, u32)> { archs.get(arch).into_iter().flatten().collect() };
        let range = |arch: &str| {
            let all: Vec<u32> = list(arch).iter().map(|(_, n)| *n).collect();
            format!("{}–{}", all.iter().min().unwrap_or(&0), all.iter().max().unwrap_or(&0))
        };
        let types: Vec<&str> = list("80").iter().map(|(t, _)| t.as_str()).collect();
        let types = if types.len() > 7 { format!("{} pairs", types.len()) } else { types.join(", ") };
        new += &format!("| `{name}` | {types} | {} | {} | {} |\n", range("80"), range("90"), by_hand(name));
    }
    new.push('\n');
    if env::var("COTANGENT_BLESS").as_deref() == Ok("1") {
        std::fs::write(path, format!("{before}{start}{new}{end}{after}")).unwrap();
        return;
    }
    // Registers move with the compiler's version; the list of kernels may not.
    let kernels = |text: &str| -> Vec<String> { text.lines().filter_map(|l| Some(l.split('`').nth(1)?.to_owned())).collect() };
    assert_eq!(kernels(old), kernels(&new), "docs/gpu-status.md lists other kernels: COTANGENT_BLESS=1 cargo test --test main kernels");
}

/// Planted bugs that some orders cannot show, because they leave nothing undone there: copies that come at once need no wait,
/// and blocks in their own order hide what one expects of another.
#[cfg(feature = "emulator")]
const HIDDEN: &[(&str, &str)] = &[
    ("NO_WAIT_FOR_THE_STAGE", "1"),
    ("NO_WAIT_FOR_THE_LAST_STAGE", "1"),
    ("WAIT_LETS_TOO_MANY_PASS", "1"),
    ("NEVER_WAITS_FOR_A_COPY", "1"),
    ("DEPENDS_ON_ANOTHER_BLOCK", "0"),
];

#[test]
#[cfg(feature = "emulator")]
fn the_emulator_notices_planted_bugs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernels_planted-{}", std::process::id()));
    let compiler = env::var("CXX").unwrap_or_else(|_| "c++".into());
    let emulator = ["scheduler", "launch", "memory"].map(|f| root.join(format!("kernels/emulator/{f}.cpp")));
    let mut build = Command::new(&compiler);
    build.args(["-std=c++17", "-O2", "-Wall", "-Wno-unknown-pragmas", "-ffp-contract=off", "-pthread", "-o"]).arg(&program);
    build.arg("-I").arg(root.join("kernels")).arg("-I").arg(root.join("kernels/emulator"));
    let built =
        build.arg(root.join("tests/device/kernels_planted.cpp")).args(emulator).output().unwrap_or_else(|e| panic!("{compiler}: {e}"));
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let output = Command::new(&program).output().unwrap();
    std::fs::remove_file(&program).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));

    let (mut problems, mut planted) = (Vec::new(), BTreeSet::new());
    for line in text.lines() {
        let [case, order, outcome]: [&str; 3] = line.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
        let sound = case.starts_with(char::is_lowercase) || case == "LAUNCHES_SIDE_BY_SIDE";
        let hidden = HIDDEN.contains(&(case, order));
        if sound && outcome != "ok" {
            problems.push(format!("the sound kernel fails: {line}"));
        } else if !sound && !hidden && outcome == "ok" {
            problems.push(format!("{case} was not noticed in order {order}"));
        }
        if !sound {
            planted.insert(case);
        }
    }
    assert!(planted.len() >= 26, "only {} planted bugs were tried", planted.len());
    assert!(problems.is_empty(), "\n{}\n{text}", problems.join("\n"));
    println!("{} planted bugs, each noticed in every order that can show it", planted.len());
}

#[test]
#[cfg(not(feature = "emulator"))]
fn planted_bugs_need_the_emulator() {
    crate::say("skipped: planted bugs in kernels; run the tests with --features emulator");
}
