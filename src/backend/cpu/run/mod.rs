//! How kernels run: on all threads (`par`), on all lanes (`simd`), over operands of any layout (`view`), element by element (`map`),
//! axis by axis (`remap`), and over positions that an operand gives (`index`).

pub(crate) mod index;
pub(crate) mod map;
pub(crate) mod par;
pub(crate) mod remap;
pub(crate) mod simd;
pub(crate) mod view;

#[cfg(target_arch = "x86_64")]
#[cfg(test)]
mod tests {
    use crate::{F32, Key, Result, Tensor, grad};
    use std::arch::asm;

    /// Flush results that are denormal, and take denormal operands for zero.
    const FLUSH: u32 = 0x8040;

    fn control() -> u32 {
        let mut word = 0u32;
        // SAFETY: writes the four bytes of `word`.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack)) };
        word
    }

    fn set_control(word: u32) {
        // SAFETY: reads the four bytes of `word`, which came from the processor but for two defined bits.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack)) };
    }

    /// What a thread computes whose processor flushes denormals.
    fn flushed<T>(f: impl FnOnce() -> T) -> T {
        let before = control();
        set_control(before | FLUSH);
        let y = f();
        let after = control();
        set_control(before);
        assert_eq!(after & FLUSH, FLUSH, "the register is left as it was");
        y
    }

    fn bits(t: &Tensor) -> Result<Vec<u32>> {
        Ok(t.to_vec::<f32>()?.into_iter().map(f32::to_bits).collect())
    }

    /// Denormals are kept, by threads of the pool and by the calling one.
    #[test]
    fn denormals_are_kept() -> Result<()> {
        for n in [3, 1000, 200_000] {
            let x = Tensor::full([n], f64::from(1e-40f32), F32)?;
            let twice = x.add(&x)?;
            assert_eq!(bits(&twice)?, vec![(2.0 * f64::from(1e-40f32)) as f32; n].iter().map(|v| v.to_bits()).collect::<Vec<_>>());
            assert_eq!(bits(&x.mul_scalar(0.5)?)?, vec![(1e-40f32 / 2.0).to_bits(); n]);
            assert_eq!(x.gt_scalar(0.0)?.to_vec::<u8>()?, vec![1; n]);
            assert_eq!(x.max(..)?.item()? as f32, 1e-40);
            assert!(x.sum(..)?.item()? > 0.0 && x.to_f64_vec()?.iter().all(|&v| v > 0.0));
            assert!(Tensor::full([n], -100.0, F32)?.exp()?.to_f64_vec()?.iter().all(|&v| v > 0.0 && v < 1e-43));
        }
        Ok(())
    }

    /// A program that flushes denormals gets the bits of ordinary numbers as any other: elementwise, sums, products, a training step.
    #[test]
    fn ordinary_numbers_have_their_bits_where_denormals_are_flushed() -> Result<()> {
        let run = || -> Result<Vec<Vec<u32>>> {
            let mut all = Vec::new();
            for n in [1000, 200_000] {
                let x = Tensor::randn([n], F32, Key::new(3))?;
                all.extend([bits(&x.exp()?)?, bits(&x.mul(&x)?)?, bits(&x.sum(..)?)?, bits(&x.max(..)?)?, bits(&x.tanh()?)?]);
            }
            for n in [16, 128] {
                let (x, w) = (Tensor::randn([n, n], F32, Key::new(4))?, Tensor::randn([n, n], F32, Key::new(5))?);
                all.extend([bits(&x.matmul(&w)?)?, bits(&x.softmax(-1)?)?, bits(&x.layer_norm(1, None, None, 1e-5)?)?]);
                let g = grad(&w, |w| x.matmul(w)?.tanh()?.square()?.mean(..))?;
                all.push(bits(&g)?);
            }
            Ok(all)
        };
        assert_eq!(flushed(run)?, run()?);
        Ok(())
    }
}
