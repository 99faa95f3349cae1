#!/bin/bash
# Submit a job with the options of a site:
#
#   slurm/submit.sh [OPTION OF sbatch ...] slurm/train.sbatch CONFIG [RUN_DIR [OPTION OF aqtopo train ...]]
#
# AQTOPO_SITE is the name of a file in slurm/sites (default: see site.sh) or the path of one of your own. Options given
# here override those of the site. Run it from the folder that holds slurm.
set -euo pipefail
# shellcheck source=slurm/site.sh
source slurm/site.sh || exit
[[ "$*" != *debug.sbatch* ]] || site_options+=("${site_debug_options[@]}")
exec sbatch "${site_options[@]}" "$@"
