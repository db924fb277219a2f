//! Which module an op belongs to, told by the parameters it takes: no layer has to report anything.

use crate::tape::Ran;

/// The module whose parameter the op takes: the parameter's path without its last part. `None` without a parameter, or
/// for a parameter at the root.
pub(super) fn of(op: &Ran<'_>) -> Option<String> {
    if op.outputs.iter().all(|y| is_form_of_parameter(op, y.numel())) {
        return None;
    }
    let name = (0..op.inputs.len()).find_map(|i| op.parameter(i))?;
    name.rsplit_once('.').map(|(path, _)| path.to_owned())
}

/// A cast or a permuted parameter is still the parameter, and nobody's result.
fn is_form_of_parameter(op: &Ran<'_>, numel: usize) -> bool {
    op.inputs.len() == 1 && op.inputs[0].numel() == numel && op.is_form()
}
