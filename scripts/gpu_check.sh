#!/usr/bin/env bash
# Checks kernels, attention, train step and resume on a machine with one GPU, in at most eight minutes.
#
#   scripts/gpu_check.sh pack [FOLDER]    on a machine with a package index: download the wheels that the other
#                                         machine lacks (Python 3.12, x86-64), without torch, triton and numpy
#   scripts/gpu_check.sh [--quick] [OUT]  on the machine with the GPU: install the wheels of FOLDER, if it exists,
#                                         for this run only; run all parts; write OUT/gpu_check.{json,md,log}
#
# FOLDER is .cache/gpu_check_wheels (for the check: AQTOPO_WHEELS), OUT is runs/gpu_check. --quick runs small sizes,
# also on a CPU. The exit code is 1 if a part failed. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
wheels=${AQTOPO_WHEELS:-.cache/gpu_check_wheels}
limit_mib=64

if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi

needed=(
    # the kernel tests
    pytest pluggy iniconfig packaging pygments hypothesis sortedcontainers pytest-xdist execnet
    # the model and the train step
    pydantic pydantic_core annotated-types typing-inspection typing_extensions tqdm pyyaml pandas python-dateutil
    xarray zarr numcodecs donfig google-crc32c
    # the engine and the resume
    safetensors einops hjson msgpack ninja psutil py-cpuinfo
)

pack() {
    local folder=$1 mib
    mkdir -p "$folder"
    rm -f "$folder"/*.whl
    # DeepSpeed has no wheel; built without its operations, it is pure Python.
    DS_BUILD_OPS=0 "$PYTHON" -m pip wheel --quiet --no-deps --constraint constraints.txt --wheel-dir "$folder" deepspeed
    "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        --constraint constraints.txt --dest "$folder" "${needed[@]}"
    mib=$(($(du --summarize --bytes "$folder" | cut -f 1) / 2**20 + 1))
    if ((mib > limit_mib)); then
        echo "gpu_check: the wheels in $folder take $mib MiB, more than $limit_mib; without deepspeed-*.whl the check" \
            "runs with PyTorch's AdamW" >&2
        exit 1
    fi
    echo "gpu_check: $(find "$folder" -name '*.whl' | wc -l) wheels in $folder, $mib MiB"
}

if [[ ${1:-} == pack ]]; then
    pack "${2:-$wheels}"
    exit
fi

quick=()
if [[ ${1:-} == --quick ]]; then
    quick=(--quick)
    shift
fi
export PYTHONPATH=$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}
if compgen -G "$wheels/*.whl" >/dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl ||
        echo "gpu_check: the wheels in $wheels cannot be installed for $("$PYTHON" --version)" >&2
    PYTHONPATH=$PYTHONPATH:$site
fi
"$PYTHON" -m benchmarks.gpu_check "${quick[@]}" --out "${1:-runs/gpu_check}"
