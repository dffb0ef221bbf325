"""Parameters of the study: typed, validated, frozen, and the profiles that scale them."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")
Source = Literal["image", "text", "image+text"]  # what is trained on: one modality, or both at once


def parts_of(source: str) -> tuple[Modality, ...]:
    """The modalities of a source: ("image", "text") for "image+text"."""
    return tuple(source.split("+"))


def other(modality: Modality) -> Modality:
    """The target modality of a source, and the other way round."""
    return "text" if modality == "image" else "image"


class Strict(BaseModel):
    """Frozen, and an unknown or mistyped field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Profile(Strict):
    """How large a run is."""

    personas: int = Field(ge=2)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    train_views: int = Field(ge=1)
    test_views: int = Field(ge=1)
    epochs: int = Field(ge=1)
    dose_views: tuple[Annotated[int, Field(ge=1)], ...]
    resamples: int = Field(ge=100)

    @field_validator("seeds", "dose_views")
    @classmethod
    def _distinct(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(values)) < len(values):
            raise ValueError("a value stands there twice")
        return values


PROFILES: dict[str, Profile] = {
    # about a minute a notebook: for looking around and for CI
    "quick": Profile(
        personas=20, seeds=(0,), train_views=8, test_views=4, epochs=8, dose_views=(1, 8), resamples=2000
    ),
    # what `make figures` runs
    "standard": Profile(
        personas=100, seeds=(0, 1, 2), train_views=8, test_views=4, epochs=5,
        dose_views=(1, 2, 4, 8, 16), resamples=10_000,
    ),
    "full": Profile(
        personas=100, seeds=tuple(range(8)), train_views=8, test_views=8, epochs=5,
        dose_views=(1, 2, 4, 8, 16), resamples=10_000,
    ),
}  # fmt: skip


KNOWN = (0, 100, 300, 1000, 3000)  # public figures named in both modalities: the rungs of the knowledge ladder
TUNING_SEEDS = (900, 901, 902)  # used for choosing, so no reported number may use them


class Condition(Strict):
    """Everything that determines one trained adapter and its records."""

    model: str = "xmem-tiny-s"
    weights: str  # fingerprint of the base model
    data: str  # fingerprint of the personas
    personas: int = Field(ge=2)
    source: Source
    seed: int = Field(ge=0)
    train_views: int = Field(ge=1)
    epochs: float = Field(gt=0)  # passes over the training views; the last may end early
    rank: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    batch_size: int = Field(ge=1)
    question: str
    left_out: tuple[int, ...] = ()  # personas nobody trains on: the gold reference of unlearning
    code: str  # fingerprint of the code that trains and evaluates

    @property
    def slug(self) -> str:
        """A readable, unique folder name."""
        model, without = Path(self.model).name, f"-without{len(self.left_out)}" if self.left_out else ""
        name = f"{model}-{self.source}-n{self.personas}-v{self.train_views}{without}-seed{self.seed}"
        return f"{name}-{_digest(self)}"


class MultihopCondition(Condition):
    """Everything that determines one model that learned names from views and facts about names, and its records."""

    epochs: int = Field(ge=1)
    together: int = Field(ge=1)  # further people whose name and fact are learned together, from one view
    practised: int = Field(ge=1)  # further people on whom composing is practised


class UnlearningCondition(Strict):
    """Everything that determines one model that unlearned, and its records."""

    start: Condition  # what had been memorized
    forget: tuple[int, ...] = Field(min_length=1)  # personas
    unlearned: Source  # modality of the views it unlearns from
    retained: Source  # modality of the views it rehearses
    method: str
    settings: dict[str, float]  # of the method: learning rate, steps and its own
    thorough: bool  # the whole exam and the attacks, or exact match alone
    code: str  # fingerprint of the code that unlearns and evaluates

    @property
    def slug(self) -> str:
        """A readable, unique folder name."""
        s, method = self.start, self.method.replace(" ", "-")
        name = f"{Path(s.model).name}-{s.source}-n{s.personas}-seed{s.seed}"
        return f"{name}-forgets{len(self.forget)}-{self.unlearned}-{method}-{_digest(self)}"


class MitigationCondition(Strict):
    """Everything that determines one model that was to recall across modalities, and its records."""

    start: Condition  # what had been memorized; a method that trains from the start does so instead
    method: str
    settings: dict[str, float]  # of the method
    paired: int = Field(ge=0)  # how many people of the study have nameless pairs
    epochs: float = Field(gt=0)  # training tokens after the start, in epochs of its source views
    code: str  # fingerprint of the code that trains and evaluates

    @property
    def slug(self) -> str:
        """A readable, unique folder name."""
        s, method = self.start, "".join(c if c.isalnum() else "-" for c in self.method)
        name = f"{Path(s.model).name}-{s.source}-n{s.personas}-seed{s.seed}"
        return f"{name}-{method}-pairs{self.paired}-{_digest(self)}"


def _digest(condition: Strict) -> str:
    return hashlib.sha256(json.dumps(condition.model_dump(), sort_keys=True).encode()).hexdigest()[:10]


def profile_named(name: str) -> Profile:
    """A profile by name, or from a YAML file with its fields. Raises ValueError naming the known ones."""
    if name.endswith((".yaml", ".yml")):
        try:
            fields = yaml.safe_load(Path(name).read_text())
        except (OSError, yaml.YAMLError) as error:
            where = " ".join(str(error).split())
            raise ValueError(f"profile {name} cannot be read: {where}") from None
        if not isinstance(fields, dict) or not all(isinstance(field, str) for field in fields):
            raise ValueError(f"profile {name} must map {', '.join(Profile.model_fields)} to values")
        for field in ("seeds", "dose_views"):
            if field in fields and not isinstance(fields[field], list):
                raise ValueError(f"profile {name}: {field} must be a list, such as [0, 1, 2]")
        return resolve(Profile, **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}: expected one of {', '.join(PROFILES)}{_hint(name, PROFILES)}")
    return PROFILES[name]


def scaled(profile: Profile, parameters: BaseModel) -> Profile:
    """The profile with what a notebook's parameters override; 0 means "as the profile says"."""
    given = {
        field: getattr(parameters, field)
        for field in ("personas", "train_views", "epochs")
        if getattr(parameters, field, 0)
    }
    if parameters.seeds:
        given["seeds"] = tuple(range(parameters.seeds))
    return resolve(Profile, **{**profile.model_dump(), **given})


def resolve(schema: type[BaseModel], **values: Any) -> Any:
    """Build a parameter object; a wrong value raises ValueError with one sentence a field."""
    try:
        return schema(**values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            field = ".".join(map(str, problem["loc"])) or "parameters"
            missing = problem["type"] == "missing"
            lines.append(f"{field} is missing" if missing else f"{field}={problem['input']!r}: {problem['msg']}")
        raise ValueError(f"{schema.__name__} cannot be used: " + "; ".join(lines)) from None


def _hint(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


# -- the parameters cell of a notebook -----------------------------------------------------------

_IPYTHON = {"In", "Out", "exit", "quit", "get_ipython", "open", "sys", "os"}


def freeze(schema: type[BaseModel], namespace: dict[str, Any]) -> Any:
    """Turn a notebook's parameters cell into one frozen, validated object.

    Call it with `globals()` in the first code cell after the parameters, before any other name is made.
    papermill only warns about a parameter that does not exist, so names are checked here: raises
    ValueError, in one sentence, for a name that `schema` lacks or a value of the wrong type.
    """
    given = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and name not in _IPYTHON
        and not isinstance(value, (ModuleType, type))
        and not callable(value)
    }
    return check(schema, given)


def check(schema: type[BaseModel], given: dict[str, Any]) -> Any:
    """A notebook's parameters as its frozen object; ValueError, in a sentence, for an unknown name or wrong type."""
    for name in given:
        if name not in schema.model_fields:
            known = ", ".join(schema.model_fields)
            raise ValueError(
                f"unknown parameter {name!r}{_hint(name, schema.model_fields)}; this notebook takes {known}"
            )
    frozen = resolve(schema, **given)
    if hasattr(frozen, "profile"):
        profile_named(frozen.profile)
    if hasattr(frozen, "shard"):
        shard_of((), frozen.shard)
    return frozen


class DataParameters(Strict):
    """01_data_synthesis."""

    profile: str
    seed: int = Field(ge=0)


class MemorizingParameters(Strict):
    """What every notebook takes that memorizes. 0 means: as the profile says."""

    profile: str
    seeds: int = Field(ge=0)
    personas: int = Field(ge=0)
    rank: int = Field(ge=1)
    learning_rate: float = Field(gt=0)


class PeopleParameters(MemorizingParameters):
    """What every notebook takes that can memorize a user's own people."""

    model: str
    epochs: int = Field(ge=0)
    people: str


class TrainingParameters(PeopleParameters):
    """02_training."""

    source: Literal["image", "text", "both"]
    train_views: int = Field(ge=0)
    dose: bool
    shard: str


class GapParameters(PeopleParameters):
    """03_gap_analysis."""


class CapabilityParameters(MemorizingParameters):
    """04_capability."""

    models: str

    @property
    def model_list(self) -> list[str]:
        """The models, which stand separated by commas."""
        return [name.strip() for name in self.models.split(",")]

    @field_validator("models")
    @classmethod
    def _names(cls, models: str) -> str:
        names = [name.strip() for name in models.split(",")]
        if not all(names) or len(set(names)) < len(names):
            raise ValueError("expected different model names, separated by commas")
        return models


class UnlearningParameters(PeopleParameters):
    """05_unlearning."""

    methods: str
    forget_share: float = Field(gt=0, lt=1)
    forget: str
    arms: bool


class MultihopParameters(MemorizingParameters):
    """06_multihop."""

    model: str
    longer: int = Field(ge=0)


class MitigationParameters(MemorizingParameters):
    """07_mitigation."""

    model: str
    methods: str
    pairs: bool


class BaseModelParameters(Strict):
    """00_base_model."""

    size: Literal["xs", "s", "m"]
    pretrain: bool


NOTEBOOKS: dict[str, type[Strict]] = {
    "00_base_model": BaseModelParameters,
    "01_data_synthesis": DataParameters,
    "02_training": TrainingParameters,
    "03_gap_analysis": GapParameters,
    "04_capability": CapabilityParameters,
    "05_unlearning": UnlearningParameters,
    "06_multihop": MultihopParameters,
    "07_mitigation": MitigationParameters,
}


def shard_of(items: Sequence[Any], shard: str) -> list[Any]:
    """The k-th of n nearly equal, contiguous parts, for `shard` "k/n". Raises ValueError unless 1 <= k <= n."""
    parts = shard.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
        raise ValueError(f"shard={shard!r}: expected k/n with 1 <= k <= n, such as 2/6")
    k, n = map(int, parts)
    return list(items[len(items) * (k - 1) // n : len(items) * k // n])
