//! Compiling every kernel without a GPU: the run-time compiler needs no driver.

use super::load::{compile, compiler};
use crate::backend::cuda::abi::{MODULES, Module};
use crate::error::Result;
use rayon::prelude::*;

/// A module that the run-time compiler took.
#[derive(Clone, Debug)]
pub struct CompiledModule {
    /// Its name.
    pub name: &'static str,
    /// Size of its machine code.
    pub bytes: usize,
    /// What the assembler says of every kernel: registers, stack, spills.
    pub log: String,
}

/// Compiles every kernel of the crate for one architecture (`80`, `90`, `90a`), for tests of the kernels themselves. Nothing
/// is cached, and no GPU is needed.
///
/// # Errors
/// Device error without the run-time compiler; with its log when a kernel does not compile.
pub fn compile_kernels(arch: &str) -> Result<Vec<CompiledModule>> {
    let one = |m: &'static Module| {
        let binary = compile(m, arch)?;
        Ok(CompiledModule { name: m.stem, bytes: binary.code.len(), log: binary.log })
    };
    MODULES.par_iter().map(one).collect()
}

/// Whether the run-time compiler can be found.
pub fn has_compiler() -> bool {
    compiler().is_ok()
}
