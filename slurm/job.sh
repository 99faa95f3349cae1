#!/bin/bash
# Common part of train.sbatch, debug.sbatch and ablation.sbatch: start `aqtopo train`, then requeue the job or end.
#
#   AQTOPO_LAUNCH      srun (default): one task a GCD | deepspeed: `deepspeed --launcher slurm` and a hostfile |
#                      torchrun: one launcher a node
#   AQTOPO_CONTAINER   a singularity image to run in; the variables above and MASTER_ADDR are made outside of it
#   AQTOPO_REQUEUE     yes (default) | no
#   AQTOPO_LAST_WAIT_S seconds (default 15) for ranks that still save when the time limit has come; less than
#                      Slurm's KillWait, after which this shell is killed too and nothing is queued again
#   AQTOPO_JOBS        folder for the files below (default slurm-jobs), on a shared disk
#
# Files in the job's folder: `stop`, written here near the time limit; `again`, by rank 0 when it has saved because
# of `stop`; `never`, by a rank after a failure that a retry cannot fix; `failed`, after any other; `saved`, at each
# save. `run` (the run directory) and `failures` (failures in a row) are kept over restarts.
set -uo pipefail

readonly MOST_FAILURES=3
readonly LAST_WAIT_S=${AQTOPO_LAST_WAIT_S:-15}
launch=${AQTOPO_LAUNCH:-srun}
restarts=${SLURM_RESTART_COUNT:-0}
# One task of an array has the id of the whole array, by which Slurm would queue all tasks again.
this=${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID:-}_$SLURM_ARRAY_TASK_ID}
this=${this:-${SLURM_JOB_ID:-}}

say() { echo "aqtopo job ${SLURM_JOB_ID:-} on $(hostname): $*" >&2; }

bad_input() {
    say "$*"
    exit 2
}

check_input() {
    [[ -n ${SLURM_JOB_ID:-} ]] || bad_input "this is no Slurm job. Submit it: sbatch slurm/train.sbatch CONFIG"
    [[ $# -ge 1 ]] || bad_input "no configuration. Submit as: sbatch slurm/train.sbatch CONFIG [RUN_DIR [OPTION ...]]"
    [[ -f $1 ]] || bad_input "there is no file $1 in $PWD. Submit from the root of the checkout, or name another."
    if [[ $(squeue --noheader --job "$this" --format=%l) == UNLIMITED ]]; then
        bad_input "the job has no time limit, so nothing would tell it to save in time. Submit with --time=HH:MM:SS."
    fi
    [[ -n ${SLURM_NTASKS_PER_NODE:-} ]] || bad_input "ranks a node are not given. Submit with --ntasks-per-node."
    [[ $launch =~ ^(srun|deepspeed|torchrun)$ ]] ||
        bad_input "AQTOPO_LAUNCH=$launch is none of srun, deepspeed, torchrun."
    if [[ $launch == deepspeed && -n ${AQTOPO_CONTAINER:-} ]]; then
        bad_input "the deepspeed launcher cannot start ranks in a container. Use AQTOPO_LAUNCH=srun."
    fi
    [[ -n ${AQTOPO_CONTAINER:-} ]] || command -v aqtopo >/dev/null ||
        bad_input "there is no command aqtopo. Activate its environment before sbatch, which passes PATH on."
}

# A line of text as a string of JSON.
json_string() {
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

# aqtopo, in the container if there is one: the words to put in front of `train`.
program() {
    if [[ -n ${AQTOPO_CONTAINER:-} ]]; then
        printf '%s\n' singularity exec "$AQTOPO_CONTAINER"
    fi
}

start() {
    local ranks_per_node=$SLURM_NTASKS_PER_NODE
    local tasks=$((SLURM_JOB_NUM_NODES * ranks_per_node)) container=()
    mapfile -t container < <(program)
    local step=(srun --nodes="$SLURM_JOB_NUM_NODES" --kill-on-bad-exit=1)
    case $launch in
        srun)
            "${step[@]}" --ntasks="$tasks" --ntasks-per-node="$ranks_per_node" "${cpu_binding[@]}" \
                "${container[@]}" aqtopo train "$@"
            ;;
        torchrun)
            # Each launcher asks for its number; the shell that would tell it must not be ours.
            # shellcheck disable=SC2016
            "${step[@]}" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
                --cpus-per-task="$((ranks_per_node * ${SLURM_CPUS_PER_TASK:-1}))" "${container[@]}" \
                bash -c 'exec torchrun --nnodes="$SLURM_JOB_NUM_NODES" --node-rank="$SLURM_NODEID" "$@"' torchrun \
                --nproc-per-node="$ranks_per_node" --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" \
                --module aqtopo train "$@"
            ;;
        deepspeed)
            scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=$ranks_per_node/" >"$job/hostfile"
            # It ignores --module here, so it gets the installed script; and writes a bare srun without options.
            # As a module: its script does not start from a path with a space.
            python -m deepspeed.launcher.runner --launcher slurm --hostfile "$job/hostfile" --force_multi --no_ssh_check \
                --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" \
                --launcher_args "${step[*]:1} --ntasks-per-node=$ranks_per_node ${cpu_binding[*]}" \
                "$(command -v aqtopo)" train "$@"
            ;;
    esac
}

# Run the launcher in the background, so that this shell can answer signals; its exit code. What is still saving
# at the time limit is not waited for to the end, since this shell has to act before it is killed.
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

# Whether this is why Slurm ends the job: TimeLimit; nothing is given where a user cancelled it.
why_ended() { [[ $(squeue --noheader --states=all --job "$this" --format=%r) == "$1" ]]; }

# Whether Slurm has queued the job again by itself, which it does when a node fails.
queued_by_slurm() {
    (($(squeue --noheader --states=all --job "$this" --Format=restartcnt) > restarts))
}

queue_again() {
    say "$1; queued again (restarts so far: $restarts)"
    local wait_s
    for wait_s in 2 10 60 0; do # the controller of a large machine does not always answer
        scontrol requeue "$this" && exit 0
        sleep "$wait_s"
    done
    say "Slurm did not take it: submit the job again, and it goes on from its last saved state"
    exit 1
}

# After a failure: again, unless it was the third in a row that saved nothing.
after_failure() {
    local code=$1 failures=0 noted='' why=''
    [[ -e $job/failed ]] && read -r noted why <"$job/failed" && code=$noted
    say "failed with code $code${why:+: $why}"
    [[ -e $job/failures && ! -e $job/saved ]] && failures=$(<"$job/failures")
    if ! echo $((++failures)) >"$job/failures"; then
        say "failures cannot be counted in $job, so there would be no end of them; not queued again"
        exit "$code"
    fi
    if [[ $failures -ge $MOST_FAILURES ]]; then
        say "failed $failures times in a row without a new saved state; not queued again"
        exit "$code"
    fi
    queue_again "failed ($failures of $MOST_FAILURES in a row without a new saved state)"
}

# What comes after this start, which has ended with this code.
conclude() {
    local code=$1 noted='' why=''
    if [[ $ended == yes ]] && queued_by_slurm; then
        say "ended by Slurm, which has queued the job again, as it does when a node fails"
        exit 0
    elif [[ -e $job/never ]]; then
        # The rank's own code: the launcher's may be that of another rank, which it killed after this one's end.
        read -r noted why <"$job/never" && code=$noted
        say "ended with code $code, and starting again would not help: $why"
        exit "$code"
    elif [[ $ended == yes ]] && ! why_ended TimeLimit; then
        say "cancelled; not queued again"
        exit 0
    elif [[ ${AQTOPO_REQUEUE:-yes} == no ]]; then
        exit "$code"
    elif [[ -e $job/again ]]; then
        rm -f "$job/failures"
        queue_again "$(<"$job/again")"
    elif [[ $ended == yes && -e $job/saved ]]; then
        rm -f "$job/failures"
        queue_again "the time limit came before all ranks had stopped"
    elif [[ $ended == yes || $code != 0 ]]; then
        after_failure "$code"
    fi
    say "done"
}

check_input "$@"
job=${AQTOPO_JOBS:-$PWD/slurm-jobs}/$SLURM_JOB_ID
mkdir -p "$job" || bad_input "the job's folder $job cannot be made. Name a shared disk in AQTOPO_JOBS."
rm -f "$job"/{stop,again,never,failed,saved}
export AQTOPO_JOB_DIR=$job
# The batch shell runs on the first node, and so does rank 0.
MASTER_ADDR=$(hostname)
# Below the ports that the kernel hands out by itself, from 32768 on.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))
export MASTER_ADDR MASTER_PORT
# shellcheck source=slurm/node_env.sh
source slurm/node_env.sh

ended=no
trap 'touch "$job/stop" && say "the time limit is near: asked the ranks to save and stop"' USR1
trap 'ended=yes' TERM INT

config=$1
shift
arguments=("$config")
if [[ $# -ge 1 ]]; then
    arguments+=(--set "training.run_dir=$(json_string "$1")" "${@:2}")
fi
say "start $((restarts + 1)) of $config on $SLURM_JOB_NUM_NODES node(s), by $launch, restart count $restarts"
code=0
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    bash -c 'source slurm/node_env.sh && make_node_caches' || code=$?
if [[ $code != 0 ]]; then
    echo "$code no caches could be made on some node: its disk may be full" >"$job/failed"
else
    attempt "${arguments[@]}"
    code=$?
fi
conclude "$code"
