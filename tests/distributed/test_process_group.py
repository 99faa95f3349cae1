import ast
from pathlib import Path

import aqtopo


def test_two_modules_import_torch_distributed() -> None:
    package = Path(aqtopo.__file__).parent
    owners = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            if any(name.startswith(("torch.distributed", "deepspeed.comm")) for name in names):
                owners.add(path.relative_to(package).as_posix())
    assert owners == {"distributed/heartbeat_store.py", "distributed/process_group.py"}
