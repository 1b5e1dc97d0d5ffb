"""Files of the dense model with other weights, in a temporary folder, for as long as they are evaluated.

llama-quantize writes the ones with quantised weights. The ones without attention in some layers are copies with zeros
in place of the output projections (W_O) of these layers.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import ShareattError
from ..formats.gguf_header import Header
from ..llamacpp.quantize import Quantisation, predicted_bytes, quantize
from ..model.facts import read_facts
from ..plan.projections import projections
from ..system.progress import Stages, Step, counted
from ..system.staging import check_space, private_folder
from ..system.streams import Advance
from .subjects import Subject

CHUNK = 16 << 20  # bytes


@contextmanager
def made_files(dense: Header, subjects: Sequence[Subject], n_threads: int, step: Step) -> Iterator[dict[Subject, Path]]:
    """Yield the file of each subject that is not a file yet; they are removed after the block.

    Raises OutputRefused if there is no room for them, Unsupported for a layer without an output projection, and
    ShareattError with llama-quantize's reason.
    """
    quantised = {
        subject: Quantisation(subject.weights, n_threads=n_threads, again=True)
        for subject in subjects
        if subject.weights
    }
    copied = [subject for subject in subjects if subject.without]
    if not quantised and not copied:
        yield {}
        return
    temporary = Path(tempfile.gettempdir())
    with _explained():
        sizes = [dense.data_offset + predicted_bytes(dense.path, quantisation) for quantisation in quantised.values()]
    or_less = ", or use --no-weights" if quantised else ""
    check_space(
        temporary / dense.path.name,
        sum(sizes) + len(copied) * dense.file_size,
        next_step=f"make room, or let TMPDIR name another folder{or_less}",
    )
    stages = Stages(step, {f"quantising to {quantisation.type}": 1 for quantisation in quantised.values()})
    with private_folder(temporary) as folder:
        made = {}
        for subject, quantisation in quantised.items():
            made[subject] = folder / f"{quantisation.type}.gguf"
            with _explained():
                quantize(dense.path, made[subject], quantisation, stages(f"quantising to {quantisation.type}"))
        advance = counted(lambda fraction: step("leaving attention away", fraction), len(copied) * dense.file_size)
        for i, subject in enumerate(copied):
            (target := folder / str(i)).mkdir()
            made[subject] = _without_attention(dense, subject.without, target, advance)
        yield made


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ShareattError as error:
        raise ShareattError(
            error.reason, path=error.path, field=error.field, next_step="--no-weights leaves this comparison away"
        ) from None


def _without_attention(dense: Header, layers: Sequence[int], folder: Path, advance: Advance) -> Path:
    """Copy the files of a model to a folder, with zeros for W_O of these layers. Return the first file.

    Bytes of zeros are numbers of zero in every type of tensor.
    """
    facts = read_facts(dense)
    outputs = [projections(dense, facts, layer).output.origin for layer in layers]
    for path in dense.files:
        with path.open("rb") as source, (folder / path.name).open("wb") as target:
            while chunk := source.read(CHUNK):
                target.write(chunk)
                advance(len(chunk))
            for info in outputs:
                if info.path == path:
                    target.seek(info.offset)
                    target.write(bytes(info.n_bytes))
    return folder / dense.path.name
