#!/usr/bin/env python3
"""Peers measured side by side with wgloss: builds them, gives them turns, prints tables.

    benches/peers/run.py                    # one run: about five minutes once all is built
    benches/peers/run.py --quick            # fewer rounds
    benches/peers/run.py --only burn --only 4096x1000
    benches/peers/run.py --only linear --turns 2 --rounds 2 --limit 300
                        # linear cross entropy, which a plain run leaves out
    benches/peers/run.py --runs 3 --record lavapipe-22.3.6-2-cores
                        # writes benches/record/lavapipe-22.3.6-2-cores/<date>-peers.json and .svg

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
import time

import report

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

# Only where asked for by name, as they take long: hidden states, their numbers, classes.
LINEAR = [
    ("linear_cross_entropy", "512x256x32000"),
    ("linear_cross_entropy", "2048x512x32000"),
    ("linear_cross_entropy", "4096x256x128256"),
    ("linear_cross_entropy", "8192x64x1000"),
]

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
        "burn SPIR-V": [native / "burn-spirv", "wgpu"],
        "burn WGSL": [native / "burn-wgsl", "wgpu"],
        "PyTorch CUDA eager": [*torch, "cuda", "eager"],
        "PyTorch CUDA compile": [*torch, "cuda", "compile"],
        "PyTorch CUDA chunked": [*torch, "cuda", "chunked"],
        "Liger CUDA": [*torch, "cuda", "liger"],
        "wgloss CPU": [own, "cpu"],
        "PyTorch CPU eager": [*torch, "cpu", "eager"],
        "PyTorch CPU compile": [*torch, "cpu", "compile"],
        "PyTorch CPU chunked": [*torch, "cpu", "chunked"],
        "candle CPU": [native / "candle"],
        "burn flex": [native / "burn-spirv", "flex"],
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
    attempt(["burn SPIR-V", "burn flex", "candle CPU"], "burn and candle (twenty minutes)",
            [cargo("native", "burn-spirv", "candle")], native)
    attempt(["burn WGSL"], "burn again, for WGSL (fifteen minutes)",
            [cargo("native", "burn-wgsl")], native)

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


def draw(record):
    """The record's picture, beside it."""
    command = ["cargo", "run", "--quiet", "--locked", "--release", "--target-dir",
               BUILD / "portable", "--features", "plot", "--bin", "plot", "--",
               record, record.with_suffix(".svg")]
    subprocess.run(command, cwd=HERE, check=True)
    print(f"drawn in {record.with_suffix('.svg')}")


class Program:
    """A running program, which answers a line with a line within so many seconds."""

    def __init__(self, command, environment, limit):
        self.limit = limit
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            text=True,
        )
        try:
            # where memory runs out, Linux ends the program under test and nothing else
            pathlib.Path(f"/proc/{self.process.pid}/oom_score_adj").write_text("1000")
        except OSError:
            pass

    def ask(self, line):
        """The answer, or an answer that says why there is none; and what the CPUs did meanwhile."""
        before = cpu_times(self.process.pid)
        answer = self.answer(line)
        after = cpu_times(self.process.pid)
        if before and after and "error" not in answer:
            answer["cpu"] = [b - a for a, b in zip(before, after)]
        return answer

    def answer(self, line):
        late = threading.Event()

        def stop():
            late.set()
            self.process.kill()

        timer = threading.Timer(self.limit, stop)
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
            return {"error": f"no result within {self.limit} s"}
        status = self.process.wait()
        self.errors.seek(0)
        lines = [text.strip() for text in self.errors if text.strip()]
        # a panic's message comes first, what it leads to and how to trace it afterwards
        panics = [after for text, after in zip(lines, lines[1:]) if "panicked at" in text]
        ended = f"ended by signal {-status}" if status < 0 else f"exit status {status}"
        reason = (panics or (lines[-1:] if status >= 0 else []) or [ended])[0]
        return {"error": reason[:200]}

    def stop(self):
        try:
            self.process.stdin.close()
        except OSError:
            # it has ended, with a line unread
            pass
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


def cpu_times(pid):
    """Seconds of all CPUs so far: in total, busy, taken by the host, and busy for process `pid`.
    None where the system does not tell."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, idle, waiting, hard, soft, stolen = map(
                int, file.readline().split()[1:9])
        with open(f"/proc/{pid}/stat") as file:
            # after the name, which may have spaces: its own times and those of its children
            own = sum(map(int, file.read().rpartition(")")[2].split()[11:15]))
    except (OSError, ValueError):
        return None
    busy = user + nice + system + hard + soft
    hertz = os.sysconf("SC_CLK_TCK")
    return [t / hertz for t in (busy + idle + waiting + stolen, busy, stolen, own)]


def load():
    """The averages of how many processes ran or waited, over 1, 5 and 15 minutes."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except OSError:
        return None


def shares(cpu):
    """Of all CPUs' time: what other processes took, and the host."""
    total, busy, stolen, own = (sum(column) for column in zip(*cpu))
    # the system counts in hundredths of a second: a little below 0 is 0
    return max(busy - own, 0) / total, stolen / total


def has(name, op):
    """Whether a program has such a loss."""
    if name == "Liger CUDA":
        return op != "bce_with_logits"
    return not name.endswith("chunked") or op == "linear_cross_entropy"


def measure(commands, workloads, flags, environment):
    """Every program's answers to each workload, each taking its turn after the other."""
    programs, answers = {}, {}
    for op, shape in workloads:
        for turn in range(flags.turns):
            for name, command in commands.items():
                got = answers.setdefault((op, shape, name), [])
                if got and "error" in got[-1] or not has(name, op):
                    # it has failed once, or has no such loss
                    continue
                progress(f"{op} {shape}, turn {turn + 1} of {flags.turns}: {name}")
                if name not in programs:
                    malloc = MALLOC if any(word in name for word in ON_CPU) else {}
                    try:
                        programs[name] = Program(command, {**environment, **malloc},
                                                 flags.limit)
                    except OSError as error:
                        got.append({"error": f"cannot be started: {error.strerror}"})
                        continue
                got.append(programs[name].ask(f"{op} {shape} {flags.rounds} {flags.calls}"))
                if "error" in got[-1] or op == "linear_cross_entropy":
                    # Many of them would not fit the machine's memory together, and none is to have
                    # memory at hand that another workload has left.
                    programs.pop(name).stop()
    for program in programs.values():
        program.stop()
    progress("")
    return answers


def progress(text):
    """On terminals only: a log would fill with control characters."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def quantile(values, part):
    values = sorted(values)
    return values[int((len(values) - 1) * part)]


def records_of(answers):
    """One record a workload and program, of one run."""
    records = []
    for (op, shape, name), turns in answers.items():
        record = {"peer": name, "op": op, "shape": shape}
        failed = [turn["error"] for turn in turns if "error" in turn]
        if failed:
            records.append({**record, "error": failed[0], "is_right": False})
            continue
        if not turns:
            # it has no such loss
            continue
        times = [ms for turn in turns for ms in turn["times_ms"]]

        def worst(key):
            # null is not a number, or infinite: worse than any
            values = [turn[key] for turn in turns]
            return None if None in values else max(values)

        record = {
            **record,
            "median_ms": round(statistics.median(times), 4),
            "p10_ms": round(quantile(times, 0.1), 4),
            "p90_ms": round(quantile(times, 0.9), 4),
            "rounds": len(times),
            "loss": turns[-1]["loss"],
            "expected_loss": turns[-1]["expected_loss"],
            "loss_error": worst("loss_error"),
            "grad_error": worst("grad_error"),
            "is_right": all(turn["is_right"] for turn in turns),
        }
        if turns[0].get("memory_mib") is not None:
            record["memory_mib"] = round(turns[0]["memory_mib"], 1)
        if all("cpu" in turn for turn in turns):
            record["others_cpu"] = round(shares([turn["cpu"] for turn in turns])[0], 3)
        records.append(record)
    for op, shape in {(r["op"], r["shape"]) for r in records}:
        # by two implementations, in Rust and in Python, each of the inputs and of the loss
        expected = [r["expected_loss"] for r in records
                    if (r["op"], r["shape"]) == (op, shape) and "expected_loss" in r]
        if expected and max(expected) - min(expected) > 1e-9:
            sys.exit(f"{op} {shape}: the programs do not agree on what is right: {expected}")
    return records


def run_once(commands, workloads, flags, environment):
    """A whole run, every program started anew: its record, and what the programs are."""
    load_before, start = load(), time.monotonic()
    answers = measure(commands, workloads, flags, environment)
    run = {
        "seconds": round(time.monotonic() - start),
        "load_before": load_before,
        "load_after": load(),
    }
    cpu = [turn["cpu"] for turns in answers.values() for turn in turns if "cpu" in turn]
    others, stolen = shares(cpu) if cpu else (None, None)
    run["others_cpu"] = None if others is None else round(others, 4)
    run["stolen_cpu"] = None if stolen is None else round(stolen, 4)
    run["records"] = records_of(answers)
    programs = {
        name: {"version": turn["version"], "device": turn["device"]}
        for (_, _, name), turns in answers.items() for turn in turns if "version" in turn
    }
    return run, programs


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
    parser.add_argument("--runs", type=int, default=1,
                        help="whole ones, in which every program is started anew")
    parser.add_argument("--turns", type=int, default=7, help="of each program and workload")
    parser.add_argument("--rounds", type=int, default=3, help="in a turn")
    parser.add_argument("--calls", type=int, default=1,
                        help="timed together in a round and waited for once: hides latency")
    parser.add_argument("--limit", type=int, default=180, metavar="SECONDS",
                        help="for one turn, the first one with compilation and tuning (180)")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT",
                        help="programs, or workloads, whose name contains this; may be repeated")
    parser.add_argument("--no-build", action="store_true", help="what is built is current")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="where to write results")
    parser.add_argument("--record", metavar="DEVICE",
                        help="write results to benches/record/DEVICE/<date>-peers.json, and .svg;"
                             " <date>-peers-linear where nothing else is measured")
    parser.add_argument("--draw", type=pathlib.Path, metavar="RECORD",
                        help="only draw the picture of this record, beside it")
    flags = parser.parse_args()
    if flags.draw:
        draw(flags.draw.resolve())
        return
    if flags.quick:
        flags.turns = 2

    commands, workloads = peers(), WORKLOADS
    wanted = [text.lower() for text in flags.only]
    programs = {name for name in commands if any(text in name.lower() for text in wanted)}
    chosen = [w for w in WORKLOADS + LINEAR if any(text in " ".join(w) for text in wanted)]
    for text in wanted:
        names = [*commands, *map(" ".join, WORKLOADS + LINEAR)]
        if not any(text in name.lower() for name in names):
            parser.error(f"--only {text}: none of {', '.join(names)}")
    without = set() if has_cuda() else {name for name in commands if "CUDA" in name}
    if programs:
        # and what those that can run are compared with
        present = programs - without
        programs |= {own for _, settings, own in report.RATIOS if present & set(settings)}
        commands = {name: command for name, command in commands.items() if name in programs}
    skipped = {name: "no NVIDIA GPU" for name in commands if name in without}
    workloads = chosen or workloads

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
    runs, programs = [], {}
    try:
        for number in range(flags.runs):
            print(f"run {number + 1} of {flags.runs}", file=sys.stderr)
            run, found = run_once(commands, workloads, flags, environment)
            runs.append(run)
            programs.update(found)
    finally:
        if runtime:
            shutil.rmtree(runtime)
    of_runs = [run["records"] for run in runs]
    summaries = report.summarise(of_runs)
    device = programs.get("wgloss GPU", {}).get("device", "")
    record = {
        "date": started.isoformat(timespec="seconds"),
        "revision": measured,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "command": " ".join(["benches/peers/run.py", *sys.argv[1:]]),
        "dtype": "f32",
        "pass": "forward_backward",
        "turns": flags.turns,
        "rounds": flags.rounds,
        "calls": flags.calls,
        "seconds": sum(run["seconds"] for run in runs),
        "programs": programs,
        "skipped": skipped,
        "records": summaries,
        "ratios": report.ratios(of_runs, summaries, device),
        "runs": runs,
    }
    print("\n".join(report.lines(record)))

    # a line each for what holds no other objects
    text = re.sub(r"\{[^{}]*\}", lambda found: " ".join(found[0].split()),
                  json.dumps(record, indent=1)) + "\n"
    if flags.json:
        flags.json.write_text(text)
    if flags.record:
        what = "peers-linear" if all(w in LINEAR for w in workloads) else "peers"
        file = ROOT / "benches" / "record" / flags.record / f"{started.date()}-{what}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        print(f"\nrecorded in {file.relative_to(ROOT)}")
        draw(file)


if __name__ == "__main__":
    main()
