//! Workloads that are timed in turns with other programs: a script starts one process of each, and gives them turns by lines.

use cotangent::{DType, Error, Result};
use std::io::{BufRead, Write};
use std::time::Instant;

/// One run of a workload.
pub type Work = Box<dyn FnMut() -> Result<()>>;

/// What this process runs: the script compares it with what it asked for, so that no time stands under another's name.
fn greeting(dtype: DType) -> String {
    #[cfg(target_arch = "x86_64")]
    let set = match pulp::Arch::new() {
        pulp::Arch::V4(_) => "avx512",
        pulp::Arch::V3(_) => "avx2",
        _ => "baseline",
    };
    #[cfg(not(target_arch = "x86_64"))]
    let set = std::env::consts::ARCH;
    format!(r#"{{"dtype": "{dtype}", "threads": {}, "device": "cpu", "instructions": "{set}"}}"#, rayon::current_num_threads())
}

/// The first line of the answer is the [`greeting`]. Every line of the standard input is a turn: so many seconds. The answer is a line with the milliseconds of the runs that began
/// in it, the first one (cold caches) left out. Two runs before the first turn warm up.
///
/// # Errors
/// What the workload refuses; an argument error for a line that is not a number.
pub fn serve(dtype: DType, mut work: Work) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::argument(format!("turns: {e}"));
    work()?;
    work()?;
    println!("{}", greeting(dtype));
    std::io::stdout().flush().map_err(|e| failed(&e))?;
    for line in std::io::stdin().lock().lines() {
        let seconds: f64 = line.map_err(|e| failed(&e))?.trim().parse().map_err(|e| failed(&e))?;
        work()?;
        let (start, mut times) = (Instant::now(), Vec::new());
        while times.is_empty() || start.elapsed().as_secs_f64() < seconds {
            let run = Instant::now();
            work()?;
            times.push(format!("{:.4}", run.elapsed().as_secs_f64() * 1e3));
        }
        println!("{}", times.join(","));
        std::io::stdout().flush().map_err(|e| failed(&e))?;
    }
    Ok(())
}
