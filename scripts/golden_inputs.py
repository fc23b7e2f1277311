"""The parameters and the task of the golden numbers: NumPy's frozen generator, one seed, one order of draws."""

import numpy as np

WAY, SHOT, QUERY_SHOT, SIZE, FILTERS = 3, 2, 2, 16, 4
INNER_LR, INNER_STEPS = 0.4, 2


def params() -> dict[str, dict[str, np.ndarray]]:
    """Conv-4 with scale and shift, in float64: kernels `[3, 3, in, out]`, the head `[features, way]`."""
    rng = np.random.RandomState(0)
    layers = {}
    for i in range(4):
        channels = 1 if i == 0 else FILTERS
        layers[f"conv{i}"] = {
            "kernel": rng.normal(size=(3, 3, channels, FILTERS)) / np.sqrt(9 * channels),
            "norm_scale": 1 + 0.1 * rng.normal(size=FILTERS),
            "norm_shift": 0.1 * rng.normal(size=FILTERS),
        }
    features = FILTERS * (SIZE // 16) ** 2
    layers["head"] = {
        "kernel": rng.normal(size=(features, WAY)) / np.sqrt(features),
        "bias": 0.1 * rng.normal(size=WAY),
    }
    return layers


def task() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images `[n, height, width, 1]` in float64 and labels, of "support" and "query": a noisy pattern a class."""
    rng = np.random.RandomState(1)
    patterns = rng.uniform(size=(WAY, SIZE, SIZE, 1))
    splits = {}
    for name, shot in (("support", SHOT), ("query", QUERY_SHOT)):
        y = rng.permutation(np.tile(np.arange(WAY), shot))
        splits[name] = patterns[y] + 0.5 * rng.normal(size=(len(y), SIZE, SIZE, 1)), y
    return splits
