//! The kernels' sources, written by build.rs: one module for each file of kernels and first type, and the symbols in them.

use super::Module;

include!(concat!(env!("OUT_DIR"), "/modules.rs"));
