"""Writes tests/fixtures/programs/penguins.csv and penguins_split.npz: a table with numbers, texts and gaps, and which rows are for what.

`pip download --no-deps palmerpenguins==0.1.6`, unpack it, and give this script the path of its data/penguins.csv.
"""

import pathlib
import shutil
import sys

import numpy as np

FOLDER = pathlib.Path(__file__).parent.parent / "tests/fixtures/programs"
shutil.copy(sys.argv[1], FOLDER / "penguins.csv")
rows = sum(1 for _ in open(FOLDER / "penguins.csv")) - 1
order = np.random.default_rng(1).permutation(rows)
train, validation, test = np.split(order, [rows * 6 // 10, rows * 8 // 10])
np.savez(FOLDER / "penguins_split.npz", train=train, validation=validation, test=test)
