# LUMI-G: nodes of four MI250X, which are eight GPUs (dies) with 56 usable cores.
site_options=(--partition=standard-g --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=7)
site_debug_options=(--partition=dev-g)
: "${AQTOPO_CONTAINER_RUN:=singularity exec}"

# Variables that must stay unset: NCCL_NET_GDR_LEVEL=PHB (multi-node start-up hangs in the ROCm 7 container) and
# ROCR_VISIBLE_DEVICES (each rank selects its die by local rank; RCCL's peer access needs all dies).

# Slingshot network, detected by its interface.
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

# Bind each rank to the cores next to its die: masks of GCD 0 to 7. The system reserves the first core of each group
# of eight, so 56 of 64 are usable.
if [[ -e /sys/class/net/hsn0 && ${SLURM_GPUS_ON_NODE:-0} == 8 ]]; then
    lumi_cpu_masks=0x00fe000000000000,0xfe00000000000000,0x0000000000fe0000,0x00000000fe000000
    lumi_cpu_masks+=,0x00000000000000fe,0x000000000000fe00,0x000000fe00000000,0x0000fe0000000000
    cpu_binding=(--cpu-bind="mask_cpu:$lumi_cpu_masks")
fi
