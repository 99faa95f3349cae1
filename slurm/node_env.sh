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

# Code is loaded from the folder, so it must be a new one or this user's, closed to others, and no link. Otherwise end
# the job: somebody else has made it.
make_node_caches() {
    local failure
    # `mkdir` decides which task creates it: nodes may share a TMPDIR.
    if ! failure=$(mkdir -m 700 -- "$node_cache" 2>&1); then
        if [[ ! -e $node_cache && ! -L $node_cache ]]; then
            echo "$failure" >&2
            return 1
        elif [[ -L $node_cache || ! -d $node_cache || ! -O $node_cache || $(find "$node_cache" -maxdepth 0 -perm /077) ]]; then
            local fault="$node_cache on $(hostname) is not this user's own folder. Remove it, or set TMPDIR to another one."
            echo "$fault" >&2
            echo "2 $fault" >"${AQTOPO_JOB_DIR:?}/never"
            return 2
        fi
    fi
    # DeepSpeed would wait forever for the lock of a killed start.
    rm -f "$TORCH_EXTENSIONS_DIR"/*/lock "$TORCH_EXTENSIONS_DIR"/*/*/lock
    mkdir -p "$MIOPEN_USER_DB_PATH" "$TRITON_CACHE_DIR" "$TORCH_EXTENSIONS_DIR" "$TORCHINDUCTOR_CACHE_DIR"
}

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
