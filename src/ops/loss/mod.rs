//! Losses: one number for a batch, or one for each example. They share how losses are reduced ([`Reduction`]) and, where the targets
//! are classes, the check of those and their weights.

pub mod bce_with_logits;
pub mod cross_entropy;
pub mod linear_cross_entropy;
pub mod mse_loss;
pub mod nll_loss;
mod reduction;

pub use cross_entropy::soft as soft_cross_entropy;
pub use reduction::Reduction;

/// Options that say the reduction and leave all else as it is.
macro_rules! options_by_reduction {
    ($($options:ty),*) => {$(
        impl From<Reduction> for $options {
            fn from(reduction: Reduction) -> Self {
                Self { reduction, ..Self::default() }
            }
        }
    )*};
}
options_by_reduction!(bce_with_logits::BceWithLogitsOptions, cross_entropy::CrossEntropyOptions, nll_loss::NllLossOptions);
