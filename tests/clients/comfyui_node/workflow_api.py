"""From a workflow as ComfyUI's editor saves it to a prompt as its HTTP API takes it."""

from __future__ import annotations

from typing import Any

_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
_NOTES = ("Note", "MarkdownNote")


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """The prompt. `object_info` is the API's description of all nodes."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in _NOTES:
            continue
        inputs = _widget_values(node, object_info[node["type"]])
        linked = {
            entry["name"]: sources[entry["link"]] for entry in node["inputs"] if entry["link"]
        }
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": {**inputs, **linked}}
    return prompt


def _widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    values = iter(node["widgets_values"])
    found = {}
    for group in ("required", "optional"):
        for name, definition in info["input"].get(group, {}).items():
            kind, options = definition[0], definition[1] if len(definition) > 1 else {}
            if not (isinstance(kind, list) or kind in _WIDGETS) or options.get("forceInput"):
                continue
            found[name] = next(values)
            if options.get("control_after_generate") or options.get("image_upload"):
                next(values)
    return found
