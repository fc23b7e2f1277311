"""Answers as the learner that `metarun-export` has written beside this file. It needs JAX alone; export.json says the rest.

learner = Learner()
probabilities = learner.predict(learner.adapt(x, y), queries)  # y: [n] from 0, a class each; of a regression numbers
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.export
import numpy as np


class Learner:
    def __init__(self, folder=Path(__file__).parent):
        self.about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        if not find_spec("flatbuffers"):  # which JAX reads with, and does not install
            sys.path.append(str(folder / "flatbuffers.zip"))
        read = lambda name: jax.export.deserialize(bytearray((folder / f"{name}.stablehlo").read_bytes()))
        self._adapt, self._predict = (jax.jit(read(name).call) for name in ("adapt", "predict"))
        with np.load(folder / "params.npz", allow_pickle=False) as stored:
            self.params = [stored[name] for name in self.about["params"]]

    def adapt(self, x, y):
        y = np.asarray(y, self.about["y_dtype"])
        rows = np.argsort(y, kind="stable") if self.about["classification"] else np.arange(len(y))
        rows = rows[np.random.default_rng(0).permutation(len(rows))]  # as metarun shows them
        return self._adapt(self.params, self._inputs(x)[rows], y[rows])

    def predict(self, adapted, x):
        outputs = self._predict(adapted, self._inputs(x))
        return jax.nn.softmax(outputs) if self.about["classification"] else outputs

    def _inputs(self, x):
        x, standard = np.asarray(x), self.about["standardized"]
        if standard:
            x = (x.astype(np.float64) - np.array(standard[0])) * np.array(standard[1])
        return x.astype(np.float32) / 255 if x.dtype == np.uint8 and self.about["pictures"] else x.astype(np.float32)
