#!/bin/bash
# Common part of train.sbatch, debug.sbatch and ablation.sbatch: start `aqtopo train`, then requeue the job or end.
#
#   AQTOPO_SITE        name of a file in slurm/sites, or the path of one of your own (default: see site.sh)
#   AQTOPO_LAUNCH      srun (default): one task per GPU | deepspeed: `deepspeed --launcher slurm` and a hostfile |
#                      torchrun: one launcher per node
#   AQTOPO_CONTAINER   image for the ranks; this script itself runs outside
#   AQTOPO_CONTAINER_RUN      command before the image, such as "apptainer exec --nv --bind /scratch" (default: the
#                      site's), or "srun", with options for it, for an image that pyxis starts
#   AQTOPO_CONTAINER_PRELOAD  libfabric and librccl of the container, as a colon-separated list of paths inside it;
#                      on LUMI, runs do not scale beyond a few nodes without them
#   AQTOPO_CPU_MASKS   CPU masks of the ranks, instead of the site's
#   AQTOPO_REQUEUE     yes (default) | no
#   AQTOPO_LAST_WAIT_S seconds (default 15) for ranks that still save at the time limit; must be less than Slurm's
#                      KillWait, after which Slurm kills this shell before it can requeue the job
#   AQTOPO_JOBS        folder on a shared disk for the files below (default slurm-jobs)
#
# Files in the job's folder: `stop`, written here near the time limit; `again`, by rank 0 after saving because of
# `stop`; `never`, by a rank after a failure that a retry cannot fix; `failed`, after any other; `saved`, at each
# save. `run` (the run directory), `copy` (the folder of the data's copy on every node) and `failures` (failures in a
# row) are kept over restarts.
set -uo pipefail

readonly MOST_FAILURES=3
readonly LAST_WAIT_S=${AQTOPO_LAST_WAIT_S:-15}
launch=${AQTOPO_LAUNCH:-srun}
restarts=${SLURM_RESTART_COUNT:-0}
# In an array, one task has the id of the whole array; a requeue by that id would requeue all tasks.
this=${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID:-}_$SLURM_ARRAY_TASK_ID}
this=${this:-${SLURM_JOB_ID:-}}

say() { echo "aqtopo job ${SLURM_JOB_ID:-} on $(hostname): $*" >&2; }

bad_input() {
    say "$*"
    exit 2
}

check_input() {
    [[ -n ${SLURM_JOB_ID:-} ]] ||
        bad_input "this is not a Slurm job. Submit it: slurm/submit.sh --nodes=N slurm/train.sbatch CONFIG"
    [[ $# -ge 1 ]] ||
        bad_input "no configuration is given. Submit as: slurm/submit.sh --nodes=N slurm/train.sbatch CONFIG [RUN_DIR [OPTION ...]]"
    [[ -f $1 ]] || bad_input "there is no file $1 in $PWD. Submit from the folder that holds slurm, or name another file."
    if [[ $(squeue --noheader --job "$this" --format=%l) == UNLIMITED ]]; then
        bad_input "the job has no time limit, and a run saves shortly before it. Submit with --time=HH:MM:SS."
    fi
    [[ -n ${SLURM_NTASKS_PER_NODE:-} ]] ||
        bad_input "the number of ranks per node is not given. Submit with slurm/submit.sh, or with --ntasks-per-node."
    [[ $launch =~ ^(srun|deepspeed|torchrun)$ ]] ||
        bad_input "AQTOPO_LAUNCH=$launch is invalid. Use srun, deepspeed or torchrun."
    if [[ $launch == deepspeed && -n ${AQTOPO_CONTAINER:-} ]]; then
        bad_input "the deepspeed launcher cannot start ranks in a container. Use AQTOPO_LAUNCH=srun."
    fi
    if [[ -n ${AQTOPO_CONTAINER:-} ]]; then
        check_container
        return
    fi
    command -v aqtopo >/dev/null ||
        bad_input "the command aqtopo is not on PATH. Activate its environment before sbatch."
    [[ $launch != deepspeed || -x $(dirname "$(command -v aqtopo)")/python ]] ||
        bad_input "no python lies beside $(command -v aqtopo), and the deepspeed launcher needs it. Install aqtopo in a virtual environment, or use AQTOPO_LAUNCH=srun."
}

# Set `container`, the words before a program that run it in the container, and `container_step`, the options of srun
# that do; both are empty without a container.
set_container() {
    container=() container_step=()
    [[ -n ${AQTOPO_CONTAINER:-} ]] || return 0
    read -ra container <<<"${AQTOPO_CONTAINER_RUN:-}"
    if [[ ${container[0]:-} == srun ]]; then
        container_step=("${container[@]:1}" --container-image="$AQTOPO_CONTAINER")
        container=()
    else
        container+=("$AQTOPO_CONTAINER")
        if [[ -n ${AQTOPO_CONTAINER_PRELOAD:-} ]]; then # only for processes in the container
            export SINGULARITYENV_LD_PRELOAD=$AQTOPO_CONTAINER_PRELOAD APPTAINERENV_LD_PRELOAD=$AQTOPO_CONTAINER_PRELOAD
        fi
    fi
}

# Check the container's program, its image and that aqtopo is in it, on the job's first node.
check_container() {
    if [[ -n ${container_step[*]} ]]; then
        [[ -z ${AQTOPO_CONTAINER_PRELOAD:-} ]] ||
            bad_input "AQTOPO_CONTAINER_PRELOAD has no effect with pyxis. Unset it, and preload in the image."
        srun --help | grep -q -e --container-image ||
            bad_input "AQTOPO_CONTAINER_RUN=$AQTOPO_CONTAINER_RUN: srun has no option --container-image here: Slurm lacks pyxis. Use apptainer or singularity."
    elif ! command -v "${container[0]}" >/dev/null; then
        bad_input "AQTOPO_CONTAINER_RUN=${AQTOPO_CONTAINER_RUN:-}: there is no program ${container[0]} on $(hostname). Name the site's, such as AQTOPO_CONTAINER_RUN='apptainer exec --nv', or load its module."
    elif [[ $AQTOPO_CONTAINER != *://* && ! -e $AQTOPO_CONTAINER ]]; then
        bad_input "AQTOPO_CONTAINER=$AQTOPO_CONTAINER: there is no such image on $(hostname). Name its absolute path on a shared disk."
    fi
    # Any other failure may be temporary; the ranks would then fail in the same way, and are tried again.
    srun --nodes=1 --ntasks=1 "${container_step[@]}" "${container[@]}" sh -c 'command -v aqtopo || exit 127' >/dev/null
    [[ $? != 127 ]] || bad_input "the command aqtopo is not on PATH in the container $AQTOPO_CONTAINER. Install it there."
}

# Print a line of text as a JSON string.
json_string() {
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

start() {
    local ranks_per_node=$SLURM_NTASKS_PER_NODE
    local tasks=$((SLURM_JOB_NUM_NODES * ranks_per_node))
    local step=(srun --nodes="$SLURM_JOB_NUM_NODES" --kill-on-bad-exit=1 "${container_step[@]}")
    case $launch in
        srun)
            "${step[@]}" --ntasks="$tasks" --ntasks-per-node="$ranks_per_node" "${cpu_binding[@]}" \
                "${container[@]}" aqtopo train "$@"
            ;;
        torchrun)
            # SLURM_NODEID differs by node, so the shell on the node must expand it, not this one.
            # shellcheck disable=SC2016
            "${step[@]}" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
                --cpus-per-task="$((ranks_per_node * ${SLURM_CPUS_PER_TASK:-1}))" "${container[@]}" \
                bash -c 'exec torchrun --nnodes="$SLURM_JOB_NUM_NODES" --node-rank="$SLURM_NODEID" "$@"' torchrun \
                --nproc-per-node="$ranks_per_node" --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" \
                --module aqtopo train "$@"
            ;;
        deepspeed)
            scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=$ranks_per_node/" >"$job/hostfile"
            # With this launcher, deepspeed ignores --module, so pass the installed script; and it calls srun without
            # options. Run deepspeed as a module: its script fails in a path with a space.
            "$(dirname "$(command -v aqtopo)")/python" -m deepspeed.launcher.runner --launcher slurm --hostfile "$job/hostfile" --force_multi --no_ssh_check \
                --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" \
                --launcher_args "${step[*]:1} --ntasks-per-node=$ranks_per_node ${cpu_binding[*]}" \
                "$(command -v aqtopo)" train "$@"
            ;;
    esac
}

# Run the launcher in the background, so that this shell can handle signals, and return its exit code. At the time
# limit, wait for it at most LAST_WAIT_S, because this shell must requeue the job before it is killed.
attempt() {
    start "$@" &
    local launcher=$!
    while kill -0 "$launcher" 2>/dev/null; do
        if [[ $ended == yes ]] && why_ended TimeLimit; then
            timeout "$LAST_WAIT_S" tail --pid="$launcher" --follow /dev/null
            break
        fi
        wait "$launcher"
    done
    if kill -0 "$launcher" 2>/dev/null; then
        return 143 # as if ended by SIGTERM
    fi
    wait "$launcher"
}

# Remove the copy of the data on every node, which killed ranks leave. Near the time limit Slurm starts no job steps,
# so the next start removes it.
remove_copies() {
    [[ -e $job/copy && $ended == no ]] || return 0
    local copy
    copy=$(<"$job/copy")
    timeout 30 srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        rm -rf -- "$copy" "$copy.partial" && rm -f "$job/copy"
}

# Test if Slurm ends the job for a reason, such as TimeLimit. A job cancelled by a user has no reason.
why_ended() { [[ $(squeue --noheader --states=all --job "$this" --format=%r) == "$1" ]]; }

# Test if Slurm ends the job: the ranks may end before Slurm's signal to this shell arrives.
is_ending() { [[ $(squeue --noheader --states=all --job "$this" --format=%T) =~ ^(COMPLETING|CANCELLED)$ ]]; }

# Test if Slurm itself has requeued the job, as it does after a node failure.
requeued_by_slurm() {
    (($(squeue --noheader --states=all --job "$this" --Format=restartcnt) > restarts))
}

requeue() {
    say "$1; requeued (restarts so far: $restarts)"
    local wait_s
    for wait_s in 2 10 60 0; do # the controller of a large machine may be busy
        scontrol requeue "$this" && exit 0
        sleep "$wait_s"
    done
    say "Slurm refused the requeue. Submit the job again; it resumes from its last saved state."
    exit 1
}

# Requeue after a failure, unless it is the third in a row without a new saved state.
after_failure() {
    local code=$1 failures=0 noted='' why=''
    [[ -e $job/failed ]] && read -r noted why <"$job/failed" && code=$noted
    say "failed with code $code${why:+: $why}"
    [[ -e $job/failures && ! -e $job/saved ]] && failures=$(<"$job/failures")
    if ! echo $((++failures)) >"$job/failures"; then
        say "failures cannot be counted in $job; not requeued"
        exit "$code"
    fi
    if [[ $failures -ge $MOST_FAILURES ]]; then
        say "failed $failures times in a row without a new saved state; not requeued"
        exit "$code"
    fi
    requeue "failed ($failures of $MOST_FAILURES in a row without a new saved state)"
}

# Requeue or end after this start, given its exit code.
conclude() {
    local code=$1 noted='' why=''
    if [[ $code != 0 && $ended == no ]] && is_ending; then
        ended=yes
    fi
    if [[ $ended == yes ]] && requeued_by_slurm; then
        say "ended by Slurm, which has requeued the job, as it does after a node failure"
        exit 0
    elif [[ -e $job/never ]]; then
        # Use the rank's code: the launcher may return the code of another rank, which it killed later.
        read -r noted why <"$job/never" && code=$noted
        say "ended with code $code; not requeued, because a retry cannot fix the cause: $why"
        exit "$code"
    elif [[ $ended == yes ]] && ! why_ended TimeLimit; then
        say "cancelled; not requeued"
        exit 0
    elif [[ ${AQTOPO_REQUEUE:-yes} == no ]]; then
        exit "$code"
    elif [[ -e $job/again ]]; then
        rm -f "$job/failures"
        requeue "$(<"$job/again")"
    elif [[ $ended == yes && -e $job/saved ]]; then
        rm -f "$job/failures"
        requeue "the time limit came before all ranks had stopped"
    elif [[ $ended == yes || $code != 0 ]]; then
        after_failure "$code"
    fi
    say "done"
}

# shellcheck source=slurm/site.sh
source slurm/site.sh || bad_input "the job needs a site"
set_container
check_input "$@"
job=${AQTOPO_JOBS:-$PWD/slurm-jobs}/$SLURM_JOB_ID
mkdir -p "$job" || bad_input "the job's folder $job cannot be created. Name a shared disk in AQTOPO_JOBS."
rm -f "$job"/{stop,again,never,failed,saved}
export AQTOPO_JOB_DIR=$job
# The batch shell and rank 0 both run on the first node.
MASTER_ADDR=$(hostname)
# Below the ephemeral ports of Linux, which start at 32768.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))
export MASTER_ADDR MASTER_PORT
# shellcheck source=slurm/node_env.sh
source slurm/node_env.sh

ended=no
trap 'touch "$job/stop" && say "the time limit is near: requested the ranks to save and stop"' USR1
trap 'ended=yes' TERM INT

config=$1
shift
arguments=("$config")
if [[ $# -ge 1 ]]; then
    arguments+=(--set "training.run_dir=$(json_string "$1")" "${@:2}")
fi
say "start $((restarts + 1)) of $config on $SLURM_JOB_NUM_NODES node(s), by $launch, restart count $restarts"
code=0
remove_copies # of a start that was killed
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    bash -c 'source slurm/node_env.sh && make_node_caches' || code=$?
if [[ $code != 0 ]]; then
    echo "$code the caches on a node could not be created: its disk may be full" >"$job/failed"
else
    attempt "${arguments[@]}"
    code=$?
    remove_copies
fi
conclude "$code"
