import pytest
import torch

from aqtopo_kernels.wind_gather.reference import wind_gather_reference, wind_scatter_reference
from tests.kernels import launchers
from tests.kernels.launchers import Launcher

pytest.importorskip("triton", reason="triton is not installed: pip install -e .[triton]")


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 17, 300), (1, 64, 256)])
@pytest.mark.parametrize("added", ["nothing", "one for all", "one each", "float32"])
def test_agrees_with_the_reference_bit_for_bit(
    launcher: Launcher, shape: tuple[int, int, int], added: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float16 if added == "float32" else torch.float32
    x = torch.randn(shape, generator=generator).to(dtype)
    order = torch.stack([torch.randperm(shape[1], generator=generator) for _ in range(shape[0])])
    add = None if added == "nothing" else torch.randn(shape, generator=generator)
    add = add[:1] if add is not None and added == "one for all" else add
    gathered, scattered = launcher.run(launchers.move, x, order, add)
    expected = wind_gather_reference(x, order, add)
    assert gathered.dtype == expected.dtype
    assert torch.equal(gathered, expected)
    assert torch.equal(scattered, wind_scatter_reference(x, order))


def test_strides_do_not_matter(launcher: Launcher) -> None:
    x = torch.randn((2, 9, 20), generator=torch.Generator().manual_seed(1))
    order = torch.arange(8, -1, -1, dtype=torch.int32).expand(2, -1)
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    gathered, scattered = launcher.run(launchers.move, strided, order, None)
    assert torch.equal(gathered, x.flip(1))
    assert torch.equal(scattered, x.flip(1))
