//! Compiling every kernel without a GPU: the run-time compiler needs no driver.

use super::load::{Target, compile, compile_for, compiler};
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
        let binary = compile(m, &Target::Machine(arch.to_owned()))?;
        Ok(CompiledModule { name: m.stem, bytes: binary.code.len(), log: binary.log })
    };
    MODULES.par_iter().map(one).collect()
}

/// Compiles one module for a GPU that may be newer than the compiler; what for (`sm_90`, `compute_90`), and the start of the code.
///
/// # Errors
/// As [`compile_kernels`].
#[doc(hidden)]
pub fn compile_one_for(capability: (u32, u32)) -> Result<(String, Vec<u8>)> {
    let (target, binary) = compile_for(&MODULES[0], capability)?;
    Ok((target.to_string(), binary.code.into_iter().take(4096).collect()))
}

/// Whether the run-time compiler can be found.
pub fn has_compiler() -> bool {
    compiler().is_ok()
}
