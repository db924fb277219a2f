//! What host and kernels agree on, as plain data: modules and entry points, how a launch is spread, element types, and the structs
//! that kernels take by value, each with the name that it has in kernels/common. Nothing here knows a device.

mod attention;
mod element;
mod gemm;
mod kernel;
mod modules;
mod remap;
mod rope;
mod sliding;
mod tensors;
mod view;

pub(crate) use attention::{Flash, Heads, Scores};
pub(crate) use element::bits;
pub(crate) use gemm::{Gemm, MOST_MATRICES, Matrices, Plus};
pub(crate) use kernel::{Grid, Kernel, Module};
pub(crate) use modules::MODULES;
#[cfg(feature = "emulator")]
pub(crate) use modules::SYMBOLS;
pub(crate) use remap::{AxisMap, Remap};
pub(crate) use rope::{CHUNK, Frequencies};
pub(crate) use sliding::Sliding;
pub(crate) use tensors::{ARRAYS, SETS, TENSORS, Tensors};
pub(crate) use view::{MAX_RANK, Params, View};
