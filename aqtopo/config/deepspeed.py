"""The `deepspeed` block: DeepSpeed's keys for ZeRO stage 2; unknown keys are errors.

DeepSpeed ignores unknown top-level keys, so it would ignore a misspelt one. All allowed keys are declared
here; `refused.py` has the other keys of DeepSpeed with the reasons against them.
Sources, of 0.19.8: `deepspeed/runtime/{config,constants,precision_config}.py`, `runtime/zero/config.py`,
`comm/config.py`, `profiling/config.py`, `utils/config.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from aqtopo.config.strict import Elements, NonNegative, Positive, Strict

Precision = Literal["fp32", "bf16", "fp16"]
Names = Annotated[tuple[str, ...], Field(strict=False)]


class OffloadOptimizer(Strict):
    """Offload of the optimizer's state and step."""

    device: Literal["none", "cpu"] = "none"
    """`cpu` keeps moments and master weights in host memory; NVMe needs stage 3."""

    pin_memory: bool = True
    """Page-locked host memory, for faster transfers; turn it off if `ulimit -l` is low."""


class ZeroOptimization(Strict):
    """ZeRO stage 2: optimizer state and gradients divided among the ranks."""

    stage: Literal[2]
    """Must be 2: saving, resuming and the memory plan support no other stage."""

    contiguous_gradients: bool = True
    """Copy gradients to one buffer as they are produced, to avoid fragmentation."""

    reduce_scatter: bool = True
    """Average gradients by reduce-scatter instead of all-reduce."""

    reduce_bucket_size: Elements = 500_000_000
    """Elements per reduction."""

    allgather_partitions: bool = True
    """Collect the updated parameters by all-gather instead of broadcasts."""

    allgather_bucket_size: Annotated[Elements, Field(ge=1000, multiple_of=2)] = 500_000_000
    """Elements per all-gather on a CPU, about; on GPUs each parameter group is gathered at once.

    DeepSpeed requires an even number."""

    overlap_comm: bool | None = None
    """Overlap gradient reduction with the backward pass; null lets DeepSpeed choose (off at stage 2)."""

    use_multi_rank_bucket_allreduce: bool = True
    """Join the reduce buckets of several ranks: fewer, larger messages at high rank counts."""

    offload_optimizer: OffloadOptimizer | None = None
    """Keep the optimizer's state in host memory."""

    load_from_fp32_weights: bool = True
    """Initialise the fp32 master weights from fp32 copies in a checkpoint, without loss of precision."""

    ignore_unused_parameters: bool = True
    """Continue if a parameter received no gradient."""

    enable_sanity_checks: bool = False
    """DeepSpeed's internal checks, for debugging."""

    round_robin_gradients: Literal[False] = False
    """Must be false: it reorders the flat buffers, and a resume would restore tensors under wrong names."""

    elastic_checkpoint: Literal[False] = False
    """Must be false: a legacy format. The universal checkpoint supports other world sizes."""

    compute_grad_norm: Literal[True] = True
    """Must be true: every step logs the norm of the gradient."""


class BFloat16(Strict):
    """Mixed precision in bfloat16."""

    enabled: bool = False
    """Compute in bf16, with fp32 master weights."""

    immediate_grad_update: bool = False
    """Apply gradient updates at once instead of at the boundary."""

    check_grad_overflow: Literal[True] = True
    """Must be true: an update with a loss or gradient that is not finite is skipped."""


class Float16(Strict):
    """Mixed precision in float16 with loss scaling."""

    enabled: bool = False
    """Compute in fp16, with fp32 master weights."""

    auto_cast: bool = False
    """Cast the inputs to fp16."""

    loss_scale: float = Field(0.0, ge=0)
    """Static loss scale; 0 means dynamic."""

    initial_scale_power: NonNegative = 16
    """Dynamic scaling starts at 2 to this power."""

    loss_scale_window: Positive = 1000
    """Steps without overflow before the dynamic scale doubles."""

    hysteresis: Positive = 2
    """Overflows tolerated before the scale is lowered."""

    consecutive_hysteresis: bool = False
    """Refill the hysteresis after a step without overflow."""

    min_loss_scale: Positive = 1
    """Lowest dynamic scale."""


class DataTypes(Strict):
    """Types of internal buffers."""

    grad_accum_dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """Type in which a rank adds the gradients of its micro-steps; null: fp32, in every precision."""


class CommsLogger(Strict):
    """DeepSpeed's log of collectives."""

    enabled: bool = False
    """Record size and duration of collectives."""

    verbose: bool = False
    """Print each collective."""

    prof_all: bool = True
    """Record all operations, not only `prof_ops`."""

    debug: bool = False
    """Add the calling function's name."""

    prof_ops: Names = ()
    """Operations to record when `prof_all` is false, such as `all_reduce`."""


class FlopsProfiler(Strict):
    """DeepSpeed's one-step profile of floating-point operations."""

    enabled: bool = False
    """Profile one step."""

    recompute_fwd_factor: float = Field(0.0, ge=0, le=1)
    """Share of the forward pass that is computed again, with activation checkpointing."""

    profile_step: Positive = 1
    """The step that is profiled."""

    module_depth: int = Field(-1, ge=-1)
    """Depth of the printed module tree; -1 for all of it."""

    top_modules: Positive = 1
    """Modules printed per level."""

    detailed: bool = True
    """Print every module."""

    output_file: str | None = None
    """File for the profile; null for standard output."""


class ThroughputTimer(Strict):
    """DeepSpeed's throughput timer."""

    enabled: bool = False
    """Measure samples per second for DeepSpeed's messages; metrics.jsonl has aqtopo's own measurement."""

    synchronized: bool = True
    """Wait for the device twice in each micro-step: exact, but slower."""


class Timers(Strict):
    """DeepSpeed's timers."""

    throughput: ThroughputTimer = ThroughputTimer()
    """The throughput timer."""


class TagCheckpoint(Strict):
    """DeepSpeed's own checkpoint options."""

    tag_validation: Literal["Warn", "Ignore", "Fail"] = "Warn"
    """Action if ranks have different tag names."""


class DeepSpeedConfig(Strict):
    """DeepSpeed's block; `with_defaults` returns the configuration for `deepspeed.initialize`."""

    train_micro_batch_size_per_gpu: Positive | None = None
    """Samples per rank and micro-step; null for train_batch_size / (accumulation x world size)."""

    gradient_accumulation_steps: Positive | None = None
    """Micro-steps per step, at the configured world size; null for the quotient of the two batches, or 1."""

    train_batch_size: Positive | None = None
    """Samples per step over all ranks: micro-batch x accumulation x world size; null for this product."""

    gradient_clipping: float = Field(1.0, ge=0)
    """Largest global gradient norm; 0 disables clipping."""

    zero_optimization: ZeroOptimization
    """Settings of ZeRO stage 2."""

    bf16: BFloat16 = BFloat16()
    """Mixed precision in bfloat16; a run without `bf16` and `fp16` uses fp32."""

    fp16: Float16 = Float16()
    """Mixed precision in float16."""

    data_types: DataTypes = DataTypes()
    """Types of internal buffers."""

    communication_data_type: Literal["fp32", "bf16", "fp16"] | None = None
    """Data type of gradient communication; null for the model's."""

    zero_allow_untested_optimizer: bool = False
    """Let ZeRO wrap an optimizer that DeepSpeed has not tested."""

    zero_force_ds_cpu_optimizer: bool = True
    """Require DeepSpeed's compiled CPU Adam with `offload_optimizer`; must be false for PyTorch's AdamW."""

    steps_per_print: Positive | None = None
    """Steps between DeepSpeed's own progress messages; null for none."""

    disable_python_gc: bool = False
    """Disable Python's garbage collector in the training loop."""

    log_level: Literal["debug", "info", "warning", "error", "critical"] | None = None
    """Level of DeepSpeed's logger; null leaves it unchanged."""

    wall_clock_breakdown: bool = False
    """Time forward, backward and step; synchronises the device."""

    memory_breakdown: bool = False
    """Log memory at DeepSpeed's checkpoints within a step."""

    dump_state: bool = False
    """Print DeepSpeed's resolved configuration at start."""

    comms_logger: CommsLogger = CommsLogger()
    """Log of collectives."""

    flops_profiler: FlopsProfiler = FlopsProfiler()
    """Profile of one step."""

    timers: Timers = Timers()
    """Timers."""

    checkpoint: TagCheckpoint = TagCheckpoint()
    """Checkpoint options."""

    @property
    def precision(self) -> Precision:
        """Data type of the model's computations."""
        if self.bf16.enabled:
            return "bf16"
        return "fp16" if self.fp16.enabled else "fp32"

    @property
    def accumulation_type(self) -> Precision:
        """Type in which a rank adds the gradients of its micro-steps."""
        return self.data_types.grad_accum_dtype or "fp32"

    def verbatim(self) -> dict[str, Any]:
        """Return only the keys that were set, without defaults."""
        return self.model_dump(mode="json", exclude_unset=True)

    def with_defaults(self) -> dict[str, Any]:
        """Return the keys that were set, and those whose defaults differ from DeepSpeed's."""
        return self.verbatim() | {
            "timers": self.timers.model_dump(),
            "data_types": {"grad_accum_dtype": self.accumulation_type},
        }
