"""DeepSpeed keys that a run may not set, with the reason or the alternative."""

from fnmatch import fnmatchcase
from types import MappingProxyType

_STAGE_3 = "it needs ZeRO stage 3, and aqtopo trains with stage 2"
_AVERAGED = "gradients are always averaged over the ranks: the loss is weighted for it"
_LOADER = "aqtopo has its own loader; see the section `data`"
_ONE_RANK = "the model is not divided among ranks"
_PRECISION = "precision follows from bf16 and fp16"
_REMOVED = "DeepSpeed has removed it"
_SAMPLES = "DeepSpeed's own monitor counts samples instead of steps"
_CPU_OFFLOAD = 'deprecated in DeepSpeed; write "offload_optimizer": {"device": "cpu"}'

REFUSED = MappingProxyType(
    {
        "optimizer": "set it in the section `optimizer`",
        "scheduler": "set the learning rate in the section `schedule`",
        "activation_checkpointing": "use model.gradient_checkpointing",
        "bfloat16": "an old name; write bf16",
        "amp": "DeepSpeed has removed it; use bf16 or fp16",
        "torch_autocast": "it would compute the elevation bias in half precision; use bf16",
        "tensorboard": f"write monitors.tensorboard; {_SAMPLES}",
        "wandb": f"write monitors.wandb; {_SAMPLES}",
        "csv_monitor": "metrics.jsonl in the run directory holds all values",
        "comet": "use monitors.tensorboard, monitors.wandb or monitors.mlflow",
        "gradient_allreduce_op": _AVERAGED,
        "prescale_gradients": _AVERAGED,
        "gradient_predivide_factor": _AVERAGED,
        "managed_gradient_accumulation": "aqtopo sets the accumulation boundary itself",
        "elasticity": "DeepSpeed has removed it; aqtopo resumes at other world sizes by itself",
        "autotuning": "it changes the batch sizes, which are constant for a run",
        "compile": "DeepCompile is untested with this model",
        "disable_allgather": "write zero_optimization.allgather_partitions",
        "data_efficiency": _LOADER,
        "dataloader_drop_last": _LOADER,
        "curriculum_learning": _LOADER,
        "vocabulary_size": "the model has no vocabulary",
        "pipeline": _ONE_RANK,
        "tensor_parallel": _ONE_RANK,
        "sequence_parallel_size": _ONE_RANK,
        "seq_parallel_communication_data_type": _ONE_RANK,
        "expert_parallel": _ONE_RANK,
        "use_data_before_expert_parallelism": _ONE_RANK,
        "hybrid_engine": "it is for text generation",
        "weight_quantization": "it is for inference",
        "aio": "it is for NVMe offload, which needs ZeRO stage 3",
        "datastates": "aqtopo writes checkpoints itself",
        "nebula": _REMOVED,
        "compression_training": _REMOVED,
        "quantize_training": _REMOVED,
        "sparse_gradients": _REMOVED,
        "sparse_attention": _REMOVED,
        "eigenvalue": _REMOVED,
        "graph_harvesting": _REMOVED,
        "progressive_layer_drop": _REMOVED,
        "data_types.param_dtype": _PRECISION,
        "data_types.buffer_dtype": _PRECISION,
        "data_types.keep_in_fp32_modules": _PRECISION,
        "checkpoint.load_universal": "aqtopo sets it when it restores a run",
        "checkpoint.use_node_local_storage": "every node must be able to read a checkpoint",
        "checkpoint.parallel_write": "the model has no pipeline stages",
        "checkpoint.writer": "aqtopo writes checkpoints itself",
        "checkpoint.checkpoint_serialization": "aqtopo writes checkpoints itself",
        "zero_optimization.zenflow": "ZenFlow delays updates, so steps would depend on the world size",
        "zero_optimization.parameter_alignment": "untested with the universal checkpoint",
        "zero_optimization.legacy_stage1": "it is for ZeRO stage 1, and aqtopo trains with stage 2",
        "zero_optimization.mics_*": _REMOVED,
        "zero_optimization.zeropp_*": _REMOVED,
        "zero_optimization.cpu_offload": _CPU_OFFLOAD,
        "zero_optimization.cpu_offload_use_pin_memory": _CPU_OFFLOAD,
        "zero_optimization.cpu_offload_param": _STAGE_3,
        "zero_optimization.offload_param": _STAGE_3,
        "zero_optimization.sub_group_size": _STAGE_3,
        "zero_optimization.stage3_*": _STAGE_3,
        "zero_optimization.zero_*": _STAGE_3,
        "zero_optimization.memory_efficient_linear": _STAGE_3,
        "zero_optimization.pipeline_loading_checkpoint": _STAGE_3,
        "zero_optimization.override_module_apply": _STAGE_3,
        "zero_optimization.log_trace_cache_warnings": _STAGE_3,
        "zero_optimization.save_muon_momentum_buffer_in_memory": _STAGE_3,
        "zero_optimization.leaf_module": _STAGE_3,
        **{
            f"zero_optimization.offload_optimizer.{key}": _STAGE_3
            for key in ("nvme_path", "buffer_count", "pipeline_*", "fast_init", "ratio", "super_offload")
        },
        "zero_optimization.offload_optimizer.cpuadam_cores_perc": _STAGE_3,
    }
)
"""Reasons by glob pattern over paths in the `deepspeed` block; the first match applies."""


def reason_against(path: str) -> str | None:
    """Return the reason against a key of the `deepspeed` block; None for an unknown key."""
    return next((reason for pattern, reason in REFUSED.items() if fnmatchcase(path, pattern)), None)
