//! A word for whoever forgets `?` where the compiler would speak of iterators. Layer L3.

use crate::error::Result;
use crate::tensor::Tensor;

/// Never satisfied: what it says is what it is for.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "this is a `Result`, not a `Tensor`: `?` is missing before the method",
    label = "put `?` before this method: `x.square()?.sum(..)?`",
    note = "every method of a tensor that can fail returns a `Result`"
)]
pub trait Unwrapped {}

/// The methods of tensors whose names are also those of iterators: without this, the compiler's advice after a forgotten `?` is
/// `.into_iter()`.
#[doc(hidden)]
pub trait QuestionMark: Sized {
    /// `?` is missing.
    fn sum<A>(self, axes: A) -> Result<Tensor>
    where
        Self: Unwrapped;
    /// `?` is missing.
    fn max<A>(self, axes: A) -> Result<Tensor>
    where
        Self: Unwrapped;
    /// `?` is missing.
    fn min<A>(self, axes: A) -> Result<Tensor>
    where
        Self: Unwrapped;
    /// `?` is missing.
    fn any<A>(self, axes: A) -> Result<Tensor>
    where
        Self: Unwrapped;
    /// `?` is missing.
    fn all<A>(self, axes: A) -> Result<Tensor>
    where
        Self: Unwrapped;
}

// What cannot be called needs no body that does something: `Unwrapped` has no implementation.
impl QuestionMark for Result<Tensor> {
    fn sum<A>(self, _: A) -> Result<Tensor> {
        self
    }
    fn max<A>(self, _: A) -> Result<Tensor> {
        self
    }
    fn min<A>(self, _: A) -> Result<Tensor> {
        self
    }
    fn any<A>(self, _: A) -> Result<Tensor> {
        self
    }
    fn all<A>(self, _: A) -> Result<Tensor> {
        self
    }
}
