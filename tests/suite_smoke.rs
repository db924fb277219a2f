use cotangent::testing::{Config, Report};
#[test]
fn smoke() {
    let mut r = Report::default();
    for e in cotangent::ops::registry() {
        for (seed, limit) in [(0, 3), (1, 8), (2, 40)] { e.check(&Config { seed, limit }, &mut r); }
    }
    for f in &r.failures { println!("{f}"); }
    println!("{} checks", r.counts.values().sum::<u64>());
    assert!(r.failures.is_empty());
}
