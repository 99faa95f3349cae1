# Environment of every process on a node; job.sh sources it before it starts other processes.
#
# Variables that must stay unset: NCCL_NET_GDR_LEVEL=PHB (multi-node start-up hangs in the ROCm 7 container) and
# ROCR_VISIBLE_DEVICES (each rank selects its die by local rank; RCCL's peer access needs all dies).

# Caches on the node's local disk, because file locks of hundreds of ranks on Lustre can block the start-up. There is
# one folder per job and node; `make_node_caches` creates it before any rank starts.
node_cache=${TMPDIR:-/tmp}/aqtopo-${SLURM_JOB_ID:?}
export MIOPEN_USER_DB_PATH=$node_cache/miopen        # MIOpen's tuning results, an SQLite file
export MIOPEN_CUSTOM_CACHE_DIR=$node_cache/miopen    # MIOpen's compiled kernels
export TRITON_CACHE_DIR=$node_cache/triton           # kernels of this package, compiled once per node
export TORCH_EXTENSIONS_DIR=$node_cache/extensions   # DeepSpeed's extensions, built with a lock file
export TORCHINDUCTOR_CACHE_DIR=$node_cache/inductor

make_node_caches() {
    # DeepSpeed would wait forever for the lock of a killed start.
    rm -f "$TORCH_EXTENSIONS_DIR"/*/lock "$TORCH_EXTENSIONS_DIR"/*/*/lock
    mkdir -p "$MIOPEN_USER_DB_PATH" "$TRITON_CACHE_DIR" "$TORCH_EXTENSIONS_DIR" "$TORCHINDUCTOR_CACHE_DIR"
}

# Slingshot network (LUMI), detected by its interface.
if [[ -e /sys/class/net/hsn0 ]]; then
    # RCCL and gloo would otherwise try interfaces that do not reach the other nodes. The value is a prefix, not a
    # list: `deepspeed --launcher slurm` passes it through srun --export, which splits at commas.
    export NCCL_SOCKET_IFNAME=hsn
    export GLOO_SOCKET_IFNAME=hsn0
    # The registration cache must detect freed memory; the default monitor misses memory of the GPU runtime.
    export FI_MR_CACHE_MONITOR=userfaultfd
    # Completions of hundreds of peers overflow the default queue.
    export FI_CXI_DEFAULT_CQ_SIZE=131072
    # Loader processes are forked while the fabric is open.
    export CXI_FORK_SAFE=1 CXI_FORK_SAFE_HP=1
fi

# libfabric and librccl of the container, as a colon-separated list of paths inside it. Without them, runs do not
# scale beyond a few nodes. Only processes in the container get the variable.
if [[ -n ${AQTOPO_CONTAINER_PRELOAD:-} ]]; then
    export SINGULARITYENV_LD_PRELOAD=$AQTOPO_CONTAINER_PRELOAD
fi

# Bind each rank to the cores next to its die: masks of GCD 0 to 7 on a LUMI-G node. The system reserves the first
# core of each group of eight, so 56 of 64 are usable.
lumi_cpu_masks=0x00fe000000000000,0xfe00000000000000,0x0000000000fe0000,0x00000000fe000000
lumi_cpu_masks+=,0x00000000000000fe,0x000000000000fe00,0x000000fe00000000,0x0000fe0000000000
if [[ -e /sys/class/net/hsn0 && ${SLURM_GPUS_ON_NODE:-0} == 8 ]]; then
    cpu_binding=(--cpu-bind="mask_cpu:${AQTOPO_CPU_MASKS:-$lumi_cpu_masks}")
elif [[ -n ${AQTOPO_CPU_MASKS:-} ]]; then
    cpu_binding=(--cpu-bind="mask_cpu:$AQTOPO_CPU_MASKS")
else
    # Since Slurm 22.05, srun does not inherit this option from the job; without it, a rank gets one core.
    cpu_binding=(${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"})
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
