#!/usr/bin/env bash
# Runs the GPU tests and `wgloss check` on software Vulkan drivers, one after the other, and prints
# how each fared.
#
#   scripts/test-drivers.sh [DRIVER...]      all three, if none is named
#
#   lavapipe      the system's
#   backports     a newer lavapipe, from the backports of the system's Debian release
#   swiftshader   another make, out of Debian's chromium
#
# TESTS="edges errors" runs these modules of the tests alone, SKIP="ops" all but these; `wgloss check`
# is always run whole.
#
# Exit status: 0 if every driver named was tested and passed; 1 if one failed, or the tests did not
# build; 2 if a name is wrong; 3 if none failed, but at least one could not be had here: its row says
# "not available".
#
# The last two drivers are downloaded by way of the system's apt sources and unpacked under
# target/drivers; nothing is installed, and `make clean` removes them. The logs are there too.
set -euo pipefail
shopt -s nullglob
export LC_ALL=C # awk's decimal point
cd "$(dirname "$0")/.."

build=${CARGO_TARGET_DIR:-target}
mkdir -p "$build/drivers"
build=$(cd "$build" && pwd)
drivers=$build/drivers
wgloss=$build/debug/wgloss
apt=$drivers/apt
release= # Debian's name of the system's, once there is an apt state
if [ -z "${XDG_RUNTIME_DIR:-}" ]; then # Mesa complains where there is none
    export XDG_RUNTIME_DIR=$drivers/runtime
    mkdir -p -m 700 "$XDG_RUNTIME_DIR"
fi

say() { printf 'test-drivers: %s\n' "$*" >&2; }

# Runs an apt command on a state of its own: it changes nothing of the system's, and needs no root.
own_apt() {
    "$1" -q -c "$apt/apt.conf" "${@:2}" 2>>"$apt/log"
}

# The addresses of release $1's main packages in Debian's archives, after `own_apt apt-get update`.
addresses() {
    # shellcheck disable=SC2016 # the variables are apt's
    own_apt apt-get indextargets --format '$(CODENAME) $(REPO_URI) $(LABEL)' \
        'Identifier: Packages' 'Component: main' |
        awk -v release="$1" '$1 == release && $3 == "Debian" { print $2 }'
}

# Makes that state, once a run, since mirrors drop what is older than their lists: the system's
# sources and, where those are Debian's without its backports, the backports too.
make_apt() {
    local file mirror keys=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -z "$release" ] || return 0
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    # shellcheck source=/dev/null
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-unknown}")
    rm -rf "$apt"
    mkdir -p "$apt"/{sources,state/lists/partial,cache/archives/partial}
    cat >"$apt/apt.conf" <<CONF
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$apt/sources";
Dir::State "$apt/state";
Dir::State::status "/var/lib/dpkg/status";
Dir::Cache "$apt/cache";
APT::Sandbox::User "";
Debug::NoLocking "true";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
// hooks that work on the system's state, and lists that nobody reads
#clear APT::Update;
#clear Acquire::IndexTargets::deb::DEP-11;
CONF
    for file in /etc/apt/{,sources.list.d/}*.{list,sources}; do
        cp "$file" "$apt/sources/"
    done
    # a source that cannot be reached may be one that is not needed
    own_apt apt-get update >/dev/null || true
    if [ -z "$(addresses "$release-backports")" ]; then
        # a mirror has the backports where it has the release
        mirror=$(addresses "$release" | head -n 1)
        [ -n "$mirror" ] || return 0
        if [ -e "$keys" ]; then keys="[signed-by=$keys] "; else keys=; fi
        echo "deb $keys$mirror $release-backports main" >"$apt/sources/backports.list"
        own_apt apt-get update >/dev/null || true
    fi
}

# Downloads package $2 of driver $1, and what it needs to be installed.
download() {
    cd "$drivers/$1"
    case $1 in
        backports)
            own_apt apt-get install -y --download-only --no-install-recommends \
                -t "$release-backports" -o Dir::Cache::archives="$PWD" "$2/$release-backports"
            ;;
        # its other dependencies are the browser's
        swiftshader) own_apt apt-get download "$2" ;;
    esac
}

# Unpacks driver $1 under target/drivers, once: library $3 out of package $2, and a manifest for it.
fetch() {
    local folder=$drivers/$1 package found
    [ ! -e "$folder/version" ] || return 0
    rm -rf "$folder"
    mkdir -p "$folder/partial"
    make_apt || { say "$1: no apt-get and dpkg-deb here" && return 1; }
    (download "$1" "$2" >/dev/null) || { say "$1: no package; see $apt/log" && return 1; }
    found=("$folder/$2"_*.deb)
    [ ${#found[@]} = 1 ] || { say "$1: nothing newer than what is installed" && return 1; }
    # shellcheck disable=SC2016 # the variables are dpkg's
    dpkg-deb -W --showformat '${Package} ${Version}' "${found[0]}" >"$folder/package"
    for package in "$folder"/*.deb; do
        dpkg-deb -x "$package" "$folder" && rm "$package" || return 1
    done
    mapfile -t found < <(find "$folder" -name "$3")
    [ ${#found[@]} = 1 ] || { say "$1: no $3 in $2" && return 1; }
    # relative, because a build folder may be moved
    found=".${found[0]#"$folder"}"
    cat >"$folder/icd.json" <<JSON
{ "file_format_version": "1.0.0", "ICD": { "library_path": "$found", "api_version": "1.1.0" } }
JSON
    mv "$folder/package" "$folder/version"
}

# Sets `manifest` of driver $1, and `libraries`, a folder that its library needs, or nothing.
locate() {
    local found
    libraries=
    manifest=$drivers/$1/icd.json
    case $1 in
        lavapipe)
            found=({/usr,/usr/local,/run/opengl-driver}/share/vulkan/icd.d/lvp_icd*.json)
            [ ${#found[@]} != 0 ] || { say "$1: not installed" && return 1; }
            manifest=${found[0]}
            ;;
        backports)
            fetch "$1" mesa-vulkan-drivers libvulkan_lvp.so || return 1
            found=("$drivers/$1"/usr/lib/*/libvulkan_lvp.so)
            libraries=$(dirname "${found[0]}")
            ;;
        swiftshader) fetch "$1" chromium-common libvk_swiftshader.so ;;
    esac
}

# Runs a command on the driver that `locate` found, and on no other.
on_driver() {
    local path=${libraries:+$libraries:}${LD_LIBRARY_PATH:-}
    env VK_DRIVER_FILES="$manifest" VK_ICD_FILENAMES="$manifest" WGLOSS_REQUIRE_GPU=1 \
        ${path:+LD_LIBRARY_PATH="${path%:}"} "$@" </dev/null
}

# Prints the version of driver $1: what it says of itself, or else the package it came in.
version() {
    local version
    version=$(on_driver "$wgloss" devices | sed -n 's/^ *driver info *//p') || return 1
    if [ -n "$version" ]; then echo "${version%%$'\n'*}"; else cat "$drivers/$1/version"; fi
}

# The modules of the tests but those that are skipped, and those whose subject needs no GPU.
gpu_tests() {
    local file
    for file in {,crates/wgloss-cli/}tests/*.rs; do
        file=$(basename "$file" .rs)
        case " main command comparator cpu drivers kernels programs readme reference tint ${SKIP:-} " in
            *" $file "*) ;;
            *) echo "$file" ;;
        esac
    done
}

# Tests driver $1, adds a row to `rows`, and its name to `failed` if it failed.
try() {
    local log=$drivers/$1.log json=$drivers/$1.json version is_good=true passed checks worst
    locate "$1"
    if ! version=$(version "$1" 2>"$log"); then
        cat "$log" >&2
        rows+=("$1|does not load|-|-|-")
        failed+=("$1")
        return
    fi
    say "$1: $version"
    rm -f "$json"
    on_driver cargo test "${cargo[@]}" --no-fail-fast -- "${tests[@]/%/::}" >"$log" 2>&1 || is_good=false
    on_driver "$wgloss" check --device gpu --json "$json" >>"$log" 2>&1 || is_good=false
    passed=$(awk '/^test result:/ { passed += $4; all += $4 + $6 }
        END { print passed + 0 " of " all + 0 }' "$log")
    checks=$(awk '/^[0-9]+ passed, [0-9]+ failed/ { passed = $1; all = $1 + $3 }
        END { print passed + 0 " of " all + 0 }' "$log")
    # the largest number in a "worst": [...]; a case that failed has none
    worst=$(awk '/"worst": \[/ { inside = 1 } /\]/ { inside = 0 }
        inside && $1 + 0 > worst { worst = $1 + 0 }
        /"failed": [1-9]/ { failed = 1 }
        END { if (failed) print "above 1"; else if (NR) printf "%.2f\n", worst; else print "-" }' \
        "$json" 2>/dev/null) || worst=-
    rows+=("$1|$version|$passed|$checks|$worst")
    if ! $is_good; then
        cat "$log" >&2
        failed+=("$1")
    fi
}

main() {
    local name row cells here=() failed=()
    local rows=("driver|version|tests passed|checks passed|worst error")
    [ $# != 0 ] || set -- lavapipe backports swiftshader
    for name; do
        case $name in
            lavapipe | backports | swiftshader) ;;
            *) say "no driver $name: lavapipe, backports or swiftshader" && return 2 ;;
        esac
    done
    read -r -d '' -a tests <<<"${TESTS:-$(gpu_tests)}" || true
    for name in "${tests[@]}"; do
        # a filter that finds no test would pass
        if [ ! -e "tests/$name.rs" ] && [ ! -e "crates/wgloss-cli/tests/$name.rs" ]; then
            say "no tests $name" && return 2
        fi
    done
    cargo=(--locked --test=library --test=program)
    for name; do
        if locate "$name"; then here+=("$name"); fi
    done
    # all is built first, and nothing for drivers that are not there
    [ ${#here[@]} = 0 ] || cargo test "${cargo[@]}" --no-run || return 1
    for name; do
        case " ${here[*]} " in
            *" $name "*) try "$name" ;;
            *) rows+=("$name|not available|-|-|-") ;;
        esac
    done
    for row in "${rows[@]}"; do
        IFS='|' read -r -a cells <<<"$row"
        printf '%-11s  %-39s  %-12s  %-13s  %s\n' "${cells[@]}"
    done
    echo "tests: ${tests[*]}"
    echo "checks: wgloss check; worst error in units of the error allowed"
    [ ${#failed[@]} = 0 ] || { say "failed: ${failed[*]}" && return 1; }
    [ ${#here[@]} = $# ] || return 3
}

main "$@"
