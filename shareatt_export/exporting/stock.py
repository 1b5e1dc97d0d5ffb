"""Write a file for unpatched llama.cpp (plan/stock.py)."""

from pathlib import Path

from ..formats.shards import pieces, read_model
from ..model.facts import read_facts
from ..plan.stock import stock_file
from ..system.progress import Step, counted, silent
from ..system.staging import check_output, check_space, publish, staged
from .verify import same_inventory
from .write import unchanged, write_pieces


def write_stock(sa: Path, out: Path, *, force: bool = False, step: Step = silent) -> None:
    """Write `out`, a GGUF that unpatched llama.cpp runs, of an SA GGUF in which KV groups are only dropped.

    Each byte is compared after it was written. The file appears whole or not at all. Raises Unsupported where there can
    be no such file, BadInput where the output exists or the input is damaged.
    """
    header = read_model(sa)
    check_output(out, header.files, force)
    made = stock_file(header, read_facts(header))
    (piece,) = pieces(header.version, dict(made.metadata), made.tensors, header.alignment, None)
    check_space(out, piece.file_size)
    with staged(out) as folder:
        file = folder / out.name
        advance = counted(lambda fraction: step("writing", fraction), sum(copy.n_bytes for copy in made.tensors))
        with unchanged(header.files):
            write_pieces([piece], [file], advance)
        same_inventory(read_model(file), made.tensors)
        publish({file: out}, header.files, force)
