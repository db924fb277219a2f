//! What most programs use: `use cotangent::prelude::*;`.
//!
//! ```
//! use cotangent::prelude::*;
//!
//! let layer = nn::Linear::new(3, 1, F32, Key::new(1))?;
//! let x = Tensor::randn([8, 3], F32, Key::new(2))?;
//! let (loss, grads) = value_and_grad(&layer, |layer| layer.forward(&x)?.square()?.mean(..))?;
//! assert_eq!(grads.weight.shape(), layer.weight.shape());
//! # let _ = loss;
//! # Ok::<(), cotangent::Error>(())
//! ```

#[doc(hidden)]
pub use crate::QuestionMark;
pub use crate::nn::{self, Layer};
pub use crate::optim::{self, Optimizer};
pub use crate::{BF16, F32, F64, I64};
pub use crate::{Device, Key, Module, Param, Result, Rng, Tensor, grad, module, tensor, value_and_grad};
