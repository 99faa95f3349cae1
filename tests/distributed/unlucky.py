"""`aqtopo` whose rank 1 has an accident in its first training forward: unlucky.py train CONFIG.

The environment says which: ACCIDENT is `error` or `kill`.
"""

import os
import signal
from typing import Any

from aqtopo.cli.main import main
from aqtopo.model import AirQualityViT

forward = AirQualityViT.forward


def unlucky_forward(self: AirQualityViT, *args: Any) -> Any:
    if self.training and os.environ["RANK"] == "1":
        if os.environ["ACCIDENT"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError("no memory for the attention")
    return forward(self, *args)


AirQualityViT.forward = unlucky_forward  # type: ignore[method-assign]
main()
