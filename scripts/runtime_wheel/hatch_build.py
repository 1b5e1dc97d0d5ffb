"""Hatchling's hooks: the wheel's version, dependencies and platform are those that runtime.json records."""

import json
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

RECORD = json.loads((Path(__file__).parent / "shareatt_export_runtime" / "runtime.json").read_text())


class MetadataHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        metadata |= {"version": RECORD["version"], "dependencies": RECORD["requires"]}


class BuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build_data |= {"pure_python": False, "tag": f"py3-none-{RECORD['platform']}"}
