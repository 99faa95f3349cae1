#!/bin/bash
# Installs the Debian packages that some tests use: Slurm (tests/slurm), Chromium (the report in a browser) and
# llvm-mca, from LLVM 22 on (reads the compiled GPU kernels).
#
#   scripts/install_debian_packages.sh           install what is missing
#   scripts/install_debian_packages.sh --list    print the packages' names
#
# Packages are installed only on Debian and only as root; elsewhere the script names the tests that will be
# skipped and exits 0, so that `make test` works everywhere. A failing installation exits 1. No service is
# started: the tests run a Slurm cluster of their own under a temporary directory.
set -euo pipefail
# A plain `su` leaves out the folders of dpkg's and Slurm's programs.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

packages=(slurmctld slurmd slurm-client munge chromium llvm-22)
if [[ ${1:-} == --list ]]; then
    printf '%s\n' "${packages[@]}"
    exit 0
fi
policy=/usr/sbin/policy-rc.d
mark="# by aqtopo, until its packages are installed"

say() { echo "install_debian_packages: $*"; }

is_installed() { [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

skip() {
    say "$1; the tests that need ${missing[*]} will be skipped."
    exit 0
}

# While packages are configured, a policy-rc.d that says 101 keeps their services from being started.
forbid_service_starts() {
    # A killed run leaves its own policy, with this mark, and the user's beside it.
    if [[ -e $policy ]] && ! grep --quiet "$mark" "$policy"; then
        mv "$policy" "$policy.aqtopo-saved"
    fi
    trap restore_policy EXIT
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy"
    chmod 755 "$policy"
}

restore_policy() {
    rm -f "$policy"
    if [[ -e $policy.aqtopo-saved ]]; then
        mv "$policy.aqtopo-saved" "$policy"
    fi
}

missing=()
for package in "${packages[@]}"; do
    is_installed "$package" || missing+=("$package")
done
if [[ ${#missing[@]} -eq 0 ]]; then
    say "nothing to do: ${packages[*]} are installed."
    exit 0
fi
[[ $(. /etc/os-release 2>/dev/null && echo "${ID:-}") == debian ]] || skip "this is not Debian"
[[ $EUID -eq 0 ]] || skip "not root, so nothing can be installed (as root: bash scripts/install_debian_packages.sh)"

say "installing ${missing[*]} ..."
log=$(mktemp)
fail() {
    tail -n 20 "$log" >&2
    say "apt-get failed; its whole log is $log. Install by hand: apt-get install ${missing[*]}" >&2
    exit 1
}
export DEBIAN_FRONTEND=noninteractive

# Waits up to two minutes if another process holds the lock of apt's lists; apt-get itself waits only for dpkg's lock.
update_lists() {
    local pause
    for pause in 5 15 40 60 0; do
        apt-get update --quiet -o APT::Update::Error-Mode=any >"$log" 2>&1 </dev/null && return
        grep --quiet "lists/lock" "$log" || return
        sleep "$pause"
    done
    return 1
}
# On a new machine the lists are empty, so apt-cache finds no packages.
if ! update_lists; then
    compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null || fail
    say "apt-get update failed ($(tail -n 1 "$log")); using the package lists of an earlier update."
fi
available=()
for package in "${missing[@]}"; do
    if apt-cache show "$package" >/dev/null 2>&1; then
        available+=("$package")
    else
        say "this Debian has no package $package; the tests that need it will be skipped."
    fi
done
if [[ ${#available[@]} -eq 0 ]]; then
    rm -f "$log"
    exit 0
fi
forbid_service_starts
apt-get install --quiet --yes --no-install-recommends -o DPkg::Lock::Timeout=300 "${available[@]}" \
    >>"$log" 2>&1 </dev/null || fail
rm -f "$log"
say "installed ${available[*]}; no service was started."
