"""Sections of a run's configuration, with units and meanings."""

from typing import Annotated, Literal

from pydantic import Field

from aqtopo.config.deepspeed import DeepSpeedConfig
from aqtopo.config.optimizer import LOCAL_PATH_GROUP, OptimizerConfig, ParameterGroup, ScheduleConfig
from aqtopo.config.strict import NonNegative, Pair, Positive, Probability, Strict
from aqtopo.variables import (
    HORIZONS_H,
    INPUT_VARIABLES,
    NAME_PATTERN,
    READ_DEADLINE_S,
    STATIC_VARIABLES,
    TARGET_VARIABLES,
)

Channel = Annotated[str, Field(pattern=NAME_PATTERN)]
Channels = Annotated[tuple[Channel, ...], Field(min_length=1, strict=False)]
Hours = Annotated[int, Field(ge=1, le=8759)]
Year = Annotated[int, Field(ge=1900, le=2200)]
Years = Annotated[tuple[Year, ...], Field(min_length=1, strict=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
FilePath = Annotated[str, Field(min_length=1)]
# DeepSpeed's conversion to a universal checkpoint looks for files by glob: with a bracket in the path it
# finds none, drops the optimizer's state and reports success.
GlobSafePath = Annotated[str, Field(pattern=r"^[^*?\[\]]+$")]


Forcing = Literal["cos_local_time", "sin_local_time", "cos_julian_day", "sin_julian_day", "insolation"]
AttentionSetting = Literal["auto", "torch", "fused"]


LOCAL_PATH_DILATIONS = (1, 2, 4)
"""Dilations of the local path's 3 x 3 convolutions [cells]."""

LOCAL_PATH_CELLS = 1 + 2 * sum(LOCAL_PATH_DILATIONS)
"""Side of the square of cells that one cell of the local path depends on."""


class DataConfig(Strict):
    """Samples and their loading."""

    store: FilePath
    """Path of the zarr store, relative to the working directory."""

    grid: Pair = (128, 256)
    """Cells of the store's grid, [rows (latitude), columns (longitude)]."""

    variables: Channels = INPUT_VARIABLES
    """Input channels of the store, in the order of the model's per-variable weights."""

    forcings: Annotated[tuple[Forcing, ...], Field(strict=False)] = ()
    """Inputs computed from time and place, not scaled. `insolation` is the cosine of the solar zenith angle,
    0 at night."""

    history_hours: Annotated[tuple[Hours, ...], Field(strict=False)] = ()
    """Earlier fields as further inputs: hours before the initial time, ascending, such as [6, 12, 24]."""

    history_variables: Channels | None = None
    """Channels of the earlier fields; null for all of `variables` that vary in time."""

    required_history_hours: Annotated[tuple[Hours, ...], Field(strict=False)] = ()
    """Hours before an initial time that must be stored, besides `history_hours`, so that runs with different
    histories have the same samples; `aqtopo ablate` sets it."""

    weather_at_horizons: Annotated[tuple[Channel, ...], Field(strict=False)] = ()
    """Weather at the valid times as further inputs, such as ["u", "v", "temp", "rh", "psfc"]: read from the
    store (perfect weather)."""

    targets: Channels = TARGET_VARIABLES
    """Pollutants of the store that are forecast, in the order of the head's outputs."""

    horizons: Annotated[tuple[Hours, ...], Field(min_length=1, strict=False)] = HORIZONS_H
    """Lead times [h], ascending."""

    train_years: Years
    """Calendar years [UTC] for training and for the normalisation statistics, ascending."""

    validation_years: Years
    """Calendar years [UTC] for the choice of the best checkpoint, ascending."""

    test_years: Years
    """Calendar years [UTC] for the scores, ascending."""

    time_stride_hours: Positive = 1
    """Interval of the training samples' initial times, counted within each year [h]."""

    validation_stride_hours: Positive = 1
    """Interval of the validation samples' initial times, counted within each year [h]."""

    test_stride_hours: Positive = 1
    """Interval of the test samples' initial times, counted within each year [h]."""

    normalization: Literal["dataset", "topoflow"] = "dataset"
    """Mean and standard deviation: of the training years, or the constants published with TopoFlow."""

    workers: NonNegative = 2
    """Loader processes per rank, for training and again for validation; 0 reads in the training process."""

    worker_start: Literal["forkserver", "spawn"] = "forkserver"
    """Start method of loader processes; fork is excluded because it copies the threads' locks."""

    prefetch: Positive = 2
    """Micro-batches that a worker reads ahead; at least those of one step."""

    read_deadline_s: Positive = READ_DEADLINE_S
    """Timeout of the file system [s]; then the run ends with a message."""

    stage: Annotated[str, Field(pattern="^/")] | None = None
    """Folder in a node's own memory or disk, such as /tmp, to copy the shards to at start; null for none."""

    @property
    def channels(self) -> tuple[str, ...]:
        """All channels of the store that a run reads, each once."""
        return tuple(dict.fromkeys(("u", "v", *self.variables, *self.weather_at_horizons, *self.targets)))

    @property
    def stored_before(self) -> tuple[int, ...]:
        """Hours before an initial time that must be stored, ascending."""
        return tuple(sorted({*self.history_hours, *self.required_history_hours}))

    @property
    def history(self) -> tuple[tuple[str, int], ...]:
        """Variable and hours before the initial time of each earlier field, in input order."""
        dynamic = tuple(name for name in self.variables if name not in STATIC_VARIABLES)
        names = dynamic if self.history_variables is None else self.history_variables
        return tuple((name, hours) for hours in self.history_hours for name in names)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all input channels in the order of the model's per-variable weights.

        First `variables`, then `forcings`, then the earlier fields, such as `pm25_6h_before`.
        """
        earlier = (f"{name}_{hours}h_before" for name, hours in self.history)
        return (*self.variables, *self.forcings, *earlier)

    @property
    def at_horizons(self) -> tuple[str, ...]:
        """Names of the fields at each valid time: the weather, then the insolation if it is a forcing."""
        return (*self.weather_at_horizons, *(name for name in self.forcings if name == "insolation"))


class ModelConfig(Strict):
    """The transformer."""

    patch: Positive = 2
    """Cells along each side of a square patch."""

    dim: Positive = 768
    """Width of a token."""

    depth: Positive = 6
    """Transformer blocks."""

    heads: Positive = 8
    """Attention heads per block."""

    mlp_ratio: float = Field(4.0, gt=0)
    """Hidden width of a block's MLP, as a multiple of `dim`."""

    decoder_depth: NonNegative = 2
    """Linear-GELU pairs in the head before its last layer."""

    dropout: Probability = 0.1
    """Share of activations dropped in training: tokens, projections and MLP, never attention weights."""

    drop_path: Probability = 0.1
    """Share of samples whose residual branch is dropped in the last block; linear, from 0 in block 0."""

    wind_order: bool = True
    """Order the tokens of each region along the wind; false keeps raster order (the baseline)."""

    regions: Pair = (32, 32)
    """Number of regions along [latitude, longitude]; [1, 1] sorts the whole map."""

    sectors: Annotated[int, Field(ge=2)] = 16
    """Number of wind directions, centred at multiples of 360 / `sectors` degrees."""

    calm_below: float = Field(0.5, ge=0)
    """Wind speed [m s-1] below which a region keeps raster order."""

    elevation_bias: Literal["published", "uphill", False] = "published"
    """Attention bias against keys that lie higher ("published") or lower ("uphill"); false for none."""

    bias_blocks: Annotated[tuple[NonNegative, ...], Field(min_length=1, strict=False)] = (0,)
    """Indices of the blocks with attention biases, ascending, from 0."""

    local_bias: Literal["near", "origin", False] = False
    """Gaussian locality bias of attention, centred on the query ("near") or on its upwind departure point
    ("origin"); each head learns width and travel time. Computed in float32. False for none."""

    local_heads: Positive | None = None
    """Number of heads of each biased block with the local bias; null for all."""

    pollutant_attention: bool = False
    """Let the pollutants of a token attend to each other in the head, before its last layer."""

    bias_scales: Annotated[tuple[Positive, ...], Field(strict=False)] = ()
    """Side of the windows, in patches, whose mean elevations each of `bias_blocks` compares; empty for 1."""

    sector_embedding: bool = False
    """Add a learned embedding of wind sector and scan position to that of the map position; false for an
    embedding of the scan position alone."""

    alpha: float = Field(2.0, ge=0)
    """Initial barrier strength [km-1]; learned."""

    alpha_per_head: bool = False
    """One barrier strength per head instead of one for all."""

    attention: AttentionSetting = "auto"
    """Attention of blocks without elevation bias: PyTorch's, that of aqtopo_kernels, or the faster one."""

    lead_time: Literal["encoder", "decoder"] = "encoder"
    """Lead-time embedding before the blocks (one horizon per pass) or before the head (all in one pass)."""

    local_path: bool = False
    """Add the output of convolutions on the full grid to the head's, since tokens are too narrow for every
    cell's own values."""

    local_width: Positive = 64
    """Channels of the local path's convolutions."""

    prediction: Literal["state", "tendency"] = "state"
    """Output of the head: the pollutants, or their change since the start."""

    gradient_checkpointing: bool = False
    """Recompute each block's activations in the backward pass, to save memory."""

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.heads

    @property
    def hidden_dim(self) -> int:
        """Hidden width of a block's MLP."""
        return round(self.dim * self.mlp_ratio)


class TrainingConfig(Strict):
    """Run directory, length and ranks of the training."""

    run_dir: GlobSafePath
    """Folder of this run's results, relative to the working directory; without any of * ? [ ]."""

    epochs: Positive
    """Passes over the training samples."""

    nodes: Positive
    """Machines."""

    ranks_per_node: Positive
    """Processes per machine, one per accelerator."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of weights, sample order and dropout."""

    area_weighted_loss: bool = False
    """Weight each cell of the loss by its area, the cosine of its latitude."""

    validate_every: Positive = 100
    """Micro-steps between validations, counted within the epoch."""

    patience: Positive | None = None
    """Number of validations without a better loss after which training stops; null for never."""

    sanity_micro_batches: NonNegative = 2
    """Validation micro-batches before the first step, to fail early."""

    log_every: Positive = 1
    """Steps between lines in the metrics."""


class CheckpointConfig(Strict):
    """Saving and retention of states."""

    keep_best: Positive = 3
    """Number of states kept by validation loss, besides the last one."""

    every_steps: Positive | None = None
    """Steps between saves, besides those at validations; null for none."""

    keep_every_steps: Positive | None = None
    """Steps between states that are never removed, a multiple of `every_steps`; null for none."""


class RunSections(Strict):
    """All sections of a run and the sizes that follow from them."""

    name: Name
    """The run's name: letters, digits, dot, dash and underscore."""

    description: str = ""
    """Purpose of the run, in a sentence."""

    data: DataConfig
    """Samples and their loading."""

    model: ModelConfig = ModelConfig()
    """The transformer."""

    optimizer: OptimizerConfig
    """The optimizer and its parameter groups."""

    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over time."""

    training: TrainingConfig
    """Run directory, length and ranks of the training."""

    checkpoint: CheckpointConfig = CheckpointConfig()
    """Saving and retention of states."""

    deepspeed: DeepSpeedConfig
    """DeepSpeed's configuration, with batch, accumulation, clipping and precision."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all inputs of the model: `data.inputs`, then the fields at the valid times.

        A pass in encoder mode has those of its own horizon, such as `u_ahead`. The pass of decoder mode has
        those of all horizons, such as `u_12h_ahead`.
        """
        horizons = ("",) if self.model.lead_time == "encoder" else tuple(f"{h}h_" for h in self.data.horizons)
        ahead = (f"{name}_{hours}ahead" for hours in horizons for name in self.data.at_horizons)
        return (*self.data.inputs, *ahead)

    @property
    def world_size(self) -> int:
        """Ranks of the run as configured."""
        return self.training.nodes * self.training.ranks_per_node

    @property
    def micro_batch(self) -> int:
        """Samples per rank and micro-step, given or derived as DeepSpeed does."""
        block = self.deepspeed
        given, ranks = block.train_batch_size or 0, self.world_size * (block.gradient_accumulation_steps or 1)
        return block.train_micro_batch_size_per_gpu or given // ranks

    @property
    def accumulation(self) -> int:
        """Micro-steps per step at the configured world size, given or derived as DeepSpeed does."""
        block = self.deepspeed
        micro, given = block.train_micro_batch_size_per_gpu, block.train_batch_size
        derived = given // (micro * self.world_size) if micro and given else 1
        return block.gradient_accumulation_steps or derived

    @property
    def train_batch(self) -> int:
        """Samples per step over all ranks, constant for the run."""
        return self.micro_batch * self.accumulation * self.world_size

    @property
    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """The optimizer's groups, and that of the local path where the run has one and names none itself."""
        groups = self.optimizer.groups
        named = any(group.name == LOCAL_PATH_GROUP.name for group in groups)
        return groups if named or not self.model.local_path else (*groups, LOCAL_PATH_GROUP)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Patches along (latitude, longitude)."""
        rows, columns = self.data.grid
        return rows // self.model.patch, columns // self.model.patch

    @property
    def tokens(self) -> int:
        """Patches of the map: the length of the token sequence."""
        rows, columns = self.patch_grid
        return rows * columns

    @property
    def region_patches(self) -> tuple[int, int]:
        """Patches of one region along (latitude, longitude)."""
        rows, columns = self.patch_grid
        return rows // self.model.regions[0], columns // self.model.regions[1]
