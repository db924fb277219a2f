//! Random numbers by counting: the value of element `i` is a pure function of a [`Key`] and `i`.
//!
//! There is no hidden state, so a mask is the same on CPU and GPU, in the forward pass, in the backward pass and when it is
//! recomputed, whatever the number of threads and whichever part is drawn. The generator is Philox 4×32-10 of Salmon,
//! Moraes, Dror & Shaw, *Parallel random numbers: as easy as 1, 2, 3* (SC'11), which passes BigCrush.
//!
//! **One key, one draw.** All methods of a key read the same stream of bits: draw a mask and a normal tensor from two keys,
//! which [`Key::fold`] or [`Rng::next_key`] give.
//!
//! ```
//! use cotangent::{Key, Rng};
//!
//! let mask = Key::new(42).fold(3);            // layer 3
//! let keep: Vec<bool> = (0..8).map(|i| mask.bernoulli(i, 0.9)).collect();
//! assert_eq!(keep[5], mask.bernoulli(5, 0.9)); // again, alone: the same
//!
//! let mut rng = Rng::seed(42);
//! let (weights, noise) = (rng.next_key(), rng.next_key());
//! assert_ne!(weights.uniform_f64(0), noise.uniform_f64(0));
//! ```

use crate::instruction_set::dispatch;
use rayon::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

const MUL0: u32 = 0xD251_1F53;
const MUL1: u32 = 0xCD9E_8D57;
/// Golden ratio and √3 - 1: the key schedule of the paper.
const WEYL0: u32 = 0x9E37_79B9;
const WEYL1: u32 = 0xBB67_AE85;

/// Elements that one parallel task fills; a multiple of every block size, and fixed, though values would not depend on it.
const CHUNK: usize = 1 << 14;

/// Blocks that [`Key::blocks`] makes at a time: enough for four AVX-512 registers a variable.
pub(crate) const BLOCKS: usize = 64;

/// Words that [`Key::words`] makes at a time.
pub(crate) const WORDS: usize = 4 * BLOCKS;

/// Philox 4×32-10: a bijection of 128-bit counters for each 64-bit key.
#[inline(always)]
pub fn philox4x32_10(mut ctr: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = MUL0 as u64 * ctr[0] as u64;
        let p1 = MUL1 as u64 * ctr[2] as u64;
        ctr = [(p1 >> 32) as u32 ^ ctr[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ ctr[3] ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(WEYL0), key[1].wrapping_add(WEYL1)];
    }
    ctr
}

#[inline(always)]
fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

#[inline(always)]
fn join(lo: u32, hi: u32) -> u64 {
    lo as u64 | (hi as u64) << 32
}

/// 24 bits to [0, 1).
#[inline(always)]
fn unit_f32(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1u32 << 24) as f32)
}

/// 53 bits to [0, 1).
#[inline(always)]
fn unit_f64(word: u64) -> f64 {
    (word >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Names a stream of 2⁶⁴ random blocks.
///
/// A block is `philox4x32_10([i_lo, i_hi, stream_lo, stream_hi], [seed_lo, seed_hi])`, so a kernel on any device can compute
/// it from the two words of [`parts`](Key::parts).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    seed: u64,
    stream: u64,
}

/// Calls `f` with the number of each chunk and the chunk, in parallel: compiled once per type, not once per distribution.
fn each_chunk<T: Send>(out: &mut [T], f: &(dyn Fn(usize, &mut [T]) + Sync)) {
    out.par_chunks_mut(CHUNK).enumerate().for_each(|(c, chunk)| f(c, chunk));
}

impl Key {
    /// The first stream of a seed. Neighbouring seeds are as unrelated as distant ones.
    pub fn new(seed: u64) -> Self {
        Self { seed, stream: 0 }
    }

    /// The key with these [`parts`](Key::parts).
    pub fn from_parts(seed: u64, stream: u64) -> Self {
        Self { seed, stream }
    }

    /// `(seed, stream)`: what a kernel needs, and what a checkpoint stores.
    pub fn parts(self) -> (u64, u64) {
        (self.seed, self.stream)
    }

    /// A key derived from this one and a number: a layer, a step, a worker.
    ///
    /// `(data, stream)` is encrypted by Philox under the seed, altered so that it never equals a block that is drawn; the 128
    /// bits are the new seed and stream. Philox is a bijection, so the children of one key never collide; two descendants of
    /// different keys do with probability 2⁻¹²⁸. The order of folds matters.
    #[inline]
    pub fn fold(self, data: u64) -> Key {
        let [d0, d1] = halves(data);
        let [s0, s1] = halves(self.stream);
        // The bits of √2: any constant separates this use of the cipher from `u32x4`.
        let [k0, k1] = halves(self.seed ^ 0x6A09_E667_F3BC_C908);
        let [a, b, c, d] = philox4x32_10([d0, d1, s0, s1], [k0, k1]);
        let child = Key { seed: join(a, b), stream: join(c, d) };
        if TRACING.get() {
            FOLDS.with_borrow_mut(|folds| folds.insert(child, (self, data)));
        }
        child
    }

    /// As many keys as the pattern has places, each for one draw:
    ///
    /// ```
    /// use cotangent::{F32, Key, Tensor};
    /// let [weights, noise, masks] = Key::new(1).split();
    /// assert_ne!(Tensor::randn([3], F32, weights)?.to_vec::<f32>()?, Tensor::randn([3], F32, noise)?.to_vec::<f32>()?);
    /// # let _ = masks;
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// They are none of the keys that [`fold`](Key::fold) gives for small numbers. The first of three is that of two.
    #[must_use]
    pub fn split<const N: usize>(self) -> [Key; N] {
        // The bits of √3: a branch of its own, so that `fold(0)` and the first part differ.
        let branch = self.fold(0xBB67_AE85_84CA_A73B);
        std::array::from_fn(|i| branch.fold(i as u64))
    }

    /// Block `counter` of the stream: 128 random bits.
    #[inline(always)]
    pub fn u32x4(self, counter: u64) -> [u32; 4] {
        let [c0, c1] = halves(counter);
        let [s0, s1] = halves(self.stream);
        philox4x32_10([c0, c1, s0, s1], halves(self.seed))
    }

    /// Word `i` of the stream: four to a block.
    #[inline(always)]
    pub fn u32(self, i: u64) -> u32 {
        self.u32x4(i / 4)[(i % 4) as usize]
    }

    /// Double word `i` of the stream: two to a block.
    #[inline(always)]
    pub fn u64(self, i: u64) -> u64 {
        let b = self.u32x4(i / 2);
        if i.is_multiple_of(2) { join(b[0], b[1]) } else { join(b[2], b[3]) }
    }

    /// Uniform in [0, 1), a multiple of 2⁻²⁴.
    #[inline]
    pub fn uniform_f32(self, i: u64) -> f32 {
        unit_f32(self.u32(i))
    }

    /// Uniform in [0, 1), a multiple of 2⁻⁵³.
    #[inline]
    pub fn uniform_f64(self, i: u64) -> f64 {
        unit_f64(self.u64(i))
    }

    /// True with probability `keep`, to within 2⁻³²; always for 1 and above, never for 0, below, or NaN.
    #[inline]
    pub fn bernoulli(self, i: u64, keep: f64) -> bool {
        (self.u32(i) as u64) < bernoulli_threshold(keep)
    }

    /// Standard normal, by Box & Muller's transform: elements 2j and 2j + 1 are the cosine and the sine of block j.
    ///
    /// It reaches ±8.6. The logarithm and the circular functions come from the `libm` crate, so the value is the same on
    /// every platform.
    pub fn normal(self, i: u64) -> f64 {
        let pair = normal_pair(self.u32x4(i / 2));
        pair[(i % 2) as usize]
    }

    /// Standard normal conditioned on [lo, hi], by inversion: one uniform number a value, so no element needs another try.
    ///
    /// Far tails keep their accuracy (`truncated_normal(i, 10.0, f64::INFINITY)` works) down to ±37, where probabilities
    /// leave the range of f64; beyond, the bound nearest to zero is returned.
    ///
    /// # Panics
    /// When `lo > hi` or either is NaN.
    pub fn truncated_normal(self, i: u64, lo: f64, hi: f64) -> f64 {
        assert!(lo <= hi, "truncated_normal between {lo} and {hi}");
        // In the right tail probabilities crowd towards 1: mirror.
        if lo > 0.0 {
            return -self.truncated_left(i, -hi, -lo);
        }
        self.truncated_left(i, lo, hi)
    }

    fn truncated_left(self, i: u64, lo: f64, hi: f64) -> f64 {
        let (p, q) = (cdf(lo), cdf(hi));
        // Halfway between multiples of 2⁻⁵³: never 0 or 1.
        let u = unit_f64(self.u64(i)) + 0.5 / (1u64 << 53) as f64;
        let target = p + (q - p) * u;
        if target <= 0.0 {
            return hi;
        }
        quantile(target).clamp(lo, hi)
    }

    /// Uniform integer below `n`, without bias: Lemire's multiplication with rejection, whose rare further tries come from
    /// folded keys, so they disturb no other element.
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn below(self, i: u64, n: u64) -> u64 {
        assert!(n > 0, "below(0) has no value");
        let mut key = self;
        // 2⁶⁴ mod n: products whose low half is below it belong to an incomplete round.
        let short = n.wrapping_neg() % n;
        loop {
            let b = key.u32x4(i);
            for word in [join(b[0], b[1]), join(b[2], b[3])] {
                let product = word as u128 * n as u128;
                if product as u64 >= short {
                    return (product >> 64) as u64;
                }
            }
            key = key.fold(0);
        }
    }

    /// `out[j] = uniform_f32(start + j)`, in parallel.
    pub fn fill_uniform_f32(self, start: u64, out: &mut [f32]) {
        self.fill_words(
            start,
            out,
            #[expect(clippy::redundant_closure, reason = "a function as a value is called through a shim of the baseline level")]
            #[inline(always)]
            |w| unit_f32(w),
        );
    }

    /// `out[j] = 1` where `bernoulli(start + j, keep)`, else 0, in parallel.
    pub fn fill_bernoulli(self, start: u64, keep: f64, out: &mut [u8]) {
        self.fill_bernoulli_as(start, keep, out, [0, 1]);
    }

    /// `out[j] = values[bernoulli(start + j, keep)]`, in parallel.
    pub(crate) fn fill_bernoulli_as<T: Copy + Send + Sync>(self, start: u64, keep: f64, out: &mut [T], values: [T; 2]) {
        let threshold = bernoulli_threshold(keep);
        self.fill_words(
            start,
            out,
            #[inline(always)]
            move |w| if (w as u64) < threshold { values[1] } else { values[0] },
        );
    }

    /// `out[j] = uniform_f64(start + j)`, in parallel.
    pub fn fill_uniform_f64(self, start: u64, out: &mut [f64]) {
        self.fill_pairs(
            start,
            out,
            #[expect(clippy::redundant_closure, reason = "a function as a value is called through a shim of the baseline level")]
            #[inline(always)]
            |block| unit_pair(block),
        );
    }

    /// `out[j] = normal(start + j)`, in parallel.
    pub fn fill_normal(self, start: u64, out: &mut [f64]) {
        self.fill_pairs(
            start,
            out,
            #[expect(clippy::redundant_closure, reason = "a function as a value is called through a shim of the baseline level")]
            #[inline(always)]
            |block| normal_pair(block),
        );
    }

    /// `out[2j], out[2j + 1] = pair(block j)`, in parallel: each block is drawn once, many at a time. Simple pairs become vector code,
    /// if `pair` owns what it captures (`move`): behind a reference LLVM takes parameters for something that a store may change.
    pub(crate) fn fill_pairs<T: Copy + Send>(self, start: u64, out: &mut [T], pair: impl Fn([u32; 4]) -> [T; 2] + Sync) {
        each_chunk(out, &|c, chunk: &mut [T]| {
            let at = start.wrapping_add((c * CHUNK) as u64);
            // Up to an even index alone, then both numbers of each block.
            let lead = ((at % 2) as usize).min(chunk.len());
            let (head, body) = chunk.split_at_mut(lead);
            let one = pair(self.u32x4(at / 2));
            head.fill(one[1]);
            let first = at.wrapping_add(lead as u64) / 2;
            dispatch(
                #[inline(always)]
                || {
                    let (mut x, mut y) = ([one[0]; BLOCKS], [one[1]; BLOCKS]);
                    for (j, part) in body.chunks_mut(2 * BLOCKS).enumerate() {
                        let [a, b, c, d] = self.blocks(first.wrapping_add((BLOCKS * j) as u64));
                        // Only the blocks that are asked for: a pair may be costly. Slices of one length need no checks.
                        let n = part.len().div_ceil(2).min(BLOCKS);
                        let (x, y) = (&mut x[..n], &mut y[..n]);
                        let (a, b, c, d) = (&a[..n], &b[..n], &c[..n], &d[..n]);
                        for i in 0..n {
                            [x[i], y[i]] = pair([a[i], b[i], c[i], d[i]]);
                        }
                        let (pairs, last) = part.as_chunks_mut::<2>();
                        for (two, (x, y)) in pairs.iter_mut().zip(x.iter().zip(&*y)) {
                            *two = [*x, *y];
                        }
                        if let ([last], Some(x)) = (last, x.last()) {
                            *last = *x;
                        }
                    }
                },
            );
        });
    }

    /// `out[j] = f(start + j)`, in parallel: for any of the per-element methods.
    ///
    /// ```
    /// # use cotangent::Key;
    /// let key = Key::new(7);
    /// let mut dice = [0; 100];
    /// key.fill_each(0, &mut dice, |i| key.below(i, 6) + 1);
    /// assert!(dice.iter().all(|d| (1..=6).contains(d)));
    /// ```
    pub fn fill_each<T: Send>(self, start: u64, out: &mut [T], f: impl Fn(u64) -> T + Sync) {
        each_chunk(out, &|c, chunk: &mut [T]| {
            let at = start.wrapping_add((c * CHUNK) as u64);
            for (j, x) in chunk.iter_mut().enumerate() {
                *x = f(at.wrapping_add(j as u64));
            }
        });
    }

    /// `out[j] = f(u32(start + j))`, in parallel: some blocks at a time. `f` should own what it captures, as in [`Key::fill_pairs`].
    pub(crate) fn fill_words<T: Copy + Send>(self, start: u64, out: &mut [T], f: impl Fn(u32) -> T + Sync) {
        each_chunk(out, &|c, chunk: &mut [T]| {
            let at = start.wrapping_add((c * CHUNK) as u64);
            let lead = ((at.wrapping_neg() % 4) as usize).min(chunk.len());
            let (head, body) = chunk.split_at_mut(lead);
            for (j, x) in head.iter_mut().enumerate() {
                *x = f(self.u32(at.wrapping_add(j as u64)));
            }
            let first = at.wrapping_add(lead as u64) / 4;
            dispatch(
                #[inline(always)]
                || {
                    let mut words = [0; WORDS];
                    for (j, part) in body.chunks_mut(WORDS).enumerate() {
                        self.words(first.wrapping_add((WORDS / 4 * j) as u64), &mut words);
                        for (x, &w) in part.iter_mut().zip(&words) {
                            *x = f(w);
                        }
                    }
                },
            );
        });
    }

    /// The words of the 64 blocks from `first` on, in the order of the stream.
    #[inline(always)]
    pub(crate) fn words(self, first: u64, out: &mut [u32; WORDS]) {
        let [c0, c1, c2, c3] = self.blocks(first);
        for i in 0..BLOCKS {
            out[4 * i] = c0[i];
            out[4 * i + 1] = c1[i];
            out[4 * i + 2] = c2[i];
            out[4 * i + 3] = c3[i];
        }
    }

    /// The four words of each of the blocks from `first` on. Each round goes over all blocks before the next: inside a run-time
    /// feature level those loops become vector code, where LLVM leaves whole blocks scalar.
    #[inline(always)]
    pub(crate) fn blocks(self, first: u64) -> [[u32; BLOCKS]; 4] {
        const N: usize = BLOCKS;
        let [s0, s1] = halves(self.stream);
        let [mut k0, mut k1] = halves(self.seed);
        let (mut c0, mut c1, mut c2, mut c3) = ([0u32; N], [0u32; N], [s0; N], [s1; N]);
        for i in 0..N {
            [c0[i], c1[i]] = halves(first.wrapping_add(i as u64));
        }
        for _ in 0..10 {
            for i in 0..N {
                let p0 = MUL0 as u64 * c0[i] as u64;
                let p1 = MUL1 as u64 * c2[i] as u64;
                c0[i] = (p1 >> 32) as u32 ^ c1[i] ^ k0;
                c1[i] = p1 as u32;
                c2[i] = (p0 >> 32) as u32 ^ c3[i] ^ k1;
                c3[i] = p0 as u32;
            }
            k0 = k0.wrapping_add(WEYL0);
            k1 = k1.wrapping_add(WEYL1);
        }
        [c0, c1, c2, c3]
    }
}

thread_local! {
    static TRACING: Cell<bool> = const { Cell::new(false) };
    static FOLDS: RefCell<HashMap<Key, (Key, u64)>> = RefCell::default();
}

/// How the keys of a step follow from its own. A step that is replayed with another key derives them anew.
#[derive(Debug, Default)]
pub(crate) struct Folds(HashMap<Key, (Key, u64)>);

impl Folds {
    /// Notes every fold on this thread until [`Folds::stop`].
    pub(crate) fn start() {
        FOLDS.with_borrow_mut(HashMap::clear);
        TRACING.set(true);
    }

    /// What was noted.
    pub(crate) fn stop() -> Self {
        TRACING.set(false);
        Folds(FOLDS.take())
    }

    /// The numbers to fold into `root`, in order, to come to `key`; `None` when it does not stem from there.
    pub(crate) fn path(&self, root: Key, mut key: Key) -> Option<Vec<u64>> {
        let mut path = Vec::new();
        while key != root {
            let &(parent, data) = self.0.get(&key)?;
            path.push(data);
            key = parent;
        }
        path.reverse();
        Some(path)
    }
}

/// Words below this are kept: `keep` · 2³², rounded. The cast saturates, and makes NaN 0.
#[inline]
pub(crate) fn bernoulli_threshold(keep: f64) -> u64 {
    (keep * 4_294_967_296.0).round_ties_even() as u64
}

/// Two uniform numbers in [0, 1), of 53 bits, from one block.
#[inline(always)]
pub(crate) fn unit_pair(b: [u32; 4]) -> [f64; 2] {
    [unit_f64(join(b[0], b[1])), unit_f64(join(b[2], b[3]))]
}

/// Box & Muller from one block: the radius from the first 53 bits, in (0, 1] so that the logarithm is finite; the angle from
/// the next, its octant split off in integers so that cosine and sine only see small, exact angles.
pub(crate) fn normal_pair(b: [u32; 4]) -> [f64; 2] {
    let u = ((join(b[0], b[1]) >> 11) + 1) as f64 * (1.0 / (1u64 << 53) as f64);
    let radius = libm::sqrt(-2.0 * libm::log(u));
    let turn = join(b[2], b[3]);
    // Two bits choose the quadrant; the rest, centred, is an angle within ±π/4.
    let quadrant = turn >> 62;
    let rest = ((turn << 2) as i64 >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
    let angle = rest * std::f64::consts::FRAC_PI_2;
    let (s, c) = (libm::sin(angle), libm::cos(angle));
    let (c, s) = match quadrant {
        0 => (c, s),
        1 => (-s, c),
        2 => (-c, -s),
        _ => (s, -c),
    };
    [radius * c, radius * s]
}

/// Standard normal distribution function.
fn cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// Its inverse for 0 < p < 1: a rational start (Hastings; Abramowitz & Stegun 26.2.23, error 4.5e-4), then Halley's method,
/// which triples the digits: two steps reach f64.
fn quantile(p: f64) -> f64 {
    let left = p.min(1.0 - p);
    let t = libm::sqrt(-2.0 * libm::log(left));
    let start = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
    let mut x = if p < 0.5 { -start } else { start };
    for _ in 0..3 {
        // (Φ(x) - p) / φ(x)
        let step = (cdf(x) - p) * 2.506_628_274_631_000_5 * libm::exp(0.5 * x * x);
        x -= step / (1.0 + 0.5 * x * step);
    }
    x
}

/// Hands out keys in sequence: the one piece of state, small enough for a checkpoint.
///
/// ```
/// # use cotangent::Rng;
/// let mut rng = Rng::seed(1);
/// rng.next_key();
/// let saved = rng.state();
/// let next = rng.next_key();
/// assert_eq!(Rng::from_state(saved).next_key(), next);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng {
    key: Key,
    counter: u64,
}

impl Rng {
    /// Starts the sequence of a seed.
    pub fn seed(seed: u64) -> Self {
        Self { key: Key::new(seed), counter: 0 }
    }

    /// Starts the sequence of a key, e.g. one worker's.
    pub fn from_key(key: Key) -> Self {
        Self { key, counter: 0 }
    }

    /// A key that this sequence has not given before.
    pub fn next_key(&mut self) -> Key {
        let key = self.key.fold(self.counter);
        self.counter += 1;
        key
    }

    /// Seed, stream and number of keys given.
    pub fn state(&self) -> [u64; 3] {
        [self.key.seed, self.key.stream, self.counter]
    }

    /// Continues from a saved [`state`](Rng::state).
    pub fn from_state([seed, stream, counter]: [u64; 3]) -> Self {
        Self { key: Key { seed, stream }, counter }
    }
}

/// The next key of a sequence: constructors of layers take `&mut rng` where they take a key, and nobody counts.
///
/// ```
/// use cotangent::{F32, Result, Rng, Tensor, nn::{Activation, Layer, Linear}};
/// let mut rng = Rng::seed(1);
/// let net = (Linear::new(4, 4, F32, &mut rng)?, Activation::Relu, Linear::new(4, 4, F32, &mut rng)?);
/// assert_ne!(net.0.weight.to_vec::<f32>()?, net.2.weight.to_vec::<f32>()?);
///
/// /// In a function that is lent the sequence, ask it for the key.
/// fn pair(rng: &mut Rng) -> Result<(Linear, Linear)> {
///     Ok((Linear::new(4, 4, F32, rng.next_key())?, Linear::new(4, 4, F32, rng.next_key())?))
/// }
/// # pair(&mut rng)?;
/// # Ok::<(), cotangent::Error>(())
/// ```
impl From<&mut Rng> for Key {
    fn from(rng: &mut Rng) -> Key {
        rng.next_key()
    }
}

#[cfg(test)]
#[path = "rng_tests.rs"]
mod tests;
