//! The one place where code is compiled for more than one level of a processor's instructions.

use std::sync::LazyLock;

/// Detected once: `cpuid` traps inside virtual machines and would cost more than a small kernel.
static ARCH: LazyLock<pulp::Arch> = LazyLock::new(pulp::Arch::new);

/// Runs `f` compiled for the best instruction set of this machine (AVX-512, AVX2 + FMA, NEON, or the baseline).
///
/// `f` must be inlinable to profit: write `dispatch(#[inline(always)] || …)` and call only `#[inline(always)]` functions
/// in it. What is called through a real function call runs at the baseline level (and there `mul_add` is a library call).
/// A level changes speed only: a fused multiply-add rounds once at each of them, so results are the same bits.
///
/// Called by `FnMut`, also where once is enough: a closure that is called by `FnOnce` gets an adapter around it, which is a function of the
/// baseline's level when it is too long to be inlined.
// Plain functions rather than pulp's own dispatch, which compiles some twenty of them for each of hundreds of closures. What is known of
// the processor is still what pulp found.
#[inline]
pub(crate) fn dispatch<R>(f: impl FnMut() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    match *ARCH {
        // SAFETY: pulp names this level on a processor that has these features.
        pulp::Arch::V4(_) => unsafe { avx512(f) },
        // SAFETY: as above.
        pulp::Arch::V3(_) => unsafe { avx2(f) },
        _ => baseline(f),
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        struct Op<F>(F);
        impl<R, F: FnMut() -> R> pulp::WithSimd for Op<F> {
            type Output = R;
            #[inline(always)]
            fn with_simd<S: pulp::Simd>(mut self, _level: S) -> R {
                (self.0)()
            }
        }
        ARCH.dispatch(Op(f))
    }
}

/// The features of pulp's `V4`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt,fxsr,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
fn avx512<R>(mut f: impl FnMut() -> R) -> R {
    f()
}

/// The features of pulp's `V3`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt,fxsr")]
fn avx2<R>(mut f: impl FnMut() -> R) -> R {
    f()
}

/// A function of its own: inlined, it would be repeated in each loop that calls a kernel.
#[cfg(target_arch = "x86_64")]
#[cold]
#[inline(never)]
fn baseline<R>(mut f: impl FnMut() -> R) -> R {
    f()
}

/// [`dispatch`] for what names its vectors.
#[inline]
pub(crate) fn dispatch_with<Op: pulp::WithSimd>(op: Op) -> Op::Output {
    ARCH.dispatch(op)
}
