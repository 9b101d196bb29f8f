"""Bad requests, and what is said about each."""

import json
from dataclasses import dataclass, field
from typing import Any

from servers import NPY, Api, check_problem, npy, tensors

BYTES = "application/octet-stream"
JSON = "application/json"
PREDICT = "POST /v1/streams/{victim}/predict"
CREATE = "POST /v1/streams"


def array(content: bytes) -> dict[str, Any]:
    return {"content": content, "headers": {"Content-Type": NPY}}


def raw(content: bytes | str, kind: str = JSON) -> dict[str, Any]:
    return {"content": content, "headers": {"Content-Type": kind}}


SOUND = array(npy(tensors()))


@dataclass(frozen=True)
class Case:
    """A bad request and what is said about it; {victim} stands for a stream's id."""

    name: str
    call: str
    status: int
    words: tuple[str, ...] = ()
    request: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def case_id(case: Case) -> str:
    return f"{case.status} {case.name}".encode("ascii", "backslashreplace").decode()


def check_told(api: Api, victim: str, case: Case) -> None:
    """The case is refused with its status, in its words."""
    method, path = case.call.replace("{victim}", victim).split(" ", 1)
    request = dict(case.request)
    if "json" in request:
        request["json"] = json.loads(json.dumps(request["json"]).replace("{victim}", victim))
    response = api.request(method, path, **request)
    check_problem(response, case.status, *(word.replace("{victim}", victim) for word in case.words))
