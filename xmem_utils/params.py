"""Parameters of the study: typed, validated, frozen, and the profiles that scale them."""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")
Source = Literal["image", "text", "image+text"]  # what is trained on: one modality, or both at once


# What a modality's views are called in sentences and figures.
VIEWS: dict[str, str] = {"image": "pictures", "text": "descriptions"}


def parts_of(source: str) -> tuple[Modality, ...]:
    """The modalities of a source: ("image", "text") for "image+text"."""
    return tuple(source.split("+"))


def other(modality: Modality) -> Modality:
    """The target modality of a source, and the other way round."""
    return "text" if modality == "image" else "image"


class Strict(BaseModel):
    """Frozen, and an unknown or mistyped field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Profile(Strict):
    """How large a run is."""

    personas: int = Field(ge=2)
    replicates: int = Field(ge=1)  # base models, each with people and a training seed of its own
    train_views: int = Field(ge=1)
    test_views: int = Field(ge=1)
    epochs: int = Field(ge=1)
    dose_views: tuple[Annotated[int, Field(ge=1)], ...] = ()  # what grows in the dose-responses of 03
    dose_data: tuple[Annotated[int, Field(ge=1)], ...] = ()
    dose_people: tuple[Annotated[int, Field(ge=2)], ...] = ()
    dose_steps: tuple[Annotated[float, Field(gt=0)], ...] = ()
    forget_sets: int = Field(ge=1, default=1)  # disjoint sets of people that are forgotten, one at a time
    side_replicates: int = Field(ge=1, default=1)  # the first so many answer side questions: doses, ablations, pairs
    resamples: int = Field(ge=100)

    @field_validator("dose_views", "dose_data", "dose_people", "dose_steps")
    @classmethod
    def _distinct(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) < len(values):
            raise ValueError("a value stands there twice")
        return values


PROFILES: dict[str, Profile] = {
    # about a minute a notebook: for looking around and for CI
    "quick": Profile(
        personas=20, replicates=1, train_views=8, test_views=4, epochs=4,
        dose_views=(1, 8), dose_data=(2,), dose_people=(10,), dose_steps=(0.5,), resamples=2000,
    ),
    # what `make figures` runs; its epochs were chosen on tuning people (`tuning`, notebook 00)
    "standard": Profile(
        personas=100, replicates=5, train_views=8, test_views=4, epochs=2,
        dose_views=(1, 4, 16), dose_data=(1, 4, 16), dose_people=(25, 50, 200), dose_steps=(0.5, 2, 4),
        side_replicates=3, forget_sets=3, resamples=10_000,
    ),
    "full": Profile(
        personas=100, replicates=5, train_views=8, test_views=8, epochs=2,
        dose_views=(1, 2, 4, 16), dose_data=(1, 2, 4, 16, 32, 64), dose_people=(25, 50, 200, 400),
        dose_steps=(0.5, 2, 4, 8), side_replicates=5, forget_sets=3, resamples=10_000,
    ),
}  # fmt: skip


# used for choosing, so no reported number may use them: people, and the pretraining of the base that they meet
TUNING_SEEDS = (900, 901, 902)
TUNING_BASE = 2026


# The largest values, so that a slip is said and does not fill the memory. At most as many people differ in three
# attributes (`personas.attributes`).
MOST = {
    "personas": 3200, "replicates": 100, "replicate": 2**32 - 1, "train_views": 1000, "test_views": 1000,
    "dose_views": 1000, "dose_data": 1000, "dose_people": 3200, "dose_steps": 1000, "side_replicates": 1000,
    "epochs": 100_000, "longer": 1000, "resamples": 1_000_000, "rank": 4096,
}  # fmt: skip
PROFILE_BYTES = 4096  # of a profile's file; what is longer is none


def shown(value: object, width: int = 100) -> str:
    """What came from outside as a sentence holds it: as Python writes it, at most `width` characters of a text."""
    short = reprlib.Repr()
    short.maxstring, short.maxlong, short.maxlevel, short.maxlist, short.maxtuple = width, 60, 2, 3, 3
    return short.repr(value)


def profile_named(name: str) -> Profile:
    """A profile by name, or from a YAML file with its fields. Raises ValueError naming the known ones.

    Everything in a file is read as text, and then as the type of its field, so it can hold nothing but numbers.
    """
    if not name.endswith((".yaml", ".yml")):
        if name not in PROFILES:
            known = f"expected one of {', '.join(PROFILES)}, or a YAML file{_hint(name, PROFILES)}"
            raise ValueError(f"unknown profile {shown(name)}: {known}")
        return PROFILES[name]
    with _one_sentence(f"profile {shown(name)} cannot be used: "):
        return _bounded(Profile.model_validate(_profile_fields(name), strict=False))


def _profile_fields(name: str) -> dict[str, Any]:
    """The mapping in a profile's file, of texts and lists of texts."""
    try:
        if os.path.exists(name) and not os.path.isfile(name):
            raise ValueError("it is no file")
        with open(name, "rb") as stream:
            content = stream.read(PROFILE_BYTES + 1)
        if len(content) > PROFILE_BYTES:
            raise ValueError(f"it is longer than {PROFILE_BYTES} bytes")
        text = content.decode("utf-8-sig")
        node = yaml.compose(text, yaml.BaseLoader)
        fields = yaml.load(text, yaml.BaseLoader)  # no types, so no tags either
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"profile {shown(name)} cannot be read: {_unread(error)}") from None
    if not isinstance(fields, dict) or not all(isinstance(field, str) for field in fields):
        raise ValueError(f"profile {shown(name)} must map {', '.join(Profile.model_fields)} to values")
    if len(node.value) > len(fields):
        raise ValueError(f"profile {shown(name)} has a field twice")
    return fields


def _unread(error: Exception) -> str:
    """Why a profile's file could not be read, in words."""
    match error:
        case UnicodeDecodeError():
            return "it is no UTF-8 text"
        case RecursionError():
            return "it is nested too deeply"
        case yaml.MarkedYAMLError():
            line = f"(line {error.problem_mark.line + 1})"
            return " ".join(filter(None, (error.context, error.problem, line)))
    return getattr(error, "strerror", None) or " ".join(str(error).split())


def _bounded(made: Any) -> Any:
    """The object itself. Raises ValueError when one of its numbers is larger than anything that can be run."""
    for field, most in MOST.items():
        value = getattr(made, field, 0) or 0
        if (max(value, default=0) if isinstance(value, tuple) else value) > most:
            raise ValueError(f"{field}={shown(value)} is too large: expected at most {most}")
    return made


def scaled(profile: Profile, parameters: Parameters) -> Profile:
    """The profile with what a notebook's parameters override; None means "as the profile says"."""
    given = {
        name: value
        for name in ("personas", "replicates", "train_views", "epochs")
        if (value := getattr(parameters, name, None)) is not None
    }
    return _bounded(resolve(Profile, **profile.model_dump() | given))


def resolve(schema: type[BaseModel], **values: Any) -> Any:
    """Build a parameter object; a wrong value raises ValueError with one sentence for all fields."""
    with _one_sentence(f"{schema.__name__} cannot be used: "):
        return schema(**values)


@contextmanager
def _one_sentence(opening: str = "") -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        problems = [text for problem in error.errors() if (text := _problem(problem))]
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(opening + "; ".join(problems[:3]) + more) from None


def _problem(problem: Any) -> str:
    """What is wrong with one field, in words."""
    field = ".".join(map(str, problem["loc"])) or "parameters"
    match problem["type"]:
        case "missing":
            return f"{field} is missing"
        case "extra_forbidden":
            return f"unknown field {shown(field)}{_hint(field, Profile.model_fields)}"
        case "tuple_type":
            return f"{field} must be a list, such as [0, 1, 2]"
        case "too_short":  # said of a list with a wrong member, too
            return "" if problem["input"] else f"{field} is empty"
    what = problem["msg"].removeprefix("Value error, ").split(", unable")[0]
    value = f"{field}={shown(problem['input'])}"
    return f"{value} {what.removeprefix('Input ')}" if what.startswith("Input ") else f"{value}: {what}"


def _hint(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name[:40], list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


# -- the parameters of a notebook ----------------------------------------------------------------


class Parameters(Strict):
    """What a notebook takes, frozen. The fields are those of its parameters cell (`notebook.schema_of`)."""

    @property
    def model_list(self) -> list[str]:
        """The models it works on."""
        if hasattr(self, "models"):
            return listed(self.models)
        return [self.model] if hasattr(self, "model") else []


def listed(text: str) -> list[str]:
    """The names that stand in a text, separated by commas."""
    return [name.strip() for name in text.split(",")]


def _different(text: str) -> str:
    names = listed(text)
    if not all(names) or len(set(names)) < len(names):
        raise ValueError("expected different model names, separated by commas")
    return text


# What a parameter must be, beyond the type that a cell declares. A name means the same in every notebook.
COUNT = Annotated[int, Field(ge=0)]
SCALED = Annotated[int | None, Field(ge=1)]  # None: as the profile says
RULES: dict[str, Any] = {
    **dict.fromkeys(("replicate", "longer"), COUNT),
    **dict.fromkeys(("replicates", "personas", "train_views", "epochs"), SCALED),
    "rank": Annotated[int, Field(ge=1)],
    "learning_rate": Annotated[float, Field(gt=0)],
    "forget_share": Annotated[float, Field(gt=0, lt=1)],
    "source": Literal["image", "text", "both"],
    "size": Literal["xs", "s", "m"],
    "models": Annotated[str, AfterValidator(_different)],
}
# What others take and some notebooks do not, with the reason.
NOT_TAKEN = {
    ("06_multihop", "people"): "facts about names are drawn with the people, and a folder of your own has none",
    ("07_mitigation", "people"): "pairs and captions are made from the attributes that people are drawn from, and "
    "those of your own people are not known",
}


def freeze(schema: type[Parameters], namespace: dict[str, Any]) -> Parameters:
    """Turn a notebook's parameters cell into one frozen, validated object.

    `namespace` is `globals()` before any other name is made. papermill only warns about a parameter that does not
    exist, so names are checked here: raises ValueError as `check` does.
    """
    given = {
        name: value
        for name, value in namespace.items()
        if not (name.startswith("_") or name in ("In", "Out") or isinstance(value, ModuleType) or callable(value))
    }
    return check(schema, given)


def check(schema: type[Parameters], given: dict[str, Any], texts: bool = False) -> Parameters:
    """A notebook's parameters as its frozen object; with `texts`, each is read from text as the type of its field.

    Raises ValueError, in a sentence, for an unknown name, a wrong type or value.
    """
    for name in given:
        if why := NOT_TAKEN.get((schema.__name__, name)):
            raise ValueError(f"this notebook does not take {name!r}: {why}; leave it out")
        if name not in schema.model_fields:
            known = f"this notebook takes {', '.join(schema.model_fields)}"
            raise ValueError(f"unknown parameter {shown(name)}{_hint(name, schema.model_fields)}; {known}")
    with _one_sentence():
        frozen = _bounded(schema.model_validate_strings(given) if texts else schema(**given))
    if hasattr(frozen, "profile"):
        scaled(profile_named(frozen.profile), frozen)
    return frozen


def shard_of(items: Sequence[Any], shard: str) -> list[Any]:
    """The k-th of n nearly equal, contiguous parts, for `shard` "k/n". Raises ValueError unless 1 <= k <= n."""
    parts = shard.split("/")
    numbers = len(parts) == 2 and len(shard) < 20 and all(part.isdecimal() for part in parts)
    if not numbers or not 1 <= int(parts[0]) <= int(parts[1]):
        raise ValueError(f"shard={shown(shard)}: expected k/n with 1 <= k <= n, such as 2/6")
    k, n = map(int, parts)
    return list(items[len(items) * (k - 1) // n : len(items) * k // n])
