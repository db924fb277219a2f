//! Networks for images against torchvision and transformers: files under their names, scores, loss, every gradient, ten steps of training.

use crate::models::hugging_face::scratch;
use crate::train::pytorch_run::load as tensors_of;
use cotangent::io::{ImageNetwork, ModelConfig, ModuleFile};
use cotangent::models::{ImageModel, ImageProcessor, ImageResize, LoadOptions, Vit, load_encoder, load_image_model};
use cotangent::nn::{BatchNorm2d, Conv2d, Func, Layer, Linear, Pass, ResNet, ResNetConfig, ResNetStem, UNet, UNetConfig};
use cotangent::ops::Conv2dOptions;
use cotangent::optim::Sgd;
use cotangent::{F32, F64, I64, Key, Module, Result, Tensor, U8, value_and_grad};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

type Tensors = BTreeMap<String, Tensor>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vision").join(name)
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_f64_vec().unwrap()
}

/// The largest difference, over the largest number that is wanted (where that is not rounding alone, as of the keys' biases).
fn apart(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.shape(), want.shape());
    let (got, want) = (values(got), values(want));
    let most = want.iter().fold(1e-6f64, |m, w| m.max(w.abs()));
    got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, |m: f64, d| if d <= m { m } else { d }) / most
}

/// What `expected.safetensors` has of a network, in f64, whose tensors are called `theirs` there.
fn agrees<M: Module + Clone>(
    net: M,
    want: &Tensors,
    theirs: impl Fn(&str) -> String,
    scores: impl Fn(&M, &Tensor, &mut Pass) -> Result<Tensor>,
) {
    let (x, y) = (want["images"].cast(F64).unwrap(), &want["labels"]);
    let mut net = net.cast(F64).unwrap();
    assert!(apart(&scores(&net, &x, &mut Pass::eval()).unwrap(), &want["eval.logits"]) < 1e-6);
    let mut sgd = Sgd { lr: 0.05, momentum: 0.9, ..Sgd::default() };
    for step in 0..10 {
        let mut pass = Pass::train();
        let (loss, grads) = value_and_grad(&net, |net| {
            let logits = scores(net, &x, &mut pass)?;
            if step == 0 {
                assert!(apart(&logits.detach(), &want["train.logits"]) < 1e-6);
            }
            logits.cross_entropy(y)
        })
        .unwrap();
        if step == 0 {
            let named = grads.named();
            assert_eq!(named.len(), want.keys().filter(|k| k.starts_with("grad.")).count());
            for (name, g) in named {
                let error = apart(&g, &want[&format!("grad.{}", theirs(&name))]);
                assert!(error < 1e-5, "{name}: {error}");
            }
        }
        let error = (loss.item().unwrap() - values(&want["losses"])[step]).abs();
        assert!(error < 1e-6, "step {step}: {error}");
        sgd.step(&mut net, &grads).unwrap();
        pass.update(&mut net).unwrap();
    }
    assert!(apart(&scores(&net, &x, &mut Pass::eval()).unwrap(), &want["after.logits"]) < 1e-5);
    let buffers = net.buffers();
    assert_eq!(buffers.len(), want.keys().filter(|k| k.starts_with("buffer.")).count());
    for (name, b) in buffers {
        assert!(apart(&b, &want[&format!("buffer.{}", theirs(&name))]) < 1e-6, "{name}");
    }
}

#[test]
fn torchvisions_state_dicts_load_and_train() {
    let basic = ResNetConfig { width: 4, widths: vec![4, 8, 8, 12], depths: vec![2, 1, 1, 1], classes: 6, ..ResNetConfig::resnet18() };
    let bottleneck = ResNetConfig { width: 2, widths: vec![8, 12, 16, 16], bottleneck: true, ..basic.clone() };
    for (name, config) in [("torchvision/basic", basic), ("torchvision/bottleneck", bottleneck)] {
        let folder = fixture(name);
        let mut net = ResNet::new(&config, F32, Key::new(1)).unwrap();
        let report = net.load(folder.join("model.safetensors")).unwrap();
        assert!(report.is_complete() && report.ignored.iter().all(|n| n.ends_with("num_batches_tracked")), "{report}");
        assert_eq!(report.ignored.len(), net.buffers().len() / 2);
        let mut same = ResNet::new(&config, F32, Key::new(2)).unwrap();
        same.load_named(&tensors_of(&folder.join("model.safetensors"))).unwrap();
        assert_eq!(values(&same.bn1.running_var), values(&net.bn1.running_var));
        agrees(net, &tensors_of(&folder.join("expected.safetensors")), str::to_owned, ResNet::forward_in);
    }
}

/// The rule of Hugging Face's names, written out once more, from the left.
fn of_transformers(name: &str) -> String {
    let mut out = name.replace("conv1", "0.convolution").replace("bn1", "0.normalization").replace("conv2", "1.convolution");
    out = out.replace("bn2", "1.normalization").replace("conv3", "2.convolution").replace("bn3", "2.normalization");
    for stage in 1..=4 {
        if let Some(rest) = out.strip_prefix(&format!("layer{stage}.")) {
            let (block, layer) = rest.split_once('.').unwrap();
            let layer = match layer.strip_prefix("downsample.") {
                Some(l) => l.replacen("0.", "shortcut.convolution.", 1).replacen("1.", "shortcut.normalization.", 1),
                None => format!("layer.{layer}"),
            };
            return format!("resnet.encoder.stages.{}.layers.{block}.{layer}", stage - 1);
        }
    }
    match out.strip_prefix("fc.") {
        Some(rest) => format!("classifier.1.{rest}"),
        None => format!("resnet.embedder.embedder.{}", out.trim_start_matches("0.")),
    }
}

#[test]
fn folders_of_transformers_load_and_train() {
    for name in ["resnet", "bottleneck", "vit"] {
        let folder = fixture(name);
        let (model, config, report) = load_image_model(&folder, LoadOptions::default()).unwrap();
        assert_eq!(config.labels, ["kind 0", "kind 1", "kind 2", "kind 3", "kind 4", "kind 5"]);
        assert!(report.is_complete() && report.loaded.len() == model.names().len(), "{report:?}");
        assert!(report.ignored.iter().all(|n| n.ends_with("num_batches_tracked")), "{:?}", report.ignored);
        let want = tensors_of(&folder.join("expected.safetensors"));
        let theirs = |n: &str| if name == "vit" { n.to_owned() } else { of_transformers(n) };
        agrees(model, &want, theirs, ImageModel::forward_in);
    }
    let wrong = |p: PathBuf| load_image_model(p, LoadOptions::default()).map(drop).unwrap_err().to_string();
    assert!(wrong(fixture("vit").join("model.safetensors")).contains("give the folder"));
    assert!(wrong(fixture("nowhere")).contains("expected a folder with config.json"));
    assert!(wrong(fixture("../families/bert")).contains("load_encoder"));
    let wrong = load_encoder(fixture("vit"), LoadOptions::default()).unwrap_err().to_string();
    assert!(wrong.contains("load_image_model"), "{wrong}");
}

#[test]
fn a_batch_norm_agrees_after_a_hundred_steps() -> Result<()> {
    let want = tensors_of(&fixture("batch_norm").join("expected.safetensors"));
    let conv = Conv2d::with(2, 3, [3, 3], F64, Key::new(1), &Conv2dOptions { padding: 1.into(), ..Conv2dOptions::default() })?;
    let mut net =
        (conv, BatchNorm2d::new(3, F64)?, Func(Tensor::relu), Func(|x: &Tensor| x.flatten(1, 3)), Linear::new(60, 2, F64, Key::new(1))?);
    let of = |when: &str| -> Tensors { want.iter().filter_map(|(n, t)| Some((n.strip_prefix(when)?.to_owned(), t.clone()))).collect() };
    net.load_named(&of("before."))?;
    let mut sgd = Sgd { lr: 0.1, momentum: 0.9, ..Sgd::default() };
    let x = want["images"].cast(F64)?;
    for step in 0..100 {
        let (x, y) = (x.select(0, step)?, want["labels"].select(0, step)?);
        let mut pass = Pass::train();
        let (loss, grads) = value_and_grad(&net, |net| net.call_in(&x, &mut pass)?.cross_entropy(&y))?;
        sgd.step(&mut net, &grads)?;
        pass.update(&mut net)?;
        let error = (loss.item()? - values(&want["losses"])[step as usize]).abs();
        assert!(error < 1e-9, "step {step}: {error}");
    }
    for (name, t) in net.named_tensors() {
        assert!(apart(&t, &want[&format!("after.{name}")]) < 1e-9, "{name}");
    }
    assert!(apart(&net.call(&x.select(0, 0)?, None)?, &want["after.logits"]) < 1e-9);
    Ok(())
}

/// Folders that are not what they say, and configurations that no network has.
#[test]
fn wrong_folders_and_sizes_are_refused_by_name() {
    let folder = scratch("vision");
    let text = std::fs::read_to_string(fixture("resnet").join("config.json")).unwrap();
    std::fs::copy(fixture("resnet").join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    let with = |from: &str, to: &str| {
        assert!(text.contains(from));
        std::fs::write(folder.join("config.json"), text.replacen(from, to, 1)).unwrap();
        load_image_model(&folder, LoadOptions::default()).map(|_| ()).unwrap_err().to_string()
    };
    let cases = [
        (r#""hidden_act": "relu""#, r#""hidden_act": "gelu""#, "`hidden_act` is `gelu`"),
        (r#""downsample_in_bottleneck": false"#, r#""downsample_in_bottleneck": true"#, "`downsample_in_bottleneck` is true"),
        (r#""layer_type": "basic""#, r#""layer_type": "bottleneck""#, "shapes differ: "),
        (r#""layer_type": "basic""#, r#""layer_type": "wide""#, "`layer_type` is `wide`"),
        (
            r#""embedding_size": 4"#,
            r#""embedding_size": 5"#,
            "`resnet.embedder.embedder.convolution.weight` is [4, 3, 7, 7] in the file, [5, 3, 7, 7]",
        ),
        (r#""embedding_size": 4"#, r#""embedding_size": 0"#, "`width` has 0"),
        ("    2,\n    1,\n    1\n", "    2,\n    2,\n    1\n", "missing in the file: "),
        ("    2,\n    1,\n    1\n", "    1,\n    1,\n    1\n", "unexpected in the file: "),
        ("    2,\n    1,\n    1\n", "    2,\n    1\n", "3 widths and 2 depths"),
        (r#""1": "kind 1""#, r#""9": "kind 1""#, "`id2label` has no text for 1"),
        (r#""model_type": "resnet""#, r#""model_type": "convnext""#, "known are gpt2, llama, mistral, qwen2, qwen3, bert, resnet and vit"),
    ];
    for (from, to, want) in cases {
        let got = with(from, to);
        assert!(got.contains(want), "{got}\n{want}");
    }
    std::fs::remove_dir_all(&folder).unwrap();

    let wrong = |c: ResNetConfig| ResNet::new(&c, F32, Key::new(1)).unwrap_err().to_string();
    let small =
        ResNetConfig { stem: ResNetStem::Small, width: 4, widths: vec![4], depths: vec![1], classes: 2, ..ResNetConfig::resnet18() };
    assert!(wrong(ResNetConfig { widths: vec![], ..small.clone() }).starts_with("resnet: 0 widths and 1 depths"));
    assert!(wrong(ResNetConfig { bottleneck: true, widths: vec![6], ..small.clone() }).contains("a quarter of its 6 channels"));
    assert!(wrong(ResNetConfig { classes: usize::MAX, ..small.clone() }).contains("`classes`"));
    let net = ResNet::new(&small, F32, Key::new(1)).unwrap();
    for shape in [&[3, 8, 8][..], &[1, 1, 8, 8]] {
        let e = net.forward(&Tensor::zeros(shape, F32).unwrap()).unwrap_err();
        assert!(
            e.is_shape() && e.to_string().contains("images are [batch, 3, height, width], found") && e.to_string().contains("vision.rs"),
            "{e}"
        );
    }
    // No pixels of a batch, no image of a batch: the shapes say so, and nothing panics.
    assert_eq!(net.forward(&Tensor::zeros([0, 3, 8, 8], F32).unwrap()).unwrap().shape(), &[0, 2]);
    assert!(net.forward_in(&Tensor::zeros([0, 3, 8, 8], F32).unwrap(), &mut Pass::train()).is_err());

    let json = |image: &str, patch: &str| {
        format!(
            r#"{{"model_type": "vit", "image_size": {image}, "patch_size": {patch}, "hidden_size": 8, "intermediate_size": 12,
                "num_hidden_layers": 1, "num_attention_heads": 2}}"#
        )
    };
    let ModelConfig::Image(config) = ModelConfig::parse(&json("[8, 12]", "4")).unwrap() else { panic!("no network for images") };
    let ImageNetwork::Vit(vit) = &config.network else { panic!("no vision transformer") };
    assert_eq!((vit.patches(), config.labels.len()), (6, 2));
    let vit = Vit::new(vit, F32, Key::new(1)).unwrap();
    let e = vit.forward(&Tensor::zeros([1, 3, 8, 8], F32).unwrap()).unwrap_err();
    assert!(e.to_string().contains("images are [batch, 3, 8, 12], found [1, 3, 8, 8]"), "{e}");
    for (image, patch, want) in [("10", "4", "does not divide"), ("[8]", "4", "`image_size` is [8]"), ("8", "0", "`patch_size` is 0")] {
        let e = ModelConfig::parse(&json(image, patch)).unwrap_err().to_string();
        assert!(e.contains(want), "{e}");
    }
}

/// Folders of timm name an architecture; its tensors have torchvision's names.
#[test]
fn a_folder_of_timm_is_known_by_its_architecture() {
    let json = r#"{"architecture": "resnet50", "num_classes": 10, "num_features": 2048, "pretrained_cfg": {"tag": "a1_in1k"}}"#;
    let ModelConfig::Image(config) = ModelConfig::parse(json).unwrap() else { panic!("no network for images") };
    assert_eq!(config.network, ImageNetwork::ResNet(ResNetConfig { classes: 10, ..ResNetConfig::resnet50() }));
    for (name, n) in
        [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032), ("resnet101", 44_549_160), ("resnet152", 60_192_808)]
    {
        let json = format!(r#"{{"architecture": "{name}", "num_classes": 1000}}"#);
        let ModelConfig::Image(config) = ModelConfig::parse(&json).unwrap() else { panic!("no network for images") };
        let ImageNetwork::ResNet(c) = &config.network else { panic!("no residual network") };
        // torchvision's documented numbers of parameters, from the shapes.
        assert_eq!(count(c), n, "{name}");
    }
    let e = ModelConfig::parse(r#"{"architecture": "resnetv2_50", "num_classes": 10}"#).unwrap_err();
    assert!(e.is_argument() && e.to_string().contains("`architecture` is `resnetv2_50`"), "{e}");
}

/// Parameters of a network, from its configuration alone.
fn count(c: &ResNetConfig) -> usize {
    let norm = |w: usize| 2 * w;
    let mut n = 49 * c.channels * c.width + norm(c.width);
    let mut inputs = c.width;
    for (stage, (&w, &depth)) in c.widths.iter().zip(&c.depths).enumerate() {
        for i in 0..depth {
            n += match c.bottleneck {
                true => inputs * w / 4 + 9 * w * w / 16 + w * w / 4 + 2 * norm(w / 4) + norm(w),
                false => 9 * inputs * w + 9 * w * w + 2 * norm(w),
            };
            if inputs != w || (i == 0 && stage > 0) {
                n += inputs * w + norm(w);
            }
            inputs = w;
        }
    }
    n + inputs * c.classes + c.classes
}

/// What processors of transformers, and timm's transforms, make of an image: within one of 255 at each pixel, and rarely that.
#[test]
fn processors_make_their_authors_inputs() -> Result<()> {
    let want = tensors_of(&fixture("processor").join("expected.safetensors"));
    let text = std::fs::read_to_string(fixture("resnet").join("preprocessor_config.json")).unwrap();
    let timm = r#"{"architecture": "resnet18", "num_classes": 6, "pretrained_cfg": {"input_size": [3, 24, 24], "interpolation": "bicubic",
        "crop_pct": 0.95, "crop_mode": "center", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}"#;
    let cases = [
        ("vit", ImageProcessor::open(fixture("vit"))?, 1),
        ("resnet", ImageProcessor::open(fixture("resnet"))?, 1),
        ("warped", ImageProcessor::parse(&text.replace(r#""shortest_edge": 24"#, r#""shortest_edge": 384"#))?, 16),
        ("timm", ImageProcessor::parse(timm)?, 1),
    ];
    for (name, processor, every) in cases {
        let got = processor.apply(&want["image"].cast(U8)?)?;
        let (got, want) = (got.slice_step(2, .., every)?.slice_step(3, .., every)?, &want[name]);
        assert_eq!(got.shape(), want.shape(), "{name}");
        let unit = 1.0 / 255.0 / processor.std.iter().fold(f64::MAX, |a, &b| a.min(b));
        let apart: Vec<f64> = values(&got).iter().zip(values(want)).map(|(a, b)| (a - b).abs() / unit).collect();
        let (most, mean) = (apart.iter().fold(0.0, |a: f64, &b| a.max(b)), apart.iter().sum::<f64>() / apart.len() as f64);
        assert!(most < 1.01 && mean < 0.05, "{name}: {most} of 255 at most, {mean} in the mean");
    }
    // A model's own extents: nothing is resampled, and numbers are exact.
    let plain = ImageProcessor::parse(r#"{"do_resize": false, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}"#)?;
    assert_eq!(plain.resize, ImageResize::None);
    let x = plain.apply(&Tensor::from_slice(&[0u8, 255, 51], [3, 1, 1])?)?;
    assert!(values(&x).iter().zip([-1.0, 1.0, -0.6]).all(|(a, b)| (a - b).abs() < 1e-6));
    let refused = |json: &str, what: &str| {
        let e = ImageProcessor::parse(json).unwrap_err().to_string();
        assert!(e.contains(what) && e.contains("vision.rs"), "{e}");
    };
    let with = |from: &str, to: &str| {
        assert!(text.contains(from));
        text.replace(from, to)
    };
    refused(&with(r#""resample": 3"#, r#""resample": 1"#), "`resample` is 1");
    refused(&with(r#""shortest_edge": 24"#, r#""longest_edge": 24"#), "expected height and width, or shortest_edge");
    refused(&with(r#""crop_pct": 0.875"#, r#""crop_pct": 0"#), "`crop_pct` is 0");
    refused(&with("0.5", "0"), "a deviation is 0");
    refused(&with(r#""image_mean""#, r#""mean""#), "`image_mean` is null");
    refused(&with("24", "-24"), "`size.shortest_edge` has -24");
    refused(&timm.replace("bicubic", "lanczos"), "`interpolation` is `lanczos`");
    refused(&with(r#""resample": 3"#, r#""resample": "lanczos""#), "`resample` is \"lanczos\"");
    refused(&with(r#""crop_pct": 0.875"#, r#""do_center_crop": true"#), "`do_center_crop` is true");
    refused(&with("ConvNextImageProcessor", "EfficientNetImageProcessor"), "`EfficientNetImageProcessor`");
    refused(r#"{"do_resize": false, "image_mean": 0.5, "image_std": [1, 1, 1]}"#, "1 means and 3 deviations");
    refused(r#"{"do_resize": false, "rescale_factor": 0, "image_mean": 0.5, "image_std": 1}"#, "`rescale_factor` is 0");
    refused("[1]", "expected an object");
    let named = ImageProcessor::parse(&with(r#""resample": 3"#, r#""resample": "bicubic""#))?;
    assert_eq!(named, ImageProcessor::open(fixture("resnet"))?);
    let e = plain.apply(&Tensor::zeros([1, 1, 3, 3], F32)?).unwrap_err().to_string();
    assert!(e.contains("images of 1 channels, and a mean of 3"), "{e}");
    assert!(plain.apply(&Tensor::zeros([3, 3], F32)?).unwrap_err().is_shape());
    assert!(plain.apply(&Tensor::zeros([3, 3, 3], I64)?).unwrap_err().is_dtype());
    Ok(())
}

#[test]
fn a_u_net_learns_to_mark_pixels() -> Result<()> {
    let config = UNetConfig { channels: 1, classes: 2, width: 4, depth: 2 };
    let mut net = UNet::new(&config, F32, Key::new(1))?;
    // Pixels above 0, of images with odd extents.
    let image = |i: u64| Tensor::randn([4, 1, 9, 7], F32, Key::new(2).fold(i));
    let classes = |x: &Tensor| x.gt(&x.zeros_like()?)?.cast(I64)?.squeeze(1);
    let mut sgd = Sgd { lr: 0.1, momentum: 0.9, ..Sgd::default() };
    let mut losses = Vec::new();
    for step in 0..120 {
        let x = image(step)?;
        let y = classes(&x)?;
        let mut pass = Pass::train();
        let (loss, grads) = value_and_grad(&net, |net| net.forward_in(&x, &mut pass)?.permute([0, 2, 3, 1])?.cross_entropy(&y))?;
        losses.push(loss.item()?);
        sgd.step(&mut net, &grads)?;
        pass.update(&mut net)?;
    }
    let x = image(99)?;
    let right = net.forward(&x)?.argmax(1)?.eq(&classes(&x)?)?.cast(F32)?.mean(..)?.item()?;
    assert!(losses[0] > 0.6 && losses[119] < 0.3 && right > 0.9, "{losses:?} {right}");
    assert!(net.forward(&Tensor::zeros([1, 1, 3, 8], F32)?).unwrap_err().to_string().contains("extents of at least 4"));
    assert!(net.forward(&Tensor::zeros([1, 2, 8, 8], F32)?).unwrap_err().to_string().contains("conv2d"));
    for wrong in [UNetConfig { depth: 64, ..config }, UNetConfig { depth: 23, ..config }, UNetConfig { width: 0, ..config }] {
        assert!(UNet::new(&wrong, F32, Key::new(1)).unwrap_err().is_argument());
    }
    // What no memory holds is refused before a weight is drawn.
    assert!(UNet::new(&UNetConfig { depth: 22, ..config }, F32, Key::new(1)).unwrap_err().is_out_of_memory());
    let large = ResNetConfig { width: 1 << 23, widths: vec![1 << 24], depths: vec![1], ..ResNetConfig::resnet18() };
    assert!(ResNet::new(&large, F32, Key::new(1)).unwrap_err().is_out_of_memory());
    // Saved and back.
    let folder = scratch("u-net");
    net.save(folder.join("net.safetensors"))?;
    let mut back = UNet::new(&config, F32, Key::new(7))?;
    back.load(folder.join("net.safetensors"))?;
    assert_eq!(values(&back.forward(&x)?), values(&net.forward(&x)?));
    std::fs::remove_dir_all(folder).unwrap();
    Ok(())
}
