#!/usr/bin/env python
"""What the best predictor of sinusoids errs by: the one that knows how tasks are drawn, and nothing of the task but its points.

    python scripts/sinusoid_bayes.py [--tasks 10000] [--seed 0]

Tasks are y = A sin(x - phase), with A uniform in [0.1, 5], phase in [0, pi], x in [-5, 5] (Finn et al. 2017, section 5.1),
without noise. The least mean squared error is that of the posterior mean (the Bayes-optimal predictor):

- without a point, the variance of y at each x;
- of one point (x_1, y_1), each phase leaves one amplitude, A = y_1 / sin(x_1 - phase). Its density is that of the prior, where A is
  in [0.1, 5], times |dA/dy_1| = 1 / |sin(x_1 - phase)|. The mean over it is a sum over a grid of phases;
- of two points or more, y = a sin(x) + b cos(x) is known: two equations have one solution, but for points that are
  a multiple of pi apart. The error is 0.

Prints a line for each number of points, with the 95% interval over tasks.
"""

import argparse

import numpy as np

LEAST, MOST = 0.1, 5.0  # amplitude
REACH = 5.0  # of x
GRID = 4000  # phases


def drawn(rng: np.random.Generator, tasks: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of so many tasks, `[tasks, points]` each."""
    amplitude, phase = rng.uniform(LEAST, MOST, (tasks, 1)), rng.uniform(0, np.pi, (tasks, 1))
    x = rng.uniform(-REACH, REACH, (tasks, points))
    return x, amplitude * np.sin(x - phase)


def of_nothing(x: np.ndarray) -> np.ndarray:
    """The mean of y at each x before any point: E[A] (sin x E[cos phase] - cos x E[sin phase]), with E[cos phase] = 0."""
    return -(LEAST + MOST) / 2 * np.cos(x) * 2 / np.pi


def of_one_point(x1: float, y1: float, x: np.ndarray) -> np.ndarray:
    """The posterior mean of y at each x, `[n]`, after the point (x1, y1)."""
    phase = (np.arange(GRID) + 0.5) * np.pi / GRID
    sine = np.sin(x1 - phase)
    amplitude = y1 / sine
    weight = np.where((amplitude >= LEAST) & (amplitude <= MOST), 1 / np.abs(sine), 0.0)
    if not weight.any():  # between two phases of the grid
        weight[np.argmin(np.maximum(LEAST - amplitude, amplitude - MOST))] = 1.0
    return (weight * amplitude) @ np.sin(x[None] - phase[:, None]) / weight.sum()


def of_points(points_x: np.ndarray, points_y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """y at each x, `[n]`, after two points or more."""
    a, b = np.linalg.lstsq(np.stack([np.sin(points_x), np.cos(points_x)], 1), points_y, rcond=None)[0]
    return a * np.sin(x) + b * np.cos(x)


def errors(rng: np.random.Generator, tasks: int, points: int, queries: int = 100) -> np.ndarray:
    """The mean squared error of each task, `[tasks]`, after so many points."""
    x, y = drawn(rng, tasks, points + queries)
    asked, truth = x[:, points:], y[:, points:]
    if points == 0:
        answers = of_nothing(asked)
    elif points == 1:
        answers = np.stack([of_one_point(*each) for each in zip(x[:, 0], y[:, 0], asked, strict=True)])
    else:
        answers = np.stack([of_points(*each) for each in zip(x[:, :points], y[:, :points], asked, strict=True)])
    return ((answers - truth) ** 2).mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("points  mean squared error")
    for points in (0, 1, 2, 5):
        found = errors(np.random.default_rng(options.seed), options.tasks, points)
        print(f"{points:6}  {found.mean():.4f} ± {1.96 * found.std(ddof=1) / np.sqrt(len(found)):.4f}")


if __name__ == "__main__":
    main()
