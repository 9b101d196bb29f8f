"""What an operator can set, by environment variable (`NORMSTREAM_...`) or on the command line of `normstream serve`."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from normstream.adaptation import ModelSpec
from normstream.service.storage.redis_link import TIMEOUT_S


def _specs(value: object) -> object:
    """Models as text, separated by spaces: each a timm name or `field=value,field=value`."""
    if isinstance(value, str):
        value = value.split()
    if isinstance(value, list | tuple):
        return tuple(ModelSpec.parse(item) if isinstance(item, str) else item for item in value)
    return value


def _distinct(specs: tuple[ModelSpec, ...]) -> tuple[ModelSpec, ...]:
    names = [spec.title for spec in specs]
    if len(names) > len(set(names)):
        raise ValueError(f"two models have one name ({', '.join(names)}); give each its own with name=...")
    return specs


class Settings(BaseSettings):
    """Limits are per server process."""

    model_config = SettingsConfigDict(env_prefix="NORMSTREAM_", extra="forbid", frozen=True)

    models: Annotated[tuple[ModelSpec, ...], NoDecode, BeforeValidator(_specs), AfterValidator(_distinct)] = Field(
        (ModelSpec(architecture="tf_efficientnet_lite0"),),
        min_length=1,
        description="models to host, the first is the default; each a timm name or field=value,field=value"
        " (architecture, name, checkpoint or seed, classes), separated by spaces",
    )
    redis_url: str | None = Field(
        None,
        pattern=r"^(rediss?|unix)://",
        description="redis://, rediss:// or unix://; a real Redis is started when unset",
    )
    redis_timeout_s: float = Field(
        TIMEOUT_S, gt=0, description="how long Redis may take to answer before a request is answered 503"
    )
    data: Path = Field(
        Path("normstream-data"), description="folder of the Redis that the server starts, and of packages"
    )
    device: str = Field("cpu", description="torch device of the models, such as cpu or cuda:0")
    threads: int | None = Field(None, ge=1, description="cores that a forward pass may use; all if unset")

    max_images: int = Field(64, ge=1, description="images or labels in one request")
    max_body_bytes: int = Field(64 * 2**20, ge=1024, description="size of a request's body")
    max_pixels: int = Field(100_000_000, ge=1, description="pixels of all images of a request, before decoding")

    max_batch: int = Field(32, ge=1, description="images in one forward pass, unless one request has more")
    max_lesson: int = Field(
        64, ge=1, description="images in one pass of a lesson; a recipe that asks for more is refused"
    )
    max_wait_ms: float = Field(
        0.0, ge=0, description="how long a request may wait for others to share its forward pass"
    )
    max_queue: int = Field(
        256, ge=1, description="predict and label requests waiting or running; more are answered 429"
    )
    request_timeout_s: float = Field(30.0, gt=0, description="how long a predict request may take before a 504")
    drain_timeout_s: float = Field(30.0, ge=0, description="how long running requests may take to end on shutdown")

    max_samples: int = Field(512, ge=1, description="samples of one stream that wait to be learnt from")
    max_sample_bytes: int = Field(32 * 2**20, ge=2**20, description="size of those samples' images")
    sample_ttl_s: float = Field(86400.0, gt=0, description="how long a sample may wait before it is dropped")

    label_ttl_s: float = Field(
        3600.0,
        ge=0,
        le=365 * 86400,
        description="how long a prediction waits for its label, with what is kept of its image; 0 keeps none",
    )
    max_unlabelled: int = Field(
        4096, ge=1, description="predictions of one stream that wait for labels; the oldest go first"
    )
    max_unlabelled_bytes: int = Field(32 * 2**20, ge=0, description="size of what is kept of those images")

    idempotency_ttl_s: float = Field(
        600.0, gt=0, le=365 * 86400, description="how long the answer to an Idempotency-Key is kept"
    )
    cache_bytes: int = Field(256 * 2**20, ge=0, description="states kept at hand by this process")
