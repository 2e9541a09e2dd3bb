#!/usr/bin/env bash
# Runs the GPU tests and `wgloss check` on software Vulkan drivers, one after the other, and prints
# how each fared. Fails when a driver fails; one that cannot be had here is "not available".
#
#   scripts/test-drivers.sh [DRIVER...]      all three, if none is named
#
#   lavapipe      the system's
#   backports     a newer lavapipe, from the backports of the system's Debian release
#   swiftshader   another make, out of Debian's chromium
#
# The last two are downloaded by way of the system's apt sources and unpacked under target/drivers;
# nothing is installed, and `make clean` removes them. The logs are there too.
set -euo pipefail
shopt -s nullglob
cd "$(dirname "$0")/.."

build=${CARGO_TARGET_DIR:-target}
mkdir -p "$build/drivers"
build=$(cd "$build" && pwd)
drivers=$build/drivers
wgloss=$build/debug/wgloss
apt=$drivers/apt

say() { printf 'test-drivers: %s\n' "$*" >&2; }

# Runs an apt command on a state of its own: it changes nothing of the system's, and needs no root.
own_apt() {
    "$1" -q -c "$apt/apt.conf" "${@:2}" 2>>"$apt/log"
}

# Makes that state, once: the system's sources and, where those are Debian's, its backports.
make_apt() {
    [ ! -e "$apt/release" ] || return 0
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
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
// hooks that work on the system's state, and lists that nobody reads
#clear APT::Update;
#clear Acquire::IndexTargets::deb::DEP-11;
CONF
    local file release uri
    for file in /etc/apt/{,sources.list.d/}*.{list,sources}; do
        cp "$file" "$apt/sources/"
    done
    # a source that cannot be reached may be one that is not needed
    own_apt apt-get update >/dev/null || true
    # shellcheck source=/dev/null
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    # shellcheck disable=SC2016 # the variables are apt's
    uri=$(own_apt apt-get indextargets --format '$(LABEL) $(CODENAME) $(REPO_URI)' \
        'Identifier: Packages' 'Component: main' |
        awk -v release="$release" '$1 == "Debian" && $2 == release && !n++ { print $3 }')
    if [ -n "$uri" ]; then
        echo "deb $uri $release-backports main" >"$apt/sources/backports.list"
        own_apt apt-get update >/dev/null || true
    fi
    echo "$release-backports" >"$apt/release"
}

# Downloads package $2 of driver $1, and what it needs to be installed.
download() {
    local release
    cd "$drivers/$1"
    case $1 in
        backports)
            release=$(cat "$apt/release")
            own_apt apt-get install -y --download-only --no-install-recommends -t "$release" \
                -o Dir::Cache::archives="$PWD" "$2/$release"
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
    cat >"$folder/icd.json" <<JSON
{ "file_format_version": "1.0.0", "ICD": { "library_path": "${found[0]}", "api_version": "1.1.0" } }
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
        ${path:+LD_LIBRARY_PATH="${path%:}"} "$@"
}

# Prints the version of driver $1: what it says of itself, or else the package it came in.
version() {
    local version
    version=$(on_driver "$wgloss" devices | sed -n 's/^ *driver info *//p') || return 1
    if [ -n "$version" ]; then echo "${version%%$'\n'*}"; else cat "$drivers/$1/version"; fi
}

# Every file in tests/ but those whose subject needs no GPU.
gpu_tests() {
    local file
    for file in tests/*.rs; do
        file=$(basename "$file" .rs)
        case $file in comparator | reference) ;; *) printf '%s\n' --test "$file" ;; esac
    done
}

# Tests driver $1, adds a row to `rows`, and its name to `failed` if it failed.
try() {
    local log=$drivers/$1.log version passed=- checks=- worst=- ok=true
    if ! locate "$1"; then
        rows+=("$1|not available|-|-|-")
        return
    fi
    if ! version=$(version "$1" 2>"$log"); then
        cat "$log" >&2
        rows+=("$1|does not load|-|-|-")
        failed+=("$1")
        return
    fi
    say "$1: $version"
    on_driver cargo test "${cargo[@]}" --no-fail-fast >"$log" 2>&1 || ok=false
    passed=$(awk '/^test result:/ { passed += $4; all += $4 + $6 }
        END { print passed + 0 " of " all + 0 }' "$log")
    if "$wgloss" check --help >/dev/null 2>&1; then
        on_driver "$wgloss" check --device gpu >"$log.check" 2>&1 || ok=false
        checks=$(awk '/^[0-9]+ passed, [0-9]+ failed/ { print $1 " of " $1 + $3 }' "$log.check")
        cat "$log.check" >>"$log"
        rm "$log.check"
    fi
    if ! $ok; then
        cat "$log" >&2
        failed+=("$1")
    fi
    rows+=("$1|$version|$passed|$checks|$worst")
}

main() {
    local name row cells rows=("driver|version|tests passed|checks passed|worst error") failed=()
    [ $# != 0 ] || set -- lavapipe backports swiftshader
    for name; do
        case $name in
            lavapipe | backports | swiftshader) ;;
            *) say "no driver $name: lavapipe, backports or swiftshader" && return 2 ;;
        esac
    done
    mapfile -t cargo < <(printf '%s\n' --locked --features cli && gpu_tests)
    cargo test "${cargo[@]}" --no-run
    for name; do try "$name"; done
    for row in "${rows[@]}"; do
        IFS='|' read -r -a cells <<<"$row"
        printf '%-12s  %-34s  %-12s  %-13s  %s\n' "${cells[@]}"
    done
    [ ${#failed[@]} = 0 ] || { say "failed: ${failed[*]}" && return 1; }
}

main "$@"
