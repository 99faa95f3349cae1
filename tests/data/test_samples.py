import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqtopo.config import RunConfig
from aqtopo.data.samples import (
    PADDING,
    SampleTable,
    StepPlan,
    calendar_times,
    epoch_order,
    evaluation_share,
    sample_table,
    share,
    usable_times,
)

TinyConfig = Callable[..., RunConfig]

HORIZONS = (12, 24, 48, 96)
TRAIN_YEARS = (2013, 2014, 2015, 2016)


def reference_plan() -> StepPlan:
    times = usable_times(calendar_times(TRAIN_YEARS), TRAIN_YEARS, HORIZONS)
    return StepPlan(len(SampleTable(times, HORIZONS, paired=True)), micro_batch=2, accumulation=2, world=400)


def test_four_hourly_years_give_34680_times_and_138720_pairs() -> None:
    times = usable_times(calendar_times(range(2013, 2019)), TRAIN_YEARS, HORIZONS)
    assert times.size == 3 * 8664 + 8688 == 34_680
    assert len(SampleTable(times, HORIZONS, paired=True)) == 138_720
    assert len(SampleTable(times, HORIZONS, paired=False)) == 34_680


def test_the_reference_epoch_has_173_micro_steps_and_87_steps_of_1600() -> None:
    plan = reference_plan()
    assert plan.micro_steps_per_epoch == 173
    assert plan.steps_per_epoch == 87
    assert plan.train_batch == 1600
    assert [len(plan.step_places(step)) for step in (0, 85, 86)] == [1600, 1600, 800]


def test_the_last_step_of_the_reference_epoch_has_one_micro_step() -> None:
    plan = reference_plan()
    assert len(share(plan.step_places(86), rank=399, world=400, micro_batch=2)) == 1


def test_fewer_ranks_take_more_micro_steps_for_the_same_step() -> None:
    places = reference_plan().step_places(0)
    assert len(share(places, 0, 400, 2)) == 2
    assert len(share(places, 0, 392, 2)) == 3
    assert len(share(places, 0, 1, 2)) == 800


@pytest.mark.parametrize(("stride", "expected"), [(1, 34_680), (6, 4 * 1444 + 4), (24, 4 * 361 + 1)])
def test_stride_counts_from_the_start_of_each_year(stride: int, expected: int) -> None:
    times = usable_times(calendar_times(TRAIN_YEARS), TRAIN_YEARS, HORIZONS, stride)
    assert times.size == expected
    assert {str(time)[5:13] for time in times} >= {"01-01T00"}


def test_stride_ignores_where_the_store_begins() -> None:
    late = calendar_times([2016])[5:]
    np.testing.assert_array_equal(
        usable_times(late, [2016], [1], stride_hours=24)[:2],
        np.array(["2016-01-02T00", "2016-01-03T00"], "datetime64[h]"),
    )


@given(missing=st.sets(st.integers(0, 999), min_size=1, max_size=20))
def test_a_missing_hour_removes_exactly_the_samples_that_need_it(missing: set[int]) -> None:
    whole = calendar_times([2016])[:1000]
    complete = set(usable_times(whole, [2016], HORIZONS).tolist())
    gone = whole[sorted(missing)]
    needing = {time for hour in gone for time in (hour - np.array([0, *HORIZONS])).tolist()}
    left = usable_times(np.setdiff1d(whole, gone), [2016], HORIZONS)
    assert set(left.tolist()) == complete - needing


def test_targets_do_not_cross_into_another_year_even_of_the_same_split() -> None:
    times = usable_times(calendar_times([2016, 2017]), [2016, 2017], [12])
    assert np.datetime64("2016-12-31T11", "h") in times
    assert np.datetime64("2016-12-31T12", "h") not in times


def test_history_may_lie_in_the_year_before_and_must_be_present() -> None:
    times = np.arange("2015-12-31T12", "2016-01-10T00", dtype="datetime64[h]")
    usable = usable_times(times, [2016], [12], history_hours=[6, 24])
    assert usable[0] == np.datetime64("2016-01-01T12")
    assert usable_times(times, [2016], [12], history_hours=[6])[0] == np.datetime64("2016-01-01T00")
    missing = np.datetime64("2016-01-05T00")
    kept = usable_times(times[times != missing], [2016], [12], history_hours=[6, 24])
    lost = {missing, missing + 6, missing + 24, missing - 12}
    assert set(usable.tolist()) - set(kept.tolist()) == {time.astype(object) for time in lost}


def test_pairs_are_numbered_by_time_then_horizon() -> None:
    times = np.array(["2016-01-01T00", "2016-01-01T06"], "datetime64[h]")
    starts, leads = SampleTable(times, (12, 24), paired=True).lookup(np.array([0, 1, 3]))
    np.testing.assert_array_equal(starts, times[[0, 0, 1]])
    np.testing.assert_array_equal(leads, [[12], [24], [24]])
    starts, leads = SampleTable(times, (12, 24), paired=False).lookup(np.array([1]))
    np.testing.assert_array_equal(starts, times[[1]])
    np.testing.assert_array_equal(leads, [[12, 24]])


def test_the_hours_of_a_sample_are_its_start_history_and_targets() -> None:
    times = np.array(["2016-01-01T00", "2016-01-02T00"], "datetime64[h]")
    table = SampleTable(times, (12, 24), paired=True, history_hours=(6,))
    expected = np.array(["2016-01-01T18", "2016-01-02T00", "2016-01-03T00"], "datetime64[h]")
    np.testing.assert_array_equal(table.hours(np.array([3])), expected)
    assert SampleTable(times, (12,), paired=False).hours(np.array([0, 1])).size == 4


def test_only_training_with_the_encoder_takes_pairs(tiny_config: TinyConfig) -> None:
    times = calendar_times([2016, 2017, 2018])
    encoder, decoder = tiny_config(), tiny_config(model={"lead_time": "decoder"})
    assert sample_table(encoder, times, "train").paired
    assert not sample_table(decoder, times, "train").paired
    assert not sample_table(encoder, times, "validation").paired


def test_each_split_has_its_own_years_and_stride(tiny_config: TinyConfig) -> None:
    config = tiny_config(data={"test_stride_hours": 12})
    times = calendar_times([2016, 2017, 2018])
    assert sample_table(config, times, "train").times.size == 8688 // 6
    assert sample_table(config, times, "validation").times.size == 361
    assert sample_table(config, times, "test").times.size == 8664 // 12


def test_a_split_without_a_usable_time_is_refused(tiny_config: TinyConfig) -> None:
    with pytest.raises(ValueError, match=r"No time of `data.test_years` \(2018\).*aqtopo data info"):
        sample_table(tiny_config(), calendar_times([2016]), "test")


def test_too_few_samples_for_one_micro_step_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"give 799 samples, fewer .*\(2 on each of 400 ranks = 800\)"):
        StepPlan(samples=799, micro_batch=2, accumulation=2, world=400)


def test_the_order_of_an_epoch_never_changes() -> None:
    # These orders are part of the format of a run: a resumed run must see them again.
    assert epoch_order(0, 0, 8).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert epoch_order(7, 3, 8).tolist() == [2, 4, 7, 3, 5, 1, 0, 6]


@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 10_000), samples=st.integers(0, 500))
def test_the_order_of_an_epoch_is_a_permutation(seed: int, epoch: int, samples: int) -> None:
    assert sorted(epoch_order(seed, epoch, samples).tolist()) == list(range(samples))


def test_orders_differ_by_seed_and_epoch() -> None:
    orders = {tuple(epoch_order(seed, epoch, 100).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_order_of_an_epoch_is_well_mixed() -> None:
    order = epoch_order(0, 0, 10_000)
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05


plans = st.builds(
    StepPlan,
    samples=st.integers(60, 400),
    micro_batch=st.integers(1, 4),
    accumulation=st.integers(1, 5),
    world=st.integers(1, 12),
)


@given(plan=plans)
def test_steps_cut_the_whole_micro_steps_of_an_epoch_without_overlap(plan: StepPlan) -> None:
    places = [place for step in range(plan.steps_per_epoch) for place in plan.step_places(step)]
    micro_step = plan.micro_batch * plan.world
    assert places == list(range(plan.samples // micro_step * micro_step))


@given(plan=plans, world=st.integers(1, 15), micro_batch=st.integers(1, 6), data=st.data())
def test_shares_of_all_ranks_contain_each_place_once(
    plan: StepPlan, world: int, micro_batch: int, data: st.DataObject
) -> None:
    places = plan.step_places(data.draw(st.integers(0, plan.steps_per_epoch - 1)))
    shares = [share(places, rank, world, micro_batch) for rank in range(world)]
    held = [place for mine in shares for batch in mine for place in batch if place != PADDING]
    assert sorted(held) == list(places)
    micro_steps = math.ceil(len(places) / (world * micro_batch))
    assert all(len(mine) == micro_steps for mine in shares)
    assert all(len(batch) == micro_batch for mine in shares for batch in mine)


@given(plan=plans)
def test_configured_world_has_no_padding(plan: StepPlan) -> None:
    for rank in range(plan.world):
        mine = share(plan.step_places(plan.steps_per_epoch - 1), rank, plan.world, plan.micro_batch)
        assert PADDING not in mine


@given(samples=st.integers(0, 100), world=st.integers(1, 12))
def test_evaluation_shares_are_consecutive_and_differ_by_one_at_most(samples: int, world: int) -> None:
    shares = [evaluation_share(samples, rank, world) for rank in range(world)]
    assert np.concatenate(shares).tolist() == list(range(samples))
    sizes = [mine.size for mine in shares]
    assert max(sizes) - min(sizes) <= 1


def test_validation_is_at_the_end_of_the_step_of_its_micro_step() -> None:
    reference = StepPlan(138_720, micro_batch=2, accumulation=2, world=400)
    assert reference.validation_steps(100) == {50: 100}
    assert StepPlan(10, 1, 4, 1).validation_steps(3) == {1: 3, 2: 6, 3: 9}
    assert StepPlan(10, 1, 4, 1).validation_steps(1) == {1: 4, 2: 8, 3: 10}
    assert StepPlan(10, 1, 4, 1).validation_steps(11) == {}
