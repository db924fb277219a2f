//! What a launch may ask of a GPU. A GPU answers with an error; the emulated device by these rules.

use crate::error::Result;
use std::collections::HashMap;

/// Dynamic shared memory that a function may have without having asked for more.
pub(super) const UNASKED: u32 = 48 << 10;

/// The functions that have asked for more shared memory, and how much.
#[derive(Debug, Default)]
pub(super) struct OptIns(HashMap<&'static str, u32>);

impl OptIns {
    /// Asks for `bytes` of shared memory for a kernel, by `set`, unless it has asked for as much.
    pub(super) fn ask(&mut self, kernel: &'static str, bytes: u32, set: impl FnOnce(u32) -> Result<()>) -> Result<()> {
        let asked = self.0.entry(kernel).or_insert(UNASKED);
        if *asked < bytes {
            set(bytes)?;
            *asked = bytes;
        }
        Ok(())
    }
}

#[cfg(feature = "emulator")]
pub(super) mod refusals {
    use super::UNASKED;
    use crate::backend::cuda::abi::{Grid, Kernel};
    use std::collections::HashMap;
    use std::sync::LazyLock;

    /// Bytes of parameters that every driver takes; CUDA 12.1 and later take more from cards that need not be there.
    const PARAMETERS: usize = 4096;
    /// Of a multiprocessor, and so of a block.
    const REGISTERS: u32 = 65_536;
    /// Dynamic shared memory of a block on cards of 8.6 and 8.9, the least of those that the backend takes (8.0: 163 KiB, 9.0: 227).
    const SHARED: u32 = 99 << 10;

    /// Registers of each kernel, the most that any of its types takes on any architecture: the table of docs/gpu-status.md, which a
    /// test keeps complete.
    static TABLE: LazyLock<HashMap<&'static str, u32>> = LazyLock::new(|| {
        let page = include_str!("../../../../docs/gpu-status.md");
        let row = |line: &'static str| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
            let most = cells.skip(1).take(2).filter_map(|c| c.rsplit('–').next()?.parse().ok()).max()?;
            Some((name, most))
        };
        page.lines().filter_map(row).collect()
    });

    /// Registers of a kernel by its symbol, whose last words are types.
    fn registers(symbol: &str) -> Option<u32> {
        let mut name = symbol;
        loop {
            if let Some(&n) = TABLE.get(name) {
                return Some(n);
            }
            name = name.rsplit_once('_')?.0;
        }
    }

    /// Why a GPU, or another compiler of the same kernel, would not run a launch.
    pub(in super::super) fn launch(kernel: &Kernel, grid: Grid, sizes: &[usize], asked: u32) -> Option<String> {
        let parameters = sizes.iter().fold(0, |at: usize, &size| at.next_multiple_of(size.next_power_of_two().min(8)) + size);
        if parameters > PARAMETERS {
            return Some(format!("{parameters} bytes of parameters, of which {PARAMETERS} are allowed"));
        }
        if grid.shared > SHARED {
            return Some(format!("{} bytes of dynamic shared memory, of which a block has {SHARED} on some cards", grid.shared));
        }
        if grid.shared > asked.max(UNASKED) {
            return Some(format!("{} bytes of dynamic shared memory, and the function has asked for {asked} only", grid.shared));
        }
        if kernel.bounds.is_some_and(|most| grid.threads > most) {
            return Some(format!("{} threads a block, and its LAUNCH_BOUNDS are {}", grid.threads, kernel.bounds.unwrap_or(0)));
        }
        let threads = grid.threads.next_multiple_of(32);
        let registers = registers(kernel.name)?.next_multiple_of(8);
        if threads * registers > REGISTERS {
            return Some(format!("{threads} threads of {registers} registers each, of which a multiprocessor has {REGISTERS}"));
        }
        if kernel.bounds.is_none() && threads * registers > REGISTERS / 2 {
            return Some(format!(
                "{threads} threads of {registers} registers each without LAUNCH_BOUNDS: another compiler may use more than there are"
            ));
        }
        None
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        unsafe extern "C" fn nothing(_: *const u32, _: usize, _: u32, _: *mut *mut std::ffi::c_void) -> i32 {
            0
        }

        fn why(name: &'static str, bounds: Option<u32>, threads: u32, shared: u32, sizes: &[usize]) -> String {
            let kernel = Kernel { module: 0, name, bounds, emulated: nothing };
            launch(&kernel, Grid { blocks: [1; 3], threads, shared }, sizes, UNASKED).unwrap_or_default()
        }

        #[test]
        fn launches_that_a_gpu_refuses() {
            assert_eq!(why("binary_add_f32", None, 256, 0, &[8, 136, 4]), "");
            assert!(why("binary_add_f32", None, 256, 0, &[4000, 96]).is_empty());
            assert!(why("binary_add_f32", None, 256, 0, &[4000, 97]).contains("parameters"));
            assert!(why("binary_add_f32", None, 256, UNASKED + 1, &[]).contains("asked for"));
            assert!(why("binary_add_f32", None, 256, SHARED + 1, &[]).contains("a block has"));
            assert!(why("binary_add_f32", Some(128), 129, 0, &[]).contains("LAUNCH_BOUNDS"));
            assert_eq!(registers("unary_abs_fwd_bf16"), Some(30));
            assert_eq!(registers("copy_cast_f32_bf16"), registers("copy_cast"));
            assert!(why("sdpa_mma_forward_64_f16", Some(512), 512, 0, &[]).contains("multiprocessor has"));
            assert!(why("softmax_fwd_f32", None, 512, 0, &[]).contains("without LAUNCH_BOUNDS"));
            assert_eq!(why("softmax_fwd_f32", Some(512), 512, 0, &[]), "");
        }
    }
}
