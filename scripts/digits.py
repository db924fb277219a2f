#!/usr/bin/env python3
"""Writes examples/data/digits.npz: 1797 handwritten digits of 8 x 8 pixels, as scikit-learn ships them.

Needs `pip install scikit-learn`. The images are the test set of "Optical Recognition of Handwritten Digits" by E. Alpaydin and
C. Kaynak (1998), UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, licensed CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/). Nothing is changed: images are `u8 [1797, 8, 8]` from 0 to 16, labels `i64 [1797]`.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

digits = load_digits()
images = digits.images.astype(np.uint8)
assert (images == digits.images).all() and images.shape == (1797, 8, 8)
out = Path(__file__).parents[1] / "examples" / "data" / "digits.npz"
np.savez_compressed(out, images=images, labels=digits.target.astype(np.int64))
print(f"{out}: {out.stat().st_size} bytes")
