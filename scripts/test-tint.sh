#!/usr/bin/env bash
# Compiles every kernel of the library, as browsers get it, with Tint, Chrome's WGSL compiler: each
# text, and each pipeline that is made of one. It needs neither a browser nor a GPU, but Node.js and
# its package `webgpu`, in which Dawn comes for the usual systems.
#
# Exit status: 0 if all are accepted; 1 if one is not, or the kernels could not be written; 3 if Node.js
# or the package cannot be had here, which is "not available" and nothing else.
#
# Node.js is installed where that is possible (scripts/setup.sh); the package goes to target/tint, in the
# versions of scripts/tint/package-lock.json, and the kernels' texts lie there while they are compiled.
set -euo pipefail
cd "$(dirname "$0")/.."

build=${CARGO_TARGET_DIR:-target}
mkdir -p "$build/tint"
tint=$(cd "$build/tint" && pwd)
kernels=$tint/kernels.jsonl

say() { printf 'test-tint: %s\n' "$*" >&2; }

not_available() {
    say "$*"
    echo "Tint of webgpu: not available"
    exit 3
}

# Puts the package into target/tint, once for each lockfile.
fetch() {
    cp scripts/tint/{check.mjs,package.json,package-lock.json} "$tint"
    cmp -s scripts/tint/package-lock.json "$tint/installed.json" && return
    # its scripts would build what it brings along
    (cd "$tint" && npm ci --ignore-scripts --no-audit --no-fund --fetch-retries 1 >&2) || return 1
    cp scripts/tint/package-lock.json "$tint/installed.json"
}

scripts/setup.sh node || not_available "no Node.js here"
command -v node >/dev/null && command -v npm >/dev/null || not_available "no Node.js here"
fetch || not_available "npm cannot install webgpu"

rm -f "$kernels"
trap 'rm -f "$kernels"' EXIT # hundreds of megabytes
WGLOSS_KERNELS=$kernels cargo test --locked --test library -- \
    --quiet --ignored --exact kernels::export >&2 || { say "the kernels were not written" && exit 1; }
# a filter that finds no test passes
[ -s "$kernels" ] || { say "no kernels were written" && exit 1; }
status=0
node "$tint/check.mjs" "$kernels" || status=$?
[ $status != 3 ] || not_available "Dawn does not run here"
exit $status
