"""Continual learning with labels: normalisation that balances tasks, replay, and heads that grow.

`Learning` is the recipe and `Learner` takes the steps, from (state, labelled images) to (state, losses):

    LearningNetwork (adab2n, bn, cn or gn in its layers) ──answers──> er_ace or derpp ──gradient──> Descent
    Replay (reservoir or ring) ──samples to learn again──> LearningNetwork
"""

from .admission import damage
from .hosted_form import learnt_layers
from .learner import Learner, LearningReport, LearningStep
from .learning import Learning

__all__ = ["Learner", "Learning", "LearningReport", "LearningStep", "damage", "learnt_layers"]
