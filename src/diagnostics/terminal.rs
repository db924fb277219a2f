//! Tables for people who look at a terminal.

use super::verdict::Verdict;
use std::fmt::Display;
use std::io::IsTerminal;

const ALL: [Verdict; 6] =
    [Verdict::Healthy, Verdict::Vanishing, Verdict::Exploding, Verdict::Dead, Verdict::Disconnected, Verdict::NonFinite];

/// The text of a report with its verdicts in colour, where standard output is a terminal that takes them: healthy in green, the others in
/// red. Elsewhere (a file, a pipe, `TERM=dumb`) and where `NO_COLOR` is set it is the text itself.
///
/// ```
/// use cotangent::{F32, Key, Tensor, nn::Linear, value_and_grad};
/// use cotangent::diagnostics::{HealthReport, colored};
/// let net = Linear::new(2, 1, F32, Key::new(1))?;
/// let (_, grads) = value_and_grad(&net, |n| n.forward(&Tensor::ones([4, 2], F32)?)?.square()?.mean(..))?;
/// println!("{}", colored(HealthReport::new(&net, &grads)?));
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn colored(report: impl Display) -> String {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
    let text = report.to_string();
    if std::io::stdout().is_terminal() && !set("NO_COLOR") && !dumb { painted(&text) } else { text }
}

/// Escape sequences stand around words at the end of a line, so no column moves.
fn painted(text: &str) -> String {
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        let (row, end) = line.strip_suffix('\n').map_or((line, ""), |row| (row, "\n"));
        match ALL.iter().find_map(|v| Some((row.strip_suffix(v.label())?, v))).filter(|(before, _)| before.ends_with(' ')) {
            Some((before, v)) => {
                let colour = if *v == Verdict::Healthy { "32" } else { "1;31" };
                out.push_str(&format!("{before}\x1b[{colour}m{}\x1b[0m{end}", v.label()));
            }
            None => out.push_str(line),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_painted_and_nothing_else() {
        let table = "layer   last  verdict\na.w   1.0e-3  healthy\nb.healthy 0  DEAD\nc 1 NON-FINITE\nxhealthy\n\nno clipping";
        let expected = "layer   last  verdict\na.w   1.0e-3  \x1b[32mhealthy\x1b[0m\nb.healthy 0  \x1b[1;31mDEAD\x1b[0m\nc 1 \
                        \x1b[1;31mNON-FINITE\x1b[0m\nxhealthy\n\nno clipping";
        assert_eq!(painted(table), expected);
    }
}
