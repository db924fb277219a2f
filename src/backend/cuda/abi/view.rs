//! How a kernel finds the elements of an operand, and the numbers that an elementwise op is made with.

use crate::error::{Result, bail};
use crate::layout::{Layout, collapse};

/// Most axes a kernel can address. Axes that follow one another in memory are merged before, so real views stay below it.
pub(crate) const MAX_RANK: usize = 8;

/// How a kernel finds element `i` (in row-major order) of an operand: `struct View` of kernels/common.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// Number of axes; 0 reads the one element every time.
    pub rank: i32,
    /// Extents, outermost first.
    pub shape: [i64; MAX_RANK],
    /// Elements to step per unit of each axis.
    pub stride: [i64; MAX_RANK],
}

impl View {
    /// The layout's axes without its offset, merged where they follow one another in memory.
    ///
    /// # Errors
    /// Shape error when more than [`MAX_RANK`] axes remain.
    pub(crate) fn new(layout: &Layout) -> Result<Self> {
        let (shape, strides) = collapse(layout.shape(), &[layout.strides()]);
        if shape.len() > MAX_RANK {
            bail!(
                shape,
                "a view with {} separate axes: kernels address at most {MAX_RANK}; call contiguous() on fewer axes first",
                shape.len()
            );
        }
        let mut v = View { rank: shape.len() as i32, shape: [1; MAX_RANK], stride: [0; MAX_RANK] };
        for (i, (&d, &s)) in shape.iter().zip(&strides[0]).enumerate() {
            v.shape[i] = d as i64;
            v.stride[i] = s as i64;
        }
        Ok(v)
    }
}

/// Parameters of an elementwise op, in the kernels' own order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Params {
    /// At most four numbers.
    pub p: [f64; 4],
}

// The structs of the same names in kernels/common/view.cuh have these sizes as well.
const _: () = assert!(size_of::<View>() == 136 && size_of::<Params>() == 32);
