//! Launchers written by build.rs from the `KERNEL` lines of `kernels/FAMILY/*.cu`: one function per kernel, with the kernel's own
//! parameters. A missing, misspelt or re-typed kernel does not compile; one that nothing launches is a warning.

use crate::backend::cuda::abi::{Flash, Frequencies, Grid, Heads, Kernel, Params, Remap, Scores, Sliding, Tensors, View};
use crate::backend::cuda::device::{Context, Dst, Src};
use crate::dtype::DType;
use crate::error::{Error, Result};
#[cfg(feature = "emulator")]
use std::ffi::c_void;

include!(concat!(env!("OUT_DIR"), "/launchers.rs"));
