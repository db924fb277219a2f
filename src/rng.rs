//! temporary
#[derive(Clone, Copy, Debug)]
pub struct Key(u64);
fn mix(mut z: u64) -> u64 { z = z.wrapping_add(0x9E3779B97F4A7C15); z = (z ^ (z >> 30)).wrapping_mul(0xBF58476D1CE4E5B9); z = (z ^ (z >> 27)).wrapping_mul(0x94D049BB133111EB); z ^ (z >> 31) }
impl Key {
    pub fn new(s: u64) -> Self { Key(mix(s)) }
    pub fn fold(self, i: u64) -> Self { Key(mix(self.0 ^ mix(i))) }
    pub fn uniform_f64(&self, i: u64) -> f64 { (mix(self.0 ^ mix(i + 77)) >> 11) as f64 / (1u64 << 53) as f64 }
    pub fn normal(&self, i: u64) -> f64 { (-2.0 * (1.0 - self.uniform_f64(2 * i)).ln()).sqrt() * (std::f64::consts::TAU * self.uniform_f64(2 * i + 1)).cos() }
    pub fn below(&self, i: u64, n: u64) -> u64 { (self.uniform_f64(i) * n as f64) as u64 }
}
pub struct Rng;
