"""A model of lm-evaluation-harness: any GGUF, dense or shared, computed in this process by the patched llama.cpp.

    lm_eval.simple_evaluate(model="shareatt", model_args={"model": "model.gguf"}, tasks=[...])

Texts are split, truncated and scored as by the harness's own model of transformers (lm_eval/models/huggingface.py).
"""

import hashlib
import logging
import os
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from ..errors import BadInput, Unsupported
from ..evaluation.batches import N_SEQUENCES, context_params
from ..evaluation.completions import Prompt, complete
from ..evaluation.likelihoods import Likelihood, Query, score
from ..formats.shards import read_model
from ..formats.weight_types import CACHE_TYPES
from ..llamacpp import chat, runtime
from ..llamacpp.bindings import load
from ..llamacpp.devices import NO_DEVICE, offload_params
from ..llamacpp.engine import Context, Model
from ..llamacpp.pin import patch_id, pin
from ..model.facts import read_facts

OPTIONS = ("model", "max_length", "threads", "gpu_layers", "devices", "type_k")
# What changes nothing where the most likely token is always taken.
GREEDY_KWARGS = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "min_p", "seed"}

log = logging.getLogger(__name__)

Request = tuple[tuple[str, str] | None, list[int], list[int]]  # the texts; the tokens of context and continuation


class GGUFModel(TemplateLM):
    """`model`: path of the GGUF. `max_length`: most tokens of a text, by default as many as the model was trained with.

    `devices`: as in --device of this tool. The harness's own options: `batch_size`, number of texts that are computed
    at a time, "auto" for 16, or `max_batch_size` if that is less; `device`, torch's name of a device, of which only
    "cpu" means something here. Raises BadInput or RuntimeProblem where an option is wrong or the model does not load.
    """

    def __init__(
        self,
        model: str | None = None,
        batch_size: int | str = 1,
        max_length: int | None = None,
        threads: int = os.cpu_count() or 2,
        gpu_layers: int | str | None = None,
        devices: str | None = None,
        type_k: str = "f16",
        device: str | None = None,
        max_batch_size: int | None = None,
        **unknown: object,
    ) -> None:
        super().__init__()
        for name in unknown:
            raise _bad_option(f"'{name}' is not one of {', '.join(OPTIONS)}")
        if model is None:
            raise _bad_option("model=FILE.gguf is missing")
        if type_k not in CACHE_TYPES:
            raise _bad_option(f"type_k={type_k} is not one of {', '.join(CACHE_TYPES)}")
        self.path = Path(model)
        self.max_length = max_length or read_facts(read_model(self.path)).n_ctx_train
        automatic = str(batch_size).startswith("auto")
        self.batch_size = min(N_SEQUENCES, max_batch_size or N_SEQUENCES) if automatic else int(batch_size)
        self._context_params: dict[str, Any] = {
            "type_k": GGMLQuantizationType[type_k.upper()],
            "n_threads": threads,
            "n_threads_batch": threads,
        }
        built = runtime.require()
        lib = load(built.python, built.bin)
        n_layers = -1 if gpu_layers == "all" else None if gpu_layers is None else int(gpu_layers)
        offload = offload_params(lib, n_layers, NO_DEVICE if device == "cpu" else devices)
        self.model = Model(lib, self.path, **offload)
        weakref.finalize(self, self.model.__exit__, None, None, None)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "GGUFModel":
        """Make the model of --model_args and of options of the harness. Raises BadInput for an option in both."""
        given = {name: value for name, value in (additional_config or {}).items() if value is not None}
        for name in arg_dict.keys() & given.keys():
            raise _bad_option(f"'{name}' is an option of its own: --{name}")
        return cls(**arg_dict, **given)

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes into its results beside the model's arguments."""
        sources = self.model.source_layers()
        return {"source_layers": sources, "llama_cpp": pin().llama_cpp_commit, "shareatt_patch": patch_id()}

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text. Raises BadInput if the model has none."""
        return self._special("eos")

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has none before it: BOS, or EOS where there is no BOS."""
        bos = self.model.special_token("bos")
        return self._special("eos") if bos is None else bos

    def _special(self, name: Any) -> int:
        if (token := self.model.special_token(name)) is None:
            raise BadInput("is needed here, and the model has none", path=self.path, field=f"{name} token")
        return token

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: object) -> list[int]:
        """Return the tokens of a text; BOS comes first if the model wants it and the text does not begin with it."""
        tokens = self.model.tokenize(string, special=True)
        bos = [] if self.model.bos is None or add_special_tokens is False else [self.model.bos]
        return tokens if tokens[:1] == bos else [*bos, *tokens]

    @property
    def tokenizer_name(self) -> str:
        """A name for the chat template, by which the harness tells apart what it has cached."""
        return hashlib.sha256(chat.require_template(self.model).encode()).hexdigest()

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the chat template of the GGUF. Raises BadInput if it has none, Unsupported for a named one."""
        if isinstance(chat_template, str):
            raise Unsupported(
                f"'{chat_template}' cannot be chosen", field="--apply_chat_template", next_step="give it without a name"
            )
        return chat.require_template(self.model) if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the text of a chat, by the template of the GGUF. Raises BadInput as llamacpp/chat.py does."""
        return chat.render(self.model, chat_history, continue_last=not add_generation_prompt)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **unused: object
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether it is what greedy decoding gives.

        Raises BadInput for a continuation without tokens, or longer than max_length.
        """
        queries = [self._query(context, continuation) for _, context, continuation in requests]
        answers = [(found.log, found.is_greedy) for found in self._score(queries, disable_tqdm)]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _query(self, context: list[int], continuation: list[int]) -> Query:
        """Truncate from the left so that the model reads no more than max_length tokens; the last is not read."""
        if not 1 <= len(continuation) <= self.max_length:
            raise BadInput(
                f"{len(continuation)} tokens; 1 to max_length, {self.max_length}, are possible", field="a continuation"
            )
        whole = (*context, *continuation)
        kept = whole[-(self.max_length + 1) :]
        if len(kept) < len(whole):
            log.warning("A text of %d tokens is truncated from the left to %d.", len(whole), len(kept))
        return Query(kept, len(kept) - len(continuation))

    def _score(self, queries: Sequence[Query], disable_tqdm: bool) -> list[Likelihood]:
        if not queries:
            return []
        with (
            self._context(max(len(query.inputs) for query in queries)) as context,
            tqdm(total=len(queries), disable=disable_tqdm, desc="Running loglikelihood requests") as bar,
        ):
            return score(context, queries, lambda _, done: bar.update(round((done or 0) * len(queries)) - bar.n))

    def _context(self, longest: int) -> Context:
        return Context(self.model, **self._context_params | context_params(longest, self.batch_size))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text, in windows of at most max_length tokens."""
        texts = [request.args[0] for request in requests]
        windows = [list(self._windows(text)) for text in texts]
        logs = iter(self._score([self._query(*pair) for pairs in windows for pair in pairs], disable_tqdm))
        sums = [sum(next(logs).log for _ in pairs) for pairs in windows]
        for text, total in zip(texts, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return sums

    def _windows(self, text: str) -> Iterable[tuple[list[int], list[int]]]:
        windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1)
        return map(make_disjoint_window, windows)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what greedy decoding adds to each context.

        Raises Unsupported where sampling is asked for, BadInput where max_gen_toks leaves no room for a context.
        """
        prompts = [self._prompt(*request.args) for request in requests]
        if not prompts:
            return []
        texts: dict[int, str] = {}
        with self._context(max(prompt.n_positions for prompt in prompts)) as context:
            for i, text in tqdm(complete(context, prompts), total=len(prompts), disable=disable_tqdm,
                                desc="Running generate_until requests"):  # fmt: skip
                texts[i] = text
                self.cache_hook.add_partial("generate_until", requests[i].args, text)
        return [texts[i] for i in range(len(prompts))]

    def _prompt(self, context: str, gen_kwargs: dict[str, Any]) -> Prompt:
        kwargs = normalize_gen_kwargs(gen_kwargs)
        if kwargs["do_sample"] and kwargs.get("temperature", 1.0) > 0:
            raise Unsupported("sampling is not supported", field="generation_kwargs", next_step="set temperature to 0")
        for name in set(kwargs) - GREEDY_KWARGS:
            raise Unsupported(f"'{name}' is not supported", field="generation_kwargs", next_step="leave it out")
        n = kwargs["max_gen_toks"]
        if not 1 <= n < self.max_length:
            raise BadInput(f"{n}; 1 to {self.max_length - 1} are possible with max_length {self.max_length}",
                           field="max_gen_toks", next_step="change one of the two")  # fmt: skip
        tokens = self.tok_encode(context) or [self.prefix_token_id]
        return Prompt(tuple(tokens[-(self.max_length - n) :]), tuple(filter(None, kwargs["until"])), n)


def _bad_option(reason: str) -> BadInput:
    return BadInput(reason, field="--model_args")
