# A cluster with four NVIDIA GPUs and at least 32 cores a node, and InfiniBand or Ethernet. For another one, copy this
# file, change it, and name the copy in AQTOPO_SITE.
site_options=(--ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8) # and --partition=..., --account=...
: "${AQTOPO_CONTAINER_RUN:=apptainer exec --nv}"

# module load CUDA

# NCCL finds InfiniBand's adapters itself. Its start-up and gloo use an IP interface, which must reach all nodes.
if [[ -e /sys/class/net/ib0 ]]; then
    export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
fi
# Loader processes are forked while the fabric is open.
export RDMAV_FORK_SAFE=1
