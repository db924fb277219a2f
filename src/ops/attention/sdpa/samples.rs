//! Inputs on which attention is checked: sizes, options, masks, and the bugs that other implementations had.

use super::option_samples::{self, Size};
use super::{SdpaOp, SdpaOptions, SdpaVjp};
use crate::dtype::{DType, F64, U8};
use crate::error::ErrorKind;
use crate::rng::Key;
use crate::shape::Shape;
use crate::testing::{Gen, Input, Purpose, Sample};

const INF: f64 = f64::INFINITY;

fn op(options: SdpaOptions, mask: Option<&Input>) -> SdpaOp {
    SdpaOp { options, boolean: mask.is_some_and(|m| m.dtype() == Some(U8)), packed: false }
}

#[inline]
pub(super) fn samples(g: &mut Gen) -> Vec<Sample<SdpaOp>> {
    let mut out = Vec::new();
    let dropout = |p: f64, causal: bool| SdpaOptions { causal, dropout: p, key: Some(Key::new(5)), ..SdpaOptions::default() };
    let sizes: [([usize; 7], &'static str); 17] = [
        ([2, 2, 2, 4, 4, 3, 3], ""),
        ([1, 1, 1, 1, 1, 4, 4], "one key: y = v, no gradient to q and k"),
        ([1, 1, 1, 3, 3, 1, 1], ""),
        ([1, 2, 2, 3, 5, 2, 4], "fewer queries than keys, Dv ≠ D"),
        ([1, 2, 1, 5, 2, 3, 2], "more queries than keys; the first see nothing when causal [A26, A2]"),
        ([1, 1, 1, 5, 1, 3, 3], "one key [A2]"),
        ([1, 3, 1, 3, 3, 2, 2], "one key head [A23]"),
        ([1, 4, 2, 3, 2, 3, 2], "two query heads a key head [A23]"),
        ([2, 6, 2, 2, 3, 2, 3], "three query heads a key head [A23]"),
        ([1, 1, 1, 0, 3, 2, 2], "no queries: zero k̄ and v̄ [A3]"),
        ([1, 2, 1, 3, 0, 2, 2], "no keys: zeros"),
        ([0, 2, 1, 3, 2, 2, 2], "no batches"),
        ([1, 0, 0, 3, 2, 2, 2], "no heads"),
        ([1, 1, 1, 2, 3, 0, 2], "D = 0: the mean of v"),
        ([1, 1, 1, 2, 3, 2, 0], "Dv = 0"),
        ([1, 2, 2, 1, 6, 2, 2], "one query at the end of a cache"),
        ([1, 1, 1, 17, 3, 1, 1], "one beyond a block of 16"),
    ];
    for (size, note) in sizes {
        for options in [SdpaOptions::default(), SdpaOptions::causal()] {
            out.push(Sample::check(op(options, None), Size(size).qkv(g, 1.0)).note(note));
        }
    }
    let rank3 = vec![g.normal([2, 3, 2]), g.normal([1, 3, 2]), g.normal([1, 3, 2])];
    out.push(Sample::check(op(SdpaOptions::causal(), None), rank3).note("no leading axis"));
    for options in [
        SdpaOptions { scale: Some(1.0), ..SdpaOptions::causal() },
        SdpaOptions { scale: Some(-0.5), ..SdpaOptions::default() },
        SdpaOptions { scale: Some(0.0), ..SdpaOptions::default() },
    ] {
        out.push(Sample::check(op(options, None), Size([1, 2, 2, 3, 3, 2, 2]).qkv(g, 1.0)));
    }
    for (p, causal) in [(0.3, false), (0.5, true), (1.0, false), (1.0, true)] {
        out.push(Sample::check(op(dropout(p, causal), None), Size([2, 2, 1, 3, 4, 2, 2]).qkv(g, 1.0)).note("p = 1: zeros, not infinities"));
    }
    masks(g, &mut out, &dropout);
    values(g, &mut out);
    rejects(g, &mut out);
    out.extend(option_samples::samples(g));
    for (size, options) in [
        ([4, 12, 12, 512, 512, 64, 64], SdpaOptions::causal()),
        ([8, 6, 6, 256, 256, 64, 64], SdpaOptions::causal()),
        ([1, 14, 2, 512, 512, 64, 64], SdpaOptions::causal()),
        ([1, 16, 16, 4096, 4096, 128, 128], SdpaOptions::causal()),
    ] {
        out.push(Sample::bench(op(options, None), Size(size).qkv(g, 1.0)));
    }
    out
}

/// Masks of every broadcast pattern, alone and with every other option.
fn masks(g: &mut Gen, out: &mut Vec<Sample<SdpaOp>>, dropout: &impl Fn(f64, bool) -> SdpaOptions) {
    let size = Size([2, 2, 1, 3, 4, 2, 2]);
    let shapes: [&[usize]; 9] = [&[2, 2, 3, 4], &[1, 1, 3, 4], &[1, 2, 3, 4], &[2, 1, 1, 4], &[2, 1, 3, 1], &[3, 4], &[4], &[1], &[]];
    for shape in shapes {
        for options in [SdpaOptions::default(), SdpaOptions::causal()] {
            let with = |g: &mut Gen, m: Input| [size.qkv(g, 1.0), vec![m]].concat();
            let m = g.normal(shape);
            out.push(
                Sample::check(op(options.clone(), Some(&m)), with(g, m))
                    .note("the mask's gradient, summed over what broadcasts [A21, A16]"),
            );
            let m = g.below(U8, shape, 2);
            out.push(Sample::check(op(options, Some(&m)), with(g, m)).note("some rows may be fully masked [A13]"));
        }
    }
    let m = g.normal([1, 2, 3, 4]);
    out.push(
        Sample::check(op(SdpaOptions { scale: Some(0.7), ..dropout(0.4, true) }, Some(&m)), [size.qkv(g, 1.0), vec![m]].concat())
            .note("all options at once [A22]"),
    );
    let m = Input::ints(U8, [3, 4], &[1, 1, 0, 1, 0, 0, 0, 0, 255, 0, 0, 1]);
    out.push(
        Sample::check(op(SdpaOptions::default(), Some(&m)), [size.qkv(g, 1.0), vec![m]].concat())
            .note("a fully masked row; any byte but 0 attends [A13]"),
    );
    let m = Input::values([3, 4], [0.5, 0.0, -INF, 1.0, -INF, -INF, -INF, -INF, 0.0, -INF, -INF, 2.0]);
    out.push(
        Sample::check(op(SdpaOptions::default(), Some(&m)), [size.qkv(g, 1.0), vec![m]].concat())
            .no_grad(&[3])
            .note("the same with an additive mask [A13]"),
    );
}

/// Larger problems and special values.
fn values(g: &mut Gen, out: &mut Vec<Sample<SdpaOp>>) {
    for (size, note) in [
        ([1, 2, 1, 65, 65, 4, 4], "one beyond a block [A27, A4]"),
        ([1, 3, 1, 5, 70, 4, 6], "several short heads in a block"),
        ([1, 1, 1, 130, 67, 2, 2], "many queries see nothing [A2]"),
        ([1, 1, 1, 33, 1500, 2, 2], "long rows, shorter blocks"),
        ([1, 2, 1, 200, 200, 32, 32], "work shared by several tasks a head"),
    ] {
        out.push(Sample::value(op(SdpaOptions::causal(), None), Size(size).qkv(g, 3.0)).note(note));
    }
    for tk in [1, 2, 3, 16, 63, 65] {
        out.push(
            Sample::value(op(SdpaOptions::default(), None), Size([1, 1, 1, tk, tk, 16, 16]).qkv(g, 3.0))
                .note("confident scores at every residue [A1]"),
        );
    }
    // Rows of 16 bytes, of every width of the tensor cores' tiles.
    for (size, causal) in [
        ([1, 2, 1, 9, 20, 8, 24], false),
        ([1, 4, 2, 18, 35, 64, 40], true),
        ([1, 1, 1, 3, 9, 72, 80], false),
        ([1, 2, 1, 20, 9, 8, 128], true),
    ] {
        out.push(
            Sample::value(op(SdpaOptions { causal, ..SdpaOptions::default() }, None), Size(size).qkv(g, 2.0)).note("rows of whole packs"),
        );
    }
    let lead: Vec<i64> = (0..100).map(|j| i64::from(j >= 80)).collect();
    let m = Input::ints(U8, [1, 100], &lead);
    out.push(
        Sample::value(op(SdpaOptions::default(), Some(&m)), [Size([1, 1, 1, 3, 100, 4, 4]).qkv(g, 1.0), vec![m]].concat())
            .note("whole leading blocks masked"),
    );
    for shift in [-128.0, -1e4, 200.0] {
        let m = g.normal_with([3, 5], 1.0, shift);
        out.push(
            Sample::value(op(SdpaOptions::default(), Some(&m)), [Size([1, 1, 1, 3, 5, 4, 4]).qkv(g, 1.0), vec![m]].concat())
                .note("shifted scores [A11, A12]"),
        );
    }
    let min = f64::from(f32::MIN);
    let m = Input::values([2, 3], [0.0, min, min, min, min, min]);
    out.push(
        Sample::value(op(SdpaOptions::default(), Some(&m)), [Size([1, 1, 1, 2, 3, 4, 4]).qkv(g, 1.0), vec![m]].concat())
            .note("finfo.min as a mask [A15]"),
    );
    // What is masked may hold anything [A14].
    let hidden = |x: f64| {
        vec![
            Input::values([1, 3, 2], [0.5, 1.0, -1.0, 2.0, 0.25, -0.5]),
            Input::values([1, 3, 2], [1.0, -1.0, 0.5, 0.5, x, 1.0]),
            Input::values([1, 3, 2], [2.0, -1.0, 0.5, 3.0, 1.0, x]),
        ]
    };
    for x in [f64::NAN, INF, -INF] {
        let m = Input::ints(U8, [3], &[1, 1, 0]);
        out.push(
            Sample::value(op(SdpaOptions::default(), Some(&m)), [hidden(x), vec![m]].concat())
                .note("NaN and infinity in a masked key [A14]"),
        );
        let m = Input::values([3], [0.0, 0.5, -INF]);
        out.push(
            Sample::value(op(SdpaOptions::default(), Some(&m)), [hidden(x), vec![m]].concat()).note("the same with an additive mask [A14]"),
        );
        out.push(
            Sample::value(op(SdpaOptions::causal(), None), hidden(x))
                .note("NaN and infinity in the last key reach the last query only [A14]"),
        );
    }
}

fn rejects(g: &mut Gen, out: &mut Vec<Sample<SdpaOp>>) {
    use ErrorKind::{Argument, Dtype, Shape as Extents};
    let mut reject = |options: SdpaOptions, x: Vec<Input>, kind| {
        let mask = x.get(3).cloned();
        out.push(Sample::reject(op(options, mask.as_ref()), x, kind));
    };
    let d = SdpaOptions::default;
    let three = |g: &mut Gen, q: &[usize], k: &[usize], v: &[usize]| vec![g.normal(q), g.normal(k), g.normal(v)];
    reject(d(), three(g, &[2, 3], &[2, 3], &[2, 3]), Extents);
    reject(d(), three(g, &[1, 2, 3, 4], &[2, 3, 4], &[2, 3, 4]), Extents);
    reject(d(), three(g, &[2, 3, 4], &[2, 3, 5], &[2, 3, 5]), Extents);
    reject(d(), three(g, &[2, 3, 4], &[2, 3, 4], &[2, 2, 4]), Extents);
    reject(d(), three(g, &[3, 3, 4], &[2, 3, 4], &[2, 3, 4]), Extents);
    reject(d(), three(g, &[2, 3, 4], &[0, 3, 4], &[0, 3, 4]), Extents);
    reject(d(), three(g, &[2, 1, 3, 4], &[3, 1, 3, 4], &[3, 1, 3, 4]), Extents);
    let ok = |g: &mut Gen, extra: Option<Input>| {
        let mut x = vec![g.normal([2, 3, 4]), g.normal([2, 5, 4]), g.normal([2, 5, 4])];
        x.extend(extra);
        x
    };
    for mask in [&[3, 4][..], &[2, 2, 3, 5], &[3, 3, 5]] {
        let m = g.normal(Shape::from(mask));
        reject(d(), ok(g, Some(m)), Extents);
    }
    let m = g.below(DType::I64, [3, 5], 2);
    reject(d(), ok(g, Some(m)), Dtype);
    let m = g.normal([3, 5]).of_dtype(F64);
    reject(d(), ok(g, Some(m)), Dtype);
    let mut mixed = ok(g, None);
    mixed[2] = mixed[2].clone().of_dtype(F64);
    reject(d(), mixed, Dtype);
    reject(SdpaOptions { dropout: 0.5, ..d() }, ok(g, None), Argument);
    reject(SdpaOptions { dropout: 1.5, key: Some(Key::new(1)), ..d() }, ok(g, None), Argument);
    reject(SdpaOptions { dropout: f64::NAN, key: Some(Key::new(1)), ..d() }, ok(g, None), Argument);
    reject(SdpaOptions { scale: Some(f64::NAN), ..d() }, ok(g, None), Argument);
}

/// The op's samples with a cotangent, and every subset of what can be wanted.
#[inline]
pub(super) fn vjp_samples(g: &mut Gen) -> Vec<Sample<SdpaVjp>> {
    let mut out = Vec::new();
    for s in samples(g) {
        if !matches!(s.purpose, Purpose::Check | Purpose::Value) {
            continue;
        }
        let mut shape = s.inputs[0].shape().clone();
        let last = shape.rank() - 1;
        shape = shape.with_dim(last, s.inputs[2].shape()[last]);
        let float_mask = s.inputs.get(3).is_some_and(Input::is_float);
        let mut v = s.map(|of| SdpaVjp { of, want: [true, true, true, float_mask] });
        v.inputs.push(g.normal(shape));
        out.push(v);
    }
    for want in 1..16u8 {
        let want = [want & 1 > 0, want & 2 > 0, want & 4 > 0, want & 8 > 0];
        let m = g.normal([2, 1, 4]);
        let of = op(SdpaOptions::causal(), Some(&m));
        let x = [Size([1, 2, 1, 3, 4, 2, 2]).qkv(g, 1.0), vec![m, g.normal([1, 2, 3, 2])]].concat();
        out.push(Sample::check(SdpaVjp { of, want }, x).note("every subset of cotangents [A16]"));
    }
    // The other direction: a query that sees nothing, and its cotangent, may hold anything [A14].
    let m = Input::ints(U8, [2, 2], &[0, 0, 1, 1]);
    for x in [f64::NAN, INF] {
        let inputs = vec![
            Input::values([1, 2, 1], [x, 0.5]),
            Input::values([1, 2, 1], [1.0, -1.0]),
            Input::values([1, 2, 1], [2.0, 0.5]),
            m.clone(),
            Input::values([1, 2, 1], [x, 1.5]),
        ];
        let of = op(SdpaOptions::default(), Some(&m));
        out.push(
            Sample::value(SdpaVjp { of, want: [true, true, true, false] }, inputs)
                .note("NaN and infinity in a query that sees no key [A14]"),
        );
    }
    out
}
