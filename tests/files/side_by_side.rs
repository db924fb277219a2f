//! Siblings of `bad_conditions.rs`: every writer beside itself, and outputs that go away in other ways.

use crate::files::Folder;
use crate::files::bad_conditions::{names, writers};
use crate::train::survives::{self, STEPS, child, child_after, ended, rows_are_complete, tiny, undisturbed, wait_for};
use std::process::Stdio;

/// Two threads write one file by each function that replaces files whole: what lies there afterwards is one of the two, nothing else
/// is left, and no write fails.
#[test]
fn every_writer_beside_itself_leaves_one_whole_file() {
    for (i, (name, write)) in writers().into_iter().enumerate() {
        if name == "csv" || name == "jsonl" {
            continue; // rows are appended: a second process is refused
        }
        let folder = Folder::new(&format!("b1-{name}"));
        let (path, alone) = (folder.join("file"), folder.join("alone"));
        write(&alone).unwrap();
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    let (_, write) = writers().swap_remove(i);
                    (0..20).for_each(|n| write(&path).unwrap_or_else(|e| panic!("{name}, write {n}: {e}")));
                });
            }
        });
        assert_eq!(names(folder.path()), ["alone", "file"], "{name}");
        let (one, two) = (std::fs::read(&path).unwrap(), std::fs::read(&alone).unwrap());
        // Pages and profiles have times in them.
        assert!(!one.is_empty() && (one == two || name.starts_with("write_")), "{name}: {} and {} bytes", one.len(), two.len());
    }
}

/// A run whose error stream is closed, or whose outputs both go away, makes all its steps.
#[test]
fn outputs_that_go_away_cost_no_step() {
    type Way = (&'static str, fn(&std::path::Path) -> std::process::Command, bool, bool);
    let ways: [Way; 4] = [
        ("the error stream goes away", |f| child("watch", f), false, true),
        ("both go away", |f| child("watch", f), true, true),
        ("without an error stream", |f| child_after("exec 2>&-", "watch", f), true, false),
        ("without an input", |f| child_after("exec <&-", "watch", f), true, false),
    ];
    for (what, command, out_goes, err_goes) in ways {
        let folder = Folder::new(&format!("b5-{}", what.replace(' ', "-")));
        let mut c = command(folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = wait_for(&mut c, "step 3");
        if err_goes {
            drop(c.stderr.take());
        }
        let reader = if out_goes {
            drop(out);
            None
        } else {
            Some(std::thread::spawn(|| std::io::read_to_string(out).unwrap()))
        };
        let (code, wrong) = if err_goes { (c.wait().unwrap().code(), String::new()) } else { ended(c) };
        assert_eq!(code, Some(0), "{what}: {wrong}");
        if let Some(reader) = reader {
            let said = reader.join().unwrap();
            assert!(said.contains(&format!("step {}", STEPS - 1)), "{what}: {said}");
        }
        rows_are_complete(folder.path());
        let mut t = tiny(Some(folder.path())).unwrap();
        t.resume().unwrap();
        assert_eq!((t.step(), survives::bits(&t.model)), (STEPS, undisturbed()), "{what}");
    }
}
