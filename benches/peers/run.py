#!/usr/bin/env python3
"""Peers measured side by side with wgloss: builds them, gives them turns, prints one table.

    benches/peers/run.py                    # everything: about four minutes once it is built
    benches/peers/run.py --quick            # fewer rounds
    benches/peers/run.py --only burn --only 4096x1000
    benches/peers/run.py --record lavapipe-22.3.6-2-cores
                        # writes benches/record/lavapipe-22.3.6-2-cores/<date>-peers.json too

Needs Rust, Python and pip; README.md says what is measured, and what is not.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "target" / "peers"
VENV = BUILD / "venv"

WORKLOADS = [
    ("cross_entropy", "4096x1000"),
    ("cross_entropy", "8192x128"),
    ("cross_entropy", "512x32000"),
    ("cross_entropy", "64x128256"),
    ("cross_entropy", "100000x10"),
    ("bce_with_logits", "1000000"),
    ("bce_with_logits", "20000000"),
]

# What a program may take for one turn, its first one with compilation and tuning included.
LIMIT_SECONDS = 180

# For programs on the CPU glibc keeps freed memory instead of giving it back and mapping it anew at
# every step: otherwise page faults are most of what is timed of those that allocate their results.
# Not for those on a GPU, whose driver may be software: lavapipe is slower with this.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
ON_CPU = ("CPU", "flex")


def peers():
    """Each program: its name and its command."""
    native = BUILD / "native" / "release"
    own = BUILD / "portable" / "release" / "wgloss"
    torch = [VENV / "bin" / "python", HERE / "torch_peer.py"]
    return {
        "wgloss GPU": [own, "gpu"],
        "wgloss CPU": [own, "cpu"],
        "burn wgpu": [native / "burn", "wgpu"],
        "burn flex": [native / "burn", "flex"],
        "candle CPU": [native / "candle"],
        "PyTorch CPU eager": [*torch, "cpu", "eager"],
        "PyTorch CPU compile": [*torch, "cpu", "compile"],
        "PyTorch CUDA eager": [*torch, "cuda", "eager"],
        "PyTorch CUDA compile": [*torch, "cuda", "compile"],
        "Liger CUDA": [*torch, "cuda", "liger"],
    }


def has_cuda():
    try:
        return subprocess.run(["nvidia-smi"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def build(names):
    """Builds what the programs named need, and returns why some cannot be had."""
    missing = {}

    def attempt(users, what, commands, environment=None):
        users = [name for name in names if name in users]
        if not users:
            return
        print(f"building {what}", file=sys.stderr)
        for command in commands:
            result = subprocess.run(
                command,
                cwd=HERE,
                env={**os.environ, **(environment or {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            if result.returncode != 0:
                print(result.stdout, file=sys.stderr)
                reason = (result.stdout.strip().splitlines() or ["no reason given"])[-1]
                missing.update({name: f"not built: {reason}" for name in users})
                return

    def cargo(target, *features):
        command = ["cargo", "build", "--locked", "--release", "--target-dir", BUILD / target]
        return command + ["--features", ",".join(features)] + [f"--bin={name}" for name in features]

    # wgloss as it is shipped; its peers for this very CPU, as candle's own settings have it
    native = {"RUSTFLAGS": "-C target-cpu=native"}
    attempt(["wgloss GPU", "wgloss CPU"], "wgloss", [cargo("portable", "wgloss")])
    # together: apart, each would have their dependencies built with other features
    attempt(["burn wgpu", "burn flex", "candle CPU"], "burn and candle (ten minutes)",
            [cargo("native", "burn", "candle")], native)

    torch = [name for name in names if name.startswith(("PyTorch", "Liger"))]
    wanted = ["numpy", "torch"] + (["liger-kernel"] if "Liger CUDA" in names else [])
    stamp = VENV / "installed"
    if not stamp.exists() or stamp.read_text() != " ".join(wanted):
        pip = [VENV / "bin" / "python", "-m", "pip", "install", "--quiet", *wanted]
        steps = [[sys.executable, "-m", "venv", VENV], pip]
        attempt(torch, "a virtual environment with PyTorch (gigabytes)", steps)
        if torch and torch[0] not in missing:
            stamp.write_text(" ".join(wanted))
    return missing


class Program:
    """A running program, which answers a line with a line."""

    def __init__(self, command, environment):
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            text=True,
        )

    def ask(self, line):
        """The answer, or an answer that says why there is none."""
        late = threading.Event()

        def stop():
            late.set()
            self.process.kill()

        timer = threading.Timer(LIMIT_SECONDS, stop)
        timer.start()
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError:
            answer = ""
        finally:
            timer.cancel()
        if answer.endswith("\n"):
            return json.loads(answer)
        if late.is_set():
            return {"error": f"no result within {LIMIT_SECONDS} s"}
        status = self.process.wait()
        self.errors.seek(0)
        lines = [text.strip() for text in self.errors if text.strip()]
        # a panic's message comes first, what it leads to and how to trace it afterwards
        panics = [after for text, after in zip(lines, lines[1:]) if "panicked at" in text]
        ended = f"ended by signal {-status}" if status < 0 else f"exit status {status}"
        reason = (panics or (lines[-1:] if status >= 0 else []) or [ended])[0]
        return {"error": reason[:200]}

    def stop(self):
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


def measure(commands, workloads, turns, rounds, calls, environment):
    """Every program's answers to each workload, each taking its turn after the other."""
    programs, answers = {}, {}
    for op, shape in workloads:
        for turn in range(turns):
            for name, command in commands.items():
                got = answers.setdefault((op, shape, name), [])
                if got and "error" in got[-1] or (name, op) == ("Liger CUDA", "bce_with_logits"):
                    # it has failed once, or has no such loss
                    continue
                print(f"\r\033[K{op} {shape}, turn {turn + 1} of {turns}: {name}", end="",
                      file=sys.stderr, flush=True)
                if name not in programs:
                    malloc = MALLOC if any(word in name for word in ON_CPU) else {}
                    try:
                        programs[name] = Program(command, {**environment, **malloc})
                    except OSError as error:
                        got.append({"error": f"cannot be started: {error.strerror}"})
                        continue
                got.append(programs[name].ask(f"{op} {shape} {rounds} {calls}"))
                if "error" in got[-1]:
                    programs.pop(name).stop()
    for program in programs.values():
        program.stop()
    print("\r\033[K", end="", file=sys.stderr)
    return answers


def quantile(values, part):
    values = sorted(values)
    return values[int((len(values) - 1) * part)]


def summarise(answers):
    """One record a workload and program."""
    records = []
    for (op, shape, name), turns in answers.items():
        record = {"peer": name, "op": op, "shape": shape, "dtype": "f32"}
        record["pass"] = "forward_backward"
        failed = [turn["error"] for turn in turns if "error" in turn]
        if failed:
            records.append({**record, "error": failed[0], "is_right": False})
            continue
        times = [time for turn in turns for time in turn["times_ms"]]

        def worst(key):
            # null is not a number, or infinite: worse than any
            values = [turn[key] for turn in turns]
            return None if None in values else max(values)

        records.append({
            **record,
            "version": turns[0]["version"],
            "device": turns[0]["device"],
            "median_ms": statistics.median(times),
            "p10_ms": quantile(times, 0.1),
            "p90_ms": quantile(times, 0.9),
            "rounds": len(times),
            "loss": turns[-1]["loss"],
            "expected_loss": turns[-1]["expected_loss"],
            "loss_error": worst("loss_error"),
            "grad_error": worst("grad_error"),
            "is_right": all(turn["is_right"] for turn in turns),
        })
    for op, shape in {(r["op"], r["shape"]) for r in records}:
        # by two implementations, in Rust and in Python, each of the inputs and of the loss
        expected = [r["expected_loss"] for r in records
                    if (r["op"], r["shape"]) == (op, shape) and "expected_loss" in r]
        if expected and max(expected) - min(expected) > 1e-9:
            sys.exit(f"{op} {shape}: the programs do not agree on what is right: {expected}")
    by_key = {(r["op"], r["shape"], r["peer"]): r for r in records}
    for record in records:
        for own, key in [("wgloss GPU", "times_of_gpu"), ("wgloss CPU", "times_of_cpu")]:
            base = by_key.get((record["op"], record["shape"], own), {}).get("median_ms")
            if base and "median_ms" in record:
                record[key] = record["median_ms"] / base
    return records


def table(records):
    """Markdown: a line a workload and program."""
    def number(value, format_):
        return "-" if value is None else format(value, format_)

    def verdict(record):
        if record["is_right"]:
            return "right"
        if record["loss_error"] is None or record["loss_error"] > 1e-4:
            loss = "not finite" if record["loss"] is None else f"{record['loss']:.4g}"
            return f"**wrong**: loss {loss}, expected {record['expected_loss']:.4g}"
        return "**wrong**: gradient"

    lines = [
        "| workload | program | ms | p10 to p90 | / wgloss GPU | / wgloss CPU "
        "| loss error | gradient error | result |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --- |",
    ]
    last = None
    for record in records:
        workload = f"{record['op']} {record['shape']}"
        cells = ["" if workload == last else workload, record["peer"]]
        last = workload
        if "error" in record:
            cells += ["-"] * 6 + [f"**failed**: {record['error'].replace('|', '/')}"]
        else:
            cells += [
                f"{record['median_ms']:.3g}",
                f"{record['p10_ms']:.3g} to {record['p90_ms']:.3g}",
                number(record.get("times_of_gpu"), ".2f"),
                number(record.get("times_of_cpu"), ".2f"),
                number(record["loss_error"], ".0e"),
                number(record["grad_error"], ".0e"),
                verdict(record),
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def cpu_model():
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
        return re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)[1]
    except (OSError, TypeError):
        return platform.processor() or "unknown CPU"


def revision():
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout
    commit = git("rev-parse", "--short", "HEAD").strip()
    return commit + (", changed" if git("status", "--porcelain", "-uno").strip() else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 turns of 3 rounds")
    parser.add_argument("--turns", type=int, default=7, help="of each program and workload")
    parser.add_argument("--rounds", type=int, default=3, help="in a turn")
    parser.add_argument("--calls", type=int, default=1,
                        help="timed together in a round and waited for once: hides latency")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT",
                        help="programs, or workloads, whose name contains this; may be repeated")
    parser.add_argument("--no-build", action="store_true", help="what is built is current")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="where to write results")
    parser.add_argument("--record", metavar="DEVICE",
                        help="write results to benches/record/DEVICE/<date>-peers.json")
    flags = parser.parse_args()
    turns = 2 if flags.quick else flags.turns

    commands, workloads = peers(), WORKLOADS
    wanted = [text.lower() for text in flags.only]
    programs = {name for name in commands if any(text in name.lower() for text in wanted)}
    chosen = [w for w in WORKLOADS if any(text in " ".join(w) for text in wanted)]
    for text in wanted:
        names = [*commands, *map(" ".join, WORKLOADS)]
        if not any(text in name.lower() for name in names):
            parser.error(f"--only {text}: none of {', '.join(names)}")
    if programs:
        # wgloss is what the others are compared with
        programs |= {"wgloss GPU", "wgloss CPU"}
        commands = {name: command for name, command in commands.items() if name in programs}
    workloads = chosen or workloads

    skipped = {}
    if not has_cuda():
        skipped = {name: "no NVIDIA GPU" for name in commands if "CUDA" in name}
    names = [name for name in commands if name not in skipped]
    if not flags.no_build:
        skipped.update(build(names))
    commands = {name: commands[name] for name in names if name not in skipped}

    BUILD.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(BUILD / "inductor")}
    runtime = None
    if not environment.get("XDG_RUNTIME_DIR"):
        # Mesa complains without
        runtime = environment["XDG_RUNTIME_DIR"] = tempfile.mkdtemp()
    started, measured = datetime.datetime.now(datetime.timezone.utc), revision()
    try:
        answers = measure(commands, workloads, turns, flags.rounds, flags.calls, environment)
    finally:
        if runtime:
            shutil.rmtree(runtime)
    seconds = (datetime.datetime.now(datetime.timezone.utc) - started).total_seconds()

    records = summarise(answers)
    versions = {r["peer"]: [r["version"], r["device"]] for r in records if "version" in r}
    report = {
        "date": started.isoformat(timespec="seconds"),
        "revision": measured,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "command": " ".join(["benches/peers/run.py", *sys.argv[1:]]),
        "turns": turns,
        "rounds": flags.rounds,
        "calls": flags.calls,
        "seconds": round(seconds),
        "programs": {name: {"version": v, "device": d} for name, (v, d) in versions.items()},
        "skipped": skipped,
        "records": records,
    }
    print(f"{report['date']}, wgloss at {report['revision']}; {report['cpu']}, "
          f"{report['cores']} cores; {report['system']}\n")
    print(f"`{report['command']}`: {turns} turns of {flags.rounds} rounds of {flags.calls} call"
          f"{'s' if flags.calls > 1 else ''}; {report['seconds']} s\n")
    for name, (version, device) in versions.items():
        print(f"- {name} {version}: {device}")
    for name, reason in skipped.items():
        print(f"- {name}: skipped, {reason}")
    print("\nForward and backward, f32, mean. ms: median, from inputs on the device to loss and\n"
          "gradient complete. / wgloss: how many times as long as wgloss takes. Errors: relative\n"
          "to the loss, and to the largest gradient.\n")
    print("\n".join(table(records)))

    text = json.dumps(report, indent=1) + "\n"
    if flags.json:
        flags.json.write_text(text)
    if flags.record:
        file = ROOT / "benches" / "record" / flags.record / f"{started.date()}-peers.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        print(f"\nrecorded in {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
