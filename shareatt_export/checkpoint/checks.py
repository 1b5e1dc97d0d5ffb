"""Check that a Hugging Face folder is complete and sound, and that it brings no code of its own."""

from pathlib import Path

from ..errors import BadInput, Unsupported
from ..formats.lfs_pointer import refuse_lfs_pointer
from ..model.facts import MAX_LAYERS
from .safetensors import bad_file, read_json, read_tensors

INDEX = "model.safetensors.index.json"
MAX_JSON = {INDEX: 32 << 20}  # bytes; the index of the largest models has 15 MB


def check_no_code(folder: Path) -> None:
    """Raise Unsupported if transformers could run code of the folder."""
    if code := own_code(folder):
        next_step = "if you trust it, add --trust-remote-code"
        raise Unsupported(f"brings code of its own ({code})", path=folder, next_step=next_step)


def check_files(folder: Path) -> int | None:
    """Check the links, the configuration and the weights, and return the number of layers if the config has it.

    Raises BadInput if a file is missing or damaged, Unsupported if a file is a pickle or outside of the folder.
    """
    _check_links(folder)
    config = _config(folder)
    if not list(folder.glob("model*.safetensors")):  # the converter's rule; without any it would read the pickles
        if list(folder.glob("*.bin")) + list(folder.glob("*.pt")) + list(folder.glob("*.pth")):
            reason, next_step = "has only pickle weights, which can run code", "convert them to safetensors first"
            raise Unsupported(reason, path=folder, next_step=next_step)
        raise BadInput("no model*.safetensors in it", path=folder, next_step="download them too")
    if (mask := folder / "mask_embedding.pt").exists():  # DFlash draft models have one
        reason, next_step = "a pickle, which the converter would read", "such models cannot be exported"
        raise Unsupported(reason, path=mask, next_step=next_step)
    _check_shards(folder)
    n_layer = config.get("num_hidden_layers")
    if n_layer is not None and (type(n_layer) is not int or not 1 <= n_layer <= MAX_LAYERS):
        raise bad_file(folder / "config.json", "num_hidden_layers", f"{n_layer} layers, 1 to {MAX_LAYERS} are possible")
    return n_layer


def own_code(folder: Path) -> str | None:
    """Return the file or field that makes transformers run code of the folder, None if there is none."""
    code = sorted(path.name for path in folder.rglob("*.py"))
    mapped = sorted(path.name for path in folder.glob("*config*.json") if "auto_map" in _json(path))
    return code[0] if code else f"auto_map in {mapped[0]}" if mapped else None


def _config(folder: Path) -> dict[str, object]:
    if not (folder / "config.json").is_file():
        raise BadInput("not a model: neither a GGUF file nor a folder with a config.json", path=folder)
    return _json(folder / "config.json")


def _json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    refuse_lfs_pointer(path)
    if (size := path.stat().st_size) > (limit := MAX_JSON.get(path.name, 4 << 20)):
        raise bad_file(path, "JSON", f"{size} bytes, at most {limit} are possible")
    return read_json(path, path.read_bytes())


def _check_links(folder: Path) -> None:
    """Check that links lead to files of the folder, or of the blobs folder if this is a snapshot of the hub's cache."""
    inside = [folder.resolve()]
    if inside[0].parent.name == "snapshots":
        inside.append(inside[0].parent.parent / "blobs")
    for path in folder.iterdir():
        if path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in inside):
            reason = f"links to {path.resolve()}, outside of the model's folder"
            raise Unsupported(reason, path=path, next_step="copy the file there")


def _check_shards(folder: Path) -> None:
    """Check that each shard has exactly the tensors that the index says, and that no tensor is in two shards."""
    index = folder / INDEX
    weight_map = _weight_map(index) if index.is_file() else None
    found: dict[str, str] = {}  # the file of each tensor
    named = [folder / name for name in set(weight_map.values())] if weight_map else folder.glob("model*.safetensors")
    for path in sorted(named):
        if not path.is_file():
            raise bad_file(path, "shard", "not a regular file")
        for name in sorted(read_tensors(path)):
            if name in found:
                raise bad_file(path, f"tensor '{name}'", f"is also in {found[name]}")
            found[name] = path.name
    if weight_map is None:
        return
    for name in sorted(weight_map.keys() | found.keys()):
        expected, actual = weight_map.get(name, "no file"), found.get(name, "no file")
        if expected != actual:
            reason = f"the index places '{name[:64]}' in {expected}, but it is in {actual}"
            raise bad_file(index, "weight_map", reason)
    for path in sorted(folder.glob("model-*-of-*.safetensors")):
        if path.name not in weight_map.values():
            raise bad_file(index, "weight_map", f"{path.name} is not in it")


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file name of each tensor. The index is untrusted, so each name must be a file of the folder."""
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise bad_file(index, "weight_map", "expected a JSON object of file names")
    files = {path.name for path in index.parent.iterdir() if path.is_file()}
    for name in map(str, weight_map.values()):
        if name not in files:
            raise bad_file(index, "weight_map", f"'{name[:64]}' is not a file of this folder")
    return weight_map


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the files of the folder, without its subfolders."""
    return [path for path in folder.iterdir() if path.is_file()]
