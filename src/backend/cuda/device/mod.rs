//! A device in use: its driver and its stream (`context`), memory that is recycled (`pool`, `buffer`), and steps that are captured and
//! replayed (`capture`, of which memory sees only `step_memory`).

mod buffer;
pub(crate) mod capture;
mod context;
mod pointer;
mod pool;
mod running;
mod step_memory;

pub(crate) use buffer::Buffer;
pub(crate) use context::{Context, launches};
pub(crate) use pointer::{Dst, Src};
pub use pool::{DeviceMemory, OpMemory};
pub(crate) use running::Running;
