"""Weights in other formats than safetensors: what a file is, and how it is converted where it is trusted."""

import zipfile
from pathlib import Path
from typing import Final

_OTHERS: Final = {b"\x89HDF": "an HDF5 file, as Keras writes", b"GGUF": "a GGUF file"}
_INSIDE: Final = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pt", "model.pth")


def remedy_for(path: Path) -> str:
    """Return what a file or folder is instead of safetensors, and what to do; empty if that is not known."""
    if path.is_dir():
        there = next((path / name for name in _INSIDE if (path / name).is_file()), None)
        if there is None:
            return "a folder: give the .safetensors file in it"
        return f"a folder, as save_pretrained writes: give {there}, and the architecture if it does not say"
    if not path.is_file():
        return ""
    with path.open("rb") as opened:
        begins = opened.read(8)
    if begins.startswith(b"\x80") or _holds_a_pickle(path):
        return f"a pickle, as torch.save writes, and never loaded: if you trust it, run {_converting(path)}"
    kind = next((words for magic, words in _OTHERS.items() if begins.startswith(magic)), None)
    return "" if kind is None else f"{kind}: load it in PyTorch and save its state_dict as .safetensors"


def _holds_a_pickle(path: Path) -> bool:
    """Tell whether a file is a zip archive as `torch.save` writes it; older versions wrote a bare pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.rpartition("/")[2] == "data.pkl" for name in archive.namelist())
    except Exception:  # Damaged archives make zipfile raise nearly anything.
        return False


def _converting(path: Path) -> str:
    """Return the command that makes safetensors of a state dict, or of a checkpoint that holds one."""
    out = path.with_suffix(".safetensors")
    return (
        'python -c "import torch; from safetensors.torch import save_file; '
        f"s = torch.load({str(path)!r}, map_location='cpu', weights_only=True); "
        "s = s.get('state_dict', s.get('model', s)); "
        f'save_file({{k: v.contiguous().clone() for k, v in s.items()}}, {str(out)!r})"'
    )
