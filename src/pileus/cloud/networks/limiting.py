"""How people say how much may pass."""

from typing import Annotated

from pydantic import Field

BandwidthMbit = Annotated[int, Field(ge=1, le=400_000)]
