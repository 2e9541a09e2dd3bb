#!/usr/bin/env bash
# Makes sure that the crate can be built and run here: cargo, a C linker, a Vulkan loader and a
# Vulkan driver (Mesa's software driver will do). Installs with apt-get where that is possible,
# says what to install where it is not, and prints nothing when nothing is missing.
# `scripts/setup.sh node` looks for Node.js and its npm instead, `scripts/setup.sh mpi` for Open MPI and
# what its Rust bindings are made with. WGLOSS_SKIP_SETUP=1 skips it all.
set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }

has_linker() {
    # a link, because gcc without libc6-dev compiles but cannot link
    local program status=0
    program=$(mktemp)
    echo 'int main(void) { return 0; }' | cc -x c -o "$program" - 2>/dev/null || status=1
    rm -f "$program"
    return $status
}

# Is the shared library $1 where the dynamic linker looks?
has_library() {
    local folder
    # no `grep -q`: it would close the pipe early, and pipefail calls that a failure
    if PATH="$PATH:/usr/sbin:/sbin" ldconfig -p 2>/dev/null | grep -F "$1" >/dev/null; then
        return 0
    fi
    local IFS=:
    for folder in ${LD_LIBRARY_PATH:-} /usr/local/lib /usr/lib /usr/lib64 /lib /lib64; do
        if [ -n "$folder" ] && [ -e "$folder/$1" ]; then return 0; fi
    done
    return 1
}

# Does the library that driver manifest $1 names exist? (Containers often have the manifest of a
# driver that is not there.)
has_driver_library() {
    local library
    library=$(sed -n 's/.*"library_path"[^:]*:[^"]*"\([^"]*\)".*/\1/p' "$1" 2>/dev/null) || return 1
    case $library in
        '') return 1 ;;
        /*) [ -e "$library" ] ;;
        */*) [ -e "$(dirname "$1")/$library" ] ;;
        *) has_library "$library" ;;
    esac
}

# Is there a libclang, where bindgen looks for one?
has_libclang() {
    local file
    for file in "${LIBCLANG_PATH:-}" "${LIBCLANG_PATH:-}"/libclang*.so* \
        /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so* /usr/lib*/libclang*.so*; do
        case $file in *libclang-cpp*) continue ;; esac
        if [ -f "$file" ]; then return 0; fi
    done
    return 1
}

# The folders, or manifests, in which the Vulkan loader looks for drivers, joined with colons.
driver_places() {
    local only=${VK_DRIVER_FILES:-${VK_ICD_FILENAMES:-}} base places=${VK_ADD_DRIVER_FILES:-}
    if [ -n "$only" ]; then
        echo "$only"
        return
    fi
    local IFS=:
    for base in \
        "${XDG_CONFIG_HOME:-${HOME:-}/.config}" "${XDG_DATA_HOME:-${HOME:-}/.local/share}" \
        ${XDG_CONFIG_DIRS:-/etc/xdg} ${XDG_DATA_DIRS:-} \
        /etc /usr/local/etc /usr/local/share /usr/share /run/opengl-driver/share; do
        places=$places:$base/vulkan/icd.d
    done
    echo "$places"
}

has_driver() {
    local IFS=: place manifest
    for place in $(driver_places); do
        [ -n "$place" ] || continue
        for manifest in "$place" "$place"/*.json; do
            if [ -f "$manifest" ] && has_driver_library "$manifest"; then return 0; fi
        done
    done
    return 1
}

# Sets `missing` (in words) and `packages` (Debian's names).
look() {
    missing=() packages=()
    if [ "${1:-}" = node ]; then
        command -v node >/dev/null || { missing+=(node) && packages+=(nodejs); }
        command -v npm >/dev/null || { missing+=(npm) && packages+=(npm); }
        return
    fi
    if [ "${1:-}" = mpi ]; then
        command -v mpicc >/dev/null || { missing+=("MPI's compiler (mpicc)") && packages+=(libopenmpi-dev); }
        command -v mpirun >/dev/null || { missing+=(mpirun) && packages+=(openmpi-bin); }
        has_libclang || { missing+=(libclang) && packages+=(libclang-dev clang); }
        return
    fi
    has_linker || { missing+=("a C linker (cc)") && packages+=(gcc libc6-dev); }
    has_library libvulkan.so.1 || { missing+=("the Vulkan loader") && packages+=(libvulkan1); }
    has_driver || { missing+=("a Vulkan driver") && packages+=(mesa-vulkan-drivers); }
}

# Installs `packages`, if this user may.
install() {
    local as_root=()
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || return 1
        as_root=(sudo)
        [ -t 0 ] || as_root+=(-n) # nobody there to type a password
    fi
    as_root+=(env DEBIAN_FRONTEND=noninteractive apt-get -qq)
    say "installing ${packages[*]} with apt-get"
    # package lists that are partly stale may still do
    "${as_root[@]}" update >&2 || say "apt-get update failed; trying with the lists at hand"
    "${as_root[@]}" install -y --no-install-recommends "${packages[@]}" >&2
}

advise() {
    local list
    printf -v list ', %s' "${missing[@]}"
    say "missing and not installed: ${list#, }"
    if [ "${1:-}" = node ]; then
        say "Install Node.js from https://nodejs.org, or nodejs and npm of the system's packages."
        return
    fi
    if [ "${1:-}" = mpi ]; then
        say "Install Open MPI or MPICH with its headers, and libclang, of the system's packages."
        return
    fi
    cat >&2 <<'TEXT'
Install by hand:
  Debian, Ubuntu   apt-get install gcc libc6-dev libvulkan1 mesa-vulkan-drivers
  Fedora           dnf install gcc vulkan-loader mesa-vulkan-drivers
  Arch             pacman -S gcc vulkan-icd-loader vulkan-swrast
  macOS, Windows   nothing: Metal and DX12 come with the system
If they are there and were not found, set WGLOSS_SKIP_SETUP=1.
TEXT
    if [ -n "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ]; then
        say "VK_DRIVER_FILES or VK_ICD_FILENAMES is set, and hides every other driver."
    fi
}

main() {
    if [ "${WGLOSS_SKIP_SETUP:-}" = 1 ]; then return 0; fi
    if [ $# = 0 ] && ! command -v cargo >/dev/null; then
        say "cargo not found. Install Rust from https://rustup.rs, then open a new shell."
        return 1
    fi
    # elsewhere the graphics API comes with the system
    if [ "$(uname -s)" != Linux ]; then return 0; fi

    look "$@"
    if [ ${#missing[@]} = 0 ]; then return 0; fi
    if install; then look "$@"; fi
    if [ ${#missing[@]} != 0 ]; then
        advise "$@"
        return 1
    fi
}

main "$@"
