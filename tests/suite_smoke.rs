use cotangent::testing::{Config, Report};
#[test]
fn smoke() {
    let mut r = Report::default();
    for e in cotangent::ops::registry() {
        for (seed, limit) in [(0, 3), (1, 8), (2, 20)] {
            let t = std::time::Instant::now();
            e.check(&Config { seed, limit, quick: true }, &mut r);
            if t.elapsed().as_secs_f64() > 0.3 { println!("{} limit {limit}: {:?}", e.name, t.elapsed()); }
        }
    }
    for f in &r.failures { println!("{f}"); }
    println!("{}", r.table());
    for m in r.missing(&cotangent::ops::registry()) { println!("{m}"); }
    assert!(r.failures.is_empty());
}
