//! Batches prepared on another thread.

use super::Batches;
use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Data whose next batches are prepared on a thread of their own while a step runs. The batches are the same.
///
/// ```
/// use cotangent::train::{Batches, Prefetch};
/// let squares = Prefetch::new(|i: u64| Ok(i * i), 2);
/// assert_eq!((squares.batch(3)?, squares.batch(4)?, squares.batch(0)?), (9, 16, 0));
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Debug)]
pub struct Prefetch<D: Batches> {
    data: Arc<D>,
    ahead: usize,
    worker: Mutex<Option<Worker<D::Batch>>>,
}

#[derive(Debug)]
struct Worker<B> {
    /// Position of the batch that comes next.
    next: u64,
    batches: Arc<Queue<B>>,
    thread: Option<JoinHandle<()>>,
}

/// Batches on their way. A channel of the standard library takes memory for all that it may ever hold; this for what it does.
#[derive(Debug)]
struct Queue<B> {
    state: Mutex<State<B>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<B> {
    ready: VecDeque<Result<B>>,
    /// Whether somebody waits for a batch.
    wanted: bool,
    /// Whether one of the two sides is gone.
    closed: bool,
}

impl<B> Queue<B> {
    fn new() -> Arc<Self> {
        Arc::new(Queue { state: Mutex::new(State { ready: VecDeque::new(), wanted: false, closed: false }), changed: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<B>>) -> MutexGuard<'a, State<B>> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a batch when fewer than `ahead` wait; false when nobody will take it.
    fn send(&self, batch: Result<B>, ahead: usize) -> bool {
        let mut state = self.state();
        while state.ready.len() >= ahead && !(state.wanted && state.ready.is_empty()) && !state.closed {
            state = self.wait(state);
        }
        if state.closed {
            return false;
        }
        state.ready.push_back(batch);
        self.changed.notify_all();
        true
    }

    /// The next batch; `None` when the other side ended without one.
    fn receive(&self) -> Option<Result<B>> {
        let mut state = self.state();
        state.wanted = true;
        self.changed.notify_all();
        while state.ready.is_empty() && !state.closed {
            state = self.wait(state);
        }
        state.wanted = false;
        let batch = state.ready.pop_front();
        self.changed.notify_all();
        batch
    }

    fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }
}

/// Closes the queue when the thread ends, also by a panic.
struct Close<B>(Arc<Queue<B>>);

impl<B> Drop for Close<B> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<B> Drop for Worker<B> {
    fn drop(&mut self) {
        self.batches.close();
        if let Some(thread) = self.thread.take() {
            // A panic there was already reported as an error.
            let _ = thread.join();
        }
    }
}

impl<D: Batches + Send + Sync + 'static> Prefetch<D>
where
    D::Batch: Send + 'static,
{
    /// Prepares up to `ahead` batches before they are asked for, and one more is in the making. Positions that follow one
    /// another are fast; any other one starts anew from there.
    pub fn new(data: D, ahead: usize) -> Self {
        Prefetch { data: Arc::new(data), ahead, worker: Mutex::new(None) }
    }

    fn start(&self, position: u64) -> Result<Worker<D::Batch>> {
        let batches = Queue::new();
        let (data, ahead, close) = (Arc::clone(&self.data), self.ahead, Close(Arc::clone(&batches)));
        let work = move || {
            // Ends when nobody receives any more, after an error (the trainer stops there), and at the last position there is.
            for i in position..=u64::MAX {
                let batch = data.batch(i);
                let last = batch.is_err();
                if !close.0.send(batch, ahead) || last {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("batches".into()).spawn(work)?;
        Ok(Worker { next: position, batches, thread: Some(thread) })
    }
}

impl<D: Batches + Send + Sync + 'static> Batches for Prefetch<D>
where
    D::Batch: Send + 'static,
{
    type Batch = D::Batch;

    fn batch(&self, position: u64) -> Result<D::Batch> {
        let mut slot = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let mut worker = match slot.take() {
            Some(w) if w.next == position => w,
            _ => self.start(position)?,
        };
        let received = worker.batches.receive();
        // After an error the thread has ended: the next call starts another.
        let batch = received.unwrap_or_else(|| Err(Error::argument(format!("preparing batch {position} panicked"))))?;
        // Behind the last position there is none: its thread has ended.
        if let Some(next) = worker.next.checked_add(1) {
            worker.next = next;
            *slot = Some(worker);
        }
        Ok(batch)
    }

    fn fingerprint(&self) -> Result<Option<String>> {
        self.data.fingerprint()
    }
}
