"""Configuration of a run: its sections, the checks between them, and its digest."""

import hashlib
import json
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from aqtopo.config.checks import contradictions
from aqtopo.config.sections import RunSections
from aqtopo.config.strict import raise_contradictions


def _ignore(_: str | None) -> None:
    """Discard a value that must not affect the digest of a run."""


class RunConfig(RunSections):
    """Everything that defines a run."""

    schema_reference: Annotated[str | None, AfterValidator(_ignore)] = Field(
        None, alias="$schema", exclude=True
    )
    """Path of the JSON schema of this file, for editors; ignored."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        raise_contradictions("configuration", contradictions(self))
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        canonical = json.dumps(self._tree(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> str:
        """Return the configuration as JSON with defaults; the `deepspeed` block as in its file."""
        return json.dumps(self._tree(), indent=2)

    def _tree(self) -> dict[str, object]:
        return {**self.model_dump(mode="json"), "deepspeed": self.deepspeed.verbatim()}
