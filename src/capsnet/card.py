"""The page that a model has on the Hugging Face hub: what it is, how good it is, how to use it."""

import re
from collections.abc import Mapping
from typing import Any

from capsnet.hub import PREFIX
from capsnet.text import printable

TAGS = ("capsule-network", "dynamic-routing", "image-classification")

BODY = """
# {title}

{summary}

```python
import capsnet

model = capsnet.load("{place}")  # a PyTorch module, in evaluation mode
probabilities = model.probabilities(images)  # images: float (N, {channels}, {height}, {width}), 0 to 1
```

```console
$ pip install 'capsnet[hub]'
$ capsnet predict {place} picture.png
```

{facts}
Loading executes nothing: the weights are safetensors, everything else is JSON. `config.json` holds the recipe in full.
"""


def model_card(config: Mapping[str, Any], report: Mapping[str, Any], place: str) -> str:
    """The README of a model, from what its run folder holds; `report` may be empty. In Markdown with YAML in front."""
    from huggingface_hub import EvalResult, ModelCardData

    model, command, recipe = (_mapping(config.get(name)) for name in ("model", "command", "recipe"))
    sizes = _mapping(model.get("config"))
    channels, height, width = sizes.get("in_shape", ("C", "H", "W"))
    data, title = public_name(str(command.get("data", ""))), place.removeprefix(PREFIX).partition("@")[0]
    facts: dict[str, Any] = {
        "Model": f"{model.get('name')}, " + ", ".join(f"{k} {v}" for k, v in sizes.items() if k != "in_shape"),
        "Images": f"{height}×{width} pixels, {channels} channel{'s' if channels != 1 else ''}",
        "Classes": ", ".join(map(str, config.get("classes", []))),
        "Data": data,
        **_measured(report),
        "Seed": report.get("seed", recipe.get("seed")),
    }
    results = None
    if "test_error" in report and data:
        accuracy = round(1 - report["test_error"] / 100, 6)
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type=data,
                dataset_name=data,
                dataset_split="test",
                metric_type="accuracy",
                metric_value=accuracy,
            )
        ]
    front = ModelCardData(
        model_name=title,
        library_name="capsnet",
        pipeline_tag="image-classification",
        tags=list(TAGS),
        metrics=["accuracy"] if results else None,
        eval_results=results,
    )
    body = BODY.format(
        **{"title": title, "place": place, "channels": channels, "height": height, "width": width},
        summary="A capsule network with dynamic routing (Sabour, Frosst and Hinton, 2017), trained with `capsnet`."
        if model.get("name") == "capsnet"
        else "A convolutional network that capsule networks are compared with, trained with `capsnet`.",
        facts=_table(facts),
    )
    return f"---\n{front.to_yaml()}\n---\n{body}"


def public_name(data: str) -> str:
    """How a data set is called where others read it: without the folders of this computer in which it lies."""
    if re.fullmatch(r"hub:[\w.-]+(/[\w.-]+)?(:[\w.-]+)?|[\w.-]+(:[\w.-]+)?", data):
        return data
    kind = re.match(r"([a-z]{2,}:)?", data)
    assert kind
    return kind[0] + re.split(r"[/\\]", data[kind.end() :].rstrip("/\\"))[-1]


def _measured(report: Mapping[str, Any]) -> dict[str, str]:
    if "test_error" not in report:
        return {}
    errors, images = report.get("test_errors", 0), report.get("test_images", 0)
    return {
        "Test error": f"{report['test_error']:.2f} % ({errors:,} of {images:,} images)",
        "Epochs": str(report.get("epochs")),
        "Training": f"{report.get('training_seconds')} s, {report.get('training_images_per_second')} images/s",
        "Hardware": f"{report.get('device')}, {report.get('threads')} threads, {report.get('system')}",
        "Versions": ", ".join(f"{name} {report.get(name)}" for name in ("capsnet", "torch", "lightning", "python")),
    }


def _table(facts: Mapping[str, Any]) -> str:
    """Of what is known. What a user has named must not break out of its cell."""
    lines = [
        (name, printable(" ".join(str(value).replace("|", "\\|").split())))
        for name, value in facts.items()
        if value not in ("", None)
    ]
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in lines)


def _mapping(section: Any) -> Mapping[str, Any]:
    return section if isinstance(section, dict) else {}
