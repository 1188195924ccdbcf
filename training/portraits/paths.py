"""Where things lie unless the command line says otherwise."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DEFAULT_DATA = Path(__file__).parent / "data"
DEFAULT_RUN = Path(__file__).parent / "runs" / "default"
DEFAULT_MODEL = ROOT / "models" / "pixel-portraits"
DEFAULT_SHEET = ROOT / "docs" / "images" / "portraits.png"
CHECKER_WEIGHTS = Path(__file__).parent / "checker.safetensors"
