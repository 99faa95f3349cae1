#!/usr/bin/env bash
# The README's picture: the top of a run's report, as a browser shows it.
#   scripts/readme_picture.sh runs/demo_cpu docs/forecast.png
set -euo pipefail
run=$1 picture=$(realpath "$2")
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
    --disable-component-update --disable-sync --hide-scrollbars --user-data-dir="$profile" \
    --window-size=1240,1910 --screenshot="$picture" "file://$(realpath "$run")/report.html"
