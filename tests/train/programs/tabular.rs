//! From a table in a file to a classifier in a file: numbers with gaps, texts, batches, metrics, the best model kept.

use cotangent::io::{CsvFile, CsvOptions, ModuleFile, NpzFile};
use cotangent::nn::{Activation, Embedding, Layer, Linear};
use cotangent::optim::AdamW;
use cotangent::train::{KeepBest, Options, Order, Rows, Trainer};
use cotangent::{Buffer, F32, Module, Result, Rng, Tensor, module};
use std::path::Path;

const FOLDER: &str = "tests/fixtures/programs";
const NUMBERS: [&str; 4] = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"];

#[derive(Clone)]
struct Classifier {
    mean: Buffer,
    std: Buffer,
    island: Embedding,
    sex: Embedding,
    layers: (Linear, Activation, Linear),
}
module!(Classifier { mean, std, island, sex, layers });

impl Classifier {
    fn new(mean: Tensor, std: Tensor, islands: usize, sexes: usize, species: usize, rng: &mut Rng) -> Result<Self> {
        let [first, last] = [(NUMBERS.len() + 4, 16), (16, species)].map(|(n, m)| Linear::new(n, m, F32, rng.next_key()));
        Ok(Classifier {
            mean: mean.into(),
            std: std.into(),
            island: Embedding::normal(islands, 2, 1.0, F32, rng.next_key())?,
            sex: Embedding::normal(sexes, 2, 1.0, F32, rng.next_key())?,
            layers: (first?, Activation::Relu, last?),
        })
    }

    fn forward(&self, numbers: &Tensor, island: &Tensor, sex: &Tensor) -> Result<Tensor> {
        let numbers = numbers.sub(&self.mean)?.div(&self.std)?;
        let numbers = numbers.masked_fill(&numbers.ne(&numbers)?, 0.0)?;
        self.layers.call(&Tensor::concat(&[&numbers, &self.island.forward(island)?, &self.sex.forward(sex)?], -1)?, None)
    }
}

/// Numbers, island, sex and species of each row, and the names of the islands, sexes and species.
fn read_table() -> Result<([Tensor; 4], [Vec<String>; 3])> {
    let options = CsvOptions { missing: vec!["NA".into()], ..CsvOptions::default() };
    let table = CsvFile::open_with(format!("{FOLDER}/penguins.csv"), &options)?;
    let (island, islands) = table.classes("island")?;
    let (sex, sexes) = table.classes("sex")?;
    let (species, names) = table.classes("species")?;
    Ok(([table.numbers(&NUMBERS, F32)?, island, sex, species], [islands, sexes, names]))
}

/// Mean and standard deviation of each column, over what is known.
fn mean_and_std(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let (gaps, known) = (x.ne(x)?, x.eq(x)?.cast(F32)?.sum(0)?);
    let mean = x.masked_fill(&gaps, 0.0)?.sum(0)? / &known;
    let variance = (x - &mean).square()?.masked_fill(&gaps, 0.0)?.sum(0)? / known;
    Ok((mean, variance.sqrt()?))
}

/// Mean loss and accuracy.
fn evaluate(model: &Classifier, rows: &Rows<[Tensor; 4]>) -> Result<(f64, f64)> {
    let (mut loss, mut right, mut count) = (0.0, 0.0, 0.0);
    for batch in rows.iter_epoch(0) {
        let [numbers, island, sex, species] = batch?;
        let scores = model.forward(&numbers, &island, &sex)?;
        loss += scores.cross_entropy(&species)?.item()? * species.numel() as f64;
        right += scores.argmax(-1)?.eq(&species)?.cast(F32)?.sum(..)?.item()?;
        count += species.numel() as f64;
    }
    Ok((loss / count, right / count))
}

/// Loss and accuracy of the best model on rows that had no part in it, and the model in the file.
fn train(epochs: usize, path: &Path, rng: &mut Rng) -> Result<(f64, f64)> {
    let (columns, [islands, sexes, species]) = read_table()?;
    let split = NpzFile::open(format!("{FOLDER}/penguins_split.npz"))?;
    let mut part = |name, order| {
        let ids = split.tensor(name)?;
        Rows::new(Module::map(&columns, |_, c| c.index_select(0, &ids))?, 32, order, rng.next_key())
    };
    let seen = part("train", Order::Shuffled)?.keep_last(true);
    let (validation, test) = (part("validation", Order::Sequential)?, part("test", Order::Sequential)?);
    let (mean, std) = mean_and_std(&columns[0].index_select(0, &split.tensor("train")?)?)?;
    let model = Classifier::new(mean, std, islands.len(), sexes.len(), species.len(), rng)?;
    let mut trainer = Trainer::new(model, AdamW { lr: 1e-2, ..AdamW::default() });
    trainer.options = Options { steps: epochs * seen.epoch(), evaluate_every: seen.epoch(), ..Options::default() };
    trainer.keep_best = Some(KeepBest::lowest_loss());
    trainer.evaluate_with(|m| Ok(evaluate(m, &validation)?.0));
    trainer.run(&seen, |m, [numbers, island, sex, species], _| m.forward(numbers, island, sex)?.cross_entropy(species))?;
    let best = trainer.best.map_or(trainer.model, |best| best.model);
    best.save(path)?;
    evaluate(&best, &test)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cotangent::train::Batches;

    #[test]
    fn it_tells_species_apart_and_is_the_same_from_its_file() -> Result<()> {
        let path = std::env::temp_dir().join(format!("cotangent-penguins-{}.safetensors", std::process::id()));
        let (loss, accuracy) = train(20, &path, &mut Rng::seed(1))?;
        println!("loss {loss:.3}, accuracy {accuracy:.3}");
        let (columns, [islands, sexes, kinds]) = read_table()?;
        // The best without looking at a row: the commonest species.
        let test = NpzFile::open(format!("{FOLDER}/penguins_split.npz"))?.tensor("test")?;
        let test_species = columns[3].index_select(0, &test)?.to_vec::<i64>()?;
        let commonest = (0..3).map(|s| test_species.iter().filter(|t| **t == s).count()).max().unwrap() as f64 / test_species.len() as f64;
        assert!(accuracy > 0.9 && accuracy > commonest + 0.2, "{accuracy:.3}, the commonest {commonest:.3}");
        // From the file: normalisation, embeddings and layers are there, and predict the same.
        let blank = Tensor::zeros([4], F32)?;
        let mut loaded = Classifier::new(blank.clone(), blank, islands.len(), sexes.len(), kinds.len(), &mut Rng::seed(9))?;
        loaded.load(&path)?;
        let rows = Rows::new(Module::map(&columns, |_, c| c.index_select(0, &test))?, 32, Order::Sequential, cotangent::Key::new(1))?;
        assert_eq!(evaluate(&loaded, &rows)?, (loss, accuracy));
        std::fs::remove_file(path)?;
        Ok(())
    }

    /// Against the file's text, read by hand.
    #[test]
    fn the_table_arrives_whole() -> Result<()> {
        let text = std::fs::read_to_string(format!("{FOLDER}/penguins.csv"))?;
        let cells: Vec<Vec<&str>> = text.lines().skip(1).map(|line| line.split(',').collect()).collect();
        let ([numbers, island, sex, species], [islands, sexes, names]) = read_table()?;
        assert_eq!(numbers.shape(), &[344, 4]);
        let (island, sex, species) = (island.to_vec::<i64>()?, sex.to_vec::<i64>()?, species.to_vec::<i64>()?);
        let numbers = numbers.to_vec::<f32>()?;
        for (i, row) in cells.iter().enumerate() {
            assert_eq!(
                [names[species[i] as usize].as_str(), &islands[island[i] as usize], &sexes[sex[i] as usize]],
                [row[0], row[1], row[6]]
            );
            for j in 0..4 {
                let (found, cell) = (numbers[4 * i + j], row[2 + j]);
                assert!(if cell == "NA" { found.is_nan() } else { found == cell.parse::<f32>().unwrap() }, "row {i}: {found} for {cell}");
            }
        }
        // What is known counts, what is missing does not.
        let (mean, std) = mean_and_std(&Tensor::from_slice(&numbers, [344, 4])?)?;
        let known: Vec<f64> = cells.iter().filter_map(|row| row[5].parse().ok()).collect();
        let want = known.iter().sum::<f64>() / known.len() as f64;
        let deviation = (known.iter().map(|m| (m - want).powi(2)).sum::<f64>() / known.len() as f64).sqrt();
        assert_eq!(known.len(), 342);
        assert!((mean.to_f64_vec()?[3] - want).abs() < 1e-2 && (std.to_f64_vec()?[3] - deviation).abs() < 1e-2);
        Ok(())
    }

    /// 206 rows by 32: seven batches an epoch, the last of 14 rows, and each row once.
    #[test]
    fn the_last_batch_is_kept() -> Result<()> {
        let rows = Rows::new(Tensor::arange(0.0, 206.0, 1.0, F32)?, 32, Order::Shuffled, cotangent::Key::new(1))?.keep_last(true);
        assert_eq!((rows.epoch(), rows.batch(6)?.numel(), rows.batch(13)?.numel()), (7, 14, 14));
        let mut all: Vec<f32> = Vec::new();
        for batch in rows.iter_epoch(1) {
            all.extend(batch?.to_vec::<f32>()?);
        }
        all.sort_by(f32::total_cmp);
        assert!(all.iter().enumerate().all(|(i, x)| *x == i as f32) && all.len() == 206);
        Ok(())
    }
}
