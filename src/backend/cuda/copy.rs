//! Copies into row-major order, and between element types.

use super::context::Context;
use super::kernels::copy as kernels;
use super::launch::{Dst, Src, View};
use super::map::grid;
use super::operand::In;
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

/// Every element in the other type, in row-major order.
pub(crate) fn cast(on: &Context, x: &In<'_>, y: Dst<'_>) -> Result<()> {
    let n = x.numel();
    if n == 0 {
        return Ok(());
    }
    let (src, view) = x.view()?;
    kernels::cast(on, grid(on, n, y.dtype().size()), &y, &src, view, n as i64)
}
