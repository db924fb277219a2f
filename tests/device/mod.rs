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
mod long_lines;
mod suite;
#[cfg(feature = "emulator")]
mod tensor_cores;

/// A GPU where there is one, else the emulated device.
#[cfg(feature = "emulator")]
fn device() -> cotangent::Device {
    cotangent::Device::cuda(0).unwrap_or_else(|e| {
        assert!(std::env::var_os("REQUIRE_GPU").is_none_or(|v| v != "1"), "{e}");
        cotangent::Device::cuda_emulated().unwrap()
    })
}
