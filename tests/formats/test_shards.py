"""Models in several files: shards of llama-gguf-split can be exported, and llama-gguf-split can merge our shards."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

import shareatt_export
from shareatt_export.errors import BadInput, Unsupported, VerifyFailed
from shareatt_export.exporting.job import opened
from shareatt_export.exporting.pipeline import export
from shareatt_export.exporting.request import ExportRequest
from shareatt_export.exporting.verify import verify
from shareatt_export.formats.gguf_encode import raw_u32
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.formats.shards import read_model
from shareatt_export.llamacpp import runtime
from tests.support import graph_taps, small_gguf

SIZE = 300_000  # bytes in a shard, of 1.1 MB


def gguf_split(*arguments: object) -> None:
    subprocess.run([runtime.tool("llama-gguf-split"), *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return small_gguf.write_dense(tmp_path / "dense.gguf", bias=True)


@pytest.fixture
def shards(dense: Path, built: runtime.RuntimeStatus) -> list[Path]:
    """The dense model in four files, split by llama-gguf-split."""
    gguf_split("--split", "--split-max-tensors", "40", dense, dense.with_name("part"))
    return sorted(dense.parent.glob("part-*.gguf"))


def test_a_split_model_gives_the_file_of_the_whole_one(dense, shards, tmp_path):
    assert len(shards) == 4 and shards[0].name == "part-00001-of-00004.gguf"
    for model, out in ((dense, tmp_path / "a.gguf"), (shards[0], tmp_path / "b.gguf")):
        shareatt_export.export(model, "6-9", out)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    verify(tmp_path / "b.gguf", shards[0])
    verify(tmp_path / "b.gguf", dense)


def test_shards_that_do_not_belong_together(shards, tmp_path):
    with pytest.raises(Unsupported, match=r"split\.no: shard 2 of 4; name the first one, part-00001-of-00004\.gguf"):
        read_model(shards[1])
    moved = shards[0].rename(tmp_path / "first.gguf")
    with pytest.raises(BadInput, match="the first of 4 shards must be named NAME-00001-of-00004.gguf"):
        read_model(moved)
    moved.rename(shards[0])
    third = shards[2].read_bytes()
    shards[2].write_bytes(shards[1].read_bytes())
    with pytest.raises(BadInput, match=rf"{shards[2]}: split\.no, split\.count: 1 of 4, expected 2 of 4"):
        read_model(shards[0])
    shards[2].unlink()
    with pytest.raises(BadInput, match=rf"{shards[2]}: no such file; part-00001-of-00004\.gguf is the first of 4"):
        read_model(shards[0])
    shards[2].write_bytes(third)
    second = small_gguf.with_metadata(
        shards[0], tmp_path / "x.gguf", split__no=read_header(shards[1]).metadata["split.no"]
    )
    second.replace(shards[1])
    with pytest.raises(BadInput, match=rf"{shards[1]}: tensor 'token_embd\.weight': is also in part-00001-of-"):
        read_model(shards[0])


def test_shards_must_hold_all_tensors(shards, tmp_path):
    wrong = small_gguf.with_metadata(shards[0], tmp_path / "x.gguf", split__tensors__count=raw_u32(7))
    wrong.replace(shards[0])
    with pytest.raises(BadInput, match=r"split\.tensors\.count: 7 tensors, the 4 shards hold"):
        read_model(shards[0])


def logits(model: Path):
    return graph_taps.run(model).output


def export_shards(model: Path, out: Path) -> tuple[Path, ...]:
    request = ExportRequest(model, "6-9", out, split_max_size=SIZE)
    with opened(request) as job:
        done = export(job)
        assert [file.stat().st_size for file in done.files] == list(job.sizes)
    return done.files


def test_our_shards_are_those_of_llama_gguf_split(dense, shards, tmp_path):
    """Compare in the runtime, after a merge by llama-gguf-split, and tensor by tensor."""
    whole = shareatt_export.export(dense, "6-9", tmp_path / "whole.gguf").files[0]
    files = export_shards(shards[0], tmp_path / "out.gguf")
    assert [file.name for file in files] == [f"out-{i + 1:05}-of-{len(files):05}.gguf" for i in range(len(files))]
    assert len(files) > 3 and not (tmp_path / "out.gguf").exists()
    verify(files[0], dense)
    assert np.array_equal(logits(files[0]), logits(whole))
    merged = tmp_path / "merged.gguf"
    gguf_split("--merge", files[0], merged)
    verify(merged, dense)
    assert np.array_equal(logits(merged), logits(whole))


def test_more_shards_than_their_names_can_number(run, dense, tmp_path, monkeypatch):
    monkeypatch.setattr("shareatt_export.formats.shards.MAX_SHARDS", 1)
    done = run(dense, "--spans", "6-9", "-o", tmp_path / "out.gguf", "--split-max-size", "1M")
    assert "--split-max-size: makes 2 shards; at most 1 are possible" in done.error


def test_a_size_that_everything_fits_in_makes_one_file(run, dense, tmp_path):
    out = tmp_path / "out.gguf"
    done = run(dense, "--spans", "6-9", "-o", out, "--split-max-size", "1G")
    assert done.stdout == f"{out}\n" and verify(out, dense)


@pytest.mark.parametrize("size", ["0M", "10", "1T", "-1G", "1.5G", "G"])
def test_sizes_are_megabytes_or_gigabytes(run, dense, size):
    done = run(dense, "--spans", "6-9", "--dry-run", "--split-max-size", size)
    assert done.status == 2 and f"'{size}' is not a size like 500M or 2G" in done.error


def test_a_flipped_bit_in_any_shard_is_seen(dense, tmp_path):
    for file in export_shards(dense, tmp_path / "out.gguf"):
        data = file.read_bytes()
        file.write_bytes(data[:-33] + bytes([data[-33] ^ 1]) + data[-32:])
        with pytest.raises(VerifyFailed, match=f"{file}: tensor '.*': its bytes differ"):
            verify(tmp_path / "out-00001-of-00004.gguf", dense)
        file.write_bytes(data)


def test_a_name_that_is_taken_stops_all_of_them(dense, tmp_path):
    taken = tmp_path / "out-00003-of-00004.gguf"
    taken.write_bytes(b"theirs")
    with pytest.raises(shareatt_export.ShareattError, match=f"{taken}: exists already; use --force"):
        export_shards(dense, tmp_path / "out.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"dense.gguf", taken.name}
