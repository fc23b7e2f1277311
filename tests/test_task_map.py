"""Every layout of tasks gives what a loop over them gives."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from small_tasks import image_task

from metarun.compiled.task_map import Layout, default_layout, frugal_layouts, map_tasks, mean_gradient
from metarun.few_shot.methods.maml import maml
from metarun.few_shot.methods.matching import matching
from metarun.few_shot.methods.protonet import protonet
from metarun.few_shot.methods.r2d2 import r2d2
from metarun.models.conv4 import conv4
from metarun.system.shared_rows import by_rows


def layout(devices, chunk):
    mesh = jax.make_mesh((devices,), ("task",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    return Layout(mesh, chunk)


def loss(params, shared, index):
    x = jnp.sin(shared + index.astype(jnp.float32))
    value = jnp.sum(jnp.tanh(params["w"] * x) ** 2)
    return value, {"loss": value, "square": value**2}


LAYOUTS = [(devices, chunk) for devices in (1, 2) for chunk in (1, 2, 3, None)]


@pytest.mark.parametrize("num_tasks", [1, 4, 7])
@pytest.mark.parametrize("devices, chunk", LAYOUTS)
def test_mean_gradient_equals_a_loop(devices, chunk, num_tasks):
    params, shared = {"w": jnp.array([0.5, -1.0])}, jnp.array([0.1, 0.7])
    run = jax.jit(lambda p: mean_gradient(loss, layout(devices, chunk), p, shared, jnp.arange(num_tasks)))
    gradient, metrics = run(params)
    each = [jax.value_and_grad(loss, has_aux=True)(params, shared, i) for i in jnp.arange(num_tasks)]
    np.testing.assert_allclose(gradient["w"], np.mean([g["w"] for _, g in each], axis=0), rtol=1e-5)
    for name in ("loss", "square"):
        np.testing.assert_allclose(metrics[name], np.mean([m[name] for (_, m), _ in each]), rtol=1e-5)


def test_what_is_empty_for_each_task_is_stacked():
    # As what is observed of a bandit.
    out = map_tasks(lambda shared, i: jnp.zeros((3, 0)), layout(2, None), (), jnp.arange(5))
    assert out.shape == (5, 3, 0)


@pytest.mark.parametrize("num_tasks", [1, 4, 7])
@pytest.mark.parametrize("devices, chunk", LAYOUTS)
def test_map_tasks_equals_a_loop(devices, chunk, num_tasks):
    tasks = {"a": jnp.arange(num_tasks * 2.0).reshape(num_tasks, 2)}
    fn = lambda shared, task: {"sum": shared * task["a"].sum(), "a": task["a"]}
    out = jax.jit(lambda t: map_tasks(fn, layout(devices, chunk), jnp.float32(3), t))(tasks)
    np.testing.assert_array_equal(out["sum"], 3 * tasks["a"].sum(1))
    np.testing.assert_array_equal(out["a"], tasks["a"])


LEARNERS = {
    "maml": lambda: maml(
        model=conv4(num_outputs=3, filters=4), objective="classification", inner_lr=0.1, inner_steps=2
    ),
    **{
        factory.__name__: lambda factory=factory: factory(
            encoder=conv4(num_outputs=None, filters=16, halvings=2, downsample="max_pool"),
            objective="classification",
            num_outputs=3,
        )
        for factory in (protonet, matching, r2d2)
    },
}


def step(method, devices, together):
    """`(params, indices) -> (gradient, metrics)` over tasks of 33 support examples and 45 queries."""
    where = layout(devices, 1)._replace(together=together)

    def task_loss(params, _, index):
        task_key, method_key = jax.random.split(jax.random.fold_in(jax.random.key(1), index))
        of_task = lambda task: method.loss(params, task, method_key)
        return (by_rows(of_task, where.mesh) if together else of_task)(image_task(task_key, 3, 11, 15, 12))

    return jax.jit(lambda params, indices: mean_gradient(task_loss, where, params, (), indices))


def start(method):
    return jax.jit(method.init)(jax.random.key(0), image_task(jax.random.key(2), 3, 11, 15, 12))


@pytest.mark.parametrize("name", LEARNERS)
def test_tasks_that_devices_share_have_the_gradient_of_whole_ones(name):
    method, indices = LEARNERS[name](), jnp.arange(3)
    params = start(method)
    expected = step(method, 1, together=False)(params, indices)
    found = step(method, 2, together=True)(params, indices)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_each_device_computes_its_own_examples_of_a_shared_task():
    method = LEARNERS["protonet"]()
    program = step(method, 2, together=True).lower(start(method), jnp.arange(1)).compile().as_text()
    # Half of 33 support examples, and half of these and 45 queries.
    images = {int(n) for n in re.findall(r"= f32\[(\d+),\d+,\d+,16\]\S* convolution\(", program)}
    assert images == {17, 39}


@pytest.mark.parametrize(
    "devices, num_tasks, rows, shares", [(2, 1, 32, True), (2, 1, 31, False), (2, 2, 99, False), (1, 1, 99, False)]
)
def test_cores_share_tasks_that_are_fewer_and_large_enough(devices, num_tasks, rows, shares):
    assert layout(devices, 1).of_few(num_tasks, rows).together is shares


@pytest.mark.slow
def test_meta_gradients_on_up_to_eight_devices_are_those_of_one():
    program = Path(__file__).with_name("many_devices.py")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 6 and max(found.values()) < 1e-4, found


@pytest.mark.parametrize("num_tasks, waits", [(4, False), (3, True)])
def test_what_the_host_reads_stays_on_the_device_that_computed_it(num_tasks, waits):
    many = layout(2, 1)

    def answers(tasks):
        found = map_tasks(lambda shared, task: shared @ task, many, jnp.ones((5, 3)), tasks)
        return jax.lax.with_sharding_constraint(found, many.for_host(num_tasks))

    tasks = jnp.arange(num_tasks * 3.0).reshape(num_tasks, 3)
    program = jax.jit(answers).lower(tasks).compile()
    assert ("all-gather" in program.as_text()) == waits  # tasks that do not part evenly lie whole on every device
    np.testing.assert_allclose(program(tasks), np.tile(tasks.sum(1, keepdims=True), 5))


def test_a_padding_task_that_is_not_finite_does_no_harm():
    # Task 2 fills up the chunks of three tasks on two devices; only its first copy may count.
    def only_first_is_finite(params, shared, index):
        value = params * jnp.where(index < 3, 1.0, jnp.nan)
        return value, {"loss": value}

    gradient, _ = mean_gradient(only_first_is_finite, layout(2, 1), jnp.float32(2), (), jnp.arange(3))
    assert gradient == 1


def test_the_default_uses_every_device_and_one_task_at_a_time_on_a_cpu():
    assert default_layout().mesh.size == len(jax.devices())
    assert default_layout().chunk == 1


@pytest.mark.parametrize(
    "devices, chunk, num_tasks, at_once, expected",
    [
        (1, None, 50, 5, 5),
        (1, None, 50, 7, 5),  # 7 would leave a chunk of which 6 of 7 tasks are padding
        (1, None, 4, 20, 4),
        (1, 2, 50, 5, 2),
        (2, None, 50, 10, 5),
        (1, None, 7, 6, 1),
    ],
)
def test_what_stays_in_a_cache_parts_the_tasks_evenly(devices, chunk, num_tasks, at_once, expected):
    assert layout(devices, chunk).cached(num_tasks, at_once).chunk == expected


@pytest.mark.parametrize(
    "devices, chunk, num_tasks, chunks",
    [(2, 1, 8, [1]), (1, None, 8, [8, 4, 2, 1]), (2, None, 25, [13, 7, 4, 2, 1]), (1, 3, 8, [3, 2, 1]), (2, 9, 1, [1])],
)
def test_frugal_layouts_halve_what_a_device_computes_at_once(devices, chunk, num_tasks, chunks):
    assert [each.chunk for each in frugal_layouts(layout(devices, chunk), num_tasks)] == chunks
