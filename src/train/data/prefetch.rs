//! Batches prepared on another thread.

use super::Batches;
use crate::error::{Error, Result};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
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
    // An option so that it can be dropped first: that ends the thread.
    batches: Option<Receiver<Result<B>>>,
    thread: Option<JoinHandle<()>>,
}

impl<B> Drop for Worker<B> {
    fn drop(&mut self) {
        drop(self.batches.take());
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
        let (send, batches) = sync_channel(self.ahead);
        let data = Arc::clone(&self.data);
        let work = move || {
            // Ends when nobody receives any more, and after an error: the trainer stops there.
            for i in position.. {
                let batch = data.batch(i);
                let last = batch.is_err();
                if send.send(batch).is_err() || last {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("batches".into()).spawn(work)?;
        Ok(Worker { next: position, batches: Some(batches), thread: Some(thread) })
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
        let received = worker.batches.as_ref().and_then(|b| b.recv().ok());
        // After an error the thread has ended: the next call starts another.
        let batch = received.unwrap_or_else(|| Err(Error::argument(format!("preparing batch {position} panicked"))))?;
        worker.next += 1;
        *slot = Some(worker);
        Ok(batch)
    }
}
