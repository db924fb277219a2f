//! The sweep as users call it: gradients by tape.

use crate::error::{Error, Result};
use crate::memory;
use crate::ops::ACCUMULATE;
use crate::tape::{Gradients, Sweep, Tape, explain, sweep};
use crate::tensor::Tensor;
use std::panic::Location;

impl Tape {
    /// Gradients of a scalar with respect to every watched tensor. Consumes the tape and frees what it saved on the way.
    ///
    /// # Errors
    /// Shape error when `y` is not a scalar; tape error when this tape does not track it.
    #[track_caller]
    pub fn backward(self, y: &Tensor) -> Result<Gradients> {
        let at = Location::caller();
        if y.numel() != 1 {
            return Err(Error::shape(format!("the result has shape {}; give a cotangent for it with `backward_from`", y.shape()))
                .in_op("backward", at));
        }
        let seed = Tensor::ones_like(y)?;
        self.backward_from(&[(y, seed)])
    }

    /// [`Tape::backward`] from any values, with a cotangent for each.
    ///
    /// # Errors
    /// Shape or dtype error when a cotangent does not fit its value; tape error when this tape does not track one.
    #[track_caller]
    pub fn backward_from(self, y: &[(&Tensor, Tensor)]) -> Result<Gradients> {
        let at = Location::caller();
        let run = || {
            let wanted = self.leaves()?;
            let seeds = self.seeds(y)?;
            let names = wanted.iter().map(|&id| (id, self.inner.name_of(id))).collect();
            let by_id = sweep(&self.inner, Sweep { seeds, wanted: &wanted, floor: 0, consume: true, record: false }, ACCUMULATE)?;
            let starts = memory::try_collect(y.iter().filter_map(|(y, _)| self.id_of(y).ok()))?;
            // The tape goes; a few reasons are kept, for a tape whose owner asks for the others is unlikely.
            let missing = wanted.iter().filter(|id| !by_id.contains_key(id)).take(8);
            let lost = missing.map(|&id| (id, explain(&self.inner, id, &starts).of("it", false))).collect();
            Ok(Gradients { tape: std::sync::Arc::as_ptr(&self.inner).addr(), by_id, names, lost })
        };
        run().map_err(|e: Error| e.in_op("backward", at))
    }

    /// Cotangents of `wrt` (watched tensors or values computed from them), given those of some results; `None` where
    /// nothing connects them. Keeps the tape, so it can be called again.
    ///
    /// # Errors
    /// As [`Tape::backward_from`].
    #[track_caller]
    pub fn cotangents(&self, y: &[(&Tensor, Tensor)], wrt: &[&Tensor]) -> Result<Vec<Option<Tensor>>> {
        self.cotangents_of(y, wrt, false)
    }

    /// [`Tape::cotangents`], recorded on the tape, so that they can themselves be differentiated: PyTorch's `create_graph`.
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn cotangents_recorded(&self, y: &[(&Tensor, Tensor)], wrt: &[&Tensor]) -> Result<Vec<Option<Tensor>>> {
        self.cotangents_of(y, wrt, true)
    }

    #[track_caller]
    fn cotangents_of(&self, y: &[(&Tensor, Tensor)], wrt: &[&Tensor], record: bool) -> Result<Vec<Option<Tensor>>> {
        let at = Location::caller();
        let run = || {
            let wanted = memory::try_collect_ok(wrt.iter().map(|t| self.id_of(t)))?;
            let seeds = self.seeds(y)?;
            let found = sweep(&self.inner, Sweep { seeds, wanted: &wanted, floor: 0, consume: false, record }, ACCUMULATE)?;
            memory::try_collect(wanted.iter().map(|id| found.get(id).cloned()))
        };
        run().map_err(|e: Error| e.in_op("cotangents", at))
    }

    fn seeds(&self, y: &[(&Tensor, Tensor)]) -> Result<Vec<(usize, Tensor)>> {
        memory::try_collect_ok(y.iter().map(|(y, bar)| {
            if y.shape() != bar.shape() {
                return Err(Error::shape(format!("the cotangent has shape {}, its value {}", bar.shape(), y.shape())));
            }
            Ok((self.id_of(y)?, bar.clone()))
        }))
    }
}
