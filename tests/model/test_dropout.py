import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aqtopo.model import sample_seed
from aqtopo.model.dropout import SampleDropout, SampleDropPath

from .conftest import ModelMaker, lead, random_inputs, uniform_wind

DROPPING = {"dropout": 0.3, "drop_path": 0.5}


def test_the_mask_of_a_sample_does_not_depend_on_its_batch() -> None:
    layer = SampleDropout(0.4, "tokens")
    x = torch.ones(3, 50, 8)
    together = layer(x, [11, 12, 13])
    for b, seed in enumerate([11, 12, 13]):
        assert torch.equal(layer(x[:1], [seed])[0], together[b])


def test_masks_differ_between_samples_and_between_layers() -> None:
    x = torch.ones(2, 50, 8)
    first, second = SampleDropout(0.4, "blocks.0.mlp.fc1")(x, [1, 2])
    (other,) = SampleDropout(0.4, "blocks.1.mlp.fc1")(x[:1], [1])
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_masks_do_not_touch_the_global_random_state() -> None:
    before = torch.get_rng_state()
    SampleDropout(0.4, "tokens")(torch.ones(1, 8), [1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [SampleDropout, SampleDropPath])
def test_drops_the_configured_share_and_keeps_the_mean(kind: type[SampleDropout]) -> None:
    dropped = kind(0.25, "tokens")(torch.ones(4000, 1), range(4000))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1.0 / 0.75])
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9999])
def test_rounding_the_probability_leaves_the_mean(p: float) -> None:
    dropped = SampleDropout(p, "tokens")(torch.ones(1, 2**22), [5])
    kept, spread = 1.0 - p, (p / (1.0 - p) / 2**22) ** 0.5
    assert float(dropped.double().mean()) == pytest.approx(1.0, abs=4 * spread)
    assert float(dropped.count_nonzero()) / 2**22 == pytest.approx(kept, abs=2**-16 + 4 * kept * spread)


def test_neighbouring_activations_are_dropped_independently() -> None:
    kept = SampleDropout(0.5, "tokens")(torch.ones(1, 2**18), [5])[0].view(-1, 4) > 0
    together = torch.corrcoef(kept.T.double()) - torch.eye(4, dtype=torch.float64)
    assert float(together.abs().max()) < 4 / 2**8  # four standard errors of 65536 words


def test_drop_path_drops_whole_samples() -> None:
    dropped = SampleDropPath(0.5, "blocks.1.attn.path")(torch.ones(64, 7, 3), range(64))
    share = dropped.flatten(1).count_nonzero(1)
    assert set(share.tolist()) == {0, 21}


@pytest.mark.parametrize("kind", [SampleDropout, SampleDropPath])
def test_evaluation_and_probability_zero_need_no_seeds_and_change_nothing(kind: type[SampleDropout]) -> None:
    x = torch.randn(2, 3)
    assert kind(0.9, "tokens").eval()(x, None) is x
    assert kind(0.0, "tokens")(x, None) is x


@pytest.mark.parametrize("kind", [SampleDropout, SampleDropPath])
@pytest.mark.parametrize(("seeds", "given"), [(None, "none"), ([1, 2, 3], "3")])
def test_training_needs_one_seed_per_sample(
    kind: type[SampleDropout], seeds: list[int] | None, given: str
) -> None:
    with pytest.raises(ValueError, match=f"but got {given} for a batch of 2"):
        kind(0.1, "tokens")(torch.ones(2, 3), seeds)


@given(run=st.integers(0, 2**40), epoch=st.integers(0, 10**6), position=st.integers(-1, 2**40))
@settings(max_examples=50)
def test_seeds_are_63_bit_and_differ_between_neighbours(run: int, epoch: int, position: int) -> None:
    seed = sample_seed(run, epoch, position)
    assert 0 <= seed < 2**63
    neighbours = {sample_seed(run + 1, epoch, position), sample_seed(run, epoch + 1, position)}
    assert seed not in neighbours | {
        sample_seed(run, epoch, position + 1),
        sample_seed(epoch, run + 1, position),
    }


def test_a_samples_seed_is_the_same_in_every_version() -> None:
    # Literal values: a resumed run must draw the masks of the interrupted run.
    assert sample_seed(0, 3, 1599) == 942161810948973780
    assert sample_seed(0, 0, -1) == 7669641054330217337


def test_a_forecast_in_training_does_not_depend_on_the_batch(make_model: ModelMaker) -> None:
    model = make_model(**DROPPING).train()
    inputs = random_inputs(batch=4)
    wind = torch.randn(4, 2, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = model(inputs, wind, lead(24.0, batch=4), [5, 6, 7, 8])
    alone = [
        model(inputs[b, None], wind[b, None], lead(24.0, batch=1), [seed])
        for b, seed in enumerate([5, 6, 7, 8])
    ]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-10, atol=1e-10)
    without = model.eval()(inputs, wind, lead(24.0, batch=4))
    assert not torch.allclose(together, without)


def test_evaluation_drops_nothing(make_model: ModelMaker) -> None:
    forward = random_inputs(), uniform_wind(3.0, 1.0), lead(24.0)
    dropping = make_model(**DROPPING).eval()(*forward)
    assert torch.equal(dropping, make_model()(*forward))


def test_recomputation_uses_the_same_masks(make_model: ModelMaker) -> None:
    results = []
    for checkpointing in (False, True):
        model = make_model(**DROPPING, gradient_checkpointing=checkpointing).train()
        out = model(random_inputs(), uniform_wind(3.0, 1.0), lead(24.0), [1, 2])
        torch.rand(7)  # global randomness between forward and backward must not matter
        out.square().sum().backward()
        results.append([out, *(parameter.grad for parameter in model.parameters())])
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)
