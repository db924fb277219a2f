//! Element types in bits.

use crate::dtype::DType;
use half::{bf16, f16};

/// The bits of a number in a dtype, lowest first.
pub(crate) fn bits(dtype: DType, value: f64) -> u64 {
    match dtype {
        DType::F64 => value.to_bits(),
        DType::F32 => u64::from((value as f32).to_bits()),
        DType::BF16 => u64::from(bf16::from_f64(value).to_bits()),
        DType::F16 => u64::from(f16::from_f64(value).to_bits()),
        DType::I64 => (value as i64).cast_unsigned(),
        DType::U32 => u64::from(value as u32),
        DType::U8 => u64::from(value as u8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_every_dtype() {
        assert_eq!(bits(DType::F64, 1.0), 0x3ff0 << 48);
        assert_eq!(DType::ALL.map(|d| bits(d, 1.0))[1..], [0x3f80_0000, 0x3f80, 0x3c00, 1, 1, 1]);
        assert_eq!(bits(DType::I64, -2.0), u64::MAX - 1);
    }
}
