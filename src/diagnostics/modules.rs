//! Which module an op belongs to: it follows from the parameters that it takes, so no layer has to report anything.

use crate::tape::Ran;

/// The module whose parameter the op takes: the parameter's path without its last part. `None` without a parameter, or
/// for a parameter at the root.
pub(super) fn of(op: &Ran<'_>) -> Option<String> {
    parameter(op)?.rsplit_once('.').map(|(path, _)| path.to_owned())
}

/// The same, with [`ROOT`] for a parameter at the root.
pub(super) fn or_root(op: &Ran<'_>) -> Option<String> {
    let name = parameter(op)?;
    Some(name.rsplit_once('.').map_or(ROOT, |(path, _)| path).to_owned())
}

/// How a [`Trace`](super::Trace) calls the tree itself, whose parameters have no path. No field can have this name.
pub(super) const ROOT: &str = "(root)";

/// The name of the parameter that the op takes, unless it only gives the parameter another form.
fn parameter(op: &Ran<'_>) -> Option<String> {
    if op.outputs.iter().all(|y| is_form_of_parameter(op, y.numel())) {
        return None;
    }
    (0..op.inputs.len()).find_map(|i| op.parameter(i))
}

/// A cast or a permuted parameter is still the parameter, and nobody's result.
fn is_form_of_parameter(op: &Ran<'_>, numel: usize) -> bool {
    op.inputs.len() == 1 && op.inputs[0].numel() == numel && op.is_form()
}
