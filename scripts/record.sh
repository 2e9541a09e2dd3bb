#!/usr/bin/env bash
# Records what a device does, as files benches/record/DEVICE/<date>-*:
#
#     scripts/record.sh DEVICE                 # all but the last five: ten minutes on two cores
#     scripts/record.sh DEVICE large peers     # these steps
#
# DEVICE names the folder: nvidia-h100, say, or lavapipe-22.3.6-2-cores. The device is the one that
# `wgloss devices` says `--device gpu` takes; VK_DRIVER_FILES=<manifest.json> chooses another.
# WGLOSS=<program> uses that one, built elsewhere, instead of building it.
set -euo pipefail

steps=(devices check bench linear classes sweep pictures large peers peers-linear burn)

# What the device is and offers.
devices() { "$wgloss" devices --json >"$to-devices.json"; }

# Whether it computes what it should.
check() { "$wgloss" check --device gpu | tee "$to-check.txt"; }

# README's workloads.
bench() { "$wgloss" bench --device gpu --rounds 15 --json "$to.json"; }

# Linear cross entropy, its products on their own, and a loop of multiplications and additions.
linear() {
    "$wgloss" bench --device gpu --op linear-cross-entropy --pass forward --pass forward-backward \
        --rounds 9 --shape 8192x64x1000 --shape 512x256x32000 --json "$to-linear.json"
}

# Four million logits, over numbers of classes.
classes() {
    shapes 22 8 16 32 48 64 96 128 192 256 512 1024 2048 4096 8192 16384 32768 65536 131072
    "$wgloss" bench --device gpu --op cross-entropy --rounds 9 "${shapes[@]}" \
        --json "$to-classes.json" --plot "$to-classes.svg"
}

# Where one kernel becomes faster than another.
sweep() { "$wgloss" bench --sweep | tee "$to-sweep.txt"; }

# README's pictures: the examples draw two, the others are drawn anew from the newest records.
# PyTorch's curve is there where the step `peers` has installed PyTorch.
pictures() {
    local torch=
    if [ -x target/peers/venv/bin/python ]; then
        mkdir -p out
        torch=out/torch.json
        target/peers/venv/bin/python benches/peers/torch_confident.py "$torch"
    fi
    cargo run --locked --release --features cpu --example confident -- \
        "$to-confident" ${torch:+"$torch"}
    cargo run --locked --release --example digits | sed "/^loss curves:/d" | tee "$to-digits.txt"
    cp out/digits.svg "$to-digits.svg"
    local record
    for record in "benches/record/$device"/*-classes.json; do :; done
    [ ! -e "$record" ] || "$wgloss" bench --from "$record" --plot "${record%.json}.svg"
    for record in "benches/record/$device"/*-peers.json; do :; done
    [ ! -e "$record" ] || benches/peers/run.py --draw "$record"
}

# A gigabyte of logits, for GPUs whose caches hold less: 24 GiB of the host's memory, and a minute a
# workload.
large() {
    local many=(256 1000 4096 16384 32000 65536 131072)
    shapes 28 "${many[@]}"
    "$wgloss" bench --device gpu --op cross-entropy --pass forward --pass forward-backward --rounds 7 \
        "${shapes[@]}" --json "$to-large-f32.json"
    shapes 29 "${many[@]}"
    "$wgloss" bench --device gpu --op cross-entropy --dtype bf16 --rounds 7 \
        "${shapes[@]}" --json "$to-large-bf16.json"
    "$wgloss" bench --device gpu --op bce-with-logits --dtype f32 --dtype bf16 --rounds 7 \
        --shape $((1 << 28)) --json "$to-large-bce.json"
}

# burn, candle and PyTorch beside it, in three runs: builds them first.
peers() { benches/peers/run.py --runs 3 --record "$device"; }

# The same of linear cross entropy, its memory too.
peers-linear() {
    benches/peers/run.py --only linear --turns 2 --rounds 2 --limit 300 --record "$device"
}

# wgloss-burn beside burn's own losses, in three settings of burn: builds it three times first.
burn() { make bench-burn RECORD="$to-burn.json"; }

# Sets `shapes` to the flags for 2^$1 logits in rows of $2, $3, ... classes.
shapes() {
    local logits=$((1 << $1)) classes
    shapes=()
    for classes in "${@:2}"; do shapes+=(--shape "$((logits / classes))x$classes"); done
}

usage() {
    echo "usage: scripts/record.sh DEVICE [${steps[*]}]" >&2
    exit 2
}

main() {
    device=${1:-}
    [[ $device =~ ^[A-Za-z0-9._-]+$ ]] || usage
    shift
    local step
    for step in "$@"; do [[ " ${steps[*]} " == *" $step "* ]] || usage; done
    [ $# != 0 ] || set -- devices check bench linear classes sweep

    wgloss=$(realpath "${WGLOSS:-.}")
    cd "$(dirname "$0")/.."
    if [ -z "${WGLOSS:-}" ]; then
        cargo build --locked --release -p wgloss-cli
        wgloss=target/release/wgloss
    fi
    mkdir -p "benches/record/$device"
    to=benches/record/$device/$(date +%F)
    for step in "$@"; do
        echo "record: $step" >&2
        "$step"
    done
}

main "$@"
