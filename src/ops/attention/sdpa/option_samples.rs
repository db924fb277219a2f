//! Windows, soft caps, packed sequences and head sizes: alone, in pairs, and where other implementations failed.

use super::{SdpaOp, SdpaOptions};
use crate::dtype::{DType, I64, U8};
use crate::error::ErrorKind;
use crate::rng::Key;
use crate::testing::{Gen, Input, Sample};

fn op(options: SdpaOptions) -> SdpaOp {
    SdpaOp { options, boolean: false, packed: false }
}

/// Inputs with the offsets of packed sequences.
fn packed(mut x: Vec<Input>, lengths_q: &[i64], lengths_k: &[i64]) -> Vec<Input> {
    for lengths in [lengths_q, lengths_k] {
        let mut offsets = vec![0];
        for n in lengths {
            offsets.push(offsets[offsets.len() - 1] + n);
        }
        x.push(Input::ints(I64, [offsets.len()], &offsets));
    }
    x
}

fn packed_op(options: SdpaOptions) -> SdpaOp {
    SdpaOp { packed: true, ..op(options) }
}

/// The offsets of a sample, its last two inputs, are what they are.
fn with_offsets(s: Sample<SdpaOp>) -> Sample<SdpaOp> {
    let n = s.inputs.len();
    if s.op.packed { s.unrepeated(&[n - 2, n - 1]) } else { s }
}

/// Extents of a problem: batch, query heads, key heads, queries, keys, D, Dv.
pub(super) struct Size(pub(super) [usize; 7]);

impl Size {
    pub(super) fn qkv(&self, g: &mut Gen, magnitude: f64) -> Vec<Input> {
        let [b, hq, hkv, tq, tk, d, dv] = self.0;
        vec![g.normal_with([b, hq, tq, d], magnitude, 0.0), g.normal_with([b, hkv, tk, d], magnitude, 0.0), g.normal([b, hkv, tk, dv])]
    }
}

#[inline]
pub(super) fn samples(g: &mut Gen) -> Vec<Sample<SdpaOp>> {
    let mut out = Vec::new();
    pairs(g, &mut out);
    windows(g, &mut out);
    soft_caps(g, &mut out);
    sequences(g, &mut out);
    heads(g, &mut out);
    rejects(g, &mut out);
    for (size, options) in [
        ([1, 4, 4, 2048, 2048, 64, 64], SdpaOptions::sliding(256)),
        ([1, 8, 2, 1, 4096, 64, 64], SdpaOptions::causal()),
        ([4, 12, 12, 1, 512, 64, 64], SdpaOptions::causal()),
    ] {
        out.push(Sample::bench(op(options), Size(size).qkv(g, 1.0)));
    }
    out.into_iter().map(with_offsets).collect()
}

/// Every option alone and with every other one.
fn pairs(g: &mut Gen, out: &mut Vec<Sample<SdpaOp>>) {
    const COUNT: usize = 8;
    let size = Size([1, 2, 1, 3, 4, 2, 2]);
    for a in 0..COUNT {
        for b in a..COUNT {
            let on = |option: usize| a == option || b == option;
            if on(5) && on(6) && a != b {
                continue;
            }
            let options = SdpaOptions {
                causal: on(0),
                window: on(1).then_some((1, 1)),
                softcap: on(2).then_some(0.8),
                scale: on(3).then_some(1.3),
                dropout: if on(4) { 0.3 } else { 0.0 },
                key: on(4).then(|| Key::new(5)),
            };
            let mut x = size.qkv(g, 1.5);
            if on(5) {
                x.push(Input::ints(U8, [3, 4], &[1, 1, 0, 1, 0, 1, 1, 1, 1, 0, 1, 1]));
            } else if on(6) {
                x.push(g.normal([2, 1, 4]));
            }
            if on(7) {
                x = packed(x, &[1, 0, 2], &[2, 1, 1]);
            }
            let op = SdpaOp { options, boolean: on(5), packed: on(7) };
            out.push(Sample::check(op, x).note("every option alone and in pairs changes what it should [A22]"));
        }
    }
}

fn windows(g: &mut Gen, out: &mut Vec<Sample<SdpaOp>>) {
    let all = usize::MAX;
    let sizes = [[1, 1, 1, 5, 5, 2, 2], [1, 2, 1, 3, 6, 2, 3], [1, 2, 2, 6, 3, 3, 2], [1, 2, 1, 1, 5, 2, 2]];
    let windows = [(0, 0), (2, 0), (0, 2), (1, 2), (all, 1), (1, all), (all, all), (0, 1)];
    for (window, size) in windows.into_iter().zip(sizes.into_iter().cycle()) {
        let options = SdpaOptions { window: Some(window), ..SdpaOptions::default() };
        out.push(
            Sample::check(op(options), Size(size).qkv(g, 1.0)).note("a window without a mask; its ends align with the last key [A22]"),
        );
    }
    for size in sizes {
        out.push(Sample::check(op(SdpaOptions::sliding(2)), Size(size).qkv(g, 1.0)).note("causal windows [A22, A26]"));
    }
    for (size, window) in [
        ([1, 2, 1, 70, 70, 3, 2], (5, 0)),
        ([1, 1, 1, 33, 97, 2, 2], (40, 3)),
        ([1, 1, 1, 97, 33, 2, 2], (2, 40)),
        ([1, 1, 1, 130, 130, 2, 2], (31, 32)),
        ([1, 2, 1, 66, 140, 2, 2], (65, 0)),
        ([1, 1, 1, 2, 1600, 4, 4], (700, 0)),
        ([1, 1, 1, 20, 1400, 2, 2], (50, 50)),
    ] {
        let options = SdpaOptions { window: Some(window), ..SdpaOptions::default() };
        out.push(
            Sample::value(op(options), Size(size).qkv(g, 3.0)).note("windows across tiles, with tiles before and behind them [A4, A27]"),
        );
    }
    let mask = g.normal([1, 90]);
    let x = [Size([1, 2, 1, 80, 90, 2, 2]).qkv(g, 1.0), vec![mask]].concat();
    out.push(Sample::value(op(SdpaOptions::sliding(20)), x).note("the cotangent of a mask's row under a window [A21]"));
    let mask = g.normal([80, 90]);
    let x = [Size([1, 2, 1, 80, 90, 2, 2]).qkv(g, 1.0), vec![mask]].concat();
    out.push(Sample::value(op(SdpaOptions::sliding(20)), x).note("tiles of a mask outside of the window are zero [A21]"));
}

fn soft_caps(g: &mut Gen, out: &mut Vec<Sample<SdpaOp>>) {
    for (softcap, magnitude, causal) in [(0.5, 1.0, false), (30.0, 1.0, true), (50.0, 6.0, false), (5.0, 3.0, true)] {
        let options = SdpaOptions { softcap: Some(softcap), causal, ..SdpaOptions::default() };
        out.push(
            Sample::check(op(options), Size([1, 2, 1, 3, 4, 3, 2]).qkv(g, magnitude))
                .note("tanh has a derivative, and the cap changes the result [A25]"),
        );
    }
    let options = SdpaOptions { softcap: Some(4.0), scale: Some(1.0), ..SdpaOptions::default() };
    for magnitude in [10.0, 300.0] {
        out.push(
            Sample::value(op(options.clone()), Size([1, 1, 1, 4, 5, 4, 3]).qkv(g, magnitude))
                .note("scores far beyond the cap: slopes vanish as 4 exp(-2 s / c), without cancellation [A25]"),
        );
    }
    let mask = Input::values([1, 4], [0.0, -f64::INFINITY, 20.0, -3.0]);
    let x = [Size([1, 1, 1, 3, 4, 2, 2]).qkv(g, 2.0), vec![mask]].concat();
    let options = SdpaOptions { softcap: Some(1.0), ..SdpaOptions::default() };
    out.push(Sample::check(op(options), x).no_grad(&[3]).note("the cap comes before the mask: what is forbidden stays so [A25]"));
}

fn sequences(g: &mut Gen, out: &mut Vec<Sample<SdpaOp>>) {
    let cases: [(&[i64], &[i64], &'static str); 9] = [
        (&[2, 3], &[2, 3], "two sequences"),
        (&[5], &[5], "one sequence: as if it were not packed"),
        (&[2, 0, 3], &[1, 2, 2], "a sequence without queries: zero k̄ and v̄ [A3]"),
        (&[2, 1, 2], &[3, 0, 2], "a sequence without keys gives zeros [A3]"),
        (&[0, 5, 0, 0], &[0, 4, 0, 1], "empty sequences at both ends [A3]"),
        (&[3, 2], &[1, 4], "more queries than keys, and fewer [A2, A26]"),
        (&[1, 1, 1, 1, 1], &[1, 1, 1, 1, 1], "sequences of one: y = v"),
        (&[], &[], "no sequences"),
        (&[0, 0], &[0, 0], "only empty sequences"),
    ];
    for (number, (of_q, of_k, note)) in cases.into_iter().enumerate() {
        let [tq, tk] = [of_q, of_k].map(|n| n.iter().sum::<i64>() as usize);
        let window = (number % 3 == 2).then_some((1, 0));
        let options = SdpaOptions { causal: number % 3 != 1, window, ..SdpaOptions::default() };
        let x = Size([1, 2, 1, tq, tk, 2, 3]).qkv(g, 1.0);
        out.push(Sample::check(packed_op(options), packed(x, of_q, of_k)).note(note));
    }
    let x = vec![g.normal([2, 3, 2]), g.normal([1, 4, 2]), g.normal([1, 4, 2])];
    out.push(
        Sample::check(packed_op(SdpaOptions::causal()), packed(x, &[1, 2], &[2, 2])).note("packed, shared heads, no leading axis [A23]"),
    );
    let mut x = packed(Size([1, 2, 1, 3, 4, 2, 2]).qkv(g, 1.0), &[1, 2], &[2, 2]);
    x[3] = Input::ints(DType::U32, [3], &[0, 1, 3]);
    x[4] = Input::ints(U8, [3], &[0, 2, 4]);
    out.push(Sample::check(packed_op(SdpaOptions::causal()), x).note("offsets of other integer types"));
    for (of_q, of_k, options, note) in [
        (vec![76, 34, 146], vec![1, 1, 1], SdpaOptions::causal(), "far more queries than keys in each sequence [A2]"),
        (vec![33, 0, 64, 5, 31], vec![40, 3, 64, 0, 90], SdpaOptions::causal(), "sequences across tiles [A3, A4]"),
        (vec![70, 60], vec![70, 60], SdpaOptions::sliding(33), "windows in sequences"),
        (vec![7; 10], vec![9; 10], SdpaOptions::default(), "many short sequences in a tile"),
    ] {
        let [tq, tk] = [&of_q, &of_k].map(|n| n.iter().sum::<i64>() as usize);
        let x = Size([1, 2, 1, tq, tk, 3, 2]).qkv(g, 3.0);
        out.push(Sample::value(packed_op(options), packed(x, &of_q, &of_k)).note(note));
    }
    // What another sequence holds is not seen.
    for bad in [f64::NAN, f64::INFINITY] {
        let x = vec![
            Input::values([1, 4, 1], [0.5, 1.0, bad, 2.0]),
            Input::values([1, 4, 1], [1.0, -1.0, bad, 0.5]),
            Input::values([1, 4, 1], [2.0, -1.0, 0.5, bad]),
        ];
        out.push(
            Sample::value(packed_op(SdpaOptions::default()), packed(x, &[2, 2], &[2, 2]))
                .note("NaN and infinity stay in their sequence [A14]"),
        );
    }
}

/// Head sizes, and scores of every magnitude.
fn heads(g: &mut Gen, out: &mut Vec<Sample<SdpaOp>>) {
    for (d, dv) in [(16, 16), (24, 40), (40, 24), (64, 64), (80, 80), (96, 33), (100, 128), (128, 128), (192, 128), (256, 256)] {
        out.push(
            Sample::value(op(SdpaOptions::causal()), Size([1, 2, 1, 3, 9, d, dv]).qkv(g, 1.0))
                .note("head sizes, not only powers of two; Dv ≠ D [A18, A23]"),
        );
    }
    out.push(
        Sample::value(op(SdpaOptions::causal()), Size([1, 2, 1, 37, 37, 256, 72]).qkv(g, 1.0)).note("several panels of a wide head [A18]"),
    );
    for (tq, tk) in [(1, 31), (1, 32), (1, 33), (3, 64), (2, 513), (8, 130), (9, 130)] {
        out.push(
            Sample::value(op(SdpaOptions::causal()), Size([1, 2, 2, tq, tk, 5, 6]).qkv(g, 3.0))
                .note("few queries, many keys: the form of generation [A1, A12]"),
        );
    }
    for options in [
        SdpaOptions { softcap: Some(2.0), ..SdpaOptions::default() },
        SdpaOptions { window: Some((40, 0)), ..SdpaOptions::causal() },
        SdpaOptions { softcap: Some(1.5), window: Some((70, 9)), scale: Some(0.7), ..SdpaOptions::default() },
    ] {
        let bits: Vec<i64> = (0..2 * 70).map(|i| i64::from(i % 7 != 3 && i % 70 > 1)).collect();
        for mask in [g.normal([2, 70]), Input::ints(U8, [2, 70], &bits)] {
            let boolean = mask.dtype() == Some(U8);
            let x = [Size([1, 2, 1, 2, 70, 4, 3]).qkv(g, 1.0), vec![mask]].concat();
            let op = SdpaOp { boolean, ..op(options.clone()) };
            out.push(Sample::value(op, x).note("options and masks in the form of generation"));
        }
    }
    for shift in [-128.0, 128.0] {
        let mask = g.normal_with([1, 128], 1.0, shift);
        let x = [Size([1, 4, 2, 1, 128, 8, 8]).qkv(g, 1.0), vec![mask]].concat();
        out.push(Sample::value(op(SdpaOptions::default()), x).note("one query, 128 keys, and a log-sum-exp far from 0 [A12]"));
    }
}

fn rejects(g: &mut Gen, out: &mut Vec<Sample<SdpaOp>>) {
    let x = |g: &mut Gen| Size([1, 2, 1, 4, 5, 2, 2]).qkv(g, 1.0);
    for softcap in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        out.push(Sample::reject(op(SdpaOptions { softcap: Some(softcap), ..SdpaOptions::default() }), x(g), ErrorKind::Argument));
    }
    let ints = |n: &[i64]| Input::ints(I64, [n.len()], n);
    let good = || (ints(&[0, 1, 4]), ints(&[0, 3, 5]));
    let offsets: [(Input, Input, ErrorKind, &'static str); 9] = [
        (ints(&[1, 2, 4]), good().1, ErrorKind::Argument, "does not start with 0"),
        (ints(&[0, 5, 4]), good().1, ErrorKind::Argument, "falls"),
        (good().0, ints(&[0, 3, 6]), ErrorKind::Argument, "ends beyond the rows"),
        (good().0, ints(&[0, 3, 4]), ErrorKind::Argument, "ends before the last row"),
        (ints(&[0, -1, 4]), good().1, ErrorKind::Argument, "negative"),
        (good().0, ints(&[0, 5]), ErrorKind::Shape, "another number of sequences"),
        (ints(&[]), ints(&[]), ErrorKind::Shape, "no offsets at all"),
        (Input::ints(I64, [1, 2], &[0, 4]), Input::ints(I64, [1, 2], &[0, 5]), ErrorKind::Shape, "rank 2"),
        (Input::values([2], [0.0, 4.0]), ints(&[0, 5]), ErrorKind::Dtype, "floats"),
    ];
    for (of_q, of_k, kind, note) in offsets {
        let inputs = [x(g), vec![of_q, of_k]].concat();
        out.push(Sample::reject(packed_op(SdpaOptions::causal()), inputs, kind).note(note));
    }
}
