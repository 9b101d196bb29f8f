"""Bad requests for streams and recipes: each is refused in plain words and harms no stream."""

import pytest
from bad_requests import CREATE, JSON, Case, case_id, check_told, raw
from servers import Api, check_problem

STREAMS = [
    Case(
        "existing id, other recipe",
        CREATE,
        409,
        ("{victim}", '"ema"', '"alpha_bn"', "Choose another id"),
        {"json": {"id": "{victim}", "recipe": "alpha_bn"}},
    ),
    Case(
        "existing id, other value in the recipe",
        CREATE,
        409,
        ("{victim}",),
        {"json": {"id": "{victim}", "recipe": {"norm": {"name": "ema", "momentum": 0.5}}}},
    ),
    Case(
        "existing id, other model",
        CREATE,
        409,
        ("{victim}", "'tiny'", "'other'"),
        {"json": {"id": "{victim}", "recipe": "ema", "model": "other"}},
    ),
    Case("fork to a taken id", "POST /v1/streams/{victim}/fork", 409, ("{victim}",), {"json": {"id": "{victim}"}}),
    Case("unknown preset", CREATE, 422, ("recipe", "'tint'", "alpha_bn"), {"json": {"recipe": "tint"}}),
    Case(
        "unknown member",
        CREATE,
        422,
        ("recipe.norm", "'tent'", "'alpha_bn'"),
        {"json": {"recipe": {"norm": {"name": "tent"}}}},
    ),
    *(
        Case(
            f"alpha {value}",
            CREATE,
            422,
            ("body.recipe.norm.alpha_bn.alpha", str(value), words),
            {"json": {"recipe": {"norm": {"name": "alpha_bn", "alpha": value}}}},
        )
        for value, words in {1.5: "less than or equal to 1", -0.1: "greater than or equal to 0", "x": "number"}.items()
    ),
    Case(
        "unknown field in a member",
        CREATE,
        422,
        ("alpah", "not permitted"),
        {"json": {"recipe": {"norm": {"name": "alpha_bn", "alpah": 1}}}},
    ),
    Case("unknown slot", CREATE, 422, ("recipe.input",), {"json": {"recipe": {"input": {"name": "tent"}}}}),
    Case("unknown field", CREATE, 422, ("body.modle", "not permitted"), {"json": {"modle": "tiny"}}),
    Case("recipe of another type", CREATE, 422, ("body.recipe",), {"json": {"recipe": 5}}),
    *(
        Case(f"idle_ttl_s {value}", CREATE, 422, ("body.idle_ttl_s",), raw(f'{{"idle_ttl_s": {value}}}'))
        for value in ("0", "-1", "0.5", '"soon"', "NaN", "Infinity", "1e400", "1e12", "[]")
    ),
    *(
        Case(f"no object: {text}", CREATE, 422, ("body",), raw(text))
        for text in ("[]", "null", "5", '"x"', "", '{"recipe": null}', '{"recipe": {"norm": null}}')
    ),
    *(
        Case(f"a lone surrogate as {text}", CREATE, 422, (), raw(text))
        for text in (
            r'{"id": "\ud800"}',
            r'{"recipe": "\ud800"}',
            r'{"\ud800": 1}',
            r'{"recipe": {"norm": {"name": "\ud800"}}}',
            r'{"recipe": {"norm": {"name": "ema", "\ud800": 1}}}',
        )
    ),
    *(
        Case(f"broken JSON: {text[:20]!r}", CREATE, 400, (), raw(text))
        for text in (b"{", b"{'id': 1}", b"\xff\xfe", b"[" * 100_000, b'{"id": ' + b"1" * 10_000 + b"}", b"{} {}")
    ),
    Case("a form for a stream", CREATE, 415, ("'text/plain'", JSON), raw('{"id": "x"}', "text/plain")),
    Case("restore without a snapshot", "POST /v1/streams/{victim}/restore", 422, ("snapshot",), {"json": {}}),
    *(
        Case(f"page: {query}", f"GET /v1/streams?{query}", 422, (f"query.{query.partition('=')[0]}",))
        for query in ("limit=0", "limit=1001", "limit=x", "after=..%2F", "after=")
    ),
    *(
        Case(
            f"Last-Event-ID {value!r}",
            "GET /v1/streams/{victim}/events",
            422,
            ("Last-Event-ID",),
            {"headers": {"Last-Event-ID": value}},
        )
        for value in ("x", "-1", "1-" + "9" * 30, "0-0 0")
    ),
]


@pytest.mark.parametrize("case", STREAMS, ids=case_id)
def test_bad_input_is_told_and_harms_nothing(api: Api, unharmed: str, case: Case) -> None:
    check_told(api, unharmed, case)


def test_a_wrong_value_is_named_with_its_field_and_range(api: Api, unharmed: str) -> None:
    recipe = {"norm": {"name": "alpha_bn", "alpha": 1.5}}
    problem = check_problem(api.post("/v1/streams", json={"recipe": recipe, "idle_ttl_s": -1}), 422)
    assert [(fault["where"], fault["problem"]) for fault in problem["errors"]] == [
        ("body.recipe.norm.alpha_bn.alpha", "Input should be less than or equal to 1 (got 1.5)"),
        ("body.idle_ttl_s", "Input should be greater than or equal to 1 (got -1)"),
    ]
