//! Files with very many parts, and what becomes several times as large as its file, when memory ends: `Ok` or `Err`, never the end of
//! the process.

use crate::engine::memory_limits::{Call, calls_end_at};
use cotangent::io::{CsvFile, GgufFile, ModelConfig, NpzFile, TensorFile, TorchFile, read_npy};
use cotangent::train::{Bytes, Characters, Snapshot, Tokenizer, Tokens};
use cotangent::{Error, F64, Result};
use std::fmt::Write;
use std::path::Path;

fn write(path: &Path, content: impl AsRef<[u8]>) {
    std::fs::write(path, content).unwrap();
}

/// One text of many.
fn many(n: usize, one: impl Fn(&mut String, usize)) -> String {
    let mut all = String::new();
    for i in 0..n {
        one(&mut all, i);
    }
    all
}

fn safetensors(header: &str, content: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + content, 0);
    bytes
}

/// An archive of entries that are not compressed.
fn zip<'a>(entries: impl IntoIterator<Item = (String, &'a [u8])>) -> Vec<u8> {
    let (mut out, mut list, mut n) = (Vec::new(), Vec::new(), 0u16);
    for (name, content) in entries {
        let mut crc = u32::MAX;
        for b in content {
            crc ^= u32::from(*b);
            (0..8).for_each(|_| crc = crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg()));
        }
        let at = (out.len() as u32).to_le_bytes();
        let size = (content.len() as u32).to_le_bytes();
        let mut about = vec![10, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
        about.extend((!crc).to_le_bytes());
        about.extend([size, size].concat());
        about.extend((name.len() as u16).to_le_bytes());
        about.extend([0; 2]);
        out.extend(b"PK\x03\x04");
        out.extend(&about);
        out.extend(name.as_bytes());
        out.extend(content);
        list.extend(b"PK\x01\x02\x0a\x00");
        list.extend(&about);
        list.extend([0; 10]);
        list.extend(at);
        list.extend(name.as_bytes());
        n += 1;
    }
    let (size, at) = ((list.len() as u32).to_le_bytes(), (out.len() as u32).to_le_bytes());
    out.extend(list);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([n.to_le_bytes(), n.to_le_bytes()].concat());
    out.extend([size, at].concat());
    out.extend([0; 2]);
    out
}

fn pickle(parts: &[&[u8]]) -> Vec<u8> {
    zip([("a/data.pkl".to_owned(), &parts.concat()[..])])
}

fn calls(folder: &Path) -> Vec<Call> {
    let file = |name: &str| folder.join(name);
    let tensors = many(12_000, |s, i| write!(s, r#""t{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}},"#, i + 1).unwrap());
    write(&file("names.safetensors"), safetensors(&format!("{{{}}}", tensors.trim_end_matches(',')), 12_000));
    let texts = many(40_000, |s, i| write!(s, r#""k{i}":"","#).unwrap());
    write(&file("texts.safetensors"), safetensors(&format!(r#"{{"__metadata__":{{{}}}}}"#, texts.trim_end_matches(',')), 0));
    let row = many(60_000, |s, i| write!(s, "c{i},").unwrap());
    write(&file("wide.csv"), format!("{row}\n"));
    write(&file("line.csv"), vec![b'x'; 6 << 20]);
    write(&file("classes.csv"), format!("a\n{}", many(60_000, |s, i| writeln!(s, "v{i}").unwrap())));
    let entries = (0..6_000).map(|i| (format!("{i}.npy"), &[][..]));
    write(&file("many.npz"), zip(entries));
    write(&file("ints.pt"), pickle(&[b"\x80\x02](", &b"K\x01".repeat(150_000), b"e."]));
    let keys: Vec<u8> =
        (0..15_000u32).flat_map(|i| [b"X\x08\0\0\0".to_vec(), format!("{i:08}").into_bytes(), b"K\x01".to_vec()].concat()).collect();
    write(&file("keys.pt"), pickle(&[b"\x80\x02}(", &keys, b"u."]));
    let mut gguf = b"GGUF\x03\0\0\0".to_vec();
    gguf.extend([0u64.to_le_bytes(), 1u64.to_le_bytes(), 3u64.to_le_bytes()].concat());
    gguf.extend(b"a.b\x09\0\0\0\x08\0\0\0");
    gguf.extend(80_000u64.to_le_bytes());
    gguf.extend([1u64.to_le_bytes().as_slice(), b"x"].concat().repeat(80_000));
    write(&file("strings.gguf"), gguf);
    write(&file("config.json"), format!(r#"{{"model_type":"llama","x":[{}{{}}]}}"#, r#"{"a":1},"#.repeat(3_000)));
    let mut npy = b"\x93NUMPY\x01\0\x46\0{'descr': '<f8', 'fortran_order': False, 'shape': (200000,) , }".to_vec();
    npy.resize(79, b' ');
    npy.push(b'\n');
    npy.resize(80 + 1_600_000, 0);
    write(&file("x.npy"), npy);
    let open = |name: &str, f: fn(&Path) -> Result<usize>| -> Box<dyn Fn() -> Result<f64>> {
        let path = folder.join(name);
        Box::new(move || f(&path).map(|n| n as f64))
    };
    #[cfg_attr(not(any(feature = "images", feature = "tokenizers")), expect(unused_mut))]
    let mut calls: Vec<Call> = vec![
        ("TensorFile of many names", open("names.safetensors", |p| Ok(TensorFile::open(p)?.metadata().len()))),
        ("tensors of many names", open("names.safetensors", |p| Ok(TensorFile::open(p)?.tensors()?.len()))),
        (
            "no tensor of that name",
            open("names.safetensors", |p| match TensorFile::open(p)?.shape("x") {
                Err(e) if e.is_argument() => Ok(e.to_string().len()),
                other => other.map(|_| 0),
            }),
        ),
        (
            "Snapshot of many names",
            open("names.safetensors", |p| match Snapshot::load(p) {
                // It is none, which is found out last.
                Err(e) if !e.is_out_of_memory() => Ok(1),
                other => other.map(|_| 0),
            }),
        ),
        ("TensorFile of many texts", open("texts.safetensors", |p| Ok(TensorFile::open(p)?.metadata().len()))),
        ("CsvFile with many columns", open("wide.csv", |p| Ok(CsvFile::open(p)?.names().len()))),
        ("CsvFile of one line", open("line.csv", |p| Ok(CsvFile::open(p)?.names()[0].len()))),
        ("classes", open("classes.csv", |p| Ok(CsvFile::open(p)?.classes("a")?.1.len()))),
        (
            "numbers that are none",
            open("classes.csv", |p| match CsvFile::open(p)?.numbers(&[], F64) {
                Err(e) if e.is_corrupt_file() => Ok(1),
                other => other.map(|_| 0),
            }),
        ),
        ("NpzFile of many entries", open("many.npz", |p| Ok(NpzFile::open(p)?.names().count()))),
        ("TorchFile of many numbers", open("ints.pt", |p| Ok(TorchFile::open(p)?.names().len()))),
        ("TorchFile of many keys", open("keys.pt", |p| Ok(TorchFile::open(p)?.names().len()))),
        ("GgufFile of many texts", open("strings.gguf", |p| Ok(GgufFile::open(p)?.metadata().len()))),
        (
            "ModelConfig of many objects",
            open("config.json", |p| match ModelConfig::open(p) {
                Err(e) if e.is_corrupt_file() => Ok(1),
                other => other.map(|_| 0),
            }),
        ),
        ("read_npy", open("x.npy", |p| Ok(read_npy(p)?.numel()))),
        (
            "Tokens of a list",
            Box::new(|| {
                let mut ids: Vec<u32> = Vec::new();
                ids.try_reserve_exact(1 << 20).map_err(|_| Error::out_of_memory("the test's own"))?;
                ids.resize(1 << 20, 7);
                Ok(Tokens::from(ids).len() as f64)
            }),
        ),
        ("Bytes", Box::new(|| Ok(Bytes.decode(&Bytes.encode(&text(1 << 20)?)?)?.len() as f64))),
        (
            "Bytes that are not text",
            Box::new(|| {
                let mut ids: Vec<u32> = Vec::new();
                ids.try_reserve_exact(1 << 19).map_err(|_| Error::out_of_memory("the test's own"))?;
                ids.resize(1 << 19, 255);
                Ok(Bytes.decode(&ids)?.len() as f64)
            }),
        ),
        ("Characters", Box::new(|| Ok(Characters::of("abc").encode(&text(1 << 20)?)?.len() as f64))),
    ];
    #[cfg(feature = "images")]
    calls.extend(images(folder));
    #[cfg(feature = "tokenizers")]
    {
        use cotangent::train::TokenizerFile;
        let vocab = many(15_000, |s, i| write!(s, r#""w{i}":{i},"#).unwrap());
        let model = format!(r#"{{"type":"WordLevel","vocab":{{{}}},"unk_token":"w0"}}"#, vocab.trim_end_matches(','));
        let parts = r#""truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":null,"post_processor":null,"decoder":null"#;
        write(&file("tokenizer.json"), format!(r#"{{"version":"1.0",{parts},"model":{model}}}"#));
        calls.push(("TokenizerFile", open("tokenizer.json", |p| Ok(TokenizerFile::open(p)?.vocabulary()))));
    }
    calls
}

/// A text of `a`, or an error.
fn text(n: usize) -> Result<String> {
    let mut text = String::new();
    text.try_reserve_exact(n).map_err(|_| Error::out_of_memory("the test's own"))?;
    (0..n).for_each(|_| text.push('a'));
    Ok(text)
}

#[cfg(feature = "images")]
fn images(folder: &Path) -> Vec<Call> {
    use cotangent::io::{ImageMode, ImageOptions, read_image, read_image_with, save_image};
    use cotangent::{Key, Tensor, U8};
    const SIDE: usize = 600;
    let x = Tensor::randint([3, SIDE, SIDE], 0..256, U8, Key::new(1)).unwrap();
    let names = ["x.png", "x.bmp", "x.jpg"].map(|n| folder.join(n));
    names.iter().for_each(|n| save_image(n, &x).unwrap());
    let [png, bmp, jpg] = names;
    let pgm = folder.join("x.pgm");
    write(&pgm, [format!("P5 {SIDE} {SIDE} 255\n").as_bytes(), &vec![9; SIDE * SIDE]].concat());
    let (again, wide) = (folder.join("again.png"), folder.join("wide.pgm"));
    write(&wide, [format!("P5 {SIDE} {SIDE} 65535\n").as_bytes(), &vec![9; 2 * SIDE * SIDE]].concat());
    let read = |path: &Path, options: ImageOptions| -> Box<dyn Fn() -> Result<f64>> {
        let path = path.to_owned();
        Box::new(move || {
            let x = read_image_with(&path, &options)?;
            Ok(x.numel() as f64 + x.flatten(0, -1)?.narrow(0, 0, 1)?.to_vec::<u8>()?[0] as f64)
        })
    };
    let plain = ImageOptions::default();
    let grey = ImageOptions { mode: ImageMode::Gray, ..plain.clone() };
    let small = ImageOptions { size: Some([300, 400]), ..plain.clone() };
    vec![
        ("PNG", read(&png, plain.clone())),
        ("BMP", read(&bmp, plain.clone())),
        ("JPEG", read(&jpg, plain.clone())),
        ("PGM", read(&pgm, plain.clone())),
        ("PGM of 16 bits", read(&wide, plain.clone())),
        ("PGM as it is", read(&pgm, ImageOptions { mode: ImageMode::Unchanged, ..plain.clone() })),
        ("grey from colours", read(&png, grey)),
        ("a smaller one", read(&bmp, small.clone())),
        ("a smaller one of 16 bits", read(&wide, small)),
        ("opaque", read(&png, ImageOptions { mode: ImageMode::Rgba, ..plain })),
        ("save_image", Box::new(move || save_image(&again, &read_image(&pgm)?).map(|()| 1.0))),
    ]
}

#[test]
fn no_file_ends_the_process_when_memory_ends() {
    let levels = [100e6, 40e6, 20e6, 10e6, 5e6, 3e6].map(|n| n as usize);
    let test = "files::memory::no_file_ends_the_process_when_memory_ends";
    let Some((fine, refused)) = calls_end_at(test, &levels, calls) else { return };
    assert_eq!(refused[0], 0, "all of them fit");
    assert!(fine.last() < refused.last() && fine.windows(2).all(|f| f[1] <= f[0] + 2), "fewer and fewer fit: {fine:?}");
}
