"""Answers as docs/rest.md shows them."""

from typing import Any

MODEL: dict[str, Any] = {
    "name": "tf_efficientnet_lite0",
    "architecture": "tf_efficientnet_lite0",
    "fingerprint": "sha256:ab",
    "parameters": 4652008,
    "classes": 1000,
    "input_size": [3, 224, 224],
    "device": "cpu",
    "memory_format": "channels_last",
    "preprocessing": {
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "crop_pct": 0.875,
        "crop_mode": "center",
    },
    "labels": ["tench", "goldfish"],
    "classifier": True,
    "calibrated": False,
    "norm_layers": [{"path": "bn1", "kind": "BatchNormAct2d", "channels": 32, "statistics": True}],
}
MODELS: dict[str, Any] = {"models": [MODEL], "default": "tf_efficientnet_lite0"}
RECIPE: dict[str, Any] = {"norm": {"name": "alpha_bn", "alpha": 0.1}}
RECIPES: dict[str, Any] = {"presets": {"alpha_bn": RECIPE}, "schema": {"type": "object"}}
METHOD: dict[str, Any] = {
    "slot": "norm",
    "name": "alpha_bn",
    "summary": "Mix source and batch statistics with a fixed weight.",
    "text": ["Mix source and batch statistics (arXiv:2110.04065).", "`alpha` is the weight of the *test* batch."],
    "citations": ["2110.04065"],
    "parameters": [
        {
            "name": "alpha",
            "type": "number",
            "default": 0.1,
            "range": "[0, 1]",
            "minimum": 0.0,
            "maximum": 1.0,
            "choices": None,
            "description": "weight of the batch's statistics",
        }
    ],
    "layers": "batch normalisation",
    "backward": False,
    "classifier": False,
    "calibration": False,
    "extra_forwards": "none",
    "cost": "moments",
    "preset": RECIPE,
}
METHODS: dict[str, Any] = {"methods": [METHOD, {**METHOD, "name": "bn1", "parameters": []}]}
STREAM: dict[str, Any] = {
    "id": "gate-3",
    "model": "tf_efficientnet_lite0",
    "fingerprint": "sha256:ab",
    "recipe": RECIPE,
    "step": 41,
    "version": 43,
    "generation": "9f1c2b7a",
    "state_bytes": 168064,
    "idle_ttl_s": None,
    "created_at": "2026-11-21T08:00:00Z",
    "updated_at": "2026-11-21T08:03:11Z",
}
SNAPSHOT: dict[str, Any] = {
    "id": "snap-7d3f",
    "stream": "gate-3",
    "model": "tf_efficientnet_lite0",
    "fingerprint": "sha256:ab",
    "recipe": RECIPE,
    "step": 41,
    "bytes": 168900,
    "created_at": "2026-11-21T08:03:11Z",
}
PREDICTION: dict[str, Any] = {
    "stream": "gate-3",
    "model": "tf_efficientnet_lite0",
    "step": 42,
    "version": 44,
    "adapted": True,
    "predictions": [
        {
            "entropy": 0.41,
            "top": [{"class": 340, "label": "zebra", "probability": 0.93}],
            "sample": "9f1c2b7a5d3e4f60-0",
        }
    ],
}
UPDATE: dict[str, Any] = {
    "moved": False,
    "alarm": "entropy_collapse",
    "alarms": 3,
    "restored": False,
    "answered": "before_update",
}
SCORES: dict[str, Any] = {
    "labelled": 13,
    "scored": 12,
    "correct": 9,
    "accuracy": 0.75,
    "window": {"scored": 10, "accuracy": 0.8, "ece": 0.125},
    "classes": [
        {"label": "zebra", "labelled": 8, "scored": 8, "correct": 6},
        {"label": "okapi", "labelled": 5, "scored": 4, "correct": 3},
    ],
}
NO_SCORES: dict[str, Any] = {
    "labelled": 0,
    "scored": 0,
    "correct": 0,
    "accuracy": None,
    "window": {"scored": 0, "accuracy": None, "ece": None},
    "classes": [],
}
LABELLING: dict[str, Any] = {
    "stream": "gate-3",
    "model": "tf_efficientnet_lite0",
    "step": 42,
    "version": 45,
    "labelled": 4,
    "duplicates": 1,
    "unlearnt": 0,
    "scores": SCORES,
    "learning": {
        "lessons": 7,
        "classes": 1001,
        "kept": 4,
        "kept_bytes": 61440,
        "steps": [{"samples": 4, "loss": 0.5, "penalty": 0.01, "replayed": 4, "discarded": None}],
        "new_classes": ["okapi"],
    },
}
STREAM_SCORES: dict[str, Any] = {
    "stream": "gate-3",
    "scores": SCORES,
    "classes": ["zebra", "okapi"],
    "learning": {"lessons": 7, "classes": 2, "kept": 4, "kept_bytes": 61440},
}
EDGE: dict[str, Any] = {
    "id": "gate-3",
    "model": "tf_efficientnet_lite0",
    "stream": "group-north",
    "group": "north",
    "recipe": RECIPE,
    "tag": "9f1c2b7a.43",
    "acknowledged": "9f1c2b7a.42",
    "versions_behind": 1,
    "staleness_s": 2.5,
    "last_seen": "2026-11-21T08:03:11Z",
    "samples": {"received": 512, "used": 480, "dropped": 0, "pending": 32},
    "bytes_up": 5242880,
    "bytes_down": 1048576,
    "report": {
        "tag": "9f1c2b7a.42",
        "seen": 4096,
        "excluded": {"unreliable": 900, "uninformative": 1800, "redundant": 884, "budget": 0, "spool": 0},
        "uploaded": 512,
        "rolled_back": 0,
        "latency_ms": 9.5,
    },
    "uplink_saved": 0.875,
    "created_at": "2026-11-21T08:00:00Z",
}
PROBLEM: dict[str, Any] = {
    "type": "https://normstream.invalid/problems/unknown-stream",
    "title": "Unknown stream",
    "status": 404,
    "detail": "There is no stream 'gate-4'. Create it with POST /v1/streams.",
    "errors": [{"where": "path.id", "problem": "unknown"}],
}


def prediction(images: int) -> dict[str, Any]:
    return {**PREDICTION, "predictions": PREDICTION["predictions"] * images}
