#!/usr/bin/env bash
# Runs the README's two commands as on a new machine: in a clone called aqtopo, with an empty HOME and no caches.
#
#   scripts/fresh.sh                  touches no package of this machine
#   THROWAWAY=yes scripts/fresh.sh    first purges the Debian packages of the tests and apt's lists: only in a
#                                     container or a virtual machine that you can discard
#
# The clone has only committed files. It is removed if everything has passed, and kept for inspection otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ ${THROWAWAY:-} == yes ]]; then
    mapfile -t packages < <(bash scripts/install_debian_packages.sh --list)
    installed=()
    for package in "${packages[@]}"; do
        [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] &&
            installed+=("$package")
    done
    if [[ ${#installed[@]} -gt 0 ]]; then
        DEBIAN_FRONTEND=noninteractive apt-get purge --quiet --yes --autoremove "${installed[@]}"
    fi
    rm -rf /var/lib/apt/lists/*
fi

# Not /tmp, which may be a small memory file system: the environment alone needs 3 GB.
place=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
mkdir "$place/home" "$place/tmp"
git clone --quiet . "$place/aqtopo"
# The interpreter itself, because a shim or a virtual environment may need the old HOME.
python=$("${PYTHON:-python3}" -c 'import os, sys; print(os.path.realpath(sys.executable))')
# Of the caller's environment, only the variables that locate programs and the package index.
empty=(env -i PATH="$PATH" LANG="${LANG:-C.UTF-8}" HOME="$place/home" TMPDIR="$place/tmp" PIP_CACHE_DIR="$place/pip")
for name in $(compgen -e); do
    case $name in
        PIP_CACHE_DIR | PIP_REQUIRE_VIRTUALENV | PIP_TARGET | PIP_USER | PIP_PREFIX) ;;
        PIP_* | *_proxy | *_PROXY | SSL_CERT_* | REQUESTS_CA_BUNDLE | OPENBLAS_CORETYPE | OPENBLAS_L2_SIZE)
            empty+=("$name=${!name}")
            ;;
    esac
done
for target in demo test; do
    echo "fresh: make $target in $place/aqtopo"
    "${empty[@]}" make -C "$place/aqtopo" "PYTHON=$python" "$target"
done
rm -rf "$place"
echo "fresh: make demo and make test have passed"
