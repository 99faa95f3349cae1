# Find and source the file of the site, for submit.sh and job.sh; fail with a message if there is none. A site's file
# defines what is below; it may also load modules, set variables of the fabric and change the values.
site_options=()       # options of sbatch
site_debug_options=() # further ones for debug.sbatch

# Bind ranks to cores. Since Slurm 22.05, srun does not inherit this option from the job; without it, a rank gets one
# core.
cpu_binding=(${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"})

export AQTOPO_SITE=${AQTOPO_SITE:-lumi}
site_file=$AQTOPO_SITE
[[ $AQTOPO_SITE == */* ]] || site_file=slurm/sites/$AQTOPO_SITE.sh
if [[ ! -f $site_file ]]; then
    echo "AQTOPO_SITE=$AQTOPO_SITE: there is no file $site_file in $PWD. Name one of $(cd slurm/sites && echo *.sh | sed 's/\.sh//g'), or the path of your own." >&2
    return 2
fi
# shellcheck source=/dev/null
source "$site_file"

if [[ -n ${AQTOPO_CPU_MASKS:-} ]]; then
    cpu_binding=(--cpu-bind="mask_cpu:$AQTOPO_CPU_MASKS")
fi
