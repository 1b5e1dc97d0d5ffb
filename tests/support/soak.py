"""A soak test of llama-server: clients complete, stream, cancel, and save and restore slots at the same time.

soak(server, prompts, seconds=1800, clients=8, seed=1) returns the errors, the memory and the answers of the server.
scripts/soak.py runs it for longer than the tests.
"""

import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

from tests.support.server import Server

SLOTS, SLOT_CONTEXT = 8, 256
OPTIONS = (
    *("-np", SLOTS, "-c", SLOTS * SLOT_CONTEXT, "--no-kv-unified", "--context-shift"),
    *("-t", 1, "-tb", 1, "--cache-ram", 16, "--slots"),
)
FIXED = "import os\n\nclass Reader:\n    def read(self, path):\n"


@dataclass
class Soak:
    """The result of a soak test.

    turns and errors count and describe what the clients did. rss is the resident memory of the server in bytes, sampled
    at even intervals. before and after are the token probabilities of the continuation of FIXED.
    """

    turns: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)
    before: Any = None
    after: Any = None

    @property
    def tenths(self) -> list[float]:
        """The median memory of the server in each tenth of the run, in bytes."""
        n = len(self.rss)
        return [statistics.median(self.rss[i * n // 10 : max((i + 1) * n // 10, i * n // 10 + 1)]) for i in range(10)]

    @property
    def growth(self) -> float:
        """Relative growth of the memory from the middle to the end of the run.

        In the middle, the caches are full and slots have been saved.
        """
        return self.tenths[9] / self.tenths[5] - 1


class Client:
    """A client with its own random choices. Each turn checks its answer, and raises AssertionError if it is wrong."""

    def __init__(self, server: Server, prompts: Sequence[str], seed: int, number: int) -> None:
        self.server, self.prompts, self.openai = server, prompts, server.openai()
        self.chance, self.file = random.Random(f"{seed} {number}"), f"slot-{number}"

    def prompt(self, n_characters: int) -> str:
        text = self.chance.choice(self.prompts)
        start = self.chance.randrange(max(1, len(text) - n_characters))
        return text[start : start + n_characters]

    def complete(self, n_predict: int, n_characters: int = 200, **options: object) -> Any:
        answer = self.server.post(
            "/completion",
            prompt=self.prompt(n_characters),
            n_predict=n_predict,
            temperature=self.chance.choice((0, 0.8)),
            cache_prompt=self.chance.random() < 0.5,
            ignore_eos=True,
            **options,
        )
        assert answer["tokens_predicted"] == n_predict and answer["stop_type"] == "limit", answer
        return answer

    def completion(self) -> None:
        self.complete(self.chance.randrange(1, 64))

    def long_completion(self) -> None:
        """Complete with more tokens than a slot holds, which makes the server shift the context."""
        self.complete(self.chance.randrange(SLOT_CONTEXT, 2 * SLOT_CONTEXT))

    def probabilities(self) -> None:
        answer = self.complete(8, n_probs=10)
        found = [top["logprob"] for token in answer["completion_probabilities"] for top in token["top_logprobs"]]
        assert len(found) == 80 and all(math.isfinite(x) and x <= 0 for x in found), found

    def stream(self, n_read: int | None = None) -> None:
        """Read a streamed chat to its end, or close the stream after `n_read` parts."""
        stream = self.openai.chat.completions.create(
            model="any",
            messages=[{"role": "user", "content": self.prompt(200)}],
            stream=True,
            max_tokens=100,
            temperature=0.8,
            extra_body={"ignore_eos": True},
        )
        reason = None
        with stream:
            for i, part in enumerate(stream):
                reason = part.choices[0].finish_reason if part.choices else reason
                if i == n_read:
                    return
        assert reason == "length", reason

    def cancelled_stream(self) -> None:
        self.stream(self.chance.randrange(20))

    def too_long_a_prompt(self) -> None:
        try:
            self.openai.completions.create(model="any", prompt=self.prompt(20 * SLOT_CONTEXT), max_tokens=1)
        except openai.BadRequestError as error:
            assert "exceeds the available context size" in str(error), error
        else:
            raise AssertionError("taken")

    def slot(self) -> None:
        """Save a slot, restore the file into a random slot, and erase a random slot."""
        slots, name = range(SLOTS), self.file
        saved = self.server.post(f"/slots/{self.chance.choice(slots)}?action=save", filename=name)
        restored = self.server.post(f"/slots/{self.chance.choice(slots)}?action=restore", filename=name)
        assert restored["n_restored"] == saved["n_saved"] and restored["n_read"] == saved["n_written"], restored
        self.server.post(f"/slots/{self.chance.choice(slots)}?action=erase")


TURNS: dict[Callable[[Client], None], int] = {  # and the weight of each turn in the random choice
    Client.completion: 6,
    Client.long_completion: 2,
    Client.probabilities: 3,
    Client.stream: 3,
    Client.cancelled_stream: 4,
    Client.too_long_a_prompt: 1,
    Client.slot: 2,
}


def soak(server: Server, prompts: Sequence[str], seconds: float, clients: int, seed: int, every: float = 2) -> Soak:
    """Run `clients` clients against the server for `seconds`, and sample its memory `every` seconds.

    The server must run with OPTIONS and --slot-save-path.
    """
    done = Soak(before=_fixed(server))
    end = time.monotonic() + seconds

    def work(number: int) -> None:
        client, turns = Client(server, prompts, seed, number), list(TURNS)
        turn = turns[number % len(turns)]  # so that a short run has every kind of turn
        while time.monotonic() < end and len(done.errors) < 20:
            try:
                turn(client)
            except Exception as error:
                done.errors.append(f"{turn.__name__}: {type(error).__name__}: {error}")
            done.turns[turn.__name__] += 1
            turn = client.chance.choices(turns, list(TURNS.values()))[0]

    with ThreadPoolExecutor(clients) as pool:
        working = [pool.submit(work, number) for number in range(clients)]
        while not all(future.done() for future in working):
            done.rss.append(_rss(server.pid))
            time.sleep(every)
            if time.monotonic() > end:
                _wake(server)
    done.after = _fixed(server)
    return done


def _wake(server: Server) -> None:
    """Release a slot of the server, so that it takes the next deferred action on a slot.

    An action on a busy slot is deferred. Each slot that is released takes up one of them (`server_queue::
    pop_deferred_task` of llama.cpp), so that the last of several actions waits for ever when no more text is completed.
    """
    server.post("/completion", prompt=FIXED, n_predict=1)


def _fixed(server: Server) -> Any:
    """Return the most probable tokens and their probabilities at each step of the continuation of FIXED."""
    server.post("/slots/0?action=erase")
    options = {"n_predict": 16, "n_probs": 20, "temperature": 0, "cache_prompt": False, "id_slot": 0}
    return server.post("/completion", prompt=FIXED, **options)["completion_probabilities"]


def _rss(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])
