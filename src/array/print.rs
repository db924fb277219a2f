//! Printing as PyTorch does: aligned columns, long axes elided. Only what is shown is read.

use super::Array;
use crate::dtype::{Element, with_dtype};
use crate::error::Result;
use crate::memory;
use std::fmt;

/// Axes longer than twice this show only this many entries at both ends, once the tensor is large.
const EDGE: usize = 3;
/// Tensors of up to this many elements are printed whole.
const WHOLE: usize = 1000;
/// Tensors of so many axes that more than this would be left are not printed at all.
const MOST: usize = 100_000;

impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const OPEN: &str = "tensor(";
        f.write_str(OPEN)?;
        let elide = self.shape().numel() > WHOLE;
        let grid: Vec<usize> = self.shape().iter().map(|&d| if elide { d.min(2 * EDGE) } else { d }).collect();
        if self.shape().numel() == 0 {
            f.write_str("[]")?;
        } else if grid.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).is_none_or(|n| n > MOST) {
            f.write_str("[...]")?;
        } else {
            match self.shown(elide) {
                Ok(shown) => {
                    let width = shown.iter().map(String::len).max().unwrap_or(0);
                    let mut out = String::new();
                    block(&mut out, self.shape(), &grid, 0, OPEN.len(), &|i| format!("{:>width$}", shown[i]));
                    f.write_str(&out)?;
                }
                // A formatter that fails would make `to_string` panic.
                Err(e) => write!(f, "<{e}>")?,
            }
        }
        write!(f, ", shape {}, {}", self.shape(), self.dtype())?;
        if !matches!(self.device(), crate::Device::Cpu) {
            write!(f, ", {}", self.device())?;
        }
        f.write_str(")")
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Array {
    /// The shown elements in row-major order, as text.
    fn shown(&self, elide: bool) -> Result<Vec<String>> {
        if self.dtype().is_float() {
            let values: Vec<f64> =
                with_dtype!(self.dtype(), T => memory::try_collect(self.edges::<T>(0, elide)?.into_iter().map(Element::to_f64))?);
            let style = Style::of(values.iter().copied());
            memory::try_collect(values.into_iter().map(|x| style.show(x)))
        } else {
            // Not through f64, which rounds large integers.
            with_dtype!(self.dtype(), T => memory::try_collect(self.edges::<T>(0, elide)?.into_iter().map(|x| format!("{x:?}"))))
        }
    }

    /// The elements in row-major order; of long axes from `axis` on only the two ends, read through views.
    fn edges<T: Element>(&self, axis: usize, elide: bool) -> Result<Vec<T>> {
        let shape = self.shape();
        let Some(long) = (axis..shape.rank()).find(|&a| elide && shape[a] > 2 * EDGE) else { return self.to_vec() };
        let end = |start| self.with_layout(self.layout().slice(long, start, EDGE, 1)?)?.edges::<T>(long + 1, elide);
        let (head, tail) = (end(0)?, end(shape[long] - EDGE)?);
        // Axes before the long one are short and shown whole: their entries alternate between the two ends.
        let outer: usize = shape[..long].iter().product();
        let each = head.len() / outer.max(1);
        memory::try_collect(head.chunks(each.max(1)).zip(tail.chunks(each.max(1))).flat_map(|(h, t)| h.iter().chain(t)).copied())
    }
}

/// How the numbers of one float tensor are written: all alike, so that columns align.
enum Style {
    /// Whole numbers: `1.`.
    Whole,
    Fixed,
    Scientific,
}

impl Style {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (mut whole, mut largest, mut least) = (true, 0f64, f64::INFINITY);
        for x in values.filter(|x| x.is_finite() && *x != 0.0) {
            whole &= x.fract() == 0.0;
            largest = largest.max(x.abs());
            least = least.min(x.abs());
        }
        if largest >= 1e8 || (!whole && (least < 1e-4 || (least.is_finite() && largest / least > 1e3 && largest >= 1e5))) {
            Style::Scientific
        } else if whole {
            Style::Whole
        } else {
            Style::Fixed
        }
    }

    fn show(&self, x: f64) -> String {
        if x.is_nan() {
            return "nan".into();
        }
        if x.is_infinite() {
            return if x > 0.0 { "inf" } else { "-inf" }.into();
        }
        match self {
            Style::Whole => format!("{x:.0}."),
            Style::Fixed => format!("{x:.4}"),
            Style::Scientific => format!("{x:.4e}"),
        }
    }
}

/// One level of brackets. `grid` has the shown extents of `shape`, and `at` counts shown elements.
fn block(out: &mut String, shape: &[usize], grid: &[usize], at: usize, indent: usize, show: &dyn Fn(usize) -> String) {
    let (Some((&extent, shape)), Some((&shown, grid))) = (shape.split_first(), grid.split_first()) else {
        out.push_str(show(at).trim_start());
        return;
    };
    out.push('[');
    let inner: usize = grid.iter().product();
    let separator = if shape.is_empty() { ", ".to_owned() } else { format!(",{}{}", "\n".repeat(shape.len()), " ".repeat(indent + 1)) };
    // `None` for the gap.
    let gap = if shown < extent { Some(EDGE) } else { None };
    let entries = (0..shown).flat_map(|i| if gap == Some(i) { vec![None, Some(i)] } else { vec![Some(i)] });
    let mut line = 0;
    for (k, entry) in entries.enumerate() {
        if k > 0 {
            out.push_str(&separator);
            // Long rows wrap like the rest of the block.
            if shape.is_empty() && out.len() - out.rfind('\n').map_or(0, |i| i + 1) > 96 && line != k {
                out.truncate(out.trim_end().len());
                out.push('\n');
                out.push_str(&" ".repeat(indent + 1));
                line = k;
            }
        }
        match entry {
            None => out.push_str("..."),
            Some(i) if shape.is_empty() => out.push_str(&show(at + i)),
            Some(i) => block(out, shape, grid, at + i * inner, indent + 1, show),
        }
    }
    out.push(']');
}

#[cfg(test)]
mod tests {
    use crate::{F32, I64, Result, Tensor, U8};

    #[test]
    fn small_tensors_print_whole() -> Result<()> {
        let x = Tensor::from_slice(&[1f32, -2.5, 0.25, 4.0], [2, 2])?;
        assert_eq!(x.to_string(), "tensor([[ 1.0000, -2.5000],\n        [ 0.2500,  4.0000]], shape [2, 2], f32)");
        assert_eq!(Tensor::scalar(3f64)?.to_string(), "tensor(3., shape [], f64)");
        let large = (1i64 << 53) + 1;
        assert_eq!(Tensor::from_slice(&[large, -1], [2])?.to_string(), format!("tensor([{large},               -1], shape [2], i64)"));
        Ok(())
    }

    #[test]
    fn large_tensors_print_their_edges() -> Result<()> {
        let x = Tensor::arange(0.0, 2000.0, 1.0, I64)?;
        assert_eq!(x.to_string(), "tensor([   0,    1,    2, ..., 1997, 1998, 1999], shape [2000], i64)");
        let y = x.reshape([2, 1000])?.to_string();
        assert_eq!(
            y,
            "tensor([[   0,    1,    2, ...,  997,  998,  999],\n        [1000, 1001, 1002, ..., 1997, 1998, 1999]], shape [2, 1000], i64)"
        );
        // Two long axes around a short one, and a layout that is not row-major.
        let z = Tensor::arange(0.0, 200.0, 1.0, U8)?.reshape([10, 2, 10])?;
        let z = Tensor::concat(&[&z; 6], 1)?.slice(1, ..2)?.contiguous()?;
        let wide = Tensor::concat(&[&z; 20], 2)?;
        let rows: Vec<String> = wide.to_string().lines().map(|l| l.trim().trim_start_matches("tensor(").to_owned()).collect();
        assert_eq!(rows[0], "[[[  0,   1,   2, ...,   7,   8,   9],");
        assert_eq!(rows[1], "[ 10,  11,  12, ...,  17,  18,  19]],");
        assert_eq!(rows.last().unwrap(), "[190, 191, 192, ..., 197, 198, 199]]], shape [10, 2, 200], u8)");
        let t = wide.transpose(0, 2)?.contiguous()?;
        assert_eq!(t.to_string(), wide.transpose(0, 2)?.to_string());
        Ok(())
    }

    /// It copied the tensor, and panicked when it could not.
    #[test]
    fn huge_tensors_print_without_a_copy() -> Result<()> {
        let x = Tensor::zeros([1 << 20, 1 << 20], F32)?.to_string();
        assert!(x.starts_with("tensor([[0., 0., 0., ..., 0., 0., 0.],") && x.ends_with("shape [1048576, 1048576], f32)"), "{x}");
        assert_eq!(Tensor::zeros([1 << 40, 0], F32)?.to_string(), "tensor([], shape [1099511627776, 0], f32)");
        assert_eq!(Tensor::zeros([2; 40], F32)?.to_string(), format!("tensor([...], shape {:?}, f32)", [2; 40]));
        Ok(())
    }
}
