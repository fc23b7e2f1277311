"""Loss and meta-gradient of five methods against those that PyTorch computed (scripts/golden.py), in float64."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import golden_inputs as golden
from metarun.few_shot.methods.maml import maml
from metarun.few_shot.methods.protonet import protonet
from metarun.models.conv4 import conv4
from metarun.types import Split, Task

NUMBERS = json.loads(Path(__file__).with_name("golden.json").read_text())["methods"]

GRADIENT_BASED = {
    "maml": {},
    "fomaml": {"first_order": True},
    "anil": {"inner_params": "head"},
    "boil": {"inner_params": "body"},
}


def method_called(name):
    if name == "protonet":
        encoder = conv4(num_outputs=None, filters=golden.FILTERS)
        return protonet(encoder=encoder, objective="classification", num_outputs=golden.WAY)
    return maml(
        model=conv4(num_outputs=golden.WAY, filters=golden.FILTERS),
        objective="classification",
        inner_lr=golden.INNER_LR,
        inner_steps=golden.INNER_STEPS,
        **GRADIENT_BASED[name],
    )


@pytest.mark.parametrize("name", NUMBERS)
def test_loss_and_meta_gradient_agree_with_pytorch(name):
    with jax.enable_x64(True):
        splits = golden.task()
        task = Task(
            *(Split(jnp.asarray(x), jnp.asarray(y, jnp.int32)) for x, y in (splits["support"], splits["query"]))
        )
        params = jax.tree.map(jnp.asarray, golden.params())
        if name == "protonet":
            del params["head"]
        method = method_called(name)
        loss, gradient = jax.jit(jax.value_and_grad(lambda params: method.loss(params, task, None)[0]))(params)
    assert loss.dtype == np.float64
    np.testing.assert_allclose(loss, NUMBERS[name]["loss"], rtol=1e-5)
    named = {f"{layer}.{key}": np.asarray(leaf) for layer, leaves in gradient.items() for key, leaf in leaves.items()}
    assert named.keys() == NUMBERS[name]["gradient"].keys()
    for leaf, expected in NUMBERS[name]["gradient"].items():
        flat, norm = named[leaf].reshape(-1), expected["norm"]
        np.testing.assert_allclose(np.linalg.norm(flat), norm, rtol=1e-5, atol=1e-12, err_msg=leaf)
        np.testing.assert_allclose(flat[:4], expected["first"], rtol=1e-5, atol=1e-5 * norm + 1e-12, err_msg=leaf)
        wave = flat @ np.cos(np.arange(flat.size))
        np.testing.assert_allclose(wave, expected["wave"], rtol=1e-5, atol=1e-5 * norm + 1e-12, err_msg=leaf)
