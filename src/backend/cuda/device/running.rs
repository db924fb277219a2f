//! Which op runs on this thread.

use std::cell::RefCell;
use std::panic::Location;

thread_local! {
    static OP: RefCell<Vec<(&'static str, &'static Location<'static>)>> = const { RefCell::new(Vec::new()) };
}

/// The op that runs on this thread, until dropped: what memory and captured index checks are put down to.
pub(crate) struct Running(());

impl Running {
    pub(crate) fn new(op: &'static str, at: &'static Location<'static>) -> Self {
        OP.with_borrow_mut(|ops| ops.push((op, at)));
        Running(())
    }

    /// Name and line, innermost.
    pub(crate) fn op() -> Option<(&'static str, &'static Location<'static>)> {
        OP.with_borrow(|ops| ops.last().copied())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        OP.with_borrow_mut(Vec::pop);
    }
}
