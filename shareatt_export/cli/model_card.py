"""The model card of an export: README.md with the front matter that the Hugging Face hub reads."""

import json
from typing import Any
from urllib.parse import urlsplit

from .._version import __version__
from ..checkpoint import hub
from ..exporting.pipeline import Exported
from ..llamacpp.pin import patch_id, pin
from ..model.attention_map import dropped, following
from ..model.map_text import in_words
from ..plan.plan import Plan
from .output import command_line
from .quality_card import NOT_MEASURED
from .tables import change, size

PAPER = "[Shared Attention](https://arxiv.org/abs/2407.12866)"
USAGE = """
## Use

This file needs llama.cpp with Shared Attention; stock llama.cpp refuses it. shareatt-export {version} builds that
llama.cpp. It is not in a package registry yet, so install it from a copy of its source:

    pip install ./shareatt-export
    shareatt-export runtime build
    shareatt-export run {file} -p "Once upon a time"
"""


def model_card(done: Exported, data: dict[str, Any]) -> str:
    """Return the text of the model card. `data` is the report of the export, with hashes."""
    plan = done.job.plan
    name = str(plan.metadata["general.name"].decode()) if "general.name" in plan.metadata else done.files[0].stem
    lines = [f"# {_line(name)}", "", *_about(done, plan)]
    if plan.spans:
        lines += ["", "| span | attention |", "| --- | --- |"]
        lines += [f"| `{span}` | {span.in_words()} |" for span in plan.spans]
    else:
        lines += ["", "| layer | KV groups |", "| --- | --- |"]
        lines += [f"| {layer} | {in_words(plan.attention, layer)} |" for layer in plan.attention.touched]
    lines += ["", "| | dense | with Shared Attention | change |", "| --- | --- | --- | --- |"]
    kv = plan.kv_bytes_per_token_before, plan.kv_bytes_per_token_after
    weights = plan.weight_bytes_before, plan.weight_bytes_after
    for what, (before, after) in {"weights as exported": weights, "KV cache per token (f16)": kv}.items():
        lines.append(f"| {what} | {size(before)} | {size(after)} | {change(before, after)} |")
    lines += ["", "## Quality", "", *NOT_MEASURED]
    lines += [USAGE.format(file=done.files[0].name, version=__version__), "## Made by", "", f"    {command_line()}", ""]
    lines += ["| file | bytes | SHA-256 |", "| --- | --- | --- |"]
    lines += [f"| {file['file'].rsplit('/', 1)[-1]} | {file['bytes']} | {file['sha256']} |" for file in data["outputs"]]
    lines += ["", f"Tensor data of the dense model: BLAKE3 {done.source_blake3}."]
    lines += [f"Runtime: llama.cpp {pin().llama_cpp_commit} with patch {patch_id()}, ABI {pin().abi}.", ""]
    front = [f"{key}: {json.dumps(value)}" for key, value in _front_matter(done).items()]  # JSON is YAML
    return "\n".join(["---", *front, "---", "", *lines])


def _about(done: Exported, plan: Plan) -> list[str]:
    fitted = f", except for {len(plan.fitted)} tensors that were fitted ({plan.fitting})" if plan.fitting else ""
    rest = f"All other weights are the dense model's{fitted}."
    followers = sum(len(span.followers) for span in plan.spans)
    if followers:
        return [
            f"{followers} of {plan.facts.n_layer} layers reuse the attention weights of another layer"
            f" ({PAPER}): they have no Q and K projection and no K cache. {rest}",
        ]
    n_groups = sum(plan.attention.n_head_kv)
    n_followers, n_dropped = sum(1 for _ in following(plan.attention)), len(dropped(plan.attention))
    return [
        f"{n_followers} of {n_groups} KV groups reuse the attention weights of an earlier layer ({PAPER}): they have "
        f"no Q and K projection and no K cache. {n_dropped} groups are left away, with their K and V. {rest}",
    ]


def _front_matter(done: Exported) -> dict[str, Any]:
    plan = done.job.plan
    data: dict[str, Any] = {"library_name": "gguf", "pipeline_tag": "text-generation"}
    if licence := plan.dense.text("general.license", ""):
        data["license"] = licence
    if base := _base_model(done):
        data |= {"base_model": base, "base_model_relation": "quantized" if done.job.quantisation else "finetune"}
    return data | {"tags": ["gguf", "shared-attention", "llama.cpp"]}


def _base_model(done: Exported) -> str | None:
    """Return the id of the dense model on the hub, if it is known."""
    if done.job.repository:
        return done.job.repository
    for key in ("general.repo_url", "general.base_model.0.repo_url"):
        url = urlsplit(done.job.plan.dense.text(key, ""))
        if url.netloc == "huggingface.co" and (id := hub.repository(url.path.strip("/"))):
            return id
    return None


def _line(text: str) -> str:
    return " ".join(text.split())
