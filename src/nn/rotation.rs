//! Rotary positions by tables of cosines and sines: for frequencies that are no powers of a base.

use crate::backend::Device;
use crate::dtype::{DType, F32, F64};
use crate::error::{Result, bail};
use crate::memory;
use crate::tensor::Tensor;

/// Cosines and sines of every position and pair, made once for all layers of a model. Pairs are `i` and `i + d/2`, as Hugging Face
/// stores them; [`Tensor::rope`] does the same in one op where the frequencies are `base^(−2i/d)`.
///
/// ```
/// use cotangent::{F64, Key, Tensor, nn::Rotation, ops::RopeOptions};
/// let x = Tensor::randn([2, 3, 4, 6], F64, Key::new(1))?; // [batch, heads, time, head]
/// let frequencies = [1.0, 1e4f64.powf(-1.0 / 3.0), 1e4f64.powf(-2.0 / 3.0)];
/// let rotation = Rotation::new(&frequencies, 1.0, &[vec![0, 1, 2, 3]], F64)?;
/// let same = x.rope(&RopeOptions::default())?;
/// assert!(rotation.turn(&x)?.sub(&same)?.abs()?.max(..)?.item()? < 1e-12);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Rotation {
    /// `[rows, 1, time, head/2]`.
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// Tables for `positions`: one list for all rows of a batch, or one for each. Cosine and sine are multiplied by `factor`, and kept in
    /// `f64` for `f64` values, else in `f32`.
    ///
    /// # Errors
    /// Shape error when the lists are not of one length, or there is none; out of memory.
    #[track_caller]
    pub fn new(frequencies: &[f64], factor: f64, positions: &[Vec<usize>], dtype: DType) -> Result<Self> {
        let at = std::panic::Location::caller();
        Self::build(frequencies, factor, positions, dtype).map_err(|e| e.rename_op("rotation").called_at(at))
    }

    fn build(frequencies: &[f64], factor: f64, positions: &[Vec<usize>], dtype: DType) -> Result<Self> {
        let time = positions.first().map_or(0, Vec::len);
        if positions.is_empty() || positions.iter().any(|p| p.len() != time) {
            bail!(shape, "expected one list of positions for each row, all of one length");
        }
        let of = |f: fn(f64) -> f64| {
            let angles = positions.iter().flatten().flat_map(|&p| frequencies.iter().map(move |w| f(p as f64 * w) * factor));
            let mut all: Vec<f64> = memory::room(positions.len().saturating_mul(time).saturating_mul(frequencies.len()))?;
            all.extend(angles);
            let table = Tensor::from_slice(&all, [positions.len(), 1, time, frequencies.len()])?;
            table.cast(if dtype == F64 { F64 } else { F32 })
        };
        Ok(Rotation { cos: of(f64::cos)?, sin: of(f64::sin)? })
    }

    /// The tables in memory of a device.
    pub(crate) fn to_device(&self, device: Device) -> Result<Self> {
        Ok(Rotation { cos: self.cos.to_device(device)?, sin: self.sin.to_device(device)? })
    }

    /// The rows of a table of consecutive positions that `positions` (`[1]`, or `[batch, 1]`) name: tables of one position for each row.
    pub(crate) fn at(&self, positions: &Tensor) -> Result<Self> {
        let ids = positions.flatten(0, -1)?;
        let of = |table: &Tensor| table.index_select(2, &ids)?.permute([2, 1, 0, 3]);
        Ok(Rotation { cos: of(&self.cos)?, sin: of(&self.sin)? })
    }

    /// Turns `[batch, heads, time, head]`. Half types are turned in `f32` and rounded once.
    ///
    /// # Errors
    /// Shape error when time, head or batch are not those of the tables.
    #[track_caller]
    pub fn turn(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.cast(self.cos.dtype())?;
        let half = x.shape().dims().last().map_or(0, |d| d / 2);
        let (cos, sin) = (self.cos.to_device(x.device())?, self.sin.to_device(x.device())?);
        let (a, b) = (wide.narrow(-1, 0, half)?, wide.narrow(-1, half, half)?);
        let left = a.mul(&cos)?.sub(&b.mul(&sin)?)?;
        let right = b.mul(&cos)?.add(&a.mul(&sin)?)?;
        Tensor::concat(&[&left, &right], -1)?.cast(x.dtype())
    }
}
