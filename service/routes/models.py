"""The hosted models, and the recipes that streams can follow."""

from typing import Annotated

from fastapi import APIRouter, Path

from normstream.adaptation import PRESETS, Recipe
from normstream.service.dependencies import TheStreams
from normstream.service.engine import Engine
from normstream.service.schemas import Model, ModelList, Recipes

router = APIRouter(prefix="/v1", tags=["models"])


@router.get("/models")
async def list_models(streams: TheStreams) -> ModelList:
    """The hosted models; the default one is what a stream gets that names none."""
    return ModelList(models=[_model(engine) for engine in streams.models.values()], default=streams.models.default)


@router.get("/models/{name}")
async def show_model(name: Annotated[str, Path(max_length=200)], streams: TheStreams) -> Model:
    """One hosted model: what it wants, and which of its layers adapt."""
    return _model(streams.models[name])


@router.get("/recipes")
async def list_recipes() -> Recipes:
    """The presets, and the JSON schema of a recipe."""
    return Recipes(
        presets={name: recipe.model_dump(mode="json") for name, recipe in PRESETS.items()},
        json_schema=Recipe.model_json_schema(),
    )


def _model(engine: Engine) -> Model:
    return Model.of(engine.hosted, engine.labels)
