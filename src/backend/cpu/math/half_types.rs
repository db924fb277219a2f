//! Conversions between the half types, as bits, and f32, without branches.

/// Bits of a bf16 to f32: exact.
#[inline(always)]
pub(crate) fn bf16_to_f32(h: u16) -> f32 {
    let bits = (h as u32) << 16;
    // A signalling NaN becomes quiet, as in the half crate and in hardware.
    let nan = bits & 0x7fff_ffff > 0x7f80_0000;
    f32::from_bits(if nan { bits | 0x0040_0000 } else { bits })
}

/// f32 to the bits of the nearest bf16, ties to even; NaN stays NaN (quiet).
#[inline(always)]
pub(crate) fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = bits & 0x7fff_ffff > 0x7f80_0000;
    (if nan { (bits >> 16) | 0x0040 } else { rounded }) as u16
}

/// Bits of an f16 to f32: exact. Exponents are rebiased in integers; subnormals are normalised by a float subtraction
/// (Giesen's note *Half to float done quick*).
#[inline(always)]
pub(crate) fn f16_to_f32(h: u16) -> f32 {
    let sign = ((h as u32) & 0x8000) << 16;
    let o = ((h as u32) & 0x7fff) << 13;
    let normal = o + (112 << 23);
    let subnormal = (f32::from_bits(o + (113 << 23)) - f32::from_bits(113 << 23)).to_bits();
    let special = o | if o > 0x7c00 << 13 { 0x7fc0_0000 } else { 0x7f80_0000 };
    let bits = if o < 0x0400 << 13 { subnormal } else { normal };
    let bits = if o >= 0x7c00 << 13 { special } else { bits };
    f32::from_bits(bits | sign)
}

/// f32 to the bits of the nearest f16, ties to even: subnormals rounded by the float adder, overflow to infinity, NaN quiet.
#[inline(always)]
pub(crate) fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let a = bits & 0x7fff_ffff;
    // Adding ½ aligns the last bit of the sum with the last bit of an f16 subnormal, 2⁻²⁴.
    let subnormal = (f32::from_bits(a) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let normal = a.wrapping_add(0xfff + ((a >> 13) & 1)).wrapping_sub(112 << 23) >> 13;
    let h = if a < 113 << 23 { subnormal } else { normal };
    let h = if a >= 0x4780_0000 { 0x7c00 } else { h };
    let h = if a > 0x7f80_0000 { 0x7e00 | ((a >> 13) & 0x3ff) } else { h };
    (h | ((bits >> 16) & 0x8000)) as u16
}
