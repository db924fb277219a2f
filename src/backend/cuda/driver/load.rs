//! From kernel source to machine code: the binary built with the crate, else one cached on disk, else the run-time
//! compiler, else an error that says what to install.

use super::is_present;
use crate::backend::cuda::abi::Module;
use crate::error::{Error, Result};
use cudarc::nvrtc::{result as nvrtc, sys};
use std::ffi::{CStr, CString};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Start of every cache file; the checksum of the rest follows, then the compiler's version.
const MAGIC: &[u8; 8] = b"ctgcode2";

/// Code for one module and architecture, and the compiler's log if it ran.
#[derive(Debug)]
pub(crate) struct Binary {
    pub(crate) code: Vec<u8>,
    pub(crate) log: String,
    /// Version of the compiler.
    by: (u32, u32),
}

/// What a module is compiled to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Machine code of an architecture: `80`, `90a`.
    Machine(String),
    /// Code for a virtual architecture, which the driver of a later GPU compiles.
    Ptx(u32),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Machine(arch) => write!(f, "sm_{arch}"),
            Target::Ptx(arch) => write!(f, "compute_{arch}"),
        }
    }
}

fn missing(what: impl Into<String>) -> Error {
    Error::device_unavailable(what)
}

/// The run-time compiler: its version, and the architectures that it knows.
#[derive(Clone, Debug)]
pub(crate) struct Compiler {
    version: (u32, u32),
    architectures: Vec<u32>,
}

/// Finds the run-time compiler, when something must be compiled.
///
/// # Errors
/// Device error that says what to install.
pub(crate) fn compiler() -> Result<&'static Compiler> {
    static FOUND: OnceLock<std::result::Result<Compiler, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        // SAFETY: only asks the loader whether the library can be opened.
        if !is_present("nvrtc", || unsafe { sys::is_culib_present() }) {
            let named = if cfg!(windows) { " (13.0 or newer: nvrtc64_130_0.dll on PATH)" } else { " (12.0 or newer)" };
            return Err(format!(
                "the CUDA kernels must be compiled, and the run-time compiler libnvrtc was not found: install the CUDA toolkit{named}, or \
                 `pip install nvidia-cuda-nvrtc` (nvidia-cuda-nvrtc-cu12 for a driver of CUDA 12) and put its lib folder on LD_LIBRARY_PATH"
            ));
        }
        let failed = |e| format!("libnvrtc does not answer: {e:?}");
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: writes three integers, then as many as it said.
        let architectures = unsafe {
            sys::nvrtcVersion(&raw mut major, &raw mut minor).result().map_err(failed)?;
            sys::nvrtcGetNumSupportedArchs(&raw mut count).result().map_err(failed)?;
            let mut list = vec![0; count.max(0) as usize]; // some ten architectures
            sys::nvrtcGetSupportedArchs(list.as_mut_ptr()).result().map_err(failed)?;
            list.into_iter().map(|a| a as u32).collect()
        };
        Ok(Compiler { version: (major as u32, minor as u32), architectures })
    });
    found.as_ref().map_err(|e| missing(e.clone()))
}

/// What a compiler can make for a GPU: its machine code, else what the driver compiles for it. A module for Hopper's own instructions
/// is one for Hopper alone.
///
/// # Errors
/// Device error that says which version is needed.
fn target(hopper: bool, (major, minor): (u32, u32), compiler: &Compiler) -> Result<Target> {
    let arch = 10 * major + minor;
    if compiler.architectures.contains(&arch) {
        return Ok(Target::Machine(if hopper && arch == 90 { "90a".into() } else { arch.to_string() }));
    }
    match compiler.architectures.iter().copied().filter(|&a| (80..arch).contains(&a)).max() {
        Some(older) => Ok(Target::Ptx(older)),
        None => {
            let (v, w) = compiler.version;
            let needed = if arch >= 100 { "12.8" } else { "12.0" };
            Err(missing(format!(
                "libnvrtc {v}.{w} compiles for none of the architectures up to compute capability {major}.{minor}: install version {needed} or newer"
            )))
        }
    }
}

/// Compiles a module.
///
/// # Errors
/// Device error without the compiler; with its log when the source does not compile.
pub(crate) fn compile(module: &Module, target: &Target) -> Result<Binary> {
    let by = compiler()?.version;
    let source = CString::new(module.source.concat()).map_err(|e| missing(format!("kernel source: {e}")))?;
    let name = CString::new(format!("{}.cu", module.stem)).map_err(|e| missing(format!("kernel name: {e}")))?;
    let failed = |e: cudarc::nvrtc::result::NvrtcError| missing(format!("libnvrtc: {e:?}"));
    let program = nvrtc::create_program(&source, Some(&name)).map_err(failed)?;
    let options = options(target);
    // SAFETY: the program was created above and is destroyed below, after its last use.
    unsafe {
        let compiled = nvrtc::compile_program(program, &options);
        let log = nvrtc::get_program_log(program).map_err(failed)?;
        let log = CStr::from_ptr(log.as_ptr()).to_string_lossy().into_owned();
        if let Err(e) = compiled {
            let _ = nvrtc::destroy_program(program);
            return Err(missing(format!("kernel module {} does not compile for {target}: {e:?}\n{log}", module.stem)));
        }
        let mut size = 0usize;
        let code = if let Target::Machine(_) = target {
            sys::nvrtcGetCUBINSize(program, &raw mut size).result().map_err(failed)?;
            let mut code = vec![0u8; size];
            sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result().map_err(failed)?;
            code
        } else {
            // With the NUL at its end, which the driver needs.
            sys::nvrtcGetPTXSize(program, &raw mut size).result().map_err(failed)?;
            let mut code = vec![0u8; size];
            sys::nvrtcGetPTX(program, code.as_mut_ptr().cast()).result().map_err(failed)?;
            code
        };
        nvrtc::destroy_program(program).map_err(failed)?;
        Ok(Binary { code, log, by })
    }
}

fn options(target: &Target) -> Vec<String> {
    let mut list = vec![
        format!("--gpu-architecture={target}"),
        "--std=c++17".into(),
        // Generic lambdas carry no execution space of their own.
        "--device-as-default-execution-space".into(),
    ];
    if let Target::Machine(_) = target {
        list.extend(["--ptxas-options=-v".into(), "--ptxas-options=--warn-on-spills".into()]);
    }
    list
}

/// Compiles a module for a GPU, by the best that the compiler can do for it.
///
/// # Errors
/// As [`compile`].
pub(super) fn compile_for(module: &Module, capability: (u32, u32)) -> Result<(Target, Binary)> {
    let target = target(module.hopper, capability, compiler()?)?;
    let binary = compile(module, &target)?;
    Ok((target, binary))
}

/// Code of a module for a GPU: what `accepts` takes of the cache, else compiled and cached. The compiler is not looked for while the
/// cache serves: code of any version of it does.
///
/// # Errors
/// As [`compile`]; what `accepts` says of compiled code, with what to do about it. A cache that cannot be read or written is no error:
/// the module is compiled again.
pub(crate) fn find<R>(module: &Module, capability: (u32, u32), driver: u32, accepts: impl Fn(&[u8]) -> Result<R>) -> Result<R> {
    let path = cache_folder().map(|folder| folder.join(file_name(module, capability)));
    if let Some(found) = path.as_ref().and_then(|p| read(p)) {
        match accepts(&found.code) {
            // Another driver made it useless: a compiler may know better.
            Err(e) if !e.is_out_of_memory() && compiler().is_ok() => {}
            taken => return taken.map_err(|e| explain(e, module, found.by, driver)),
        }
    }
    let (_, binary) = compile_for(module, capability)?;
    let taken = accepts(&binary.code).map_err(|e| explain(e, module, binary.by, driver))?;
    if let Some(path) = path {
        // The cache only saves time: whatever goes wrong here, the code is loaded.
        let _ = store(&path, &binary.code, binary.by);
    }
    Ok(taken)
}

/// What to do about code that a driver does not load: it loads none of a later CUDA's.
fn explain(e: Error, module: &Module, (major, minor): (u32, u32), driver: u32) -> Error {
    let (its_major, its_minor) = (driver / 1000, driver % 1000 / 10);
    if e.is_out_of_memory() || (major, minor) <= (its_major, its_minor) {
        return e.about(format!("kernel module {}", module.stem));
    }
    missing(format!(
        "kernel module {}: {}; libnvrtc {major}.{minor} compiled it, and the driver is one for CUDA {its_major}.{its_minor}: install a newer \
         driver, or libnvrtc {its_major}.{its_minor} or older (`pip install nvidia-cuda-nvrtc-cu{its_major}`)",
        module.stem,
        e.why()
    ))
}

/// The file of a module in the cache.
fn file_name(module: &Module, (major, minor): (u32, u32)) -> String {
    let mut h = Fnv::default();
    module.source.concat().hash(&mut h);
    options(&Target::Machine(format!("{major}{minor}"))).hash(&mut h);
    env!("CARGO_PKG_VERSION").hash(&mut h);
    format!("{}-sm_{major}{minor}-{:016x}.cubin", module.stem, h.finish())
}

/// What a cache file holds, if it is whole.
fn read(path: &std::path::Path) -> Option<Binary> {
    // A FIFO of that name would wait for a writer.
    unwrap(path.is_file().then(|| std::fs::read(path).ok())??)
}

/// A hash that is the same in every build (the standard library's is not promised to be).
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = (self.0 ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

fn checksum(code: &[u8]) -> u64 {
    let mut h = Fnv::default();
    h.write(code);
    h.finish()
}

/// The code of a cache file, unless it was cut short or changed.
fn unwrap(file: Vec<u8>) -> Option<Binary> {
    let rest = file.strip_prefix(MAGIC)?;
    let (sum, body) = rest.split_first_chunk::<8>()?;
    if *sum != checksum(body).to_le_bytes() {
        return None;
    }
    let (major, rest) = body.split_first_chunk::<4>()?;
    let (minor, code) = rest.split_first_chunk::<4>()?;
    Some(Binary { code: code.to_vec(), log: String::new(), by: (u32::from_le_bytes(*major), u32::from_le_bytes(*minor)) })
}

fn store(path: &std::path::Path, code: &[u8], (major, minor): (u32, u32)) -> std::io::Result<()> {
    let folder = path.parent().ok_or(std::io::ErrorKind::NotFound)?;
    std::fs::create_dir_all(folder)?;
    // Written aside and renamed, so that no reader ever sees half a file; under a name of its own, since threads compile side by side.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let aside = path.with_extension(format!("{}.{}.tmp", std::process::id(), COUNT.fetch_add(1, Relaxed)));
    let body = [&major.to_le_bytes(), &minor.to_le_bytes(), code].concat();
    let mut file = MAGIC.to_vec();
    file.extend(checksum(&body).to_le_bytes());
    file.extend(body);
    // A link of that name is not followed.
    let stored = std::fs::File::create_new(&aside).and_then(|mut f| f.write_all(&file)).and_then(|()| std::fs::rename(&aside, path));
    if stored.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
    stored
}

/// `$COTANGENT_CACHE`, else the user's cache folder.
fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("COTANGENT_CACHE").or_else(|| Some(set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?.join("cotangent")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("cotangent-{name}-test-{}", std::process::id()))
    }

    #[test]
    fn damaged_cache_files_are_not_trusted() {
        let folder = folder("cache");
        let path = folder.join("k.cubin");
        store(&path, b"machine code", (13, 0)).unwrap();
        let file = std::fs::read(&path).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let code = |file: &[u8]| unwrap(file.to_vec()).map(|b| b.code);
        assert_eq!(code(&file).as_deref(), Some(&b"machine code"[..]));
        assert_eq!(code(&file[..file.len() - 1]), None);
        assert_eq!(code(&file[..12]), None);
        assert_eq!(code(b"foreign"), None);
        let mut changed = file;
        changed[20] ^= 1;
        assert_eq!(code(&changed), None);
        assert_eq!(code(&[&MAGIC[..], &checksum(b"").to_le_bytes()].concat()), None);
    }

    /// The name of a cache file depends on nothing that only a compiler knows, and its code serves whatever compiler made it.
    #[test]
    fn a_warm_cache_needs_no_compiler() {
        let module = Module { stem: "k", source: &["no source"], hopper: false, fatbin: None };
        let path = folder("warm").join(file_name(&module, (9, 0)));
        for by in [(12, 1), (13, 0), (99, 9)] {
            store(&path, b"machine code", by).unwrap();
            let found = read(&path).unwrap();
            assert_eq!((found.code.as_slice(), found.by), (&b"machine code"[..], by));
        }
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        assert!(read(&path).is_none());
    }

    #[test]
    fn later_gpus_get_code_that_their_driver_compiles() {
        let old = Compiler { version: (12, 2), architectures: vec![50, 75, 80, 86, 89, 90] };
        let machine = |arch: &str| Target::Machine(arch.into());
        assert_eq!(target(false, (9, 0), &old).unwrap(), machine("90"));
        assert_eq!(target(true, (9, 0), &old).unwrap(), machine("90a"));
        assert_eq!(target(true, (8, 0), &old).unwrap(), machine("80"));
        assert_eq!(target(true, (10, 0), &old).unwrap(), Target::Ptx(90));
        assert_eq!(target(false, (12, 0), &old).unwrap(), Target::Ptx(90));
        assert_eq!(target(false, (8, 7), &old).unwrap(), Target::Ptx(86));
        let e = target(false, (12, 0), &Compiler { version: (9, 0), architectures: vec![70] }).unwrap_err();
        assert!(e.to_string().contains("12.8 or newer"), "{e}");
    }

    #[test]
    fn code_of_a_later_cuda_says_what_to_install() {
        let module = Module { stem: "k", source: &[], hopper: false, fatbin: None };
        let e = || missing("CUDA: no kernel image");
        let later = explain(e(), &module, (13, 0), 12040).to_string();
        assert!(later.contains("libnvrtc 13.0") && later.contains("CUDA 12.4") && later.contains("cu12"), "{later}");
        assert!(!explain(e(), &module, (12, 4), 12040).to_string().contains("install"));
        assert!(explain(Error::out_of_memory("full"), &module, (13, 0), 12040).is_out_of_memory());
    }
}
