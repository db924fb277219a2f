//! Tensors and models in files: what is written comes back, and what is damaged is refused with the reason.

use cotangent::io::{ModuleFile, TensorFile, save_safetensors, write_atomically};
use cotangent::nn::{Gpt, GptConfig, Linear};
use cotangent::{DType, Error, F32, F64, I64, Key, Module, Result, Tensor, U32};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A folder for one test, empty at first and removed at its end.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cotangent-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn read_all(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    TensorFile::open(path)?.tensors()
}

#[test]
fn malformed_files_get_the_verdict_of_the_format() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/malformed/safetensors");
    let verdicts: BTreeMap<String, Value> = serde_json::from_slice(&std::fs::read(folder.join("verdicts.json")).unwrap()).unwrap();
    assert!(verdicts.len() >= 38);
    for (name, row) in &verdicts {
        let outcome = read_all(&folder.join(name));
        match row["verdict"].as_str().unwrap() {
            "accept" => drop(outcome.unwrap_or_else(|e| panic!("{name} is legal: {e}"))),
            "reject" => {
                let e = outcome.expect_err(name);
                assert!(e.is_corrupt_file() && e.to_string().contains(name), "{name}: {e}");
            }
            // Either is right; a panic is not.
            "lenient" => drop(outcome),
            other => panic!("{name}: unknown verdict {other}"),
        }
    }
}

#[test]
fn messages_say_what_and_where() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/malformed/safetensors");
    for (name, part) in [
        ("bad_dup_key", "occurs twice"),
        ("bad_dup_key_escaped", "occurs twice"),
        ("bad_truncated", "the file is cut short: the header describes 16 bytes of tensors from byte 72 on, there are 12"),
        ("bad_len_u64max", "the header's length at byte 0 is 18446744073709551615"),
        ("bad_overlap", "invalid offset for tensor `b`"),
        ("bad_lfs_pointer", "Git LFS pointer"),
        ("bad_gguf_magic", "GGUF"),
        ("bad_zip", "zip archive"),
        ("bad_html", "web page"),
        ("bad_7_bytes", "has 7 bytes"),
    ] {
        let e = TensorFile::open(folder.join(format!("{name}.safetensors"))).unwrap_err().to_string();
        assert!(e.contains(part), "{name}: {e}");
    }
    assert!(TensorFile::open(folder.join("nowhere")).unwrap_err().is_io());
    assert!(TensorFile::open(&folder).unwrap_err().is_io());
}

/// Values in every dtype, some of them special; contiguous, transposed, empty and without axes.
fn varied() -> Vec<(String, Tensor)> {
    let mut out = Vec::new();
    for dtype in DType::ALL {
        let values: &[f64] =
            if dtype.is_float() { &[0.0, -0.0, 1.5, f64::INFINITY, -65504.0, 6e-8] } else { &[0.0, 1.0, 2.0, 3.0, 200.0, 255.0] };
        let t = Tensor::from_slice(values, [2, 3]).unwrap().cast(dtype).unwrap();
        out.push((format!("{dtype}.transposed"), t.transpose(0, 1).unwrap()));
        out.push((format!("{dtype}.empty"), t.slice(1, 1..1).unwrap()));
        out.push((format!("{dtype}.scalar"), t.select(0, 0).unwrap().select(0, 2).unwrap()));
        out.push((format!("{dtype}.all"), t));
    }
    out
}

#[test]
fn every_dtype_and_layout_comes_back() {
    let folder = Folder::new("dtypes");
    let tensors = varied();
    let path = folder.join("all.safetensors");
    let named = || tensors.iter().map(|(n, t)| (n.as_str(), t));
    save_safetensors(&path, named(), &[("b", "2"), ("a", "1")]).unwrap();
    let file = TensorFile::open(&path).unwrap();
    assert!(file.names().eq(tensors.iter().map(|(n, _)| n)));
    assert_eq!(file.metadata().iter().map(|(k, v)| format!("{k}{v}")).collect::<String>(), "a1b2");
    for (name, t) in &tensors {
        let back = file.tensor(name).unwrap();
        assert_eq!((back.dtype(), back.shape(), file.dtype(name).unwrap()), (t.dtype(), t.shape(), t.dtype()), "{name}");
        let bits = |t: &Tensor| t.to_f64_vec().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back), bits(t), "{name}");
    }
    // The reference reads the same, and the same content gives the same bytes.
    let bytes = std::fs::read(&path).unwrap();
    let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(reference.tensor("i64.all").unwrap().data()[32], 200);
    save_safetensors(&path, named(), &[("a", "1"), ("b", "2")]).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn other_integer_types_are_widened() {
    let folder = Folder::new("integers");
    let path = folder.join("integers.safetensors");
    let header = |entries: &str, data: &[u8]| {
        let mut bytes = (entries.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(entries.as_bytes());
        bytes.extend_from_slice(data);
        std::fs::write(&path, bytes).unwrap();
    };
    header(
        r#"{"i8":{"dtype":"I8","shape":[1],"data_offsets":[0,1]},"i16":{"dtype":"I16","shape":[1],"data_offsets":[1,3]},"i32":{"dtype":"I32","shape":[1],"data_offsets":[3,7]},"u16":{"dtype":"U16","shape":[1],"data_offsets":[7,9]},"u64":{"dtype":"U64","shape":[1],"data_offsets":[9,17]},"f8":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[17,18]}}"#,
        &[&[0xff][..], &[0xfe, 0xff], &[0xfd, 0xff, 0xff, 0xff], &[0xff, 0xff], &[5, 0, 0, 0, 0, 0, 0, 0], &[1]].concat(),
    );
    let file = TensorFile::open(&path).unwrap();
    let value = |name: &str| (file.tensor(name).unwrap().item().unwrap(), file.tensor(name).unwrap().dtype());
    assert_eq!(value("i8"), (-1.0, I64));
    assert_eq!(value("i16"), (-2.0, I64));
    assert_eq!(value("i32"), (-3.0, I64));
    assert_eq!(value("u16"), (65535.0, U32));
    assert_eq!(value("u64"), (5.0, I64));
    // Only the tensor that has no counterpart is refused.
    let e = file.tensor("f8").unwrap_err();
    assert!(e.is_dtype() && e.to_string().contains("`f8`"), "{e}");
    assert!(file.tensor("gone").unwrap_err().is_argument());
    header(r#"{"u64":{"dtype":"U64","shape":[1],"data_offsets":[0,8]}}"#, &[0xff; 8]);
    assert!(TensorFile::open(&path).unwrap().tensor("u64").unwrap_err().is_corrupt_file());
}

/// Whatever is cut off or changed: an error or values, never a panic.
#[test]
fn no_damage_panics() {
    let folder = Folder::new("damage");
    let path = folder.join("small.safetensors");
    let (a, b) = (Tensor::from_slice(&[1f32, 2.0], [2]).unwrap(), Tensor::from_slice(&[3i64], [1]).unwrap());
    save_safetensors(&path, [("a", &a), ("b", &b)], &[("k", "v")]).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for n in 0..whole.len() {
        std::fs::write(&path, &whole[..n]).unwrap();
        assert!(read_all(&path).unwrap_err().is_corrupt_file(), "cut to {n} bytes");
    }
    let header = whole.len() - 16;
    let mut refused = 0;
    for i in 0..header {
        for change in [1, 0x20, 0x80] {
            let mut bytes = whole.clone();
            bytes[i] ^= change;
            std::fs::write(&path, &bytes).unwrap();
            refused += usize::from(read_all(&path).is_err());
        }
    }
    assert!(refused > 2 * header, "{refused} of {} changes were noticed", 3 * header);
}

#[test]
fn reserved_and_double_names_are_refused_and_the_old_file_stays() {
    let folder = Folder::new("names");
    let path = folder.join("file.safetensors");
    let t = Tensor::scalar(1f32).unwrap();
    save_safetensors(&path, [("good", &t)], &[]).unwrap();
    assert!(save_safetensors(&path, [("__metadata__", &t)], &[]).unwrap_err().is_argument());
    assert!(save_safetensors(&path, [("a", &t), ("a", &t)], &[]).unwrap_err().is_argument());
    let e = write_atomically(&path, |out| {
        out.write_all(b"half of it")?;
        Err(Error::argument("enough"))
    });
    assert!(e.unwrap_err().is_argument());
    assert!(TensorFile::open(&path).unwrap().names().eq(["good"]));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing half-written is left");
    assert!(save_safetensors(folder.join("no/such/folder"), [("a", &t)], &[]).unwrap_err().is_io());
}

#[test]
fn models_are_saved_and_loaded_by_name() {
    let folder = Folder::new("models");
    let path = folder.join("gpt.safetensors");
    let config = GptConfig { vocabulary: 11, context: 8, layers: 2, heads: 2, width: 16, ..GptConfig::default() };
    let gpt = Gpt::new(&config, F32, Key::new(1)).unwrap();
    gpt.save(&path).unwrap();
    let values = |m: &Gpt| m.named_tensors().iter().map(|(_, t)| t.to_f64_vec().unwrap()).collect::<Vec<_>>();

    let mut other = Gpt::new(&config, F32, Key::new(2)).unwrap();
    let report = other.load(&path).unwrap();
    assert!(report.is_complete() && report.converted.is_empty());
    assert_eq!(report.loaded, gpt.names());
    assert_eq!(values(&other), values(&gpt));

    let mut exact = Gpt::new(&config, F64, Key::new(2)).unwrap();
    assert_eq!(exact.load(&path).unwrap().converted.len(), gpt.names().len());
    assert_eq!((values(&exact), exact.names().len()), (values(&gpt), gpt.names().len()));
    assert_eq!(exact.transformer.wte.weight.dtype(), F64);

    // Integers are no weights, whatever their names and shapes.
    let counts = folder.join("counts.safetensors");
    let (weight, bias) = (Tensor::from_slice(&[1i64, 2], [1, 2]).unwrap(), Tensor::from_slice(&[3f32], [1]).unwrap());
    save_safetensors(&counts, [("weight", &weight), ("bias", &bias)], &[]).unwrap();
    let mut linear = Linear::new(2, 1, F32, Key::new(1)).unwrap();
    let before = linear.weight.to_vec::<f32>().unwrap();
    let e = linear.load(&counts).unwrap_err();
    assert!(e.is_dtype() && e.to_string().contains("`weight` is i64 in the file, f32 in the model"), "{e}");
    assert!(e.location().unwrap().file().ends_with("files/safetensors.rs"), "{e}");
    let report = linear.load_partial(&counts).unwrap();
    assert_eq!((report.mistyped.len(), report.loaded), (1, vec!["bias".to_owned()]));
    assert_eq!(linear.weight.to_vec::<f32>().unwrap(), before);

    // Biases are missing, the second block is unexpected, the context differs.
    let smaller = GptConfig { layers: 1, bias: true, context: 4, ..config };
    let mut strict = Gpt::new(&smaller, F32, Key::new(3)).unwrap();
    let before = values(&strict);
    let e = strict.load(&path).unwrap_err();
    assert!(e.is_shape(), "{e}");
    for part in [
        "`transformer.wpe.weight` is [8, 16] in the file, [4, 16] in the model",
        "transformer.h.0.ln_1.bias",
        "transformer.h.1.ln_1.weight",
    ] {
        assert!(e.to_string().contains(part), "{part} is not in: {e}");
    }
    assert_eq!(values(&strict), before, "nothing changes on error");
    let report = strict.load_partial(&path).unwrap();
    assert_eq!((report.misshaped.len(), report.loaded.len()), (1, 8));
    assert_eq!(strict.transformer.wte.weight.to_f64_vec().unwrap(), gpt.transformer.wte.weight.to_f64_vec().unwrap());
}
