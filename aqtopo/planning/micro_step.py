"""Activation bytes and FLOP of one micro-step, by formula.

Each term stands for tensors that autograd saves, or for a matrix product. `tests/planning` compares the sums
with real passes on the CPU. Temporaries, allocator rounding and the backward pass's own results are not
counted.

Fused attention counts as a flash kernel on any device: it saves query, key, value, output and log-sum-exp. It
computes 4 N^2 D per sample forward and 2.5 times that backward, because it recomputes the scores. With the
local bias D is that of the wider heads, in float32. The backward pass of a matrix product costs twice its
forward pass.

Sizes: B batch, N tokens, T = B N, D width, H heads, V variables, Q pixels of a patch and a constant.
"""

from dataclasses import dataclass

from aqtopo.config import RunConfig
from aqtopo.model.locality import EXTRA_COLUMNS
from aqtopo.planning.zero import ELEMENT_BYTES

FLOAT, INDEX, MASK = 4, 8, 1
"""Bytes of an element that is float32 at any precision, of an index, and of a dropout mask."""

BIAS_COLUMNS = 5
"""Columns of queries and keys that the local bias needs; `EXTRA_COLUMNS` includes padding."""

BACKWARD_OF_PRODUCTS, BACKWARD_OF_ATTENTION = 2.0, 2.5
"""FLOP relative to the forward pass."""


@dataclass(frozen=True)
class ActivationBytes:
    """Activations of one micro-step on one rank [bytes].

    Attributes:
        parts: saved by each block, the head and everything else, without gradient checkpointing.
        block_inputs: inputs of all blocks, which gradient checkpointing saves.
    """

    parts: dict[str, int]
    block_inputs: int

    @property
    def plain(self) -> int:
        """Total without gradient checkpointing."""
        return sum(self.parts.values())

    @property
    def checkpointed(self) -> int:
        """Maximum with gradient checkpointing: the blocks' inputs and one recomputed block."""
        blocks = {name: count for name, count in self.parts.items() if name.startswith("blocks.")}
        return self.plain - sum(blocks.values()) + self.block_inputs + max(blocks.values())


def activation_bytes(config: RunConfig) -> ActivationBytes:
    """Estimate the activations of one micro-step of a run."""
    depth = config.model.depth
    parts = {
        "embedding and final norm": _embedding_bytes(config) + _norm_bytes(config),
        **{f"blocks.{index}": _block_bytes(config, index) for index in range(depth)},
        "head": _head_bytes(config),
        **({"local path": _local_path_bytes(config)} if config.model.local_path else {}),
    }
    return ActivationBytes(parts, depth * _token_bytes(config))


def _token_bytes(config: RunConfig) -> int:
    """Return the bytes of one tensor (B, N, D) in the run's precision."""
    return _samples_tokens(config) * config.model.dim * ELEMENT_BYTES[config.deepspeed.precision]


def _samples_tokens(config: RunConfig) -> int:
    return config.micro_batch * config.tokens


def _horizons_at_head(config: RunConfig) -> int:
    """Return K: in encoder mode each pass has one horizon."""
    return 1 if config.model.lead_time == "encoder" else len(config.data.horizons)


def _norm_bytes(config: RunConfig) -> int:
    """Return the bytes that a layer norm saves: its input, and mean and 1 / deviation of each token."""
    return _token_bytes(config) + 2 * _samples_tokens(config) * FLOAT


def _embedding_bytes(config: RunConfig) -> int:
    """Return the bytes of `collapsed_embedding`, and of position and lead time."""
    model, B, T = config.model, config.micro_batch, _samples_tokens(config)
    D, H, V = model.dim, model.heads, len(config.inputs)
    columns = V * (model.patch**2 + 1)  # V Q
    element = ELEMENT_BYTES[config.deepspeed.precision]
    per_token = columns + H * V + H * columns  # pixels, softmax of the scores, weighted pixels
    # affine_VDQ in two layouts, value_HEVQ, query_D, projected_HD, matrix_RD.
    matrices = 3 * columns * D + D + H * D + H * columns * D
    # Float32 copies of 16-bit weights: in_proj (3 D x D) and its third part again, out_proj, two vectors.
    copies = 5 * D * D + 2 * D if element < FLOAT else 0
    total = FLOAT * (T * per_token + matrices + copies)
    total += element * B * _horizons_at_head(config)  # lead times
    if model.wind_order:
        total += INDEX * T  # order
    return total + (MASK * T * D if model.dropout else 0)


def _block_bytes(config: RunConfig, index: int) -> int:
    """Return the bytes that a block saves."""
    model, T = config.model, _samples_tokens(config)
    tokens, hidden = _token_bytes(config), T * model.hidden_dim
    element = ELEMENT_BYTES[config.deepspeed.precision]
    total = 2 * _norm_bytes(config) + _attention_bytes(config, index)
    total += 2 * tokens  # inputs of qkv and fc1
    total += 2 * hidden * element  # inputs of GELU and fc2
    if model.dropout:
        total += MASK * (2 * T * model.dim + hidden)  # after proj, fc2 and fc1
    if model.drop_path and index:
        total += 2 * config.micro_batch * element  # a factor per sample and branch
    return total


def _attention_bytes(config: RunConfig, index: int) -> int:
    """Return the bytes that the attention of a block saves, between the layers qkv and proj."""
    model, T, tokens = config.model, _samples_tokens(config), _token_bytes(config)
    biased = index in model.bias_blocks
    elevation_bias = biased and bool(model.elevation_bias)
    total = FLOAT * T * model.heads  # log-sum-exp
    if elevation_bias and model.wind_order and index > 0:
        total += FLOAT * T  # elevation in wind order; block 0 reads it in raster order
    # In block 0 the kernels reorder the rows themselves; PyTorch's attention gets a reordered query.
    by_kernels = elevation_bias or model.attention == "fused"
    reordered_query = model.wind_order and index == 0 and not by_kernels
    if not (biased and model.local_bias):
        return total + (5 if reordered_query else 4) * tokens  # q, k, v, output, reordered q
    ordered_columns = reordered_query or (model.wind_order and index > 0)
    return total + tokens + _local_bias_bytes(config, ordered_columns)  # input of proj


def _local_bias_bytes(config: RunConfig, ordered_columns: bool) -> int:
    """Return the bytes of the local bias and of the wider q, k, v and output."""
    model, T, N = config.model, _samples_tokens(config), config.tokens
    biased_heads = model.local_heads or model.heads
    total = 4 * T * (model.dim + EXTRA_COLUMNS * model.heads)  # q, k, v, output
    total += biased_heads  # 1 / width^2
    if model.local_bias == "origin":
        # Velocity; departure points; columns of the queries; 1 / width^2 of each head.
        total += 3 * T + 3 * T * biased_heads + BIAS_COLUMNS * T * biased_heads + biased_heads
        rows = T
    else:
        total += BIAS_COLUMNS * N * biased_heads  # columns of the queries, the same for all samples
        rows = N
    if ordered_columns:
        # The gather saves its input: columns, with zeros for heads without the bias.
        total += BIAS_COLUMNS * rows * model.heads
    return FLOAT * total


def _head_bytes(config: RunConfig) -> int:
    """Return the bytes that the head saves: the inputs of each Linear and GELU."""
    return (2 * config.model.decoder_depth + 1) * _horizons_at_head(config) * _token_bytes(config)


def _local_path_bytes(config: RunConfig) -> int:
    """Return the bytes that the local path saves."""
    model, B, K = config.model, config.micro_batch, _horizons_at_head(config)
    inputs, width, targets = len(config.inputs), model.local_width, len(config.data.targets)
    cells = B * config.data.grid[0] * config.data.grid[1]
    total = cells * (inputs + 9 * width)  # inputs and outputs of the convolutions, inputs of GELU
    total += cells // B * 3 * width  # scales of the cells
    total += B * K * len(config.data.horizons)  # shares of the horizons
    total += B * K * targets * width  # weights of the last layer
    return ELEMENT_BYTES[config.deepspeed.precision] * total


@dataclass(frozen=True)
class MicroStepFlop:
    """FLOP of one micro-step on one rank, forward pass, by part.

    Attributes:
        products: matrix products of `embedding`, `blocks`, `head` and, if there is one, `local path`.
        attention: scores and weighted sums of all blocks.
        float32_attention: share of the blocks with the local bias, which use float32 at any precision.
        checkpointing: the backward pass recomputes the blocks.
    """

    products: dict[str, int]
    attention: int
    float32_attention: int
    checkpointing: bool

    @property
    def forward(self) -> float:
        """FLOP of the forward pass."""
        return float(sum(self.products.values()) + self.attention)

    @property
    def backward(self) -> float:
        """FLOP of the backward pass, gradient checkpointing included."""
        recomputed = self.products["blocks"] + self.attention if self.checkpointing else 0
        products = BACKWARD_OF_PRODUCTS * sum(self.products.values())
        return products + BACKWARD_OF_ATTENTION * self.attention + recomputed

    def forward_s(self, rate: float, float32_rate: float) -> float:
        """Return the duration of the forward pass; rates of the run's precision and float32 [FLOP/s]."""
        return (self.forward - self.float32_attention) / rate + self.float32_attention / float32_rate

    def backward_s(self, rate: float, float32_rate: float) -> float:
        """Return the duration of the backward pass; rates as above."""
        in_float32 = (BACKWARD_OF_ATTENTION + self.checkpointing) * self.float32_attention
        return (self.backward - in_float32) / rate + in_float32 / float32_rate


def count_flop(config: RunConfig) -> MicroStepFlop:
    """Compute the FLOP of one micro-step of a run."""
    model, T = config.model, _samples_tokens(config)
    scores = 4 * config.micro_batch * config.tokens**2
    local = len(model.bias_blocks) if model.local_bias else 0
    in_float32 = scores * (model.dim + model.heads * EXTRA_COLUMNS) * local
    attention = scores * model.dim * (model.depth - local) + in_float32
    # Multiplications and additions: qkv and proj; fc1 and fc2.
    block = 2 * T * (4 * model.dim**2 + 2 * model.dim * model.hidden_dim)
    # Wind times axes, a product of (2,) and (2, 3) per token.
    velocity = 2 * T * 2 * 3 * local if model.local_bias == "origin" else 0
    outputs = len(config.data.targets) * model.patch**2
    head = 2 * T * _horizons_at_head(config) * model.dim * (model.decoder_depth * model.dim + outputs)
    products = {
        "embedding": _embedding_flop(config),
        "blocks": model.depth * block + velocity,
        "head": head,
        **({"local path": _local_path_flop(config)} if model.local_path else {}),
    }
    return MicroStepFlop(products, attention, in_float32, model.gradient_checkpointing)


def _embedding_flop(config: RunConfig) -> int:
    """Return the FLOP of `collapsed_embedding` and of the lead time."""
    model = config.model
    D, H, V = model.dim, model.heads, len(config.inputs)
    columns = V * (model.patch**2 + 1)
    per_token = columns * H * V + H * columns * D  # scores, tokens
    query = D * D + D * D + H * D * columns  # query_D, projected_HD, projected_HQV
    values = 2 * D * D * columns + D * D  # value_HEVQ, matrix_RD, bias_D
    lead_time = config.micro_batch * _horizons_at_head(config) * D
    return 2 * (_samples_tokens(config) * per_token + query + values + lead_time)


def _local_path_flop(config: RunConfig) -> int:
    """Return the FLOP of the local path."""
    model, BK = config.model, config.micro_batch * _horizons_at_head(config)
    inputs, width, targets = len(config.inputs), model.local_width, len(config.data.targets)
    cells = config.data.grid[0] * config.data.grid[1]
    convolutions = config.micro_batch * cells * 9 * (inputs + 2 * width) * width
    last = BK * targets * (len(config.data.horizons) * (width + 1) + width * cells)  # weights, biases, output
    return 2 * (convolutions + last)
