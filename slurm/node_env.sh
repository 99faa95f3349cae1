# The environment of every process on a node: sourced by job.sh, before anything else starts.
#
# What is deliberately not set: NCCL_NET_GDR_LEVEL=PHB (multi-node start-up hangs in the ROCm 7 container) and
# ROCR_VISIBLE_DEVICES (each rank picks its die by local rank; hiding the others breaks RCCL's peer access).

# Caches on the node's own disk: hundreds of ranks locking files on Lustre is how start-ups hang. One folder a
# job and node; `make_node_caches` makes them, once a node, before any rank starts.
node_cache=${TMPDIR:-/tmp}/aqtopo-${SLURM_JOB_ID:?}
export MIOPEN_USER_DB_PATH=$node_cache/miopen        # MIOpen's tuning results, an SQLite file
export MIOPEN_CUSTOM_CACHE_DIR=$node_cache/miopen    # and its compiled kernels
export TRITON_CACHE_DIR=$node_cache/triton           # this package's kernels, compiled once a node
export TORCH_EXTENSIONS_DIR=$node_cache/extensions   # DeepSpeed's extensions, built with a lock file
export TORCHINDUCTOR_CACHE_DIR=$node_cache/inductor

make_node_caches() {
    # A lock that a killed start of this job left behind would be waited for for ever.
    rm -f "$TORCH_EXTENSIONS_DIR"/*/lock "$TORCH_EXTENSIONS_DIR"/*/*/lock
    mkdir -p "$MIOPEN_USER_DB_PATH" "$TRITON_CACHE_DIR" "$TORCH_EXTENSIONS_DIR" "$TORCHINDUCTOR_CACHE_DIR"
}

# Slingshot (LUMI), known by its interfaces.
if [[ -e /sys/class/net/hsn0 ]]; then
    # RCCL and gloo would otherwise try interfaces that do not reach the other nodes. A prefix, without commas:
    # `deepspeed --launcher slurm` passes it through srun --export, which splits at commas.
    export NCCL_SOCKET_IFNAME=hsn
    export GLOO_SOCKET_IFNAME=hsn0
    # The registration cache must notice freed memory; the default monitor misses the GPU runtime's.
    export FI_MR_CACHE_MONITOR=userfaultfd
    # Completions of hundreds of peers overflow the default queue.
    export FI_CXI_DEFAULT_CQ_SIZE=131072
    # Loader processes are started beside an open fabric.
    export CXI_FORK_SAFE=1 CXI_FORK_SAFE_HP=1
fi

# The container's own libfabric and librccl, as a colon-separated list of paths inside it: without them scaling
# stops at a few nodes. Only processes in the container see the variable.
if [[ -n ${AQTOPO_CONTAINER_PRELOAD:-} ]]; then
    export SINGULARITYENV_LD_PRELOAD=$AQTOPO_CONTAINER_PRELOAD
fi

# Ranks get the cores next to their die: masks of GCD 0 to 7 on a LUMI-G node, whose first core of each group
# of eight belongs to the system (56 of 64 are usable).
lumi_cpu_masks=0x00fe000000000000,0xfe00000000000000,0x0000000000fe0000,0x00000000fe000000
lumi_cpu_masks+=,0x00000000000000fe,0x000000000000fe00,0x000000fe00000000,0x0000fe0000000000
if [[ -e /sys/class/net/hsn0 && ${SLURM_GPUS_ON_NODE:-0} == 8 ]]; then
    cpu_binding=(--cpu-bind="mask_cpu:${AQTOPO_CPU_MASKS:-$lumi_cpu_masks}")
elif [[ -n ${AQTOPO_CPU_MASKS:-} ]]; then
    cpu_binding=(--cpu-bind="mask_cpu:$AQTOPO_CPU_MASKS")
else
    # Since Slurm 22.05 srun does not take it from the job, and a rank would get a single core.
    cpu_binding=(${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"})
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
