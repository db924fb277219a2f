//! Devices: the CUDA backend on the emulated device and on a GPU where there is one, captured steps, the kernels as source.

mod beyond_32_bits;
#[cfg(feature = "emulator")]
mod capture;
#[cfg(feature = "emulator")]
mod endurance;
#[cfg(feature = "emulator")]
mod generation;
mod kernels;
#[cfg(feature = "emulator")]
mod limits;
#[cfg(feature = "emulator")]
mod long_lines;
mod suite;
#[cfg(feature = "emulator")]
mod tensor_cores;

/// Whether this process runs only the test `name` of this folder, which counts or changes what a device has for the whole process: else
/// it is run in one that does.
#[cfg(feature = "emulator")]
fn alone(name: &str) -> bool {
    const CHILD: &str = "COTANGENT_ALONE";
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let name = format!("device::{name}");
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&child.stderr));
    for line in said.lines().filter(|l| l.contains("on cuda")) {
        crate::say(line);
    }
    false
}

/// A GPU where there is one, else the emulated device.
#[cfg(feature = "emulator")]
fn device() -> cotangent::Device {
    cotangent::Device::cuda(0).unwrap_or_else(|e| {
        assert!(std::env::var_os("REQUIRE_GPU").is_none_or(|v| v != "1"), "{e}");
        cotangent::Device::cuda_emulated().unwrap()
    })
}
