"""Whether a Hugging Face folder can be converted without running code of its own, and is complete."""

from pathlib import Path

from ..errors import BadInput, Unsupported
from ..formats.lfs_pointer import refuse_lfs_pointer
from ..model.facts import MAX_LAYERS
from .safetensors import bad_file, read_json, tensor_names

INDEX = "model.safetensors.index.json"


MAX_JSON = {INDEX: 32 << 20}  # bytes; that of the largest models has 15 MB


def check_checkpoint(folder: Path, trust_remote_code: bool) -> int | None:
    """The number of layers, if the config tells it in the usual place.

    Raises BadInput or Unsupported where `folder` is no checkpoint that can be converted without running its code.
    """
    _check_links(folder)
    config = _config(folder)
    if not trust_remote_code and (what := own_code(folder)):
        raise Unsupported(f"{folder}: brings code of its own ({what}); if you trust it, add --trust-remote-code")
    if not list(folder.glob("model*.safetensors")):  # the converter's rule; with none it would read the pickles
        if list(folder.glob("*.bin")) + list(folder.glob("*.pt")) + list(folder.glob("*.pth")):
            raise Unsupported(
                f"{folder}: has only pickle weights, which can run code; convert them to safetensors first"
            )
        raise BadInput(f"{folder}: no model*.safetensors in it; download them too")
    if (mask := folder / "mask_embedding.pt").exists():  # of DFlash drafts
        raise Unsupported(f"{mask}: a pickle, which the converter would read; such models cannot be exported")
    _check_shards(folder)
    n_layer = config.get("num_hidden_layers")
    if n_layer is not None and (type(n_layer) is not int or not 1 <= n_layer <= MAX_LAYERS):
        raise bad_file(folder / "config.json", "num_hidden_layers", f"{n_layer} layers, 1 to {MAX_LAYERS} are possible")
    return n_layer


def own_code(folder: Path) -> str | None:
    """The file or field by which transformers would run code of the folder."""
    code = sorted(path.name for path in folder.rglob("*.py"))
    mapped = sorted(path.name for path in folder.glob("*config*.json") if "auto_map" in _json(path))
    return code[0] if code else f"auto_map in {mapped[0]}" if mapped else None


def _config(folder: Path) -> dict[str, object]:
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: not a model: neither a GGUF file nor a folder with a config.json")
    return _json(folder / "config.json")


def _json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    refuse_lfs_pointer(path)
    if (size := path.stat().st_size) > (limit := MAX_JSON.get(path.name, 4 << 20)):
        raise bad_file(path, "JSON", f"{size} bytes, at most {limit} are possible")
    return read_json(path, path.read_bytes())


def _check_links(folder: Path) -> None:
    """Files may link to others of the folder, and in the hub's cache to its blobs, as all do there."""
    inside = [folder.resolve()]
    if inside[0].parent.name == "snapshots":
        inside.append(inside[0].parent.parent / "blobs")
    for path in folder.iterdir():
        if path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in inside):
            raise Unsupported(f"{path}: links to {path.resolve()}, outside of the model's folder; copy the file there")


def _check_shards(folder: Path) -> None:
    """Shards must have what the index says, no more and no less; without one, no tensor may be in two of them."""
    index = folder / INDEX
    said = _weight_map(index) if index.is_file() else None
    found: dict[str, str] = {}  # the file of each tensor
    for path in (
        sorted(folder / name for name in set(said.values())) if said else sorted(folder.glob("model*.safetensors"))
    ):
        if not path.is_file():
            raise bad_file(path, "shard", "not a regular file")
        for name in sorted(tensor_names(path)):
            if name in found:
                raise bad_file(path, f"tensor '{name}'", f"stands in {found[name]} too")
            found[name] = path.name
    if said is None:
        return
    for name in sorted(said.keys() | found.keys()):
        if said.get(name) != found.get(name):
            where = (
                f"'{name[:64]}' is in {said.get(name, 'no file')} by the index, in {found.get(name, 'no file')} really"
            )
            raise bad_file(index, "weight_map", where)
    for path in sorted(folder.glob("model-*-of-*.safetensors")):
        if path.name not in said.values():
            raise bad_file(index, "weight_map", f"{path.name} is not in it")


def _weight_map(index: Path) -> dict[str, str]:
    """File names by tensor; they come from a file that somebody else wrote, and must stay inside the folder."""
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise bad_file(index, "weight_map", "expected a JSON object of file names")
    there = {path.name for path in index.parent.iterdir() if path.is_file()}
    for name in map(str, weight_map.values()):
        if name not in there:
            raise bad_file(index, "weight_map", f"'{name[:64]}' is not a file of this folder")
    return weight_map


def checkpoint_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]
