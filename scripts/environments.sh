#!/usr/bin/env bash
# Runs the quick tests with other instruction sets, BLAS kernels, time zone and locale; prints a line for each and
# exits with 1 if one failed. Arguments go to pytest: scripts/environments.sh tests/kernels
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
[[ -x .venv/bin/pytest ]] || { echo "environments: there is no .venv; run make install first" >&2; exit 2; }
export TORCH_EXTENSIONS_DIR=$PWD/.cache/torch_extensions MPLCONFIGDIR=$PWD/.cache/matplotlib

environments=(
    "ATEN_CPU_CAPABILITY=default"
    "ATEN_CPU_CAPABILITY=avx2"
    "-u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE"
    "OPENBLAS_CORETYPE=Haswell"
    "OPENBLAS_CORETYPE=Zen"
    "TZ=Asia/Shanghai"
    "LC_ALL=C"
)
if grep --quiet --word-regexp avx512f /proc/cpuinfo; then
    environments+=("OPENBLAS_CORETYPE=SkylakeX")
else
    echo "environments: OPENBLAS_CORETYPE=SkylakeX is skipped, because this processor has no AVX-512"
fi

failed=0
logs=$(mktemp -d)
for environment in "${environments[@]}"; do
    log=$logs/${environment//[^A-Za-z0-9]/_}
    # shellcheck disable=SC2086 - an environment may be several words
    if env $environment OMP_NUM_THREADS=1 .venv/bin/pytest -q -m 'not slow' -n 2 --dist loadgroup "$@" >"$log" 2>&1; then
        outcome=passed
    else
        outcome=FAILED failed=1
        grep -E '^(FAILED|ERROR|E  )' "$log" || tail -n 20 "$log"
    fi
    echo "environments: $environment: $outcome: $(tail -n 1 "$log")"
done
if [[ $failed == 1 ]]; then
    echo "environments: the logs are in $logs" >&2
else
    rm -rf "$logs"
fi
exit $failed
