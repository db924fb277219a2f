//! Files of NumPy, PyTorch, Pillow and spreadsheets become the tensors that those programs say; damaged and hostile ones an error.

use cotangent::io::{CsvFile, CsvOptions, NpzFile, TorchFile, read_idx, read_npy, save_npy};
use cotangent::nn::Linear;
use cotangent::{BF16, DType, F16, F32, F64, I64, Key, Module, Result, Tensor, U8};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/readers").join(name)
}

fn expected() -> serde_json::Map<String, Value> {
    serde_json::from_str(&std::fs::read_to_string(fixture("expected.json")).unwrap()).unwrap()
}

/// A folder of its own for one test.
fn folder(test: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("cotangent-readers-{test}-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn number(value: &Value) -> f64 {
    value.as_str().map_or_else(|| value.as_f64().unwrap(), |text| text.parse().unwrap())
}

#[track_caller]
fn assert_holds(name: &str, x: &Tensor, want: &Value) {
    let shape: Vec<usize> = want["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
    assert_eq!(x.shape().dims(), shape, "{name}");
    let values = want["values"].as_array().unwrap();
    if x.dtype() == I64 {
        let want: Vec<i64> = values.iter().map(|v| v.as_i64().unwrap()).collect();
        assert_eq!(x.to_vec::<i64>().unwrap(), want, "{name}");
    } else {
        let want: Vec<f64> = values.iter().map(number).collect();
        assert_eq!(x.to_f64_vec().unwrap(), want, "{name}");
    }
}

#[test]
fn arrays_of_numpy_hold_what_numpy_says() {
    let mut read = 0;
    for (name, want) in expected().iter().filter(|(n, _)| n.ends_with(".npy")) {
        let x = read_npy(fixture(name)).unwrap();
        let dtype = match name.trim_end_matches(".npy") {
            "f8" | "empty" => F64,
            "f2" => F16,
            "i1" | "i2" | "i4" | "i8" | "u8" | "big_i8" | "one_axis" => I64,
            "u1" | "bool" => U8,
            "u2" | "u4" => DType::U32,
            _ => F32,
        };
        assert_eq!(x.dtype(), dtype, "{name}");
        assert_holds(name, &x, want);
        read += 1;
    }
    assert_eq!(read, 20);
}

#[test]
fn arrays_that_no_tensor_holds_are_refused_by_name() {
    for (name, words) in [
        ("refused_complex.npy", "complex numbers"),
        ("refused_text.npy", "texts"),
        ("refused_object.npy", "Python objects"),
        ("refused_record.npy", "records"),
    ] {
        let e = read_npy(fixture(name)).unwrap_err();
        assert!(e.is_dtype() && e.to_string().contains(words) && e.to_string().contains(name), "{e}");
        assert!(e.to_string().contains("readers.rs"), "the caller's line: {e}");
    }
    let e = read_npy(fixture("refused_u64.npy")).unwrap_err();
    assert!(e.is_corrupt_file() && e.to_string().contains("beyond the largest i64"), "{e}");
    let e = read_npy(fixture("stored.npz")).unwrap_err();
    assert!(e.is_corrupt_file(), "{e}");
    assert!(read_npy(fixture("nowhere.npy")).unwrap_err().is_io());
    assert!(read_npy(fixture("")).unwrap_err().is_io(), "a folder");
}

#[test]
fn saved_arrays_come_back_and_have_numpys_bytes() -> Result<()> {
    let folder = folder("npy");
    for (name, x) in [
        ("f4", Tensor::from_slice(&[1f32, -2., 3., 4., -5., 6.], [2, 3])?),
        ("i8", Tensor::from_slice(&[1i64, -2, 3, 4, -5, 6], [2, 3])?),
        ("one_axis", Tensor::from_slice(&[0i64, 1, 2, 3, 4], [5])?),
        ("scalar", Tensor::scalar(2.5f32)?),
        ("empty", Tensor::zeros([0, 3], F64)?),
    ] {
        let path = folder.join(format!("{name}.npy"));
        save_npy(&path, &x)?;
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(fixture(&format!("{name}.npy"))).unwrap(), "{name}");
    }
    let x = Tensor::randn([3, 4], F16, Key::new(1))?.transpose(0, 1)?;
    save_npy(folder.join("half.npy"), &x)?;
    assert_eq!(read_npy(folder.join("half.npy"))?.to_f64_vec()?, x.to_f64_vec()?);
    let e = save_npy(folder.join("half.npy"), &x.cast(BF16)?).unwrap_err();
    assert!(e.is_dtype() && e.to_string().contains("cast"), "{e}");
    assert_eq!(read_npy(folder.join("half.npy"))?.to_f64_vec()?, x.to_f64_vec()?, "the old file stays");
    std::fs::remove_dir_all(folder).unwrap();
    Ok(())
}

#[test]
fn archives_of_numpy_are_read_by_name() -> Result<()> {
    let want = expected();
    let stored = NpzFile::open(fixture("stored.npz"))?;
    assert!(stored.names().eq(["x", "y"]));
    assert_holds("x", &stored.tensor("x")?, &want["f4.npy"]);
    assert_holds("y", &stored.tensors()?["y"], &want["u1.npy"]);
    let packed = NpzFile::open(fixture("packed.npz"))?;
    assert_holds("x", &packed.tensor("x")?, &want["f4.npy"]);
    assert_holds("zeros", &packed.tensor("zeros")?, &want["packed.npz/zeros"]);
    let e = packed.tensor("z").unwrap_err();
    assert!(e.is_argument() && e.to_string().contains("no array `z`; it has: x, zeros"), "{e}");
    Ok(())
}

#[test]
fn checkpoints_of_pytorch_hold_what_pytorch_says() -> Result<()> {
    let want = expected();
    for file in ["checkpoint.pt", "module.pt", "protocol4.pt"] {
        let read = TorchFile::open(fixture(file))?;
        let names: Vec<&str> = want.keys().filter_map(|k| k.strip_prefix(file)?.strip_prefix('/')).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        assert!(read.names().eq(sorted), "{file}");
        for name in names {
            let x = read.tensor(name)?;
            assert_eq!((x.shape(), x.dtype()), (&read.shape(name)?, read.dtype(name)?), "{file}: {name}");
            assert_holds(name, &x, &want[&format!("{file}/{name}")]);
        }
    }
    let checkpoint = TorchFile::open(fixture("checkpoint.pt"))?;
    assert_eq!(checkpoint.dtype("types.bfloat16")?, BF16);
    assert_eq!(checkpoint.dtype("types.uint16")?, DType::U32);
    let passed: Vec<&str> = checkpoint.passed_over().iter().map(|(n, _)| n.as_str()).collect();
    assert!(passed.contains(&"complex") && passed.contains(&"sparse"), "{:?}", checkpoint.passed_over());
    let e = checkpoint.tensor("model.fc").unwrap_err();
    assert!(e.is_argument() && e.to_string().contains("model.0.weight"), "{e}");
    Ok(())
}

#[test]
fn weights_of_pytorch_go_into_a_model_by_name() -> Result<()> {
    let file = TorchFile::open(fixture("protocol4.pt"))?;
    let mut layer = Linear::new(3, 4, F32, Key::new(1))?;
    let own = file.tensors()?.into_iter().filter_map(|(n, t)| Some((n.strip_prefix("0.")?.to_owned(), t))).collect();
    layer.load_named(&own)?;
    assert_eq!(layer.weight.to_f64_vec()?, file.tensor("0.weight")?.to_f64_vec()?);
    Ok(())
}

#[test]
fn the_format_before_pytorch_1_6_says_how_to_go_on() {
    let e = TorchFile::open(fixture("legacy.pt")).unwrap_err();
    assert!(e.is_corrupt_file() && e.to_string().contains("torch.save(torch.load("), "{e}");
    let e = TorchFile::open(fixture("stored.npz")).unwrap_err();
    assert!(e.is_corrupt_file() && e.to_string().contains("data.pkl"), "{e}");
    assert!(TorchFile::open(fixture("f4.npy")).unwrap_err().is_corrupt_file());
}

/// What happened to `bytes` under `open`: it may be an error of a file, or a value.
fn judge(path: &Path, bytes: &[u8], open: &dyn Fn(&Path) -> Result<()>) {
    std::fs::write(path, bytes).unwrap();
    if let Err(e) = open(path) {
        assert!(e.is_corrupt_file() || e.is_dtype() || e.is_io() || e.is_out_of_memory(), "{e}");
    }
}

/// No prefix of a file is taken for the file, and no changed byte panics.
fn damage(name: &str, open: &dyn Fn(&Path) -> Result<()>) {
    let (bytes, folder) = (std::fs::read(fixture(name)).unwrap(), folder(&name.replace('.', "-")));
    let path = folder.join(name);
    for n in (0..bytes.len()).step_by(1 + bytes.len() / 1500) {
        std::fs::write(&path, &bytes[..n]).unwrap();
        assert!(open(&path).is_err(), "{name} cut to {n} of {} bytes was read", bytes.len());
    }
    for i in (0..bytes.len()).step_by(1 + bytes.len() / 1500) {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[i] ^= flip;
            judge(&path, &bytes, open);
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn damaged_files_are_errors_or_values() {
    damage("fortran.npy", &|p| read_npy(p).map(drop));
    damage("packed.npz", &|p| NpzFile::open(p)?.tensors().map(drop));
    damage("protocol4.pt", &|p| TorchFile::open(p)?.tensors().map(drop));
    damage("module.pt", &|p| TorchFile::open(p)?.tensors().map(drop));
}

#[test]
fn a_changed_number_in_an_archive_is_noticed() {
    let (bytes, folder) = (std::fs::read(fixture("stored.npz")).unwrap(), folder("npz-number"));
    // The first number of `x` is 1.0f32, behind a header of 128 bytes.
    let at = bytes.windows(8).position(|w| w == [0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]).unwrap();
    let mut bytes = bytes;
    bytes[at + 3] ^= 1;
    std::fs::write(folder.join("x.npz"), &bytes).unwrap();
    let e = NpzFile::open(folder.join("x.npz")).unwrap().tensor("x").unwrap_err();
    assert!(e.is_corrupt_file() && e.to_string().contains("damaged"), "{e}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// A zip archive with one stored entry, by hand.
fn zip_of(name: &str, content: &[u8], claimed: u32) -> Vec<u8> {
    let mut crc = !0u32;
    for &b in content {
        crc ^= u32::from(b);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    let (crc, n) = (!crc, content.len() as u32);
    let mut fields = Vec::new();
    fields.extend([20, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    fields.extend(crc.to_le_bytes());
    fields.extend(n.to_le_bytes());
    fields.extend(claimed.to_le_bytes());
    fields.extend((name.len() as u16).to_le_bytes());
    fields.extend([0, 0]);
    let mut zip = b"PK\x03\x04".to_vec();
    zip.extend(&fields);
    zip.extend(name.as_bytes());
    zip.extend(content);
    let start = zip.len() as u32;
    zip.extend(b"PK\x01\x02\x14\x00");
    zip.extend(&fields);
    zip.extend([0; 14]);
    zip.extend(name.as_bytes());
    let size = zip.len() as u32 - start;
    zip.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    zip.extend(size.to_le_bytes());
    zip.extend(start.to_le_bytes());
    zip.extend([0, 0]);
    zip
}

#[test]
fn hostile_pickles_are_refused() {
    let folder = folder("pickles");
    let path = folder.join("x.pt");
    let open = |what: &str, pickle: &[u8]| {
        std::fs::write(&path, zip_of("x/data.pkl", pickle, pickle.len() as u32)).unwrap();
        TorchFile::open(&path).map_err(|e| {
            assert!(e.is_corrupt_file(), "{what}: {e}");
            e.to_string()
        })
    };
    // A command that Python would run is an object without behaviour.
    let run = open("a command", b"\x80\x02cos\nsystem\nU\x04true\x85R.").unwrap();
    assert_eq!(run.passed_over(), [(String::new(), "os.system".to_owned())]);
    // A list that contains itself, and a list of lists of lists.
    assert!(open("itself", b"\x80\x02]q\x00h\x00a.").unwrap_err().contains("contains itself"));
    let deep: Vec<u8> = [&b"\x80\x02"[..], &vec![b']'; 100_000], &vec![b'a'; 99_999], b"."].concat();
    assert!(open("deep", &deep).unwrap_err().contains("contains itself"));
    // Thirty lists, each twice the one before.
    let mut laughs = b"\x80\x02]q\x00".to_vec();
    for i in 0..30u8 {
        laughs.extend([b']', b'q', i + 1, b'h', i, b'a', b'h', i, b'a']);
    }
    laughs.push(b'.');
    assert!(open("laughs", &laughs).unwrap_err().contains("contains itself, or more"));
    assert!(open("empty stack", b"\x80\x02.").unwrap_err().contains("not there"));
    assert!(open("below a mark", b"\x80\x02K\x01(0.").unwrap_err().contains("not there"));
    assert!(open("no such value", b"\x80\x02h\x07.").unwrap_err().contains("never kept"));
    assert!(open("a text of 4 GiB", b"\x80\x02X\xff\xff\xff\xff.").unwrap_err().contains("ends in the middle"));
    assert!(open("no instruction", b"\x80\x02\x07.").unwrap_err().contains("not an instruction"));
    // A tensor of 2⁴⁰ numbers in a storage of one.
    let tensor = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x01tQK\x00\
        \x8a\x06\x00\x00\x00\x00\x00\x01\x85K\x01\x85\x89NtR.";
    assert!(open("beyond its storage", tensor).unwrap_err().contains("is missing"));
    std::fs::write(&path, zip_of("x/data.pkl", b"N.", u32::MAX)).unwrap();
    assert!(TorchFile::open(&path).unwrap_err().is_corrupt_file(), "an entry that grows beyond what packing can do");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn hostile_headers_of_arrays_are_refused() {
    let folder = folder("headers");
    let path = folder.join("x.npy");
    let file = |header: &str, numbers: usize| {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0; numbers]);
        bytes
    };
    for (header, words) in [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4611686018427387904), }", "more than any memory"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }", "not a tuple of sizes"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", "not a tuple of sizes"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", "needs 12 bytes, but 8 follow"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", "needs 4 bytes, but 8 follow"),
        ("{'descr': '<f4', 'fortran_order': Maybe, 'shape': (2,), }", "neither True nor False"),
        ("{'descr': '<f4', 'shape': (2,), }", "is missing"),
        ("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", "occurs twice"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': 1}", "unknown key"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), } import os", "something follows"),
        ("{'descr': '<f4'", "is missing"),
        ("", "is missing"),
    ] {
        std::fs::write(&path, file(header, 8)).unwrap();
        let e = read_npy(&path).unwrap_err();
        assert!(e.is_corrupt_file() && e.to_string().contains(words), "{header}: {e}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn tables_become_numbers_and_classes() -> Result<()> {
    let folder = folder("csv");
    let path = folder.join("x.csv");
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    write("\u{feff}id,\"a, b\",kind\r\n1,0.1, cat\r\n9007199254740993,\"-2e-3\",\"a \"\"dog\"\"\"\r\n");
    let table = CsvFile::open(&path)?;
    assert_eq!(table.names(), ["id", "a, b", "kind"]);
    assert_eq!(table.numbers(&["id"], I64)?.to_vec::<i64>()?, [1, 9007199254740993]);
    assert_eq!(table.numbers(&["a, b"], F32)?.to_vec::<f32>()?, [0.1, -2e-3]);
    assert_eq!(table.texts("kind")?, [" cat", "a \"dog\""]);
    let (y, names) = table.classes("kind")?;
    assert_eq!((y.to_vec::<i64>()?, names), (vec![1, 0], vec!["a \"dog\"".to_owned(), "cat".to_owned()]));
    // 2⁻²⁴ + 2⁻⁵⁴ beyond 1 is nearest to the next f32, and through f64 would round to 1.
    write("1.000000059604644830\n1\n");
    let bare = CsvOptions { header: false, ..CsvOptions::default() };
    assert_eq!(CsvFile::open_with(&path, &bare)?.numbers(&[], F32)?.to_vec::<f32>()?, [1.0 + f32::EPSILON, 1.0]);
    write("a;b\n# a remark\n1;\n;4\n");
    let options = CsvOptions { delimiter: b';', comment: Some(b'#'), missing: vec![String::new()], ..CsvOptions::default() };
    let x = CsvFile::open_with(&path, &options)?.numbers(&[], F64)?.to_vec::<f64>()?;
    assert!(x[0] == 1.0 && x[1].is_nan() && x[2].is_nan() && x[3] == 4.0, "{x:?}");
    write("a,b\n");
    assert_eq!(CsvFile::open(&path)?.numbers(&["b", "a"], F32)?.shape().dims(), [0, 2]);
    std::fs::remove_dir_all(folder).unwrap();
    Ok(())
}

#[test]
fn tables_that_are_none_say_where() -> Result<()> {
    let folder = folder("csv-bad");
    let path = folder.join("x.csv");
    let write = |text: &[u8]| std::fs::write(&path, text).unwrap();
    write(b"a,b\n1,2\n3,\n5,x\n");
    let table = CsvFile::open(&path)?;
    let e = table.numbers(&["b"], F32).unwrap_err();
    assert!(e.is_corrupt_file() && e.to_string().contains("line 3, column `b`: \"\" is not a number of f32; if empty cells"), "{e}");
    assert!(table.numbers(&["c"], F32).unwrap_err().to_string().contains("no column `c`; it has: a, b"));
    for (dtype, cell) in [(U8, "256"), (DType::U32, "-1"), (I64, "1.5"), (I64, "9223372036854775808"), (F32, "1,5")] {
        write(format!("a\n\"{cell}\"\n").as_bytes());
        assert!(CsvFile::open(&path)?.numbers(&[], dtype).unwrap_err().is_corrupt_file(), "{cell} as {dtype}");
    }
    write(b"a,b\n1,2\n3\n");
    let e = CsvFile::open(&path).unwrap_err();
    assert!(e.is_corrupt_file() && e.to_string().contains("line 3 has 1 cells, the first row 2"), "{e}");
    // Empty lines, and both ends of lines, count.
    write(b"a,b\r\n1,2\r\n\r\n3,4,5\r\n");
    let e = CsvFile::open(&path).unwrap_err();
    assert!(e.to_string().contains("line 4 has 3 cells"), "{e}");
    for (text, line) in [(&b"a,b\n1,2\n3,\xff\n"[..], 3), (b"a,\xff\n1,2\n", 1)] {
        write(text);
        let e = CsvFile::open(&path).unwrap_err();
        assert!(e.is_corrupt_file() && e.to_string().contains(&format!("line {line} is not UTF-8")), "{e}");
    }
    // A delimiter that cuts a character in two.
    write("a\u{e9}b\n1\u{e9}2\n".as_bytes());
    let cut = CsvOptions { delimiter: 0xc3, ..CsvOptions::default() };
    assert!(CsvFile::open_with(&path, &cut).unwrap_err().is_corrupt_file());
    let tabs = folder.join("x.tsv");
    std::fs::write(&tabs, "a\tb\n1\t2\n")?;
    assert_eq!(CsvFile::open(&tabs)?.numbers(&["b"], F32)?.to_vec::<f32>()?, [2.0]);
    write(b"a,b\r\n1,2\r\n3,4\r\n5,oops\r\n");
    let e = CsvFile::open(&path)?.numbers(&["b"], F32).unwrap_err();
    assert!(e.to_string().contains("line 4, column `b`: \"oops\""), "{e}");
    write(b"a,a\n1,2\n");
    assert!(CsvFile::open(&path)?.texts("a").unwrap_err().to_string().contains("more than one column `a`"));
    let options = CsvOptions { missing: vec![String::new()], ..CsvOptions::default() };
    assert!(CsvFile::open_with(&path, &options)?.numbers(&[], I64).unwrap_err().is_argument());
    assert!(CsvFile::open(&folder).unwrap_err().is_io());
    std::fs::remove_dir_all(folder).unwrap();
    Ok(())
}

#[cfg(feature = "images")]
mod images {
    use super::*;
    use cotangent::io::{ImageMode, ImageOptions, decode_image, read_image, read_image_with, save_image};

    #[test]
    fn images_hold_the_pixels_of_pillow() -> Result<()> {
        let want = expected();
        let unchanged = ImageOptions { mode: ImageMode::Unchanged, channels_last: true, ..ImageOptions::default() };
        for name in ["rgb.png", "gray.png", "rgba.png", "rgb.bmp", "gray.pgm"] {
            assert_holds(name, &read_image_with(fixture(name), &unchanged)?, &want[name]);
        }
        let gif = ImageOptions { channels_last: true, ..ImageOptions::default() };
        assert_holds("first.gif", &read_image_with(fixture("first.gif"), &gif)?, &want["first.gif"]);
        // Decoders of JPEG may differ by the rounding of their cosine transform and of the colours.
        let jpeg = read_image_with(fixture("smooth.jpg"), &gif)?.to_f64_vec()?;
        let pillow: Vec<f64> = want["smooth.jpg"]["values"].as_array().unwrap().iter().map(number).collect();
        assert_eq!(jpeg.len(), pillow.len());
        assert!(jpeg.iter().zip(&pillow).all(|(a, b)| (a - b).abs() <= 2.0), "a pixel differs by more than 2");
        let x = read_image(fixture("rgb.png"))?;
        assert_eq!((x.shape().dims(), x.dtype()), (&[3, 5, 7][..], U8));
        assert_eq!(x.permute([1, 2, 0])?.to_f64_vec()?, read_image_with(fixture("rgb.png"), &gif)?.to_f64_vec()?);
        let float = read_image_with(fixture("rgb.png"), &ImageOptions { dtype: F32, ..ImageOptions::default() })?;
        let exact: Vec<f32> = x.to_vec::<u8>()?.iter().map(|&b| f32::from(b) / 255.0).collect();
        assert_eq!(float.to_vec::<f32>()?, exact);
        let small = ImageOptions { size: Some([2, 3]), mode: ImageMode::Gray, ..ImageOptions::default() };
        assert_eq!(read_image_with(fixture("smooth.jpg"), &small)?.shape().dims(), [1, 2, 3]);
        Ok(())
    }

    #[test]
    fn saved_images_come_back() -> Result<()> {
        let folder = folder("images");
        let x = read_image(fixture("rgb.png"))?;
        for name in ["x.png", "x.bmp"] {
            save_image(folder.join(name), &x)?;
            assert_eq!(read_image(folder.join(name))?.to_vec::<u8>()?, x.to_vec::<u8>()?);
            save_image(folder.join(name), &x.cast(F32)?.div_scalar(255.0)?)?;
            assert_eq!(read_image(folder.join(name))?.to_vec::<u8>()?, x.to_vec::<u8>()?);
        }
        save_image(folder.join("gray.png"), &x.select(0, 1)?)?;
        assert_eq!(read_image(folder.join("gray.png"))?.select(0, 2)?.to_vec::<u8>()?, x.select(0, 1)?.to_vec::<u8>()?);
        for bad in [save_image(folder.join("x.webp"), &x), save_image(folder.join("x"), &x)] {
            assert!(bad.unwrap_err().is_argument());
        }
        assert!(save_image(folder.join("x.png"), &Tensor::zeros([2, 3, 3], U8)?).unwrap_err().is_shape());
        assert!(save_image(folder.join("x.png"), &Tensor::zeros([0, 3], U8)?).is_err());
        assert!(save_image(folder.join("x.png"), &Tensor::zeros([2, 3], I64)?).unwrap_err().is_dtype());
        assert!(save_image(folder.join("x.png"), &Tensor::full([2, 3], f64::NAN, F32)?).unwrap_err().is_argument());
        assert_eq!(read_image(folder.join("x.png"))?.to_vec::<u8>()?, x.to_vec::<u8>()?, "the old file stays");
        std::fs::remove_dir_all(folder).unwrap();
        Ok(())
    }

    #[test]
    fn damaged_images_are_errors_or_values() {
        for name in ["rgb.png", "smooth.jpg", "rgb.bmp", "first.gif", "gray.pgm"] {
            let bytes = std::fs::read(fixture(name)).unwrap();
            let options = ImageOptions::default();
            let judge = |bytes: &[u8]| {
                if let Err(e) = decode_image(bytes, &options) {
                    assert!(e.is_corrupt_file(), "{name}: {e}");
                }
            };
            (0..bytes.len()).for_each(|n| judge(&bytes[..n]));
            for i in 0..bytes.len() {
                for flip in [0x01, 0x80, 0xff] {
                    let mut bytes = bytes.clone();
                    bytes[i] ^= flip;
                    judge(&bytes);
                }
            }
        }
        assert!(decode_image(b"no image", &ImageOptions::default()).unwrap_err().is_corrupt_file());
        assert!(read_image(fixture("f4.npy")).unwrap_err().to_string().contains("f4.npy"));
    }
}

/// MNIST's format: every type, any number of axes, and files that are not what their header says.
#[test]
fn idx_files_are_read_and_refused() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("cotangent-idx-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("x-idx2-ubyte");
    let file = |kind: u8, extents: &[u32], data: &[u8]| {
        let mut bytes = vec![0, 0, kind, extents.len() as u8];
        bytes.extend(extents.iter().flat_map(|n| n.to_be_bytes()));
        bytes.extend(data);
        std::fs::write(&path, bytes).unwrap();
        read_idx(&path)
    };
    let x = file(0x08, &[2, 1, 3], &[0, 1, 2, 253, 254, 255])?;
    assert_eq!((x.shape().dims(), x.to_vec::<u8>()?), (&[2, 1, 3][..], vec![0, 1, 2, 253, 254, 255]));
    assert_eq!(file(0x09, &[2], &[255, 127])?.to_vec::<i64>()?, [-1, 127]);
    assert_eq!(file(0x0b, &[2], &[255, 254, 1, 0])?.to_vec::<i64>()?, [-2, 256]);
    assert_eq!(file(0x0c, &[1], &[0, 0, 1, 0])?.to_vec::<i64>()?, [256]);
    assert_eq!(file(0x0d, &[1], &1.5f32.to_be_bytes())?.to_vec::<f32>()?, [1.5]);
    assert_eq!(file(0x0e, &[1], &(-2.5f64).to_be_bytes())?.to_vec::<f64>()?, [-2.5]);
    assert_eq!(file(0x08, &[], &[9])?.item()?, 9.0);
    assert_eq!(file(0x08, &[0, 28, 28], &[])?.shape().dims(), [0, 28, 28]);
    let refused = |e: Result<Tensor>, what: &str| {
        let e = e.map(drop).unwrap_err();
        assert!(e.is_corrupt_file() && e.to_string().contains(what) && e.to_string().contains("readers.rs"), "{e}");
    };
    refused(file(0x08, &[2, 2], &[1, 2, 3]), "an array of shape [2, 2] needs 4 bytes, but 3 follow the header");
    refused(file(0x08, &[2], &[1, 2, 3]), "needs 2 bytes, but 3");
    refused(file(0x0d, &[u32::MAX; 4], &[0; 8]), "more than any memory has");
    refused(file(0x0a, &[2], &[1, 2]), "type 0x0a");
    let raw = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        read_idx(&path)
    };
    refused(raw(&[0x1f, 0x8b, 8, 0, 0]), "gunzip");
    refused(raw(&[1, 0, 8, 1]), "does not begin as an IDX file does");
    refused(raw(&[0, 0, 8]), "ends inside its header");
    refused(raw(&[0, 0, 8, 255, 0, 0, 0, 1]), "ends inside its header");
    assert!(read_idx(folder.join("nowhere")).unwrap_err().is_io());
    std::fs::remove_dir_all(&folder).unwrap();
    Ok(())
}
