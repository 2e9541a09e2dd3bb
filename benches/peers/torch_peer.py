"""PyTorch's losses and its automatic differentiation, by the protocol of src/lib.rs:

    torch_peer.py cpu|cuda eager|compile|chunked|liger

Inputs and their float64 results are the same as there, to the bit and to rounding.
"""

import ctypes
import functools
import json
import statistics
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

ALLOWED = 1e-4
FOOTPRINT, COPIES = 512 << 20, 32


def random(seed, count):
    """The first numbers of a splitmix64 sequence (Steele, Lea and Flood, 2014)."""
    z = np.arange(1, count + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(seed)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


class Data:
    """A workload's inputs."""

    def __init__(self, op, shape):
        self.op, self.shape, self.projection = op, shape, None
        is_linear = op == "linear_cross_entropy"
        input_shape = shape[:2] if is_linear else shape
        count = int(np.prod(input_shape))
        bits = (random(1, count) >> np.uint64(40)).astype(np.float32)
        self.input = (bits * np.float32(2**-21) - np.float32(4)).reshape(input_shape)
        if op == "bce_with_logits":
            self.target = (random(2, count) >> np.uint64(63)).astype(np.float32)
        else:
            classes_of = (random(2, shape[0]) >> np.uint64(33)) % np.uint64(shape[-1])
            self.target = classes_of.astype(np.int64)
        if is_linear:
            _, dims, classes = shape
            bits = (random(3, classes * dims) >> np.uint64(40)).astype(np.float32)
            self.projection = (bits * np.float32(2**-25) - np.float32(0.25)).reshape(classes, dims)
        weights = 0 if self.projection is None else self.projection.nbytes
        self.size = self.input.nbytes + weights + 4 * self.target.size
        # products read and write more than caches hold in every call
        self.copies = 2 if is_linear else min(max(-(-FOOTPRINT // self.size), 2), COPIES)

    def expect(self):
        """What is to come of them, in float64."""
        x = self.input.astype(np.float64)
        if self.op == "linear_cross_entropy":
            self.loss, self.grads = linear_cross_entropy(x, self.projection, self.target)
            return
        if self.op == "cross_entropy":
            rows = len(x)
            at_target = np.arange(rows), self.target
            chosen = x[at_target]
            np.exp(x, out=x)
            sums = x.sum(axis=1)
            self.loss = float(np.mean(np.log(sums) - chosen))
            x /= sums[:, None] * rows
            x[at_target] -= 1 / rows
        else:
            # logits are within -4 and 4: nothing overflows
            self.loss = float(np.mean(np.log1p(np.exp(x)) - x * self.target))
            x = (1 / (1 + np.exp(-x)) - self.target) / x.size
        self.grads = [x]

    def errors(self, loss, grads):
        """The loss's relative to it, and the worst of a gradient's relative to the largest one of
        its kind."""
        with np.errstate(invalid="ignore"):
            worst = [np.abs(got - want).max() / np.abs(want).max()
                     for got, want in zip(grads, self.grads)]
            # max() would lose a NaN
            errors = abs(loss - self.loss) / self.loss, float(np.max(worst))
        return [float(e) if np.isfinite(e) else None for e in errors]


def linear_cross_entropy(x, projection, target):
    """By blocks of rows, whose logits become their gradient."""
    rows, w = len(x), projection.astype(np.float64)
    loss, of_input, of_projection = 0.0, np.empty_like(x), np.zeros_like(w)
    for first in range(0, rows, 64):
        block = slice(first, min(first + 64, rows))
        logits = x[block] @ w.T
        at_target = np.arange(len(logits)), target[block]
        most = logits.max(axis=1, keepdims=True)
        chosen = logits[at_target] - most[:, 0]
        np.exp(logits - most, out=logits)
        sums = logits.sum(axis=1)
        loss += float(np.sum(np.log(sums) - chosen))
        logits /= sums[:, None] * rows
        logits[at_target] -= 1 / rows
        of_input[block] = logits @ w
        of_projection += logits.T @ x[block]
    return loss / rows, [of_input, of_projection]


def memory(name):
    """KiB of this process, where the system tells."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(name))
    except (OSError, StopIteration):
        return None


def give_back_memory():
    """What glibc keeps of NumPy's intermediate results would be used again, and not be seen."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        # another C library
        pass


def linear(x, projection, target):
    return F.cross_entropy(F.linear(x, projection), target)


class Peer:
    def __init__(self, device, how):
        self.device, self.how = device, how
        self.version = torch.__version__
        if device == "cuda":
            if not torch.cuda.is_available():
                sys.exit("no CUDA device")
            self.on = torch.cuda.get_device_name()
        else:
            self.on = f"CPU, {torch.get_num_threads()} threads"
        self.name = f"PyTorch {device.upper()} {how}"
        if how == "liger":
            import importlib.metadata

            self.name = "Liger CUDA"
            self.version = importlib.metadata.version("liger-kernel")

    def loss(self, op):
        """The loss as a user would write it."""
        if self.how == "liger":
            from liger_kernel import transformers

            if op == "cross_entropy":
                return transformers.LigerCrossEntropyLoss()
            if op != "linear_cross_entropy":
                sys.exit(f"Liger has no {op}")
            loss = transformers.LigerFusedLinearCrossEntropyLoss()
            return lambda x, projection, target: loss(projection, x, target)
        if self.how == "chunked":
            if op != "linear_cross_entropy" or not hasattr(torch.nn, "LinearCrossEntropyOptions"):
                sys.exit(f"PyTorch {self.version} has no {op} in chunks of rows")
            # without options it is `linear`, below
            options = torch.nn.LinearCrossEntropyOptions()
            return functools.partial(F.linear_cross_entropy, options=options)
        loss = {
            "cross_entropy": F.cross_entropy,
            "bce_with_logits": F.binary_cross_entropy_with_logits,
            "linear_cross_entropy": linear,
        }[op]
        if self.how == "compile":
            # each workload on its own, for its own shape
            torch._dynamo.reset()
            return torch.compile(loss, dynamic=False)
        return loss

    def prepare(self, data):
        def copy(array):
            return torch.from_numpy(array).to(self.device, copy=True)

        self.function = self.loss(data.op)
        if data.projection is not None:
            # a small one first, so that code, compiler and threads are there
            small = [torch.zeros(size, device=self.device, requires_grad=True)
                     for size in ([64, 64], [1000, 64])]
            target = torch.zeros(64, dtype=torch.int64, device=self.device)
            torch.autograd.grad(self.function(*small, target), small)
            give_back_memory()
        before = memory("VmRSS:")
        of_layer = [] if data.projection is None else [data.projection]
        self.inputs = [
            ([copy(array).requires_grad_() for array in [data.input, *of_layer]],
             copy(data.target)) for _ in range(data.copies)
        ]
        self.turn = 0
        self.wait()
        is_cuda = self.device == "cuda"
        if is_cuda:
            on_device = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        try:
            # the system finds the peak anew: bringing inputs to a device takes memory too
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        except OSError:
            before = None
        last = self.run()
        self.wait()
        self.memory_mib = None
        of_results = sum(4 * grad.numel() for grad in last[1])
        if is_cuda:
            most = torch.cuda.max_memory_allocated()
            self.memory_mib = (most - on_device - of_results) / 2**20
        elif before is not None:
            known = data.copies * (data.size + 4 * data.target.size) + of_results
            self.memory_mib = (memory("VmHWM:") - before - known / 1024) / 1024
        del last
        for _ in self.inputs[1:]:
            self.run()
            self.wait()

    def run(self):
        variables, target = self.inputs[self.turn % len(self.inputs)]
        self.turn += 1
        loss = self.function(*variables, target)
        return loss.detach(), torch.autograd.grad(loss, variables)

    def judged(self, data, last):
        """The results to judge: of what was timed, not of a call made for this."""
        if self.how == "liger":
            # it writes the gradient over its input, and was timed on what that left
            with torch.no_grad():
                for (x, *_), _ in self.inputs:
                    x.copy_(torch.from_numpy(data.input))
            last = self.run()
        return last[0].item(), [grad.cpu().numpy() for grad in last[1]]

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()


def turn(peer, data, rounds, calls):
    times = []
    # the first round warms up: others had their turns
    for _ in range(rounds + 1):
        # as a training loop would, before the next step
        last = None
        start = time.perf_counter()
        for _ in range(calls):
            last = peer.run()
        peer.wait()
        times.append((time.perf_counter() - start) * 1e3 / calls)
    times = times[1:]
    loss, grads = peer.judged(data, last)
    errors = data.errors(loss, grads)
    ordered = sorted(times)
    return {
        "peer": peer.name,
        "version": peer.version,
        "device": peer.on,
        "op": data.op,
        "shape": "x".join(map(str, data.shape)),
        "dtype": "f32",
        "pass": "forward_backward",
        "median_ms": statistics.median(times),
        "p10_ms": ordered[(rounds - 1) // 10],
        "p90_ms": ordered[(rounds - 1) * 9 // 10],
        "rounds": rounds,
        "calls": calls,
        "times_ms": times,
        "loss": loss if np.isfinite(loss) else None,
        "expected_loss": data.loss,
        "loss_error": errors[0],
        "grad_error": errors[1],
        "is_right": all(error is not None and error <= ALLOWED for error in errors),
        "memory_mib": peer.memory_mib,
    }


def main():
    peer = Peer(*sys.argv[1:3])
    data = None
    for line in sys.stdin:
        op, shape, rounds, *calls = line.split()
        shape = tuple(map(int, shape.split("x")))
        if data is None or (data.op, data.shape) != (op, shape):
            data = peer.inputs = None
            data = Data(op, shape)
            peer.prepare(data)
            # later, so that its memory is not what PyTorch uses again
            data.expect()
        print(json.dumps(turn(peer, data, int(rounds), int(*calls or [1]))), flush=True)


if __name__ == "__main__":
    main()
