//! A text continued, token by token.

use super::rules::{Sampler, TokenRules};
use super::sampling::Sampling;
use crate::error::{Error, Result, bail};
use crate::io::at_callers_line;
use crate::memory;
use crate::rng::Key;
use crate::tensor::Tensor;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Continues a prompt by `count` tokens, and returns these. `logits` maps tokens `[1, time]`, the last `context` so far, to logits
/// `[1, time, vocabulary]`; token `i` is drawn with number `i` of the key. Ends early, with what there is, when `stop` is set. The
/// repetition penalty is for all tokens before, the prompt's and those beyond the context among them.
///
/// ```
/// use cotangent::{F32, Key, nn::{Gpt, GptConfig}, train::{Sampling, generate}};
/// let config = GptConfig { vocabulary: 11, context: 8, layers: 1, heads: 2, width: 16, ..GptConfig::default() };
/// let gpt = Gpt::new(&config, F32, Key::new(1))?;
/// let draw = |key| generate(&[1, 2, 3], 20, 8, Sampling::default(), key, &Default::default(), |x| gpt.forward(x, None));
/// assert_eq!(draw(Key::new(7))?, draw(Key::new(7))?);
/// assert_ne!(draw(Key::new(7))?, draw(Key::new(8))?);
/// # Ok::<(), cotangent::Error>(())
/// ```
///
/// # Errors
/// Argument error for an empty prompt, a context of 0 and options out of range; what `logits` and [`Sampling::draw`] return.
#[track_caller]
pub fn generate(
    prompt: &[u32],
    count: usize,
    context: usize,
    sampling: Sampling,
    key: Key,
    stop: &AtomicBool,
    logits: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Vec<u32>> {
    let at = Location::caller();
    let run = || {
        if prompt.is_empty() || context == 0 {
            bail!(argument, "a prompt of at least one token and a context of at least 1 are needed");
        }
        sampling.checked()?;
        let mut tokens = memory::copied(prompt)?;
        let most = prompt.len().saturating_add(count);
        let sampler = Sampler { sampling, rules: &TokenRules::default(), ends: &[], key, prompt: prompt.len(), most };
        while tokens.len() < most && !stop.load(Relaxed) {
            let window: Vec<i64> = memory::try_collect(tokens[tokens.len().saturating_sub(context)..].iter().map(|&t| i64::from(t)))?;
            let x = Tensor::from_slice(&window, [1, window.len()])?;
            let all = logits(&x)?;
            if all.rank() != 3 || all.shape()[0] != 1 || all.shape()[1] != window.len() {
                bail!(shape, "logits must have shape [1, {}, vocabulary] for tokens [1, {0}], found {}", window.len(), all.shape());
            }
            let last = all.select(1, -1)?.to_f64_vec()?;
            let next = sampler.next(&last, &tokens)?;
            memory::push(&mut tokens, next)?;
        }
        Ok(tokens.split_off(prompt.len()))
    };
    run().map_err(|e: Error| at_callers_line(e, "generate", at))
}
