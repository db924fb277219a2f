//! From kernel source to machine code: the binary built with the crate, else one cached on disk, else the run-time
//! compiler, else an error that says what to install.

use crate::backend::cuda::abi::Module;
use crate::error::{Error, Result};
use cudarc::nvrtc::{result as nvrtc, sys};
use std::ffi::{CStr, CString};
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Start of every cache file; the checksum of the rest follows.
const MAGIC: &[u8; 8] = b"ctgcubin";

/// Machine code for one module and architecture, and the compiler's log if it ran.
#[derive(Debug)]
pub(crate) struct Binary {
    pub(crate) code: Vec<u8>,
    pub(crate) log: String,
}

fn missing(what: impl Into<String>) -> Error {
    Error::device_unavailable(what)
}

/// Finds the run-time compiler. Its helper library is opened first: it would not find it on its own when it lies in a
/// Python package.
///
/// # Errors
/// Device error that says what to install.
pub(crate) fn compiler() -> Result<(u32, u32)> {
    static FOUND: OnceLock<std::result::Result<(u32, u32), String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        // SAFETY: only asks the loader whether the library can be opened.
        if !unsafe { sys::is_culib_present() } {
            return Err("the CUDA kernels must be compiled, and the run-time compiler libnvrtc was not found: install the CUDA toolkit \
                        (12.0 or newer), or `pip install nvidia-cuda-nvrtc` and put its lib folder on LD_LIBRARY_PATH"
                .to_string());
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes two integers.
        unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result().map_err(|e| format!("libnvrtc does not answer: {e:?}"))?;
        Ok((major as u32, minor as u32))
    });
    found.clone().map_err(missing)
}

/// Compiles a module for `sm_<arch>` (`80`, `90a`).
///
/// # Errors
/// Device error without the compiler; with its log when the source does not compile.
pub(crate) fn compile(module: &Module, arch: &str) -> Result<Binary> {
    compiler()?;
    let source = CString::new(module.source).map_err(|e| missing(format!("kernel source: {e}")))?;
    let name = CString::new(format!("{}.cu", module.stem)).map_err(|e| missing(format!("kernel name: {e}")))?;
    let failed = |e: cudarc::nvrtc::result::NvrtcError| missing(format!("libnvrtc: {e:?}"));
    let program = nvrtc::create_program(&source, Some(&name)).map_err(failed)?;
    let options = options(arch);
    // SAFETY: the program was created above and is destroyed below, after its last use.
    unsafe {
        let compiled = nvrtc::compile_program(program, &options);
        let log = nvrtc::get_program_log(program).map_err(failed)?;
        let log = CStr::from_ptr(log.as_ptr()).to_string_lossy().into_owned();
        if let Err(e) = compiled {
            let _ = nvrtc::destroy_program(program);
            return Err(missing(format!("kernel module {} does not compile for sm_{arch}: {e:?}\n{log}", module.stem)));
        }
        let mut size = 0usize;
        sys::nvrtcGetCUBINSize(program, &raw mut size).result().map_err(failed)?;
        let mut code = vec![0u8; size];
        sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result().map_err(failed)?;
        nvrtc::destroy_program(program).map_err(failed)?;
        Ok(Binary { code, log })
    }
}

fn options(arch: &str) -> Vec<String> {
    vec![
        format!("--gpu-architecture=sm_{arch}"),
        "--std=c++17".into(),
        // Generic lambdas carry no execution space of their own.
        "--device-as-default-execution-space".into(),
        "--ptxas-options=-v".into(),
        "--ptxas-options=--warn-on-spills".into(),
    ]
}

/// Machine code of a module from the cache, else compiled and cached.
///
/// # Errors
/// As [`compile`]. A cache that cannot be read or written is no error: the module is compiled again.
pub(crate) fn cubin(module: &Module, arch: &str) -> Result<Vec<u8>> {
    let path = cache_folder().map(|folder| folder.join(format!("{}-sm_{arch}-{:016x}.cubin", module.stem, key(module, arch))));
    // A FIFO of that name would wait for a writer.
    let there = path.as_ref().filter(|p| p.is_file());
    if let Some(code) = there.and_then(|p| std::fs::read(p).ok()).and_then(unwrap) {
        return Ok(code);
    }
    let code = compile(module, arch)?.code;
    if let Some(path) = path {
        // The cache only saves time: whatever goes wrong here, the code is at hand.
        let _ = store(&path, &code);
    }
    Ok(code)
}

/// Everything that decides the result of a compilation.
fn key(module: &Module, arch: &str) -> u64 {
    let mut h = Fnv::default();
    module.source.hash(&mut h);
    options(arch).hash(&mut h);
    compiler().unwrap_or_default().hash(&mut h);
    env!("CARGO_PKG_VERSION").hash(&mut h);
    h.finish()
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
fn unwrap(file: Vec<u8>) -> Option<Vec<u8>> {
    let rest = file.strip_prefix(MAGIC)?;
    let (sum, code) = rest.split_at_checked(8)?;
    (sum == checksum(code).to_le_bytes()).then(|| code.to_vec())
}

fn store(path: &std::path::Path, code: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().ok_or(std::io::ErrorKind::NotFound)?;
    std::fs::create_dir_all(folder)?;
    // Written aside and renamed, so that no reader ever sees half a file; under a name of its own, since threads compile side by side.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let aside = path.with_extension(format!("{}.{}.tmp", std::process::id(), COUNT.fetch_add(1, Relaxed)));
    let mut file = MAGIC.to_vec();
    file.extend(checksum(code).to_le_bytes());
    file.extend(code);
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
    use super::{MAGIC, checksum, store, unwrap};

    #[test]
    fn damaged_cache_files_are_not_trusted() {
        let folder = std::env::temp_dir().join(format!("cotangent-cache-test-{}", std::process::id()));
        let path = folder.join("k.cubin");
        store(&path, b"machine code").unwrap();
        let file = std::fs::read(&path).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(unwrap(file.clone()).as_deref(), Some(&b"machine code"[..]));
        assert_eq!(unwrap(file[..file.len() - 1].to_vec()), None);
        assert_eq!(unwrap(file[..12].to_vec()), None);
        assert_eq!(unwrap(b"foreign".to_vec()), None);
        let mut changed = file;
        changed[20] ^= 1;
        assert_eq!(unwrap(changed), None);
        assert_eq!(unwrap([&MAGIC[..], &checksum(b"").to_le_bytes()].concat()).as_deref(), Some(&b""[..]));
    }
}
