//! What the kernels take that rearrange whole axes.

use super::MAX_RANK;
use crate::error::{Result, bail};
use smallvec::SmallVec;

/// How an output axis reads the operand's: `struct Remap` of kernels/shape/remap.cu, one axis of it.
///
/// Position `c` becomes `p = c + shift`, less `wrap` where it reaches that (0: never), and reads element `p / step` if
/// `step` divides it and `0 ≤ p / step < len`; else it lies outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AxisMap {
    /// Positions of the output.
    pub extent: usize,
    /// What is added to a position.
    pub shift: i64,
    /// Where positions begin again at 0.
    pub wrap: usize,
    /// Positions per element.
    pub step: usize,
    /// Elements of the operand.
    pub len: usize,
    /// Whether the operand is read from its end.
    pub reversed: bool,
}

impl AxisMap {
    /// The whole axis in order.
    pub(crate) fn whole(len: usize) -> Self {
        AxisMap { extent: len, shift: 0, wrap: 0, step: 1, len, reversed: false }
    }
}

/// What the kernel gets of all axes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remap {
    pub(crate) rank: i32,
    pub(crate) extent: [i64; MAX_RANK],
    pub(crate) shift: [i64; MAX_RANK],
    pub(crate) wrap: [i64; MAX_RANK],
    pub(crate) step: [i64; MAX_RANK],
    pub(crate) len: [i64; MAX_RANK],
    pub(crate) stride: [i64; MAX_RANK],
}

impl Remap {
    /// Axes that nothing happens to are merged into the one before where a single stride walks both.
    pub(crate) fn new(axes: &[AxisMap], strides: &[usize]) -> Result<Self> {
        let mut out: SmallVec<[(AxisMap, i64); MAX_RANK]> = SmallVec::new();
        for (&a, &s) in axes.iter().zip(strides) {
            let same = a == AxisMap::whole(a.extent);
            if same && a.extent == 1 {
                continue;
            }
            let stride = if a.reversed { -(s as i64) } else { s as i64 };
            match out.last_mut() {
                Some((last, step)) if same && last.step == 1 && *step == stride * a.extent as i64 => {
                    *last = AxisMap {
                        extent: last.extent * a.extent,
                        shift: last.shift * a.extent as i64,
                        wrap: last.wrap * a.extent,
                        len: last.len * a.extent,
                        ..*last
                    };
                    *step = stride;
                }
                _ => out.push((a, stride)),
            }
        }
        if out.len() > MAX_RANK {
            bail!(
                shape,
                "{} axes that cannot be merged: kernels address at most {MAX_RANK}; call contiguous() on fewer axes first",
                out.len()
            );
        }
        let zero = [0; MAX_RANK];
        let mut m =
            Remap { rank: out.len() as i32, extent: [1; MAX_RANK], shift: zero, wrap: zero, step: [1; MAX_RANK], len: zero, stride: zero };
        for (k, (a, stride)) in out.into_iter().enumerate() {
            m.extent[k] = a.extent as i64;
            m.shift[k] = a.shift;
            m.wrap[k] = a.wrap as i64;
            // A step beyond any position reads one element all the same.
            m.step[k] = i64::try_from(a.step).unwrap_or(i64::MAX);
            m.len[k] = a.len as i64;
            m.stride[k] = stride;
        }
        Ok(m)
    }
}

// The struct of the same name in kernels/shape/remap.cu has this size as well.
const _: () = assert!(size_of::<Remap>() == 392);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untouched_axes_are_merged() {
        let pad = AxisMap { extent: 7, shift: -1, ..AxisMap::whole(4) };
        let m = Remap::new(&[AxisMap::whole(2), AxisMap::whole(3), pad, AxisMap::whole(5)], &[60, 20, 5, 1]).unwrap();
        assert_eq!(
            (m.rank, &m.extent[..2], &m.shift[..2], &m.len[..2], &m.stride[..2]),
            (2, &[6, 35][..], &[0, -5][..], &[6, 20][..], &[20, 1][..])
        );
        let back = AxisMap { reversed: true, ..AxisMap::whole(3) };
        let m = Remap::new(&[back, AxisMap::whole(2)], &[2, 1]).unwrap();
        assert_eq!((m.rank, &m.stride[..2]), (2, &[-2, 1][..]));
        assert!(Remap::new(&[back; 9], &[1; 9]).unwrap_err().is_shape());
    }
}
