"""Whether a model can follow a recipe."""

from collections.abc import Callable

from .continual.layer_norms import LearningNorm
from .hosting import HostedModel, HostingError
from .member import Member, Need
from .recipe import Recipe
from .taught_member import TaughtMember


def require(hosted: HostedModel, recipe: Recipe) -> None:
    """Refuse a recipe that the model lacks something for.

    Raises:
        HostingError: with the reason and the remedy.
    """
    for member in recipe.members:
        for need in Need:
            if need in member.needs and not _HAS[need](hosted):
                raise HostingError(_complaint(hosted, member, need))


def require_teacher(hosted: HostedModel, member: TaughtMember, teacher: HostedModel | None) -> HostedModel:
    """Refuse a recipe whose teacher is not there, or cannot teach this model.

    Raises:
        HostingError: with the reason and the remedy.
    """
    if teacher is None or teacher.name != member.teacher:
        given = f", and the model given is {teacher.name!r}" if teacher else " and must be hosted beside its student"
        raise HostingError(
            f"{member.name!r} learns from the teacher {member.teacher!r}{given}; host {member.teacher!r} too, or name"
            " a hosted model in the recipe's `update.teacher`"
        )
    if teacher.classes != hosted.classes:
        raise HostingError(
            f"the teacher {teacher.name!r} has {teacher.classes} classes and {hosted.name!r} has {hosted.classes}; name"
            " a teacher of the same classes in the recipe's `update.teacher`"
        )
    for needing in (member, member.teacher_norm):
        for need in Need:
            if need in needing.needs and not _HAS[need](teacher):
                complaint = _complaint(teacher, needing, need)
                raise HostingError(f"{teacher.name!r} cannot be the teacher of {member.name!r}: {complaint}")
    return teacher


_HAS: dict[Need, Callable[[HostedModel], bool]] = {
    Need.BATCH_NORM: lambda hosted: bool(hosted.batch_norms),
    Need.SAMPLE_NORM: lambda hosted: bool(hosted.sample_norms),
    Need.NORM: lambda hosted: bool(hosted.layers),
    Need.CLASSIFIER: lambda hosted: hosted.classifier is not None,
    Need.SOURCE_MOMENTS: lambda hosted: hosted.calibration is not None,
    Need.FISHER: lambda hosted: hosted.calibration is not None,
    Need.SOURCE_FEATURES: lambda hosted: hosted.calibration is not None,
}


def _complaint(hosted: HostedModel, member: Member, need: Need) -> str:
    if need in (Need.BATCH_NORM, Need.SAMPLE_NORM, Need.NORM):
        reasons = "; ".join(f"{path}: {reason}" for path, reason in hosted.refused.items())
        remedy = "leave its slot out of the recipe" if hosted.layers else "use the recipe 'source'"
        if isinstance(member, LearningNorm):
            remedy = "leave its slot out by learn.norm: null"
        return (
            f"{member.name!r} adapts {need.value}, and this model has no such layer that can be served"
            f" ({reasons or f'it has no {need.value} at all'}); {remedy}"
        )
    if need is Need.CLASSIFIER:
        return f"{member.name!r} needs {need.value} at the network's end, and this model ends otherwise; leave it out"
    return (
        f"{member.name!r} needs {need.value} of model {hosted.name!r}, and it was never calibrated; run"
        f" `normstream calibrate {hosted.name} --data FOLDER` with some images of the kind it was trained on, and start"
        " the server again"
    )
