"""`aqtopo` whose rank 1 has an accident in its first training forward: unlucky.py train CONFIG.

The environment says which: ACCIDENT is `kill`, or `error`, after which the rank does not get away from its
process group, as it may be on GPUs: the others learn of it by the heartbeat store only.
"""

import os
import signal
import time
from typing import Any

from aqtopo.cli.main import main
from aqtopo.distributed import process_group
from aqtopo.model import AirQualityViT
from aqtopo.refusal import RefusedError

forward = AirQualityViT.forward


def unlucky_forward(self: AirQualityViT, *args: Any) -> Any:
    if self.training and os.environ["RANK"] == "1":
        if os.environ["ACCIDENT"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        process_group.disconnect = lambda: time.sleep(600)
        raise RefusedError("no memory for the attention")
    return forward(self, *args)


AirQualityViT.forward = unlucky_forward  # type: ignore[method-assign]
main()
