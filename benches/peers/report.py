#!/usr/bin/env python3
"""What a record of run.py says: its ranges, its ratios, its tables.

    benches/peers/report.py benches/record/DEVICE/<date>-peers.json
    benches/peers/report.py RECORD --fill README.md benches/record/README.md

run.py prints the same when it ends. `--fill` puts it into files, between the lines
`<!-- peers: sentences -->` or `<!-- peers: tables -->` and `<!-- /peers -->`; a record of linear cross
entropy alone has places of its own, `<!-- peers: linear tables -->`. Needs Python alone.
"""

import argparse
import json
import math
import pathlib
import re
import statistics
import textwrap

# A peer, the programs that are its settings, and the program of wgloss beside it. A ratio is
# against the fastest setting whose results are right.
ON_CPU, ON_CUDA = ([f"PyTorch {device} {how}" for how in ("eager", "compile", "chunked")]
                   for device in ("CPU", "CUDA"))
RATIOS = [
    ("burn wgpu", ["burn SPIR-V", "burn WGSL"], "wgloss GPU"),
    ("PyTorch CUDA", ON_CUDA, "wgloss GPU"),
    ("Liger CUDA", ["Liger CUDA"], "wgloss GPU"),
    ("PyTorch CPU", ON_CPU, "wgloss CPU"),
    ("candle CPU", ["candle CPU"], "wgloss CPU"),
    ("burn flex", ["burn flex"], "wgloss CPU"),
]
# Where the driver is software, both are programs for the same CPU.
ON_SOFTWARE = ("PyTorch CPU", ON_CPU, "wgloss GPU")
SOFTWARE = ("llvmpipe", "SwiftShader")


def workload_of(record):
    return record["op"], record["shape"]


def summarise(runs):
    """One record a workload and program, over all runs: the median and the range of medians."""
    summaries = []
    for record in runs[0]:
        key = (record["peer"], *workload_of(record))
        same = [r for run in runs for r in run if (r["peer"], *workload_of(r)) == key]
        summary = {name: record[name] for name in ("peer", "op", "shape")}
        failed = [r["error"] for r in same if "error" in r]
        summary["is_right"] = not failed and all(r["is_right"] for r in same)
        if failed:
            summaries.append({**summary, "error": failed[0]})
            continue
        medians = [r["median_ms"] for r in same]

        def worst(name):
            # null is not a number, or infinite: worse than any
            values = [r[name] for r in same]
            return None if None in values else max(values)

        summaries.append({
            **summary,
            "median_ms": statistics.median(medians),
            "range_ms": [min(medians), max(medians)],
            "loss": same[-1]["loss"],
            "expected_loss": same[-1]["expected_loss"],
            "loss_error": worst("loss_error"),
            "grad_error": worst("grad_error"),
        })
        memory = [r["memory_mib"] for r in same if r.get("memory_mib") is not None]
        if memory:
            summaries[-1]["memory_mib"] = max(memory)
    return summaries


def ratios(runs, summaries, device):
    """How many times as long as wgloss each peer takes: in each run its fastest right setting."""
    pairs = RATIOS + ([ON_SOFTWARE] if any(name in device for name in SOFTWARE) else [])
    right = {(r["peer"], *workload_of(r)) for r in summaries if r["is_right"]}
    results = []
    for peer, settings, own in pairs:
        for workload in dict.fromkeys(map(workload_of, summaries)):
            usable = [name for name in settings if (name, *workload) in right]
            if not usable or (own, *workload) not in right:
                continue
            values, best = [], []
            for run in runs:
                times = {r["peer"]: r["median_ms"] for r in run if workload_of(r) == workload
                         and "median_ms" in r}
                fastest = min(usable, key=times.get)
                values.append(times[fastest] / times[own])
                best.append(fastest)
            results.append({
                "peer": peer, "own": own, "op": workload[0], "shape": workload[1],
                "settings": sorted(set(best)),
                "ratio": statistics.median(values),
                "range": [min(values), max(values)],
            })
    return results


def number(value):
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def interval(low, high):
    low, high = number(low), number(high)
    return low if low == high else f"{low} to {high}"


def spread(value, low, high):
    """With the range in brackets, where there is one."""
    return number(value) if low == high else f"{number(value)} ({interval(low, high)})"


def outwards(value, whole):
    """Two digits, so rounded that a range holds what was measured."""
    step = 10 ** (math.floor(math.log10(value)) - 1)
    return number(whole(value / step) * step)


def names(words):
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]


def title(op, shape):
    name = {
        "cross_entropy": "cross entropy",
        "bce_with_logits": "BCE with logits",
        "linear_cross_entropy": "linear cross entropy",
    }[op]
    return f"{name} {shape.replace('x', ' x ')}"


def grid(head, rows):
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " --: |" * (len(head) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def table_of_times(summaries):
    """Milliseconds: a line a workload, a column a program."""
    peers = list(dict.fromkeys(r["peer"] for r in summaries))
    by_key = {(r["peer"], *workload_of(r)): r for r in summaries}

    def cell(record):
        if record is None:
            return "-"
        if "error" in record:
            return "failed"
        time = spread(record["median_ms"], *record["range_ms"])
        return time if record["is_right"] else f"{time}, **wrong**"

    workloads = dict.fromkeys(map(workload_of, summaries))
    rows = [[title(*workload)] + [cell(by_key.get((peer, *workload))) for peer in peers]
            for workload in workloads]
    return grid(["ms", *peers], rows)


def table_of_memory(summaries):
    """MiB beyond inputs and results: a line a workload that products are part of, a column a program."""
    linear = [r for r in summaries if r["op"] == "linear_cross_entropy" and "memory_mib" in r]
    peers = list(dict.fromkeys(r["peer"] for r in linear))
    by_key = {(r["peer"], *workload_of(r)): number(max(r["memory_mib"], 0)) for r in linear}
    rows = [[title(*workload)] + [by_key.get((peer, *workload), "-") for peer in peers]
            for workload in dict.fromkeys(map(workload_of, linear))]
    return ["", "MiB beyond inputs and results, at the peak of the first call.", "",
            *grid(["MiB", *peers], rows)] if rows else []


def table_of_ratios(report):
    """Times as long as wgloss: a line a workload, a column a peer."""
    pairs = list(dict.fromkeys((r["peer"], r["own"]) for r in report["ratios"]))
    by_key = {(r["peer"], r["own"], *workload_of(r)): r for r in report["ratios"]}

    def cell(record):
        if record is None:
            return "-"
        return spread(record["ratio"], *record["range"])

    workloads = dict.fromkeys(map(workload_of, report["records"]))
    rows = [[title(*workload)] + [cell(by_key.get((*pair, *workload))) for pair in pairs]
            for workload in workloads]
    return grid(["times as long", *(f"{peer} / {own}" for peer, own in pairs)], rows)


def faults(summaries):
    """What is wrong, and what ended without a result."""
    lines = []
    for record in summaries:
        what = f"- {title(record['op'], record['shape'])}, {record['peer']}: "
        if "error" in record:
            lines.append(what + f"failed, {record['error']}")
        elif not record["is_right"]:
            loss = "not finite" if record["loss"] is None else f"{record['loss']:.4g}"
            errors = [record["loss_error"], record["grad_error"]]
            errors = ["not finite" if error is None else f"{error:.0e}" for error in errors]
            lines.append(what + f"wrong, loss {loss} where the truth is "
                         f"{record['expected_loss']:.4g}; errors {errors[0]} of the loss, "
                         f"{errors[1]} of the largest gradient")
    return lines


def sentences(report):
    """README's: each peer's range over all workloads and runs."""
    clauses = []
    total = len(set(map(workload_of, report["records"])))
    for own, name in [("wgloss GPU", "wgloss"), ("wgloss CPU", "wgloss's CPU form")]:
        parts, fewer = [], ""
        for peer, settings, beside in RATIOS:
            found = [r for r in report["ratios"] if (r["peer"], r["own"]) == (peer, own)]
            if beside != own or not found:
                continue
            version = report["programs"][found[0]["settings"][0]]["version"].split("+")[0]
            ran = [setting for setting in settings if setting in report["programs"]]
            best = ""
            if len(ran) > 1:
                best = f" (the faster of {names([setting.split()[-1] for setting in ran])})"
            if len(found) < total:
                fewer += (f" ({peer} in {len(found)} of {total} workloads: in the others it fails "
                          "or is wrong)")
            low = outwards(min(r["range"][0] for r in found), math.floor)
            high = outwards(max(r["range"][1] for r in found), math.ceil)
            parts.append(f"{peer} {version}{best} takes {low} to {high}")
        if parts:
            clauses.append(f"{names(parts)} times as long as {name}{fewer}")
    device = report["programs"].get("wgloss GPU", {}).get("device", "").split(" (")[0]
    what = f"Loss and gradient in f32 on {device or 'the CPU'}, {report['cores']} cores, "
    runs = len(report["runs"])
    return [f"{what}{runs} run{'s' if runs > 1 else ''}: {'; '.join(clauses)}."]


def lines(report):
    """All of it, as Markdown."""
    runs = report["runs"]
    text = [
        f"{report['date']}, wgloss at {report['revision']}; {report['cpu']}, {report['cores']} "
        f"cores; {report['system']}",
        "",
        f"`{report['command']}`: {len(runs)} runs of {report['turns']} turns of "
        f"{report['rounds']} rounds, calls timed together: {report['calls']}; "
        f"{report['seconds']} s",
        "",
    ]
    for i, run in enumerate(runs, 1):
        load = " ".join(f"{value:.2f}" for value in run["load_before"] or [])
        text.append(f"- run {i}: {run['seconds']} s; load before {load or 'unknown'}")
        if run["others_cpu"] is not None:
            worst = max((r.get("others_cpu") or 0, r["peer"], r["shape"]) for r in run["records"])
            text[-1] += (f"; while programs had their turns, other processes took "
                         f"{run['others_cpu']:.1%} of the CPUs' time ({worst[0]:.1%} beside "
                         f"{worst[1]} {worst[2]}), the host {run['stolen_cpu']:.1%}")
    text += [f"- {name} {p['version']}: {p['device']}" for name, p in report["programs"].items()]
    text += [f"- {name}: skipped, {reason}" for name, reason in report["skipped"].items()]
    return text + ["", *tables(report), "", *sentences(report)]


def tables(report):
    return [
        "Milliseconds, from inputs on the device to loss and gradient complete: the median of the "
        "runs' medians (the least to the largest of them).",
        "",
        *table_of_times(report["records"]),
        "",
        *faults(report["records"]),
        "",
        "How many times as long as wgloss a peer takes, at its fastest setting whose results are "
        "right: the median of the runs (the least to the largest).",
        "",
        *table_of_ratios(report),
        *table_of_memory(report["records"]),
    ]


def fill(file, parts):
    """Puts each part where the file has a place for it."""
    text = file.read_text()
    for name, lines in parts.items():
        body = "\n".join(
            line if line.startswith("|")
            else textwrap.fill(line, 118, subsequent_indent="  " * line.startswith("-"))
            for line in lines)
        place = rf"(<!-- peers: {name} -->\n).*?(<!-- /peers -->)"
        text = re.sub(place, lambda found: f"{found[1]}{body}\n{found[2]}", text, flags=re.DOTALL)
    file.write_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=pathlib.Path)
    parser.add_argument("--fill", nargs="+", type=pathlib.Path, metavar="FILE.md", default=[])
    flags = parser.parse_args()
    report = json.loads(flags.record.read_text())
    if "runs" not in report:
        parser.error(f"{flags.record}: from before runs were recorded")
    is_linear = all(r["op"] == "linear_cross_entropy" for r in report["records"])
    kind = "linear " if is_linear else ""
    for file in flags.fill:
        fill(file, {f"{kind}sentences": sentences(report), f"{kind}tables": tables(report)})
    if not flags.fill:
        print("\n".join(lines(report)))


if __name__ == "__main__":
    main()
