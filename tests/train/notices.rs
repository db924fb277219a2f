//! What is said on stderr about a program that runs and does nothing: seen from outside, in a process of its own.

use cotangent::nn::{Attend, BatchNorm1d, Pass, TransformerConfig, TransformerEncoderLayer};
use cotangent::optim::Sgd;
use cotangent::train::{Loss, Options, Trainer};
use cotangent::{F32, Key, Result, Tensor};

const CHILD: &str = "COTANGENT_NOTICES";

fn trainer(steps: usize) -> Trainer<'static, Tensor, Sgd> {
    let mut t = Trainer::new(Tensor::ones([3], F32).unwrap(), Sgd::new(0.1));
    t.options = Options { steps, ..Options::default() };
    t
}

fn programs(which: &str) -> Result<()> {
    let full = |_: u64| Tensor::ones([2, 3], F32);
    let loss = |w: &Tensor, x: &Tensor, _: Key| x.mul(w)?.square()?.sum(..);
    match which {
        "empty" => trainer(3).run(&|_: u64| Tensor::zeros([0, 3], F32), loss).map(drop),
        "again" => {
            let mut t = trainer(2);
            t.run(&full, loss)?;
            t.run(&full, loss).map(drop)
        }
        "quiet" => {
            let mut t = trainer(0);
            t.options.quiet = true;
            t.run(&full, loss).map(drop)
        }
        "inverted" => {
            let config = TransformerConfig { width: 4, heads: 2, hidden: 4, ..TransformerConfig::default() };
            let layer = TransformerEncoderLayer::new(&config, F32, Key::new(1))?;
            let padding = Tensor::from_slice(&[0u8, 0, 0, 0, 0, 1], [2, 3])?;
            for _ in 0..2 {
                layer.forward_with(&Tensor::ones([2, 3, 4], F32)?, Attend { key_padding: Some(&padding), ..Attend::default() })?;
            }
            Ok(())
        }
        "statistics" | "written" => {
            let mut t = Trainer::new(BatchNorm1d::new(3, F32)?, Sgd::new(0.1));
            t.options = Options { steps: 3, ..Options::default() };
            let written = which == "written";
            let data = |i: u64| Tensor::randn([4, 3], F32, Key::new(i));
            t.run(&data, |norm, x, _| {
                let mut pass = Pass::train();
                let loss = Loss::new(norm.forward_in(x, &mut pass)?.powi(3)?.mean(..)?);
                Ok(if written { loss.pass(pass) } else { loss })
            })
            .map(drop)
        }
        _ => trainer(2).run(&full, loss).map(drop),
    }
}

#[test]
fn programs_that_do_nothing_are_told_so_once() {
    if let Some(which) = std::env::var_os(CHILD) {
        programs(&which.to_string_lossy()).unwrap();
        return;
    }
    for (which, line) in [
        ("empty", Some("step 0: the loss is 0, and so is every gradient: either there is nothing left to learn, or the batch has no rows")),
        ("again", Some("no steps are left: 2 are done")),
        ("inverted", Some("key_padding hides every key of 1 of 2 rows (row 0 is the first)")),
        ("statistics", Some("a pass of training was let go with running statistics that no model got")),
        ("written", None),
        ("quiet", None),
        ("usual", None),
    ] {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "train::notices::programs_that_do_nothing_are_told_so_once", "--nocapture"])
            .env(CHILD, which)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{which}: {said}");
        let lines: Vec<&str> = said.lines().filter(|l| l.starts_with("cotangent: ")).collect();
        assert_eq!(lines.len(), usize::from(line.is_some()), "{which}: {said}");
        assert!(line.is_none_or(|line| lines[0].contains(line)), "{which}: {said}");
    }
}
