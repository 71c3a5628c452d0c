"""What all blocks of the configuration share: how strictly they are read, and the types of their values."""

import math
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    WrapSerializer,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from scripts.lib.kinds import families

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
NAME = r"^[a-z0-9_]+$"


class Block(BaseModel):
    """A mapping of known keys. It refuses unknown ones, and values of another type than the key's."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def over(self, below: Self) -> Self:
        """`below` with the keys that were set here laid over it; defaults of this block count for nothing."""
        return below.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})


def _only_set(block: Block, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
    return {key: value for key, value in dump(block).items() if key in block.model_fields_set}


# A block that stands for a change of some keys: only those that were set are dumped. `over` applies it.
OnlySet = WrapSerializer(_only_set)


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-6 as text; as a setting it is a number. Everything else is left as it is."""
    return float(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value


def _integer(value: Any) -> Any:
    """64.0 and "64" are the integer 64. Raises a validation error for numbers that are not finite."""
    value = _number(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticKnownError("finite_number")
    return int(value) if isinstance(value, float) and value.is_integer() else value


# They stand last in an annotation, so that ranges are checked on the number and not on the text.
AsInteger, AsNumber = BeforeValidator(_integer), BeforeValidator(_number)

Flag = bool  # strictly: neither 1 nor "yes" is one
Count = Annotated[int, Field(ge=1), AsInteger]
Natural = Annotated[int, Field(ge=0), AsInteger]
Number = Annotated[float, Field(allow_inf_nan=False), AsNumber]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), AsNumber]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), AsNumber]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), AsNumber]
PositiveShare = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), AsNumber]
BelowOne = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False), AsNumber]

Name = Annotated[str, Field(pattern=NAME)]


def _block_name(name: str) -> str:
    if not re.fullmatch(NAME, name) or name.endswith("\n"):
        raise PydanticCustomError("name", "names become folder names", {"hint": "use a-z, 0-9 and _ only."})
    return name


# The key under which a block stands, such as `main` in runs.main.
BlockName = Annotated[str, AfterValidator(_block_name), WithJsonSchema({"type": "string", "pattern": NAME})]


def _path(path: str) -> str:
    """A path as it stands, because ~ and $NAME may mean something else where a job of the build runs."""
    if path.startswith("~") or "$" in path:
        whole = os.path.expandvars(Path(path).expanduser())
        hint = f"write {whole}." if "$" not in whole else "write it out in full, such as /scratch/me/data."
        raise PydanticCustomError("path", "is taken as it stands: neither ~ nor $NAME is expanded", {"hint": hint})
    if not path or not path.isprintable():
        text, hint = "must be a path without line breaks and other control characters", "relative ones begin here."
        raise PydanticCustomError("path", text, {"hint": hint})
    return path


def _pattern(pattern: str) -> str:
    """A pattern that pathlib can match inside a folder."""
    try:
        if ".." in Path(pattern).parts or not pattern.isprintable():
            raise ValueError
        list(Path("no such folder").glob(pattern))
    except (ValueError, NotImplementedError):
        hint = "such as *.jsonl; ** stands for folders at any depth, as in **/*.jsonl."
        raise PydanticCustomError("pattern", "is no pattern of files inside the folder", {"hint": hint}) from None
    return pattern


LocalPath = Annotated[str, AfterValidator(_path)]
LocalPattern = Annotated[str, AfterValidator(_pattern)]

# NumPy takes no larger one.
SeedNumber = Annotated[int, Field(ge=0, le=2**32 - 1), AsInteger]
Seed = Annotated[SeedNumber | None, Field(description="Replaces the top-level seed here.")]


def member_of(family: str, also: Collection[str] = (), but: Collection[str] = ()) -> BeforeValidator:
    """The value names a member of a family, or one of `also`; members in `but` cannot be named.

    Members are looked up when a configuration is read, so that a new file is a new allowed value.
    """

    def check(value: Any) -> Any:
        known = [*also, *(name for name in families.names(family) if name not in but and name not in also)]
        if value not in known:
            allowed = {"allowed": ", ".join(known), "known": known}
            raise PydanticCustomError("member", "must be one of {allowed}", allowed)
        return value

    return BeforeValidator(check)


Dtype = Literal["float32", "bfloat16"]
# `SHA-256  name` of every file, in the order of names.
Digests = list[str]


class Typed(Block):
    """Settings of a stage that computes: the number format of weights and arithmetic."""

    dtype: Dtype
