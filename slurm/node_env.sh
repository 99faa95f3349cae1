# Environment of every process on a node; job.sh sources it before it starts other processes. The variables of the
# fabric are in slurm/sites.

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

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
