//! Moves between devices.

use crate::backend::Device;
use crate::error::Result;
use crate::op::{Cotangents, InputCotangents, Saved};
use crate::tape::{self, Pull, PullContext};
use crate::tensor::Tensor;
use smallvec::smallvec;
use std::panic::Location;
use std::sync::Arc;

/// The derivative of a move: the cotangent goes back where the operand came from.
struct MoveBack(Device);

impl Pull for MoveBack {
    fn pull(&self, _: &PullContext<'_>, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![Some(y_bar.only()?.to_device(self.0)?)])
    }
}

impl Tensor {
    /// The same values on another device; free when they are already there.
    ///
    /// # Gradient
    /// `ȳ`, moved back. Saves nothing.
    ///
    /// # Errors
    /// Device error when the device cannot be opened; out of memory.
    ///
    /// ```
    /// use cotangent::{Device, Tensor};
    /// let x = Tensor::from_slice(&[1f32, 2.0], [2])?;
    /// assert!(x.to_device(Device::Cpu)?.shares_storage(&x));
    /// if let Ok(gpu) = Device::cuda(0) {
    ///     assert_eq!(x.to_device(gpu)?.square()?.to_vec::<f32>()?, [1.0, 4.0]);
    /// }
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[doc(alias("cuda", "device_put"))]
    #[track_caller]
    pub fn to_device(&self, device: Device) -> Result<Self> {
        if device == self.device() {
            return Ok(self.clone());
        }
        let at = Location::caller();
        let run = || {
            let mut y = Tensor::from_array(self.array.to_device(device)?);
            if let Some(tape) = tape::common_tape(&[self])?
                && tape.is_recording()?
            {
                let back = Arc::new(MoveBack(self.device()));
                tape::record(&tape, "to_device", at, &[self], std::slice::from_mut(&mut y), Saved::none(), back, tape::start(&[self]))?;
            }
            Ok(y)
        };
        run().map_err(|e: crate::Error| e.in_op("to_device", at))
    }
}
