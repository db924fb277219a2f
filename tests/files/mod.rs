//! Files: what is written comes back, what others wrote means what they say, what is damaged is refused.

pub mod bad_conditions;
mod config;
mod gguf;
#[cfg(all(target_os = "linux", feature = "readers"))]
mod memory;
#[cfg(feature = "readers")]
mod readers;
mod safetensors;
mod side_by_side;

pub use safetensors::Folder;
