//! From stored blocks to `f32`: one function per type, each the reference's arithmetic in the reference's order, so that
//! values are equal bit for bit.
//!
//! A block's layout is above its function, in order of bytes; `d` and `m` are scales in half precision. Two elements
//! share a byte: the low half belongs to the earlier.

use super::types::GgufType;
use half::f16;

/// Elements decoded at a time; a whole number of blocks of every type.
pub(super) const PIECE: usize = 4096;

/// Whether [`decode`] knows a type.
pub(super) fn is_decoded(kind: GgufType) -> bool {
    use GgufType::*;
    matches!(kind, F32 | F16 | BF16 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | IQ4_NL | IQ4_XS)
}

/// Fills `y` from blocks; lengths fit each other. Types that are not [`is_decoded`] leave `y` as it is.
#[inline(always)]
pub(super) fn decode(kind: GgufType, x: &[u8], y: &mut [f32]) {
    use GgufType::*;
    match kind {
        F32 => each(x, y, |x: &[u8; 4], y: &mut [f32; 1]| y[0] = f32::from_le_bytes(*x)),
        F16 => each(x, y, |x: &[u8; 2], y: &mut [f32; 1]| y[0] = f16::from_le_bytes(*x).to_f32()),
        BF16 => each(x, y, |x: &[u8; 2], y: &mut [f32; 1]| y[0] = f32::from_bits(u32::from(u16::from_le_bytes(*x)) << 16)),
        Q4_0 => each(x, y, q4_0),
        Q4_1 => each(x, y, q4_1),
        Q5_0 => each(x, y, q5_0),
        Q5_1 => each(x, y, q5_1),
        Q8_0 => each(x, y, q8_0),
        Q2_K => each(x, y, q2_k),
        Q3_K => each(x, y, q3_k),
        Q4_K => each(x, y, q4_k),
        Q5_K => each(x, y, q5_k),
        Q6_K => each(x, y, q6_k),
        IQ4_NL => each(x, y, iq4_nl),
        IQ4_XS => each(x, y, iq4_xs),
        _ => {}
    }
}

/// Calls `block` for every block of `B` bytes and its `N` elements.
#[inline(always)]
fn each<const B: usize, const N: usize>(x: &[u8], y: &mut [f32], block: impl Fn(&[u8; B], &mut [f32; N])) {
    for (x, y) in x.as_chunks::<B>().0.iter().zip(y.as_chunks_mut::<N>().0) {
        block(x, y);
    }
}

#[inline(always)]
fn half(x: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([x[at], x[at + 1]]).to_f32()
}

/// `d 2 | 4 bits × 32`: y = d·(q − 8). Byte j holds elements j and j + 16.
#[inline(always)]
fn q4_0(x: &[u8; 18], y: &mut [f32; 32]) {
    let d = half(x, 0);
    for j in 0..16 {
        y[j] = (i32::from(x[2 + j] & 15) - 8) as f32 * d;
        y[j + 16] = (i32::from(x[2 + j] >> 4) - 8) as f32 * d;
    }
}

/// `d 2 | m 2 | 4 bits × 32`: y = d·q + m.
#[inline(always)]
fn q4_1(x: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (half(x, 0), half(x, 2));
    for j in 0..16 {
        y[j] = f32::from(x[4 + j] & 15) * d + m;
        y[j + 16] = f32::from(x[4 + j] >> 4) * d + m;
    }
}

/// `d 2 | fifth bits 4 | 4 bits × 32`: y = d·(q − 16).
#[inline(always)]
fn q5_0(x: &[u8; 22], y: &mut [f32; 32]) {
    let d = half(x, 0);
    let high = u32::from_le_bytes([x[2], x[3], x[4], x[5]]);
    for j in 0..16 {
        y[j] = (i32::from(x[6 + j] & 15 | fifth(high, j)) - 16) as f32 * d;
        y[j + 16] = (i32::from(x[6 + j] >> 4 | fifth(high, j + 16)) - 16) as f32 * d;
    }
}

/// `d 2 | m 2 | fifth bits 4 | 4 bits × 32`: y = d·q + m.
#[inline(always)]
fn q5_1(x: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m) = (half(x, 0), half(x, 2));
    let high = u32::from_le_bytes([x[4], x[5], x[6], x[7]]);
    for j in 0..16 {
        y[j] = f32::from(x[8 + j] & 15 | fifth(high, j)) * d + m;
        y[j + 16] = f32::from(x[8 + j] >> 4 | fifth(high, j + 16)) * d + m;
    }
}

/// Bit `i`, in the place of the fifth bit.
#[inline(always)]
fn fifth(high: u32, i: usize) -> u8 {
    ((high >> i & 1) << 4) as u8
}

/// `d 2 | i8 × 32`: y = d·q.
#[inline(always)]
fn q8_0(x: &[u8; 34], y: &mut [f32; 32]) {
    let d = half(x, 0);
    for j in 0..32 {
        y[j] = f32::from(x[2 + j] as i8) * d;
    }
}

/// `scale, offset 4 bits each × 16 | 2 bits × 256 | d 2 | m 2`: y = d·scale·q − m·offset, one scale per 16 elements.
#[inline(always)]
fn q2_k(x: &[u8; 84], y: &mut [f32; 256]) {
    let (d, m) = (half(x, 80), half(x, 82));
    for k in 0..16 {
        let (scale, offset) = (d * f32::from(x[k] & 15), m * f32::from(x[k] >> 4));
        // 32 bytes hold 128 elements: bits 0–1 the first 32, bits 2–3 the next, and so on.
        let (bytes, shift) = (16 + k / 8 * 32 + k % 2 * 16, k % 8 / 2 * 2);
        for l in 0..16 {
            y[16 * k + l] = scale * f32::from(x[bytes + l] >> shift & 3) - offset;
        }
    }
}

/// `third bits 32 | 2 bits × 256 | scales 6 bits × 16 | d 2`: y = d·(scale − 32)·(q − 4).
#[inline(always)]
fn q3_k(x: &[u8; 110], y: &mut [f32; 256]) {
    let d = half(x, 108);
    for k in 0..16 {
        // Low halves in 8 bytes, pairs of high bits in the 4 after.
        let low = if k < 8 { x[96 + k] & 15 } else { x[88 + k] >> 4 };
        let scale = low | (x[104 + k % 4] >> (k / 4 * 2) & 3) << 4;
        let scale = d * (i32::from(scale) - 32) as f32;
        let (bytes, shift) = (32 + k / 8 * 32 + k % 2 * 16, k % 8 / 2 * 2);
        let (high, bit) = (k % 2 * 16, k / 2);
        for l in 0..16 {
            let q = i32::from(x[bytes + l] >> shift & 3) - 4 + i32::from(x[high + l] >> bit & 1) * 4;
            y[16 * k + l] = scale * q as f32;
        }
    }
}

/// Scale and offset `j` of the eight 6-bit pairs that `Q4_K` and `Q5_K` pack into 12 bytes.
#[inline(always)]
fn pair(s: &[u8], j: usize) -> (f32, f32) {
    let (scale, offset) =
        if j < 4 { (s[j] & 63, s[j + 4] & 63) } else { (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4) };
    (f32::from(scale), f32::from(offset))
}

/// `d 2 | m 2 | scales and offsets 12 | 4 bits × 256`: y = d·scale·q − m·offset, one scale per 32 elements.
#[inline(always)]
fn q4_k(x: &[u8; 144], y: &mut [f32; 256]) {
    let (d, m) = (half(x, 0), half(x, 2));
    for k in 0..8 {
        let (scale, offset) = pair(&x[4..16], k);
        let (scale, offset) = (d * scale, m * offset);
        let (bytes, shift) = (16 + k / 2 * 32, k % 2 * 4);
        for l in 0..32 {
            y[32 * k + l] = scale * f32::from(x[bytes + l] >> shift & 15) - offset;
        }
    }
}

/// `d 2 | m 2 | scales and offsets 12 | fifth bits 32 | 4 bits × 256`: as `Q4_K`; bit k of fifth byte l is that of element 32k + l.
#[inline(always)]
fn q5_k(x: &[u8; 176], y: &mut [f32; 256]) {
    let (d, m) = (half(x, 0), half(x, 2));
    for k in 0..8 {
        let (scale, offset) = pair(&x[4..16], k);
        let (scale, offset) = (d * scale, m * offset);
        let (bytes, shift) = (48 + k / 2 * 32, k % 2 * 4);
        for l in 0..32 {
            let q = x[bytes + l] >> shift & 15 | (x[16 + l] >> k & 1) << 4;
            y[32 * k + l] = scale * f32::from(q) - offset;
        }
    }
}

/// `low 4 bits × 256 | high 2 bits × 256 | scales i8 × 16 | d 2`: y = d·scale·(q − 32), one scale per 16 elements.
#[inline(always)]
fn q6_k(x: &[u8; 210], y: &mut [f32; 256]) {
    let d = half(x, 208);
    for k in 0..16 {
        let scale = d * f32::from(x[192 + k] as i8);
        // Of each 128 elements: 64 bytes of low bits, low halves first; 32 bytes of high bits, lowest pair first.
        let (n, part, odd) = (k / 8, k % 8 / 2, k % 2 * 16);
        let (low, low_shift) = (n * 64 + part % 2 * 32 + odd, part / 2 * 4);
        let (high, high_shift) = (128 + n * 32 + odd, part * 2);
        for l in 0..16 {
            let q = x[low + l] >> low_shift & 15 | (x[high + l] >> high_shift & 3) << 4;
            y[16 * k + l] = scale * (i32::from(q) - 32) as f32;
        }
    }
}

/// The 16 levels of `IQ4_NL` and `IQ4_XS`: finer near zero, where weights are.
const LEVELS: [f32; 16] = [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

#[inline(always)]
fn levels(scale: f32, x: &[u8], y: &mut [f32]) {
    for j in 0..16 {
        y[j] = scale * LEVELS[usize::from(x[j] & 15)];
        y[j + 16] = scale * LEVELS[usize::from(x[j] >> 4)];
    }
}

/// `d 2 | 4 bits × 32`: y = d·level(q).
#[inline(always)]
fn iq4_nl(x: &[u8; 18], y: &mut [f32; 32]) {
    levels(half(x, 0), &x[2..], y);
}

/// `d 2 | scales' high 2 bits × 8 | scales' low 4 bits × 8 | 4 bits × 256`: y = d·(scale − 32)·level(q).
#[inline(always)]
fn iq4_xs(x: &[u8; 136], y: &mut [f32; 256]) {
    let d = half(x, 0);
    let high = u16::from_le_bytes([x[2], x[3]]);
    for k in 0..8 {
        let scale = i32::from(x[4 + k / 2] >> (k % 2 * 4) & 15) | i32::from(high >> (2 * k) & 3) << 4;
        levels(d * (scale - 32) as f32, &x[8 + 16 * k..], &mut y[32 * k..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn half_values_decode_to_their_own_value() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let bytes: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
        let mut y = vec![0.0; bits.len()];
        decode(GgufType::F16, &bytes, &mut y);
        assert!(bits.iter().zip(&y).all(|(&b, y)| f16::from_bits(b).is_nan() && y.is_nan() || f16::from_bits(b).to_f32() == *y));
        decode(GgufType::BF16, &bytes, &mut y);
        assert!(bits.iter().zip(&y).all(|(&b, y)| bf16::from_bits(b).is_nan() && y.is_nan() || bf16::from_bits(b).to_f32() == *y));
    }

    #[test]
    fn a_piece_is_whole_blocks_and_every_decoded_type_fills_it() {
        for &kind in GgufType::ALL.iter().filter(|k| is_decoded(**k)) {
            assert_eq!(PIECE % kind.block(), 0, "{kind}");
            // Bytes of 1.0 in half precision everywhere: finite in every type.
            let bytes = vec![0x3c; PIECE / kind.block() * kind.bytes()];
            let mut y = vec![f32::NAN; PIECE];
            decode(kind, &bytes, &mut y);
            assert!(y.iter().all(|y| y.is_finite()), "{kind}");
        }
    }
}
