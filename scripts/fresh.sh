#!/usr/bin/env bash
# Runs the README's two commands as on a new machine: in a clone called aqtopo, with an empty HOME and no caches.
#
#   scripts/fresh.sh                  touches no package of this machine
#   THROWAWAY=yes scripts/fresh.sh    first purges the Debian packages of the tests and apt's lists: only in a
#                                     container or a virtual machine that nobody needs
#
# Only what is committed is cloned. The clone is removed when all has passed, and kept for a look otherwise.
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

place=$(mktemp -d)
mkdir "$place/home"
git clone --quiet . "$place/aqtopo"
# The program itself, not a shim or a virtual environment that may need the old HOME.
python=$("${PYTHON:-python3}" -c 'import os, sys; print(os.path.realpath(sys.executable))')
empty=(env -u PYTHONPATH -u VIRTUAL_ENV -u XDG_CACHE_HOME -u XDG_CONFIG_HOME -u TRITON_CACHE_DIR
    HOME="$place/home" PIP_CACHE_DIR="$place/pip")
for target in demo test; do
    echo "fresh: make $target in $place/aqtopo"
    "${empty[@]}" make -C "$place/aqtopo" "PYTHON=$python" "$target"
done
rm -rf "$place"
echo "fresh: make demo and make test have passed"
