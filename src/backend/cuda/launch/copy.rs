//! Copies into row-major order, and between element types.

use super::kernels::copy as kernels;
use super::threads::grid;
use crate::backend::cuda::abi::View;
use crate::backend::cuda::device::{Context, Dst, Src};
use crate::error::Result;
use crate::layout::Layout;

/// Gathers a layout over a storage into row-major order.
pub(crate) fn gather(on: &Context, storage: Src<'_>, layout: &Layout, y: Dst<'_>) -> Result<()> {
    let n = layout.numel();
    if n == 0 {
        return Ok(());
    }
    let x = storage.offset(layout.offset());
    kernels::gather(on, grid(on, n, y.dtype().size()), &y, &x, View::new(layout)?, n as i64)
}

/// Gathers a layout over a storage into row-major order, in the other type.
pub(crate) fn cast(on: &Context, storage: Src<'_>, layout: &Layout, y: Dst<'_>) -> Result<()> {
    let n = layout.numel();
    if n == 0 {
        return Ok(());
    }
    let x = storage.offset(layout.offset());
    kernels::cast(on, grid(on, n, y.dtype().size()), &y, &x, View::new(layout)?, n as i64)
}
