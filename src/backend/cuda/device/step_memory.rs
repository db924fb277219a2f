//! The memory of the step that this thread captures: the device that captures it, the pool that it takes from, and the state that it
//! may change.

use super::pool::{Block, Private};
use crate::backend::Device;
use crate::error::{Result, bail};
use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

/// What memory needs to know of a capture.
pub(super) struct StepMemory {
    pub(super) device: Device,
    pub(super) private: Arc<Private>,
    /// Addresses of memory that the step may change.
    pub(super) state: HashSet<u64>,
    /// Memory of the state that nothing holds at the moment: the step has put another tensor in its place.
    pub(super) retired: Option<Vec<Block>>,
}

thread_local! {
    static STEP: RefCell<Option<StepMemory>> = const { RefCell::new(None) };
}

/// From here on this thread captures a step.
pub(super) fn begin(memory: StepMemory) {
    STEP.set(Some(memory));
}

/// From here on it does not.
pub(super) fn end() -> Option<StepMemory> {
    STEP.take()
}

/// Runs `f` if this thread captures a step on a device.
fn with<R>(on: Device, f: impl FnOnce(&mut StepMemory) -> R) -> Option<R> {
    STEP.with_borrow_mut(|m| m.as_mut().filter(|m| m.device == on).map(f))
}

/// Whether this thread captures a step on a device.
pub(super) fn is_capturing(on: Device) -> bool {
    with(on, |_| ()).is_some()
}

/// Whether this thread captures a step on any device.
pub(super) fn active() -> bool {
    STEP.with_borrow(Option::is_some)
}

/// The pool of the capture on this thread.
pub(super) fn private(on: Device) -> Option<Arc<Private>> {
    with(on, |m| Arc::clone(&m.private))
}

/// Whether the step that is captured may change the memory at an address.
pub(super) fn is_state(on: Device, addr: u64) -> bool {
    with(on, |m| m.state.contains(&addr)).unwrap_or(false)
}

/// Takes over a block of the state that would be freed while a step is captured: it is where the state goes on.
pub(super) fn retire(on: Device, block: Block) -> bool {
    let list = |m: &mut StepMemory| m.retired.as_mut().filter(|_| m.state.contains(&block.addr)).map(|list| list.push(block));
    with(on, list).flatten().is_some()
}

/// The blocks taken over so far. From here on such a block is freed like any other.
pub(super) fn retired(on: Device) -> Vec<Block> {
    with(on, |m| m.retired.take()).flatten().unwrap_or_default()
}

/// An error when this thread captures a step: `what` needs values that the device has not computed yet.
pub(super) fn refuse(on: Device, what: &str) -> Result<()> {
    if is_capturing(on) {
        bail!(
            capture,
            "{what} inside a captured step, which is not computed until it is replayed; do it before or after, or return the tensor"
        );
    }
    Ok(())
}
