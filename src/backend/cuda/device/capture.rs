//! A step captured once and replayed: what the device captures (`Driver::begin_capture`), and all that
//! must stay as it was for the replays to mean the same: memory, index checks, random keys, numbers that change.
//!
//! A capture belongs to the thread that began it. Memory that is taken meanwhile comes from a pool of its own
//! ([`Private`]) and stays with the recording; work of other threads on the device waits until the capture has ended.

use super::buffer::Buffer;
use super::context::Context;
use super::pointer::Dst;
use super::pool::Private;
use super::running::Running;
use super::step_memory::{self, StepMemory};
use crate::backend::cuda::driver::Recording;
use crate::dtype::I64;
use crate::error::{Error, Result, bail};
use crate::memory;
use crate::rng::{Folds, Key};
use std::any::Any;
use std::cell::RefCell;
use std::collections::HashSet;
use std::panic::Location;
use std::sync::{Arc, RwLockWriteGuard};

/// Words of 8 bytes for the random keys of a step. There are as many words more as its optimizers have numbers.
const KEYS: usize = 4096;
/// Words for the findings of index checks.
const FINDINGS: usize = 16384;

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// What an index check says of its words: an error, if they hold one.
type Judge = Box<dyn Fn(&[i64]) -> Result<()> + Send + Sync>;

/// One index check of a captured step.
struct Check {
    first: usize,
    words: usize,
    judge: Judge,
    by: Option<(&'static str, &'static Location<'static>)>,
}

/// A key that the step draws with, and where the device finds it.
struct LiveKey {
    path: Vec<u64>,
    word: usize,
}

struct Recorder {
    kept: Vec<Arc<dyn Any + Send + Sync>>,
    key: Key,
    keys: Vec<(Key, usize)>,
    live: Buffer,
    live_used: usize,
    findings: Buffer,
    findings_used: usize,
    checks: Vec<Check>,
}

impl Recorder {
    fn live_words(&mut self, n: usize) -> Result<usize> {
        let at = self.live_used;
        if at + n > self.live.len() {
            bail!(capture, "the step draws with more than {} random keys", KEYS / 2);
        }
        self.live_used += n;
        Ok(at)
    }
}

/// Runs `f` with this thread's recorder.
fn with<R>(f: impl FnOnce(&mut Recorder) -> R) -> Option<R> {
    RECORDER.with(|r| r.try_borrow_mut().ok().and_then(|mut r| r.as_mut().map(f)))
}

/// Whether this thread captures a step on any device.
pub(crate) fn active() -> bool {
    step_memory::active()
}

/// Keeps memory for the life of the recording: the captured step reads it. State is known already, and the pool's own memory
/// stays anyway.
pub(crate) fn keep<S: Any + Send + Sync>(of: &Buffer, storage: &Arc<S>) {
    let on = of.context();
    if on.is_capturing() && !of.is_private() && !step_memory::is_state(on.device(), of.addr()) {
        with(|r| r.kept.push(Arc::clone(storage) as Arc<dyn Any + Send + Sync>));
    }
}

/// Where a captured kernel finds the two words of a random key; `None` outside of a capture.
///
/// # Errors
/// Capture error for a key that does not stem from the step's own: every replay would draw the same.
pub(crate) fn key_words(key: Key) -> Result<Option<u64>> {
    let Some(found) = with(|r| -> Result<u64> {
        let word = match r.keys.iter().find(|(k, _)| *k == key) {
            Some(&(_, word)) => word,
            None => {
                let word = r.live_words(2)?;
                r.keys.push((key, word));
                word
            }
        };
        Ok(r.live.addr() + 8 * word as u64)
    }) else {
        return Ok(None);
    };
    found.map(Some)
}

/// Where the findings of an index check go in a captured step: `words` of them, which `judge` sees after each replay. `None`
/// outside of a capture.
///
/// # Errors
/// Capture error when there are too many.
pub(crate) fn check(words: usize, judge: impl Fn(&[i64]) -> Result<()> + Send + Sync + 'static) -> Result<Option<Dst<'static>>> {
    let Some(at) = with(|r| -> Result<Dst<'static>> {
        let first = r.findings_used;
        if first + words > FINDINGS {
            bail!(capture, "the step checks indices in more than {} places", r.checks.len());
        }
        r.findings_used += words;
        r.checks.push(Check { first, words, judge: Box::new(judge), by: Running::op() });
        Ok(Dst::at(r.findings.addr() + 8 * first as u64, I64))
    }) else {
        return Ok(None);
    };
    at.map(Some)
}

/// A capture in progress on this thread. Dropping it ends the capture and forgets what was captured.
pub(crate) struct Session {
    on: &'static Context,
    /// Holds up other threads.
    _alone: RwLockWriteGuard<'static, ()>,
    ended: bool,
}

impl Session {
    /// Begins a capture. `state` holds the addresses of memory that the step may change; random ops derive their keys from
    /// `key`; `numbers` words of f64 change from replay to replay.
    ///
    /// # Errors
    /// Capture error when this thread captures already; out of memory; what the device reports.
    pub(crate) fn begin(on: &'static Context, state: HashSet<u64>, key: Key, numbers: usize) -> Result<Self> {
        if active() {
            bail!(capture, "a step is being captured on this thread already");
        }
        let (live, findings) = (on.alloc(I64, numbers.saturating_add(KEYS))?, on.alloc(I64, FINDINGS)?);
        let alone = on.alone();
        on.driver().begin_capture()?;
        Folds::start();
        step_memory::begin(StepMemory { device: on.device(), private: Private::new(on.pool()), state, retired: Some(Vec::new()) });
        let recorder =
            Recorder { kept: Vec::new(), key, keys: Vec::new(), live, live_used: numbers, findings, findings_used: 0, checks: Vec::new() };
        RECORDER.set(Some(recorder));
        Ok(Session { on, _alone: alone, ended: false })
    }

    /// Memory of the state that the step has let go.
    pub(crate) fn retired(&self) -> impl Iterator<Item = Buffer> + use<> {
        let on = self.on;
        step_memory::retired(on.device()).into_iter().map(|block| Buffer::again(on, block))
    }

    /// Ends the capture.
    ///
    /// # Errors
    /// Capture error for a random key that does not stem from the step's; what the device reports.
    pub(crate) fn end(mut self) -> Result<Captured> {
        let Some((recorder, private, folds, exec)) = self.stop() else { bail!(capture, "the capture has ended already") };
        let exec = exec?;
        let mut keys = Vec::new();
        for &(key, word) in &recorder.keys {
            let Some(path) = folds.path(recorder.key, key) else {
                bail!(
                    capture,
                    "a random op draws with a key that does not stem from the step's own: every replay would draw the same; fold the key \
                     that the step is given"
                );
            };
            memory::push(&mut keys, LiveKey { path, word })?;
        }
        let Recorder { kept, live, live_used, findings, findings_used, checks, .. } = recorder;
        Ok(Captured { exec, on: self.on, private, _kept: kept, keys, live, live_used, findings, findings_used, checks })
    }

    fn stop(&mut self) -> Option<(Recorder, Arc<Private>, Folds, Result<Box<dyn Recording>>)> {
        if std::mem::replace(&mut self.ended, true) {
            return None;
        }
        let (recorder, memory, folds) = (RECORDER.take()?, step_memory::end()?, Folds::stop());
        // What was taken over and not asked for is freed like any other memory.
        memory.retired.into_iter().flatten().for_each(|block| drop(Buffer::again(self.on, block)));
        Some((recorder, memory.private, folds, self.on.end_capture()))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Whatever the device says of an abandoned capture, the error that ended it is the one to report.
        let _ = self.stop();
    }
}

/// A step that a device can replay, and the memory it refers to.
pub(crate) struct Captured {
    // First, so that it is gone before the memory is.
    exec: Box<dyn Recording>,
    on: &'static Context,
    private: Arc<Private>,
    _kept: Vec<Arc<dyn Any + Send + Sync>>,
    keys: Vec<LiveKey>,
    live: Buffer,
    live_used: usize,
    findings: Buffer,
    findings_used: usize,
    checks: Vec<Check>,
}

impl Captured {
    /// The device.
    pub(crate) fn context(&self) -> &'static Context {
        self.on
    }

    /// How many blocks of the pool are held by tensors.
    pub(crate) fn live_blocks(&self) -> usize {
        self.private.live()
    }

    /// Bytes that the pool took for this step.
    pub(crate) fn reserved(&self) -> usize {
        self.private.reserved() + 8 * (self.live.len() + self.findings.len())
    }

    /// Enqueues the step with other numbers and another key; waits for it when it checks indices.
    ///
    /// # Errors
    /// Index error for the first index out of range; what the device reports.
    pub(crate) fn replay(&mut self, numbers: &[f64], key: Key) -> Result<()> {
        if self.live_used > 0 {
            let mut words = crate::memory::vec_of(0i64, self.live_used)?;
            for (w, n) in words.iter_mut().zip(numbers) {
                *w = n.to_bits() as i64;
            }
            for k in &self.keys {
                let (seed, stream) = k.path.iter().fold(key, |key, &data| key.fold(data)).parts();
                (words[k.word], words[k.word + 1]) = (seed as i64, stream as i64);
            }
            self.live.upload_prefix(&words)?;
        }
        // SAFETY: the pool, the kept tensors and the state, which the caller found in its place, are what the step refers
        // to; `&mut self` keeps a second replay out, and outputs were copied.
        unsafe { self.on.replay(&*self.exec)? };
        if self.checks.is_empty() {
            return Ok(());
        }
        let found = self.findings.download_prefix::<i64>(self.findings_used)?;
        for c in &self.checks {
            (c.judge)(&found[c.first..c.first + c.words]).map_err(|e| match c.by {
                Some((op, at)) => e.in_op(op, at),
                None => e,
            })?;
        }
        Ok(())
    }
}

/// Where the numbers begin that change from replay to replay.
pub(crate) fn numbers(first: usize) -> Option<u64> {
    with(|r| r.live.addr() + 8 * first as u64)
}

/// The error of an op whose numbers are part of the launch.
pub(crate) fn refuse_fixed(on: &Context, what: &str) -> Result<()> {
    if on.is_capturing() {
        return Err(Error::capture(format!("{what} would be the same in every replay")));
    }
    Ok(())
}
