//! A host program that flushes denormals: what docs/book/numerics.md says of it.

use crate::{F32, Key, Result, Tensor};
use std::arch::asm;

/// Flush to zero, and denormals are zero.
const FLUSH: u32 = 0x8040;

fn register() -> u32 {
    let mut now = 0u32;
    // SAFETY: stores the control register of this thread into a local.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut now, options(nostack, preserves_flags)) };
    now
}

fn set(to: u32) {
    // SAFETY: a value that was read from the register, with two documented bits changed.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const to, options(nostack, preserves_flags)) };
}

/// Values and gradients of ordinary numbers.
fn ordinary() -> Result<Vec<f32>> {
    let x = Tensor::randn([64, 48], F32, Key::new(1))?;
    let w = Tensor::randn([48, 32], F32, Key::new(2))?;
    let (y, g) = crate::value_and_grad(&w, |w| x.matmul(w)?.gelu()?.softmax(-1)?.square()?.sum(..))?;
    let mut out = g.to_vec::<f32>()?;
    out.extend(y.to_vec::<f32>()?);
    Ok(out)
}

#[test]
fn ordinary_numbers_have_the_same_bits_and_the_register_stays() {
    let tiny = Tensor::from_slice(&[1e-40f32; 100], [100]).unwrap();
    let double = || tiny.mul_scalar(2.0).unwrap().to_vec::<f32>().unwrap()[0];
    let before = register();
    assert_eq!(before & FLUSH, 0, "tests run without flushing");
    let (plain, kept) = (ordinary().unwrap(), double());
    set(before | FLUSH);
    let (flushed, lost, after) = (ordinary().unwrap(), double(), register());
    set(before);
    assert_eq!(after & FLUSH, FLUSH, "the register is left as it was");
    assert_eq!(plain.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), flushed.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
    // On the calling thread its setting decides.
    let exact = f32::from_bits(2 * 1e-40f32.to_bits()); // denormals are evenly spaced
    assert_eq!((kept, lost, double()), (exact, 0.0, exact));
}
