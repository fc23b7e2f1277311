"""Prints how far the meta-gradients on 2, 4 and 8 devices are from those on one, relative to the largest of a leaf.

As a program it has eight devices: `python many_devices.py`.
"""

import json
import os

os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax
import numpy as np
from jax.sharding import AxisType
from small_tasks import image_task

from metarun.compiled.task_map import Layout, mean_gradient
from metarun.few_shot.methods.maml import maml
from metarun.models.conv4 import conv4


def gradient(num_devices, num_tasks, chunk):
    """Of exact second order, the mean over tasks."""
    method = maml(model=conv4(num_outputs=3, filters=4), objective="classification", inner_lr=0.1, inner_steps=2)
    devices = jax.devices()[:num_devices]
    mesh = jax.make_mesh((num_devices,), ("task",), axis_types=(AxisType.Auto,), devices=devices)
    keys = jax.random.split(jax.random.key(1), num_tasks)
    params = jax.jit(method.init)(jax.random.key(0), image_task(keys[0]))
    loss = lambda params, _, key: method.loss(params, image_task(key), key)
    found, _ = jax.jit(lambda params, keys: mean_gradient(loss, Layout(mesh, chunk), params, (), keys))(params, keys)
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(found)]


def main():
    found = {}
    for num_tasks, chunk in ((8, 1), (11, 2)):
        alone = gradient(1, num_tasks, chunk)
        for devices in (2, 4, 8):
            pairs = zip(gradient(devices, num_tasks, chunk), alone, strict=True)
            found[f"{devices} {num_tasks}"] = max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
