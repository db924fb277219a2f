//! Schedules against PyTorch 2.15's `lr_scheduler`, in f64: the rate of each step, as `optimizer.param_groups[0]['lr']` has it.

use cotangent::optim::{
    CosineAnnealingWarmRestarts, Decay, ExponentialLr, MultiStepLr, OneCycleLr, PolynomialLr, ReduceLrOnPlateau, Schedule, StepLr, Warmup,
    WarmupCosine,
};

fn same(what: &str, s: &dyn Schedule, rates: &[f64]) {
    for (i, r) in rates.iter().enumerate() {
        assert!((s.at(i) - r).abs() <= 1e-15, "{what} at {i}: {} and {r}", s.at(i));
    }
    s.check().unwrap();
}

#[test]
fn functions_of_the_step_are_pytorchs() {
    let lr = 0.1;
    let steps = StepLr { lr, step_size: 3, gamma: 0.5 };
    same("step", &steps, &[0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025, 0.025, 0.025, 0.0125]);
    let milestones = MultiStepLr { lr, milestones: vec![2, 5, 5, 9], gamma: 0.1 };
    same("multi-step", &milestones, &[0.1, 0.1, 0.01, 0.01, 0.01, 1e-4, 1e-4, 1e-4, 1e-4, 1e-5, 1e-5]);
    let falling = [0.1, 0.09000000000000001, 0.08100000000000002, 0.07290000000000002, 0.06561000000000002, 0.05904900000000002];
    same("exponential", &ExponentialLr { lr, gamma: 0.9 }, &falling);
    same("polynomial", &PolynomialLr { lr, end: 5, power: 2.0 }, &[0.1, 0.064, 0.036, 0.016, 0.004, 0.0, 0.0, 0.0]);
    // CosineAnnealingLR(T_max=6, eta_min=0.01), which this one holds at its floor.
    let cosine = [0.1, 0.09397114317029975, 0.07750000000000001, 0.055000000000000014, 0.032500000000000015, 0.01602885682970026, 0.01];
    same("cosine", &WarmupCosine { peak: 0.1, floor: 0.01, warmup: 0, end: 6 }, &cosine);
    #[rustfmt::skip]
    let restarts = [0.1, 0.0775, 0.032500000000000015, 0.1, 0.09397114317029975, 0.0775, 0.05500000000000001, 0.032500000000000015,
        0.01602885682970026, 0.1, 0.09846666218300808, 0.09397114317029975];
    same("restarts", &CosineAnnealingWarmRestarts { lr, period: 3, multiply: 2, floor: 0.01 }, &restarts);
    #[rustfmt::skip]
    let equal = [0.1, 0.08535533905932738, 0.05, 0.014644660940672627, 0.1, 0.08535533905932738, 0.05, 0.014644660940672627, 0.1];
    same("equal restarts", &CosineAnnealingWarmRestarts { lr, period: 4, multiply: 1, floor: 0.0 }, &equal);
}

#[test]
fn one_cycle_is_pytorchs() {
    #[rustfmt::skip]
    let cosine = [0.0040000000000000036, 0.052000000000000005, 0.1, 0.09504846320134738, 0.0811745653949763, 0.06112620219362893,
        0.03887419780637107, 0.0188258346050237, 0.004951936798652629, 4e-07];
    same("cosine", &OneCycleLr::new(0.1, 10), &cosine);
    let lines = OneCycleLr { pct_start: 0.4, linear: true, div_factor: 10.0, final_div_factor: 100.0, ..OneCycleLr::new(0.1, 10) };
    same("lines", &lines, &[0.01, 0.04, 0.07, 0.1, 0.08335, 0.0667, 0.05005, 0.0334, 0.01675, 1e-4, 1e-4, 1e-4]);
    #[rustfmt::skip]
    let three = [0.0040000000000000036, 0.013167184270002533, 0.037167184270002526, 0.06683281572999747, 0.09083281572999748, 0.1,
        0.09083281572999748, 0.06683281572999748, 0.037167184270002526, 0.013167184270002527, 0.004, 0.003879397303047659,
        0.0035321356773493316, 0.0030001, 0.0023474616256983273, 0.0016529383743016728, 0.0010003000000000004, 0.000468264322650668,
        0.00012100269695234054, 4e-07];
    same("three phases", &OneCycleLr { three_phase: true, ..OneCycleLr::new(0.1, 20) }, &three);
    assert!((OneCycleLr::new(0.1, 10).at(1_000_000) - 4e-7).abs() < 1e-20);
    // Without a rise, or of one step.
    same("no rise", &OneCycleLr { pct_start: 0.0, ..OneCycleLr::new(0.1, 10) }, &[0.09755283560345443]);
    assert!(OneCycleLr::new(0.1, 1).at(0).is_finite() && OneCycleLr::new(0.1, 0).at(5).is_finite());
}

fn plateau(mut s: ReduceLrOnPlateau, metrics: &[f64], rates: &[f64]) {
    let mut loaded = s;
    for (i, (m, r)) in metrics.iter().zip(rates).enumerate() {
        s.observe(*m).unwrap();
        assert!((s.at(i) - r).abs() <= 1e-15, "{i}: {} and {r}", s.at(i));
        // As if saved and continued after every evaluation.
        let mut next = ReduceLrOnPlateau { seen: Default::default(), ..loaded };
        next.load_state(&loaded.state()).unwrap();
        next.observe(*m).unwrap();
        assert_eq!(next, s);
        loaded = next;
    }
}

#[test]
fn a_plateau_is_pytorchs() {
    let new = || ReduceLrOnPlateau::new(0.1);
    plateau(
        ReduceLrOnPlateau { patience: 2, factor: 0.5, ..new() },
        &[1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.8, 0.8, 0.8, 0.8],
        &[0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025, 0.025, 0.025, 0.025, 0.0125],
    );
    plateau(
        ReduceLrOnPlateau { higher_is_better: true, patience: 1, cooldown: 2, min_lr: 2e-4, ..new() },
        &[1.0, 2.0, 2.00005, 2.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0],
        &[0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01, 0.001, 0.001, 0.001, 0.001, 0.0002],
    );
    plateau(
        ReduceLrOnPlateau { patience: 1, factor: 0.5, threshold: 0.1, absolute: true, ..new() },
        &[1.0, 0.95, 0.94, 0.93, 0.85, 0.84, 0.83, f64::NAN, f64::NAN, f64::NAN, f64::NAN],
        &[0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.025, 0.025, 0.0125, 0.0125, 0.00625],
    );
    let tiny = [0.1, 0.01, 0.001, 1e-4, 1e-4, 1e-4];
    plateau(ReduceLrOnPlateau { patience: 0, eps: 1e-4, ..new() }, &[1.0; 6], &tiny);
    // A negative loss that stays is no improvement (PyTorch takes it for one).
    let losses = [-1.0, -1.05, -1.2, -1.2, -1.2];
    plateau(ReduceLrOnPlateau { patience: 0, factor: 0.5, threshold: 0.1, ..new() }, &losses, &[0.1, 0.05, 0.05, 0.025, 0.0125]);
    let state = cotangent::optim::State::default();
    assert!(new().load_state(&state).unwrap_err().is_argument());
}

#[test]
fn closures_and_numbers_are_schedules() {
    let boxed: Vec<Box<dyn Schedule>> = vec![Box::new(|step| 1.0 / (step + 1) as f64), Box::new(0.25)];
    assert_eq!([boxed[0].at(3), boxed[1].at(3)], [0.25, 0.25]);
    fn halved(step: usize) -> f64 {
        0.5f64.powi(step as i32)
    }
    assert_eq!(Schedule::at(&halved, 2), 0.25);
    // The same rates are the same run, whatever makes them; others are not.
    let warm = Warmup { peak: 0.1, warmup: 3, decay: Decay::Constant };
    assert_eq!(warm.fingerprint(2000), (|s: usize| warm.at(s)).fingerprint(2000));
    assert_ne!(warm.fingerprint(2000), (|s: usize| 1.01 * warm.at(s)).fingerprint(2000));
    assert_ne!(0.1.fingerprint(1), 0.2.fingerprint(1));
}

#[test]
fn what_is_no_schedule_is_refused_by_name() {
    let lr = 0.1;
    let bad: [(&dyn Schedule, &str); 9] = [
        (&StepLr { lr, step_size: 0, gamma: 0.5 }, "step_size"),
        (&StepLr { lr: -1.0, step_size: 1, gamma: 0.5 }, "lr"),
        (&MultiStepLr { lr, milestones: vec![], gamma: f64::NAN }, "gamma"),
        (&ExponentialLr { lr: f64::INFINITY, gamma: 0.5 }, "lr"),
        (&PolynomialLr { lr, end: 0, power: 1.0 }, "end"),
        (&CosineAnnealingWarmRestarts { lr, period: 0, multiply: 1, floor: 0.0 }, "period"),
        (&OneCycleLr { pct_start: 1.5, ..OneCycleLr::new(lr, 10) }, "pct_start"),
        (&ReduceLrOnPlateau { factor: 1.0, ..ReduceLrOnPlateau::new(lr) }, "factor"),
        (&WarmupCosine { peak: 1e-3, floor: 1e-2, warmup: 1, end: 9 }, "floor"),
    ];
    for (s, name) in bad {
        let e = s.check().unwrap_err();
        assert!(e.is_argument() && e.to_string().contains(name), "{e}");
        for step in [0, 1, 5, usize::MAX] {
            let _ = s.at(step); // no panic
        }
    }
}
