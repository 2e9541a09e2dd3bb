"""PyTorch's loss and gradient of confident rows, for examples/confident.rs:

    torch_confident.py FILE.json

The cross entropy in f32 on the CPU of logits (margin, 0), class 0, for margins of 0, 1/4, .. 80.
"""

import json
import sys

import torch
import torch.nn.functional as F


def results(loss, margins):
    logits = torch.stack([margins, torch.zeros_like(margins)], dim=1).requires_grad_()
    target = torch.zeros(len(margins), dtype=torch.int64)
    losses = loss(logits, target, reduction="none")
    (grads,) = torch.autograd.grad(losses.sum(), logits)
    return {"losses": losses.tolist(), "grads": grads[:, 0].tolist()}


def main():
    margins = torch.arange(80 * 4 + 1, dtype=torch.float32) / 4
    report = {
        "version": torch.__version__,
        "margins": margins.tolist(),
        "eager": results(F.cross_entropy, margins),
        "compile": results(torch.compile(F.cross_entropy, dynamic=False), margins),
    }
    with open(sys.argv[1], "w") as file:
        json.dump(report, file)


if __name__ == "__main__":
    main()
