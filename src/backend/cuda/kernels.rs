//! Launchers written by build.rs from the `KERNEL` lines of kernels/*.cu: one function per kernel, with the kernel's own
//! parameters. A missing, misspelt or re-typed kernel does not compile; one that nothing launches is a warning.

use super::attention::{Heads, Scores};
use super::context::Context;
use super::flash::Flash;
use super::launch::{Dst, Grid, Kernel, Module, Params, Src, View};
use super::remap::Remap;
use super::rope::Frequencies;
use super::tensors::Tensors;
use crate::dtype::DType;
use crate::error::{Error, Result};
#[cfg(feature = "emulator")]
use std::ffi::c_void;

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
