"""Time and peak memory of the mL1-ACE losses, a literal transcription and MONAI's DiceCE: `python benchmarks/losses.py`.

Times are of forward and backward with softmax, for float32 logits and integer labels. The losses take turns within each round;
ratios are medians over rounds of transcription / ours. Peak memory is that of a fresh process above its use before the pass;
with `--device cuda` it is what torch allocated on the device in addition, and times include synchronisation.
"""

import argparse
import json
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from monai.losses import DiceCELoss

from model_training.losses.ace import HardL1ACELoss, SoftL1ACELoss

SHAPES = {"(2,4,96^3)": (2, 4, 96, 96, 96), "(1,16,96^3)": (1, 16, 96, 96, 96)}
EPS = 2.0**-23

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def literal_hard(logits: torch.Tensor, labels: torch.Tensor, bins: int = 20) -> torch.Tensor:
    """Return the hard-binned loss as in the paper's equations and the authors' code, image by image."""
    p = logits.softmax(dim=1).flatten(2)
    y = torch.nn.functional.one_hot(labels[:, 0], p.shape[1]).movedim(-1, 1).flatten(2).to(p.dtype)
    edges = torch.linspace(0, 1 + EPS, bins + 1, device=p.device)
    losses = []
    for b in range(p.shape[0]):
        for c in range(p.shape[1]):
            index = torch.bucketize(p[b, c].detach(), edges[1:])
            mean = [
                torch.zeros(bins, device=p.device).scatter_reduce(0, index, v, reduce="mean", include_self=False)
                for v in (p[b, c], y[b, c])
            ]
            filled = torch.zeros(bins, device=p.device).scatter_add(0, index, torch.ones_like(p[b, c])) > 0
            losses.append((mean[0] - mean[1]).abs()[filled].mean() * (y[b, c].sum() > 0))
    return torch.stack(losses).mean()


def literal_soft(logits: torch.Tensor, labels: torch.Tensor, bins: int = 20) -> torch.Tensor:
    """Return the soft-binned loss in the same way, with two weights per voxel."""
    p = logits.softmax(dim=1).flatten(2)
    y = torch.nn.functional.one_hot(labels[:, 0], p.shape[1]).movedim(-1, 1).flatten(2).to(p.dtype)
    width = (1 + EPS) / bins
    centres = torch.cat([torch.tensor([-1e4]), (torch.arange(bins) + 0.5) * width, torch.tensor([1e4])]).to(p.device)
    losses = []
    for b in range(p.shape[0]):
        for c in range(p.shape[1]):
            left = torch.bucketize(p[b, c].detach(), centres) - 1
            w = ((p[b, c] - centres[left]) / (centres[left + 1] - centres[left])).clamp(0, 1)
            lower, upper = (left - 1).clamp(0, bins - 1), left.clamp(0, bins - 1)
            total, gap = torch.zeros(bins, device=p.device), torch.zeros(bins, device=p.device)
            for index, weight in ((lower, 1 - w), (upper, w)):
                total = total.scatter_add(0, index, weight)
                gap = gap.scatter_add(0, index, weight * (p[b, c] - y[b, c]))
            filled = total >= 0.01
            losses.append((gap / total).abs()[filled].mean() * (y[b, c].sum() > 0))
    return torch.stack(losses).mean()


LOSSES: dict[str, Loss] = {
    "ours hard": HardL1ACELoss(softmax=True, to_onehot_y=True),
    "literal hard": literal_hard,
    "ours soft": SoftL1ACELoss(softmax=True, to_onehot_y=True),
    "literal soft": literal_soft,
    "MONAI DiceCE": DiceCELoss(softmax=True, to_onehot_y=True),
}


def batch(shape: tuple[int, ...], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits that favour the labels, like those of a network in training, and the labels; drawn on the CPU."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(shape[1], (shape[0], 1, *shape[2:]), generator=generator)
    logits = 2 * torch.randn(shape, generator=generator)
    return logits.scatter_add(1, labels, torch.full(labels.shape, 3.0)).to(device), labels.to(device)


def seconds(loss: Loss, logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the wall time of one forward and backward pass."""
    leaf = logits.clone().requires_grad_()
    _synchronise(leaf)
    started = time.perf_counter()
    loss(leaf, labels).backward()
    _synchronise(leaf)
    return time.perf_counter() - started


def synchronisations(loss: Loss, logits: torch.Tensor, labels: torch.Tensor) -> int:
    """Return how often one forward and backward pass on a GPU makes the program wait for it."""
    leaf = logits.clone().requires_grad_()
    seconds(loss, logits, labels)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            loss(leaf, labels).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(each.message) for each in caught)


def _synchronise(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def put_peak_mb(answer: "multiprocessing.Queue[float]", name: str, shape: tuple[int, ...]) -> None:
    """Put the result of `peak_mb` on the CPU into a queue."""
    answer.put(peak_mb(name, shape, "cpu"))


def peak_mb(name: str, shape: tuple[int, ...], device: str) -> float:
    """Return the peak memory of one pass above what was in use before it, in MiB."""
    torch.set_num_threads(1)
    logits, labels = batch(shape, device)
    small = batch((1, 2, 8, 8, 8), device)
    seconds(LOSSES[name], *small)
    leaf = logits.requires_grad_()
    if leaf.is_cuda:
        torch.cuda.reset_peak_memory_stats(leaf.device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is in use now
    before = _high_water_mb(leaf)
    LOSSES[name](leaf, labels).backward()
    return _high_water_mb(leaf) - before


def _high_water_mb(tensor: torch.Tensor) -> float:
    if tensor.is_cuda:
        return torch.cuda.max_memory_allocated(tensor.device) / 2**20
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def times_of(shape: tuple[int, ...], device: str, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each round by loss, after a warm-up; the losses take turns."""
    logits, labels = batch(shape, device)
    times: dict[str, list[float]] = {name: [] for name in LOSSES}
    for loss in LOSSES.values():
        seconds(loss, logits, labels)
    for _ in range(rounds):
        for name, loss in LOSSES.items():
            times[name].append(seconds(loss, logits, labels))
    return times


def memory_of(shape: tuple[int, ...], device: str) -> dict[str, float]:
    """Return the peak memory of each loss in MiB."""
    if torch.device(device).type == "cuda":  # torch counts the device's memory, so no fresh process is needed
        return {name: peak_mb(name, shape, device) for name in LOSSES}
    processes = multiprocessing.get_context("spawn")
    memory = {}
    for name in LOSSES:
        answer: multiprocessing.Queue[float] = processes.Queue()
        process = processes.Process(target=put_peak_mb, args=(answer, name, shape))
        process.start()
        memory[name] = answer.get()
        process.join()
    return memory


def main() -> None:
    """Print a table per shape and the ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="torch device, e.g. cpu or cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cuda = torch.device(arguments.device).type == "cuda"
    ratios = {}
    for label, shape in SHAPES.items():
        times = times_of(shape, arguments.device, arguments.rounds)
        memory = memory_of(shape, arguments.device)
        where = arguments.device if cuda else f"{arguments.threads} thread(s)"
        print(f"\n{label}, {where}, {arguments.rounds} rounds")
        for name in LOSSES:
            low, high = min(times[name]), max(times[name])
            middle = statistics.median(times[name])
            print(
                f"  {name:14} {1000 * middle:8.2f} ms ({1000 * low:.2f} to {1000 * high:.2f})  peak {memory[name]:7.0f} MB"
            )
        for binning in ("hard", "soft"):
            pairs = zip(times[f"literal {binning}"], times[f"ours {binning}"], strict=True)
            ratios[f"{binning} {label}"] = {
                "times faster": round(statistics.median(a / b for a, b in pairs), 2),
                "times the memory": round(memory[f"ours {binning}"] / memory[f"literal {binning}"], 2),
            }
    print(json.dumps(ratios, indent=2))


if __name__ == "__main__":
    main()
