//! The engine: the tape, gradients of functions, trees of parameters; what is refused, and how it is said.

mod absent_gradients;
mod advice;
mod api_fuzz;
mod callers_line;
mod custom_vjp;
mod functional;
mod lost_gradients;
#[cfg(target_os = "linux")]
pub mod memory_limits;
mod mistakes;
mod mistakes_edges;
mod mistakes_training;
mod module_macro;
mod modules;
mod named_errors;
mod nesting;
mod refused;
mod sizes;
mod small_methods;
mod tape;

use cotangent::Tensor;

/// A tensor's values in row-major order.
fn values(t: &Tensor) -> Vec<f64> {
    t.to_f64_vec().unwrap()
}

/// As close as the tolerance says, relative to numbers beyond 1.
fn near(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{a} instead of {b}");
    }
}
