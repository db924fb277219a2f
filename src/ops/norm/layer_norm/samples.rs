//! Inputs on which layer norm and RMS norm are checked.

use super::Norm;
use crate::dtype::DType;
use crate::error::ErrorKind;
use crate::testing::{Gen, Input, Sample};

#[inline]
pub(super) fn samples<const CENTRED: bool>(g: &mut Gen) -> Vec<Sample<Norm<CENTRED>>> {
    let norm = |axes, eps, weight, bias| Norm::<CENTRED> { axes, eps, weight, bias: bias && CENTRED };
    let parameters = |g: &mut Gen, op: &Norm<CENTRED>, shape: &[usize]| -> Vec<Input> {
        let tail = &shape[shape.len() - op.axes..];
        (0..usize::from(op.weight) + usize::from(op.bias)).map(|_| g.normal_with(tail, 0.7, 0.5)).collect()
    };
    let inputs = |g: &mut Gen, op: &Norm<CENTRED>, x: Input| -> Vec<Input> {
        let rest = parameters(g, op, x.shape());
        std::iter::once(x).chain(rest).collect()
    };
    let mut out = Vec::new();
    for (weight, bias) in [(false, false), (true, false), (false, true), (true, true)] {
        // ε is not tiny where derivatives are checked in f16 too: there 1/σ³ of a constant row must not overflow.
        let op = norm(1, 1e-3, weight, bias);
        let x = g.normal_with([3, 7], 1.3, 0.4);
        out.push(
            Sample::check(op.clone(), inputs(g, &op, x)).note("weight without bias, bias without weight, random parameters [B1, B3, B12]"),
        );
        let op = norm(2, 1e-3, weight, bias);
        let x = g.normal([3, 4, 5]);
        out.push(Sample::check(op.clone(), inputs(g, &op, x)).note("several normalised axes, with and without parameters [B2]"));
    }
    let op = norm(1, 1e-3, true, true);
    for n in [1, 2, 3, 31, 32, 33, 67] {
        let x = g.normal([3, n]);
        out.push(Sample::check(op.clone(), inputs(g, &op, x)).note("rows of 1, 2, 3 and around the vector width [B6]"));
    }
    // With two elements per row and a tiny ε the derivative of x is what remains of a cancellation; here ε is not tiny.
    let blunt = norm(1, 1e-2, true, true);
    for rows in [1, 63, 64, 65, 131] {
        let x = g.normal([rows, 2]);
        out.push(Sample::check(blunt.clone(), inputs(g, &blunt, x)).note("rows around the size of a partial sum [B7, B8]"));
    }
    for shape in [vec![5], vec![2, 1, 4], vec![2, 2, 1, 5], vec![1, 2, 1, 2, 3]] {
        let x = g.normal(&shape[..]);
        out.push(Sample::check(op.clone(), inputs(g, &op, x)).note("ranks 1 to 5 [B9]"));
    }
    let all = norm(3, 1e-3, true, true);
    let x = g.normal([2, 3, 4]);
    out.push(Sample::check(all.clone(), inputs(g, &all, x)).note("every axis: one row"));
    for (x, note) in [
        (Input::values([2, 3], [0.0; 6]), "zero rows [B15]"),
        (Input::values([3, 4], [2.5, 2.5, 2.5, 2.5, -7.0, -7.0, -7.0, -7.0, 0.1, 0.3, 0.7, 0.5]), "constant rows stay finite [B15]"),
        (Input::values([2, 1], [if CENTRED { 1e6 } else { 0.3 }, -3.0]), "rows of one element [B4]"),
        (g.normal([0, 3]), "no rows: parameter gradients are zeros [B16]"),
        (g.normal([3, 0]), "rows without elements [B16]"),
    ] {
        let op = norm(1, 1e-3, true, true);
        out.push(Sample::check(op.clone(), inputs(g, &op, x)).note(note));
    }
    let op = norm(1, 1e-5, true, true);
    for offset in [1e2, 1e4] {
        let x = g.normal_with([2, 40], 1.0, offset);
        out.push(Sample::value(op.clone(), inputs(g, &op, x)).note("mean far above the spread [B5]"));
    }
    for scale in [1e-3, 1e-5] {
        let x = g.normal_with([2, 6], scale, 0.0);
        out.push(Sample::value(op.clone(), inputs(g, &op, x)).note("variance near ε shows where ε stands"));
        let x = g.normal_with([2, 6], scale * 30.0, 0.0);
        out.push(Sample::check(blunt.clone(), inputs(g, &blunt, x)).note("variance near ε and below"));
    }
    let sharp = norm(1, 1e-12, true, true);
    let x = g.normal([2, 5]);
    out.push(Sample::value(sharp.clone(), inputs(g, &sharp, x)).note("eps 1e-12"));
    let x = g.normal_with([2, 5], 300.0, 0.0);
    out.push(Sample::check(blunt.clone(), inputs(g, &blunt, x)).note("squares overflow f16: sums are f32"));
    let x = g.normal([1500, 3]);
    out.push(Sample::value(op.clone(), inputs(g, &op, x)).note("many narrow rows [B2, B7]"));
    let x = g.normal([66_000, 2]);
    out.push(Sample::value(op.clone(), inputs(g, &op, x)).note("more than 65 536 rows [B2]"));
    let x = g.normal([3, 5000]);
    out.push(Sample::value(op.clone(), inputs(g, &op, x)).note("rows longer than one sum block"));
    let plain = norm(1, 1e-5, false, false);
    out.push(
        Sample::reject(
            op.clone(),
            inputs(g, &plain, Input::values([2, 3], [0.0; 6]))
                .into_iter()
                .chain([g.normal([2]), g.normal([2])])
                .take(if CENTRED { 3 } else { 2 })
                .collect::<Vec<_>>(),
            ErrorKind::Shape,
        )
        .note("weight of another length"),
    );
    out.push(Sample::reject(norm(0, 1e-5, false, false), [g.normal([2, 3])], ErrorKind::Shape).note("no axis"));
    out.push(Sample::reject(norm(3, 1e-5, false, false), [g.normal([2, 3])], ErrorKind::Shape).note("more axes than the rank"));
    out.push(Sample::reject(norm(1, -1.0, false, false), [g.normal([2, 3])], ErrorKind::Argument).note("negative eps"));
    out.push(Sample::reject(norm(1, f64::NAN, false, false), [g.normal([2, 3])], ErrorKind::Argument));
    out.push(
        Sample::reject(norm(1, 1e-5, true, false), [g.normal([2, 3]), g.normal([3]).of_dtype(DType::F64)], ErrorKind::Dtype)
            .note("mixed dtypes [C17]"),
    );
    out.push(Sample::reject(plain, [Input::ints(DType::I64, [3], &[1, 2, 3])], ErrorKind::Dtype));
    let x = g.normal([4096, 768]);
    out.push(Sample::bench(op.clone(), inputs(g, &op, x)));
    let x = g.normal([1024, 2048]);
    out.push(Sample::bench(op.clone(), inputs(g, &op, x)));
    out
}
