"""Compare activations in networks of 4 and of 20 layers, on few of scikit-learn's digits.

``surgery.swap_activation`` replaces the ReLU of a multilayer perceptron and initialises the weights
for the new activation. All networks have the same data, optimizer and number of steps; each seed
has its own training data and weights. The script prints a table and draws a picture:

    python examples/activations.py

It takes about a minute on a CPU. The picture is written next to this script, or to ``--out``.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.stats import sem, t
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lightning_practices.data import Standardize
from lightning_practices.files import replacing
from lightning_practices.init import initialize
from lightning_practices.pictures import STYLE
from lightning_practices.surgery import swap_activation

CLASSES, PIXELS, WIDTH = 10, 64, 64
TRAIN, BATCH_SIZE, STEPS, LEARNING_RATE = 500, 50, 200, 1e-3
DEPTHS = 4, 20
TICKS = 5, 10, 20, 50, 90  # of the error in %
ACTIVATIONS: dict[str, type[nn.Module]] = {  # in the lecture's order of preference
    "SELU": nn.SELU,
    "ELU": nn.ELU,
    "leaky ReLU": nn.LeakyReLU,
    "ReLU": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}

Result = tuple[float, float]  # test accuracy in %, seconds of the training
Results = dict[tuple[str, int], list[Result]]  # by activation and depth, one result per seed


def make_data(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return standardised pixels and labels to train, which depend on the seed, and to test."""
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels, labels, train_size=TRAIN, stratify=labels, random_state=seed)
    x, x_test = (torch.tensor(part, dtype=torch.float32)[:, None] for part in parts[:2])
    y, y_test = (torch.tensor(part) for part in parts[2:])
    scale = Standardize("channel").fit(x)
    return scale(x).flatten(1), y, scale(x_test).flatten(1), y_test


def make_network(activation: type[nn.Module], depth: int) -> nn.Sequential:
    """Return a perceptron of ``depth`` layers with weights for its activation."""
    layers: list[nn.Module] = [nn.Linear(PIXELS, WIDTH), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))
    if activation is nn.ReLU:
        initialize(network)
    else:
        swap_activation(network, nn.ReLU, activation)
    return network


def train(activation: type[nn.Module], depth: int, seed: int) -> Result:
    """Train a network, and return its test accuracy and the time."""
    x, y, x_test, y_test = make_data(seed)
    torch.manual_seed(seed)
    network = make_network(activation, depth)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    start = time.perf_counter()
    for _ in range(STEPS):
        batch = torch.randint(TRAIN, (BATCH_SIZE,))
        loss = F.cross_entropy(network(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        hits = network(x_test).argmax(1) == y_test
    return 100 * float(hits.float().mean()), seconds


def run(seeds: int) -> Results:
    """Train all networks with each seed, the activations in turns."""
    results: Results = {(name, depth): [] for depth in DEPTHS for name in ACTIVATIONS}
    with Progress(transient=True) as progress:
        task = progress.add_task("Training", total=seeds * len(results))
        for seed in range(seeds):
            for (name, depth), found in results.items():
                found.append(train(ACTIVATIONS[name], depth, seed))
                progress.advance(task)
    return results


def show(results: Results) -> None:
    """Print means and standard deviations over the seeds."""
    table = Table("activation")
    for depth in DEPTHS:
        table.add_column(f"{depth} layers: test accuracy in %", justify="right")
        table.add_column("time, ReLU's = 1", justify="right")
    for name in ACTIVATIONS:
        cells = []
        for depth in DEPTHS:
            accuracies, times = zip(*results[name, depth], strict=True)
            relu = statistics.median(seconds for _, seconds in results["ReLU", depth])
            spread = f"{statistics.mean(accuracies):.1f} ± {statistics.stdev(accuracies):.1f}"
            cells += [spread, f"{statistics.median(times) / relu:.2f}"]
        table.add_row(name, *cells)
    Console(width=110).print(table)


def draw_depth(axis: Axes, results: Results, depth: int) -> None:
    """Draw the error of each seed, and the mean with its interval, for each activation."""
    for row, name in enumerate(ACTIVATIONS):
        errors = [100 - accuracy for accuracy, _ in results[name, depth]]
        half = t.ppf(0.975, len(errors) - 1) * sem(errors)  # of the interval, by Student's t
        axis.plot(errors, [row] * len(errors), "o", color="C0", alpha=0.3)
        axis.errorbar(statistics.mean(errors), row, xerr=half, fmt="D", color="C1")
    axis.set(title=f"Networks of {depth} layers", xscale="log", xlim=(3.5, 110))
    axis.set_xticks(TICKS, ("5", "10", "20", "50", "90: guesses"))
    axis.set_xticks([], minor=True)
    axis.set_yticks(range(len(ACTIVATIONS)), list(ACTIVATIONS))
    axis.set_ylim(len(ACTIVATIONS) - 0.5, -0.5)


@style.context(STYLE)
def draw(results: Results, path: Path) -> None:
    """Draw the test errors, by activation and depth."""
    figure = Figure(figsize=(7, 6))
    axes = figure.subplots(len(DEPTHS), 1)
    for axis, depth in zip(axes, DEPTHS, strict=True):
        draw_depth(axis, results, depth)
    seeds = len(results["ReLU", DEPTHS[0]])
    axes[-1].set_xlabel(
        f"test error in % after {STEPS} steps (left is better)\n"
        f"pale: {seeds} seeds; diamonds: means with 95 % intervals"
    )
    with replacing(path) as part:
        figure.savefig(part)


def main() -> None:
    """Train all networks, and print and draw the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(__file__).with_suffix(".png")
    parser.add_argument("--out", type=Path, default=default, help="file to draw to")
    parser.add_argument("--seeds", type=int, default=8, help="at least 2")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error(f"--seeds must be at least 2, for a spread, got {arguments.seeds}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # for networks this small, more threads only wait for each other
    results = run(arguments.seeds)
    show(results)
    draw(results, arguments.out)
    print(f"Wrote {arguments.out}")


if __name__ == "__main__":
    main()
