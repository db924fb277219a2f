//! Planted faults: what a GPU refuses is refused here.

use super::*;
use crate::backend::cuda::abi::Matrices;

/// A launch in which a thread touches memory that is not there.
unsafe extern "C" fn faulty(_: *const u32, _: usize, _: u32, _: *mut *mut c_void) -> i32 {
    2
}

static FAULTY: Kernel = Kernel { module: 0, name: "a_faulty_kernel", bounds: None, emulated: faulty };
const ONE: Grid = Grid { blocks: [1; 3], threads: 32, shared: 0 };

fn launch(on: &Emulated, grid: Grid) -> Result<()> {
    // SAFETY: the kernel takes no parameters and touches nothing.
    unsafe { on.launch(&FAULTY, grid, &mut [], &[]) }
}

fn gemm(addr: u64) -> Gemm {
    let a = Matrices::new(addr, [1, 1], [1, 1], 1);
    Gemm { dtype: DType::F32, batch: 1, m: 1, n: 1, k: 1, a, b: a, c: addr, plus: Plus::Nothing }
}

#[test]
fn after_a_fault_every_call_says_that_the_process_must_restart() {
    let on = Emulated::new();
    let addr = on.alloc(64).unwrap();
    let (mark, room) = (on.mark().unwrap(), &mut || Ok(()));
    on.begin_capture().unwrap();
    launch(&on, ONE).unwrap();
    let graph = on.end_capture(room).unwrap();
    assert!(launch(&on, ONE).is_err());
    let mut bytes = [0; 4];
    // SAFETY: the block has 64 bytes, and nothing else uses it.
    let calls: Vec<(&str, Result<()>)> = unsafe {
        vec![
            ("alloc", on.alloc(16).map(drop)),
            ("upload", on.upload(addr, &bytes)),
            ("download", on.download(&mut bytes, addr)),
            ("fill", on.fill(addr, 4, 0)),
            ("put", on.put(addr, 4, 0)),
            ("launch", launch(&on, ONE)),
            ("adds_bias", on.adds_bias(&gemm(addr)).map(drop)),
            ("gemm", on.gemm(&gemm(addr))),
            ("synchronize", on.synchronize()),
            ("mark", on.mark().map(drop)),
            ("between", on.between(&mark, &mark).map(drop)),
            ("begin_capture", on.begin_capture()),
            ("replay", graph.replay()),
        ]
    };
    for (name, call) in calls {
        let e = call.expect_err(name);
        assert!(e.is_device_unavailable() && e.to_string().contains("restart it"), "{name}: {e}");
    }
    // SAFETY: the block is not used again.
    unsafe { on.free(addr, 64) };
    // Another device has no part in it.
    assert!(Emulated::new().synchronize().is_ok());
}

#[test]
fn a_launch_that_is_refused_is_no_fault() {
    let on = Emulated::new();
    let e = launch(&on, Grid { shared: 300 << 10, ..ONE }).unwrap_err();
    assert!(e.to_string().contains("dynamic shared memory") && !e.to_string().contains("restart"), "{e}");
    on.synchronize().unwrap();
}

#[test]
fn what_a_capture_does_not_allow_ends_it() {
    let on = Emulated::new();
    let addr = on.alloc(64).unwrap();
    let mut bytes = [0; 4];
    // SAFETY: the block has 64 bytes, and nothing else uses it; what is freed is another one.
    let mut calls: Vec<(&str, Box<dyn FnMut() -> Result<()> + '_>)> = unsafe {
        vec![
            ("from pageable", Box::new(|| on.upload(addr, &[0; 4]))),
            ("to pageable", Box::new(|| on.download(&mut bytes, addr))),
            ("waited for", Box::new(|| on.synchronize())),
            ("a time", Box::new(|| on.mark().map(drop))),
            ("another capture", Box::new(|| on.begin_capture())),
            ("freed", {
                let other = on.alloc(64).unwrap();
                let on = &on;
                Box::new(move || {
                    on.free(other, 64);
                    on.fill(addr, 4, 0)
                })
            }),
        ]
    };
    for (name, call) in &mut calls {
        on.begin_capture().unwrap();
        // SAFETY: as above.
        unsafe { on.fill(addr, 4, 1).unwrap() };
        assert!(call().unwrap_err().to_string().contains(*name), "{name}");
        let e = on.end_capture(&mut || Ok(())).map(drop).unwrap_err();
        assert!(e.to_string().contains(*name) && e.to_string().contains("lost"), "{name}: {e}");
    }
    drop(calls);
    // Taking memory is allowed, and afterwards the device goes on.
    on.begin_capture().unwrap();
    let more = on.alloc(64).unwrap();
    // SAFETY: as above.
    unsafe {
        on.fill(more, 4, 7).unwrap();
        on.end_capture(&mut || Ok(())).unwrap().replay().unwrap();
        on.download(&mut bytes, more).unwrap();
        on.free(more, 64);
        on.free(addr, 64);
    }
    assert_eq!(bytes, [7; 4]);
}

#[test]
fn products_are_held_against_the_librarys_rules() {
    let on = Emulated::new();
    let addr = on.alloc(64).unwrap();
    // SAFETY: the block has 64 bytes; what is refused touches nothing.
    unsafe {
        on.gemm(&gemm(addr)).unwrap();
        let wide = Matrices { addr, row_stride: 1, col_stride: 1, batch_stride: 0 };
        let e = on.gemm(&Gemm { k: 4, a: wide, b: Matrices::new(addr, [4, 1], [1, 1], 0), ..gemm(addr) }).unwrap_err();
        assert!(e.to_string().contains("leading dimension"), "{e}");
        let e = on.gemm(&Gemm { batch: 65_536, ..gemm(addr) }).unwrap_err();
        assert!(e.to_string().contains("65536 matrices"), "{e}");
        on.free(addr, 64);
    }
}
