"""Where each measurement comes from: what is needed to repeat it."""

from collections.abc import Iterator

from .measurements import Measurement
from .tables import Table, table


def origin(each: Measurement) -> Table:
    """Return the facts that a file has about itself. Raises BadInput where its values have wrong types."""
    return table(f"{each.name} ({each.kind})", ("fact", "value"), list(_facts(each)))


def _facts(each: Measurement) -> Iterator[tuple[str, str]]:
    record = each.record
    made = record.only_record("provenance")
    machine = made.only_record("machine")
    for name, value in (
        ("command", made.text("command")),
        ("date", made.text("date")),
        ("version", made.text("tool")),
        ("llama.cpp", made.text("llama_cpp")),
        ("patch", made.text("patch")),
        ("processor", machine.text("processor")),
        ("usable CPUs", machine.integer("cpus")),
        ("system", machine.text("system")),
    ):
        if value is not None:
            yield name, str(value)
    models = made.records("models")
    for model in models:
        digest = model.text("tensors_blake3")
        yield "model", model.text("model") or ""
        yield "BLAKE3 hash of its tensors", digest or "not recorded"
    if not models:
        yield "model", each.model
    corpus = record.only_record("text")
    for text in corpus.records("texts") or (corpus,):
        if text_name := text.text("name"):
            yield "text", text_name
            yield "SHA-256 of the text", text.text("sha256") or "not recorded"
    for key, name in (("n_ctx", "tokens of a window"), ("windows", "windows"), ("maps_measured", "maps measured")):
        if (n := record.integer(key)) is not None:
            yield name, str(n)
    if not made.data:
        yield "version", "not recorded: an older version wrote this file"
