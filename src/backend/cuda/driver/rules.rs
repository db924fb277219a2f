//! What cuBLASLt demands of a product, as its documentation says: a plan that breaks a rule is refused there with an error, or worse,
//! not refused.

use super::plan::{Addresses, Columns, Plan, SCHEMES};
use crate::backend::cuda::abi::MOST_MATRICES;
use crate::dtype::DType;

/// The rule that a product breaks.
pub(super) fn broken(plan: &Plan, at: &Addresses) -> Option<String> {
    let Plan { batch, a, b, c, transposed, .. } = *plan;
    let size = plan.dtype.size() as u64;
    let given = |m: Columns, transposed: bool| if transposed { [m.cols, m.rows] } else { [m.rows, m.cols] };
    let ([m, k], [also_k, n]) = (given(a, transposed[0]), given(b, transposed[1]));
    if [m, n] != [c.rows, c.cols] || k != also_k || m * n * k == 0 {
        return Some(format!("the products of {m} x {k} with {also_k} x {n} are no {} x {}", c.rows, c.cols));
    }
    for (name, x) in [("A", a), ("B", b), ("C", c)] {
        if x.ld < x.rows {
            return Some(format!("the leading dimension of {name} is {}, less than its {} rows", x.ld, x.rows));
        }
        if [x.rows, x.cols, x.ld, x.batch_stride].into_iter().any(|n| i64::try_from(n).is_err()) {
            return Some(format!("an extent of {name} is beyond 64 bits"));
        }
    }
    if batch == 0 || batch > MOST_MATRICES {
        return Some(format!("a batch of {batch} matrices: 1 to {MOST_MATRICES} are allowed"));
    }
    if batch > 1 && c.batch_stride < c.ld * (c.cols - 1) + c.rows {
        return Some("results overlap".into());
    }
    for (name, addr, declared) in [("A", at.a, plan.alignment[0]), ("B", at.b, plan.alignment[1]), ("C", at.c, plan.alignment[2])] {
        if !addr.is_multiple_of(u64::from(declared)) || !addr.is_multiple_of(size) {
            return Some(format!("{name} is at {addr:#x}, which is no multiple of the {declared} bytes that its plan declares"));
        }
    }
    if plan.bias != at.bias.is_some() {
        return Some("the plan has an epilogue with a bias, or the product has, but not both".into());
    }
    if let Some(bias) = at.bias {
        if plan.dtype == DType::F64 {
            return Some("no epilogue adds a bias of f64".into());
        }
        if !bias.is_multiple_of(16) {
            return Some(format!("the bias is at {bias:#x}, which is no multiple of the 16 bytes that its kernels may read at once"));
        }
    }
    if plan.schemes & !SCHEMES != 0 {
        return Some("a reduction scheme is allowed that adds partial sums in place, or in the type of the output".into());
    }
    if plan.workspace > super::plan::WORKSPACE {
        return Some(format!("{} bytes of workspace, of which there are {}", plan.workspace, super::plan::WORKSPACE));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::abi::{Gemm, Matrices, Plus};

    fn product() -> Gemm {
        let matrices = |addr, shape: [usize; 2]| Matrices::new(addr, shape, [shape[1], 1], shape[0] * shape[1]);
        let (a, b) = (matrices(0x1000, [3, 4]), matrices(0x2000, [4, 5]));
        Gemm { dtype: DType::F32, batch: 2, m: 3, n: 5, k: 4, a, b, c: 0x3000, plus: Plus::Bias(0x4000) }
    }

    fn why(change: impl FnOnce(&mut Gemm)) -> String {
        let mut g = product();
        change(&mut g);
        let (plan, at) = Plan::new(&g);
        broken(&plan, &at).unwrap_or_default()
    }

    /// A plan that was changed after it was made.
    fn why_plan(change: impl FnOnce(&mut Plan, &mut Addresses)) -> String {
        let (mut plan, mut at) = Plan::new(&product());
        change(&mut plan, &mut at);
        broken(&plan, &at).unwrap_or_default()
    }

    #[test]
    fn products_that_the_library_refuses() {
        assert_eq!(why(|_| ()), "");
        // One column, transposed, without a leading dimension: what the head of a classifier with one class used to ask for.
        let one = Matrices { addr: 0x1000, row_stride: 1, col_stride: 1, batch_stride: 0 };
        assert!(why(|g| (g.m, g.a) = (1, one)).contains("leading dimension of B is 1"));
        assert_eq!(why(|g| (g.m, g.a) = (1, Matrices::new(0x1000, [1, 4], [1, 1], 0))), "");
        assert!(why(|g| g.batch = 65_536).contains("65536 matrices"));
        assert!(why(|g| g.batch = 0).contains("0 matrices"));
        assert!(why(|g| g.plus = Plus::Bias(0x4008)).contains("16 bytes"));
        assert!(why(|g| g.dtype = DType::F64).contains("f64"));
        assert!(why(|g| g.k = 0).contains("are no"));
        assert!(why_plan(|_, at| at.a = 0x1002).contains("A is at 0x1002"));
        assert!(why_plan(|_, at| at.c = 0x3004).contains("C is at 0x3004"));
        assert!(why_plan(|p, _| p.c.batch_stride = 14).contains("overlap"));
        assert!(why_plan(|_, at| at.bias = None).contains("epilogue"));
        assert!(why_plan(|p, _| p.schemes |= 4).contains("type of the output"));
        assert!(why_plan(|p, _| p.schemes |= 1).contains("in place"));
        assert!(why_plan(|p, _| p.workspace += 1).contains("workspace"));
    }
}
