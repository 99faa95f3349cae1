from collections.abc import Callable
from pathlib import Path

import numpy as np

from aqtopo.config import RunConfig
from aqtopo.report.alphas import alpha_curve, alpha_sentence, read_alphas
from aqtopo.report.history import History

UNLOGGED = History((), (), 1)

TinyConfig = Callable[..., RunConfig]
SaveUntrained = Callable[..., Path]


def test_alpha_is_read_from_saved_states(tiny_config: TinyConfig, save_untrained: SaveUntrained) -> None:
    config = tiny_config(model={"alpha_per_head": True, "alpha": 1.5})
    alphas = read_alphas(save_untrained(config, factor=2.0), config, UNLOGGED)
    assert alphas is not None
    assert alphas.steps == (0, 7)
    np.testing.assert_allclose(alphas.by_block["block 0"], [[1.5, 1.5], [3.0, 3.0]])
    assert alpha_sentence(alphas) == "block 0 from 1.500 to 3.000 to 3.000 by head km⁻¹, at step 7."
    assert alpha_curve(alphas).uri.startswith("data:image/svg+xml;base64,")


def test_what_was_logged_counts_and_not_the_rounded_states(
    tiny_config: TinyConfig, save_untrained: SaveUntrained
) -> None:
    config = tiny_config()
    logged = {step: {"blocks.0.attn.alpha": [value]} for step, value in ((0, 1.9), (4, 1.8), (6, 1.7))}
    alphas = read_alphas(save_untrained(config), config, History((), (), 1, alphas=logged))
    assert alphas is not None
    assert alphas.steps == (0, 4, 6)
    np.testing.assert_allclose(alphas.by_block["block 0"].ravel(), [1.9, 1.8, 1.7])


def test_a_model_without_the_bias_has_none(tiny_config: TinyConfig, save_untrained: SaveUntrained) -> None:
    config = tiny_config(model={"elevation_bias": False})
    assert read_alphas(save_untrained(config), config, UNLOGGED) is None
