//! Numbers as other programs store them, and the tensors that they become.

use crate::array::Array;
use crate::backend::Device;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::shape::Shape;
use crate::tensor::Tensor;
use half::{bf16, f16};
use std::io::Read;

/// Bytes decoded at a time: a multiple of every element's size.
const CHUNK: usize = 1 << 16;

/// The type of one stored number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Raw {
    F64,
    F32,
    F16,
    BF16,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Bool,
}

impl Raw {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Raw::F64 | Raw::I64 | Raw::U64 => 8,
            Raw::F32 | Raw::I32 | Raw::U32 => 4,
            Raw::F16 | Raw::BF16 | Raw::I16 | Raw::U16 => 2,
            Raw::I8 | Raw::U8 | Raw::Bool => 1,
        }
    }

    /// The dtype of the tensor: the narrowest here that holds every value of the type (for 64 bits without sign: every value up to
    /// `i64::MAX`, others are an error).
    pub fn dtype(self) -> DType {
        match self {
            Raw::F64 => DType::F64,
            Raw::F32 => DType::F32,
            Raw::F16 => DType::F16,
            Raw::BF16 => DType::BF16,
            Raw::I8 | Raw::I16 | Raw::I32 | Raw::I64 | Raw::U64 => DType::I64,
            Raw::U16 | Raw::U32 => DType::U32,
            Raw::U8 | Raw::Bool => DType::U8,
        }
    }

    /// Bytes of a tensor of this shape; `None` when no memory could hold them.
    pub fn bytes(self, shape: &Shape) -> Option<u64> {
        let n = shape.checked_numel().ok()?;
        (n as u64).checked_mul(self.size() as u64)
    }

    /// Reads a tensor in row-major order. `from` must give [`Raw::bytes`] bytes: the caller has compared them with the file.
    ///
    /// # Errors
    /// I/O error when `from` ends early or fails; corrupt-file error for a number that no dtype holds; out of memory.
    pub fn read(self, from: &mut dyn Read, shape: Shape, big_endian: bool) -> Result<Tensor> {
        let array = match self {
            Raw::F64 => fill(from, shape, big_endian, |b| Some(f64::from_le_bytes(b))),
            Raw::F32 => fill(from, shape, big_endian, |b| Some(f32::from_le_bytes(b))),
            Raw::F16 => fill(from, shape, big_endian, |b| Some(f16::from_le_bytes(b))),
            Raw::BF16 => fill(from, shape, big_endian, |b| Some(bf16::from_le_bytes(b))),
            Raw::I8 => fill(from, shape, big_endian, |[b]| Some(i64::from(b as i8))),
            Raw::I16 => fill(from, shape, big_endian, |b| Some(i64::from(i16::from_le_bytes(b)))),
            Raw::I32 => fill(from, shape, big_endian, |b| Some(i64::from(i32::from_le_bytes(b)))),
            Raw::I64 => fill(from, shape, big_endian, |b| Some(i64::from_le_bytes(b))),
            Raw::U8 => fill(from, shape, big_endian, |[b]| Some(b)),
            Raw::U16 => fill(from, shape, big_endian, |b| Some(u32::from(u16::from_le_bytes(b)))),
            Raw::U32 => fill(from, shape, big_endian, |b| Some(u32::from_le_bytes(b))),
            Raw::U64 => fill(from, shape, big_endian, |b| i64::try_from(u64::from_le_bytes(b)).ok()),
            Raw::Bool => fill(from, shape, big_endian, |[b]| Some(u8::from(b != 0))),
        };
        Ok(Tensor::from_array(array?))
    }
}

fn fill<T: Element, const N: usize>(
    from: &mut dyn Read,
    shape: Shape,
    big_endian: bool,
    convert: impl Fn([u8; N]) -> Option<T>,
) -> Result<Array> {
    let mut result = Ok(());
    let array = Array::build::<T>(shape, Device::Cpu, |out| {
        let mut bytes = vec![0; CHUNK];
        result = out.chunks_mut(CHUNK / N).try_for_each(|part| {
            let bytes = &mut bytes[..part.len() * N];
            from.read_exact(bytes).map_err(|e| Error::io("the numbers cannot be read").with_source(e))?;
            for (x, b) in part.iter_mut().zip(bytes.as_chunks::<N>().0) {
                let mut b = *b;
                if big_endian {
                    b.reverse();
                }
                *x = convert(b).ok_or_else(|| Error::corrupt_file("a number is beyond the largest i64"))?;
            }
            Ok(())
        });
    })?;
    result.map(|()| array)
}
